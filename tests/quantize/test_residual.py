"""The residual quantizer as a module: results, gradients, state, errors."""

import copy
import re
from typing import Any

import pytest
import torch
from reference.naive_quantizer import NaiveEma, naive_codes, naive_vectors
from reference.vectors import structured_vectors
from torch._subclasses.fake_tensor import FakeTensorMode

from bridle.config import from_dict, to_dict
from bridle.errors import ConfigError, QuantizerError
from bridle.quantize import QuantizerConfig, ResidualQuantizer
from bridle.quantize.residual import _StraightThrough
from bridle.train.agreement import bit_hash


def make(count: int = 600, seed: int = 0, **settings: Any) -> ResidualQuantizer:
    config = QuantizerConfig(**{"num_codebooks": 3, "codebook_size": 16, "code_dim": 16, "kmeans_steps": 5} | settings)
    quantizer = ResidualQuantizer(config).train()
    quantizer.fit(structured_vectors(count, config.code_dim), seed)
    return quantizer


def state(quantizer: ResidualQuantizer) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in quantizer.named_buffers()}


def assert_same_state(quantizer: ResidualQuantizer, before: dict[str, torch.Tensor]) -> None:
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_forward_equals_naive() -> None:
    quantizer, z = make(), structured_vectors(500, draw=1)
    out = quantizer(z)
    codes = naive_codes(z, quantizer.codebooks)
    vectors = naive_vectors(codes, quantizer.codebooks)
    assert torch.equal(out.codes, codes)
    assert torch.equal(quantizer.encode(z), codes)
    torch.testing.assert_close(out.vectors.double(), vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(quantizer.decode(codes).double(), vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.commitment.double(), (z - vectors).square().mean(1).sum(), rtol=1e-4, atol=0)


def test_update_equals_naive() -> None:
    quantizer = make(revive_below=0.0, decay=0.9)
    naive = NaiveEma(quantizer.codebooks, quantizer.ema_usage.clamp(min=1e-12), decay=0.9)
    for step in range(10):
        z = structured_vectors(300, draw=step)
        quantizer.update(quantizer(z).statistics)
        naive.update(z)
    torch.testing.assert_close(quantizer.codebooks.double(), naive.codebooks, rtol=0, atol=1e-4)
    torch.testing.assert_close(quantizer.ema_usage.double(), naive.usage, rtol=1e-5, atol=1e-6)
    assert int(quantizer.updates) == 10


def test_statistics_of_micro_batches_are_added() -> None:
    one, two, z = make(), make(), structured_vectors(300, draw=1)
    one.update(one(z).statistics)
    two.update(two(z[:70]).statistics + two(z[70:70]).statistics + two(z[70:]).statistics)
    torch.testing.assert_close(one.codebooks, two.codebooks, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.ema_usage, two.ema_usage, rtol=0, atol=1e-6)
    for name, value in one.metrics().items():
        torch.testing.assert_close(value, two.metrics()[name], rtol=1e-4, atol=1e-6)


def test_update_leaves_its_argument() -> None:
    quantizer = make()
    statistics = quantizer(structured_vectors(100)).statistics
    before = statistics.clone()
    quantizer.update(statistics)
    assert torch.equal(statistics, before)


def test_gradients_straight_through_and_of_the_commitment() -> None:
    quantizer = make()
    z = structured_vectors(50, draw=1).requires_grad_()
    weights = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    out = quantizer(z)
    (through,) = torch.autograd.grad((out.vectors * weights).sum(), z, retain_graph=True)
    assert torch.equal(through, weights)
    (committed,) = torch.autograd.grad(3 * out.commitment, z, retain_graph=True)
    torch.testing.assert_close(committed, 3 * 2 * (z - out.vectors).detach() / 16)
    (both,) = torch.autograd.grad((out.vectors * weights).sum() + 3 * out.commitment, z)
    torch.testing.assert_close(both, through + committed)
    assert not out.codes.requires_grad
    assert not out.statistics.requires_grad


def test_gradients_equal_the_detach_formula_under_normalisation() -> None:
    quantizer = make(normalise="l2")
    z = structured_vectors(50, draw=1).requires_grad_()
    weights = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    out = quantizer(z)
    (found,) = torch.autograd.grad((out.vectors * weights).sum() + out.commitment, z)
    unit = torch.nn.functional.normalize(z, dim=1)
    vectors = quantizer.decode(out.codes)
    loss = ((unit + (vectors - unit).detach()) * weights).sum() + (unit - vectors).square().mean(1).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, z)[0], rtol=1e-4, atol=1e-6)


def test_leading_shapes_are_kept_and_no_vectors_are_allowed() -> None:
    quantizer, z = make(), structured_vectors(24, draw=1)
    assert torch.equal(quantizer.encode(z.view(2, 3, 4, 16)), quantizer.encode(z).view(2, 3, 4, 3))
    assert quantizer.encode(z[0]).shape == (3,)
    assert quantizer.decode(quantizer.encode(z.view(4, 6, 16))).shape == (4, 6, 16)
    out = quantizer(z.view(4, 6, 16))
    assert out.vectors.shape == (4, 6, 16)
    assert out.codes.shape == (4, 6, 3)
    empty = quantizer(z[:0])
    assert empty.vectors.shape == (0, 16)
    assert empty.commitment == 0
    assert not empty.statistics.any()
    assert quantizer.encode(z[:0]).shape == (0, 3)
    assert quantizer.decode(quantizer.encode(z[:0])).shape == (0, 16)
    before = state(quantizer)
    quantizer.update(empty.statistics)
    assert_same_state(quantizer, before)


def test_a_non_contiguous_input_changes_nothing() -> None:
    quantizer, z = make(), structured_vectors(40, draw=1)
    assert torch.equal(quantizer(z.T.contiguous().T).codes, quantizer(z).codes)


def test_prefixes_of_codes_decode_coarser_and_every_level_removes_energy() -> None:
    quantizer, z = make(), structured_vectors(500, draw=1)
    codes = quantizer.encode(z)
    errors = [float((quantizer.decode(codes[:, :levels]) - z).square().sum()) for levels in (1, 2, 3)]
    assert float(z.square().sum()) > 2 * errors[0] > 4 * errors[1] > 4 * errors[2] > 0
    quantizer.update(quantizer(z).statistics)
    left = [float(quantizer.metrics()[f"residual/{r}"]) for r in range(3)]
    assert left == pytest.approx([error / float(z.square().sum()) for error in errors], rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_reading_changes_no_state(training: bool) -> None:
    quantizer, z = make().train(training), structured_vectors(100, draw=1)
    quantizer(z)
    before = state(quantizer)
    rng = torch.get_rng_state()
    quantizer.decode(quantizer.encode(z))
    quantizer(z.clone().requires_grad_()).commitment.backward()
    quantizer.metrics()
    assert_same_state(quantizer, before)
    assert torch.equal(rng, torch.get_rng_state())


def test_metrics_are_the_documented_ones() -> None:
    quantizer = make(num_codebooks=2, codebook_size=4)
    quantizer.ema_usage.copy_(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.49, 0.01, 0.0]]))
    metrics = quantizer.metrics()
    assert sorted(metrics) == sorted(f"{n}/{r}" for n in ("in_use", "perplexity", "revived", "residual") for r in (0, 1))
    assert metrics["in_use/0"] == 1
    assert metrics["in_use/1"] == 0.5
    assert float(metrics["perplexity/0"]) == pytest.approx(1)
    entropy = -(0.5 * torch.tensor(0.5).log() + 0.49 * torch.tensor(0.49).log() + 0.01 * torch.tensor(0.01).log())
    assert float(metrics["perplexity/1"]) == pytest.approx(float(entropy.exp()) / 4, rel=1e-5)


def test_fit_is_a_function_of_sample_and_seed() -> None:
    one, two, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(one.codebooks, two.codebooks)
    assert not torch.equal(one.codebooks, other.codebooks)
    torch.testing.assert_close(one.ema_usage.sum(1), torch.ones(3))


def test_fit_bounds_its_sample() -> None:
    quantizer = make(count=2000, init_sample=32)
    shares = quantizer.ema_usage * 32
    torch.testing.assert_close(shares, shares.round())


def test_fit_refuses_vectors_that_are_all_equal() -> None:
    quantizer = make()
    with pytest.raises(QuantizerError, match="all 500 vectors of the k-means sample are equal: the clips are silent"):
        quantizer.fit(torch.full((500, quantizer.config.code_dim), 0.5), seed=0)


def test_hash_sees_one_bit() -> None:
    quantizer = make()
    before = int(bit_hash(quantizer.codebooks))
    quantizer.codebooks.view(torch.int32)[1, 2, 3] ^= 1
    assert int(bit_hash(quantizer.codebooks)) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_buffers_stay_float32_bit_for_bit(dtype: torch.dtype) -> None:
    quantizer, z = make(), structured_vectors(100, draw=1)
    before = state(quantizer)
    codes = quantizer.encode(z)
    quantizer.to(dtype)
    assert_same_state(quantizer, before)
    assert torch.equal(quantizer.encode(z), codes)
    assert quantizer(z.to(dtype)).vectors.dtype == torch.float32


def test_a_copy_is_independent() -> None:
    quantizer, z = make(), structured_vectors(100, draw=1)
    frozen = copy.deepcopy(quantizer).eval()
    before = state(frozen)
    quantizer.update(quantizer(z).statistics)
    assert_same_state(frozen, before)
    assert not torch.equal(frozen.codebooks, quantizer.codebooks)


def test_a_training_step_never_waits_for_the_device() -> None:
    """Fake tensors hold no numbers: whatever would copy one to the host raises."""
    quantizer = make()
    quantizer(structured_vectors(20))  # the one question whether it is fitted
    with FakeTensorMode() as mode:
        for name, buffer in list(quantizer.named_buffers()):
            setattr(quantizer, name, mode.from_tensor(buffer))
        z = torch.empty(100, 16, requires_grad=True)
        out = quantizer(z)
        (out.vectors.sum() + out.commitment).backward()
        quantizer.update(out.statistics)
        quantizer.metrics()
        assert quantizer.encode(z, check=False).shape == (100, 3)
        with pytest.raises(Exception, match=r"[Dd]ata.?dependent|_local_scalar_dense"):
            quantizer.encode(z)


def test_nothing_of_the_size_of_the_input_is_kept_but_input_and_output() -> None:
    quantizer = make()
    z = structured_vectors(200, draw=1).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = quantizer(z)
    assert {t.data_ptr() for t in kept} == {z.data_ptr(), out.vectors.data_ptr()}
    assert isinstance(_StraightThrough, type)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_codebooks", 0),
        ("codebook_size", 0),
        ("code_dim", -1),
        ("kmeans_steps", 0),
        ("decay", 1.0),
        ("decay", -0.1),
        ("decay", float("nan")),
        ("commitment_weight", -1.0),
        ("commitment_weight", float("inf")),
        ("revive_below", 0.6),
        ("revive_below", -0.1),
        ("init_sample", 255),
        ("normalise", "l1"),
    ],
)
def test_a_bad_setting_is_named_with_value_and_limit(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} is {re.escape(repr(value))}; it must be"):
        QuantizerConfig(**{setting: value})  # type: ignore[arg-type]


def test_config_survives_plain_data() -> None:
    config = QuantizerConfig(num_codebooks=2, normalise="l2", decay=0.5)
    assert from_dict(QuantizerConfig, to_dict(config)) == config


def test_errors_name_value_limit_and_remedy() -> None:
    quantizer, z = make(), structured_vectors(100)
    with pytest.raises(QuantizerError, match=r"\(100, 8\).*code_dim 16"):
        quantizer(z[:, :8])
    with pytest.raises(QuantizerError, match=r"\(100, 8\).*code_dim 16"):
        quantizer.encode(z[:, :8])
    with pytest.raises(QuantizerError, match=r"code_dim 16"):
        quantizer.fit(z[:, :8], 0)
    with pytest.raises(QuantizerError, match=r"4 levels.*1 to 3"):
        quantizer.decode(torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(QuantizerError, match=r"from -1 to 16.*0 to 15"):
        quantizer.decode(torch.tensor([[0, -1, 16]]))
    with pytest.raises(QuantizerError, match=r"statistics \(3,\)"):
        quantizer.update(torch.zeros(3))
    unfitted = ResidualQuantizer(QuantizerConfig(code_dim=16))
    for read in (unfitted, unfitted.encode):
        with pytest.raises(QuantizerError, match=r"no codebooks yet: call fit"):
            read(z)
