"""One test or more for each error that quantizers have shipped with."""

from typing import Any

import pytest
import torch
from reference.naive_quantizer import mixed_scale_codes, mutual_information_bits
from reference.vectors import structured_vectors

from bridle.errors import QuantizerError
from bridle.quantize import QuantizerConfig, ResidualQuantizer


def make(sample: torch.Tensor, **settings: Any) -> ResidualQuantizer:
    defaults = {"num_codebooks": 3, "codebook_size": 16, "code_dim": sample.shape[1], "kmeans_steps": 10}
    quantizer = ResidualQuantizer(QuantizerConfig(**defaults | settings)).train()
    quantizer.fit(sample, 0)
    return quantizer


def relative_error(quantizer: ResidualQuantizer, z: torch.Tensor) -> float:
    return float((quantizer.decode(quantizer.encode(z)) - z).square().sum() / z.square().sum())


def state(quantizer: ResidualQuantizer) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in quantizer.named_buffers()}


def assert_same_state(quantizer: ResidualQuantizer, before: dict[str, torch.Tensor]) -> None:
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name


# 1. Two scales in one scheme.


@pytest.mark.parametrize("norm", [0.3, 1.0, 4.0, 16.0])
def test_the_relative_error_does_not_depend_on_the_length_of_the_input(norm: float) -> None:
    unit = torch.nn.functional.normalize(structured_vectors(2000), dim=1)
    assert relative_error(make(norm * unit[:1000]), norm * unit[1000:]) < 0.02
    assert relative_error(make(norm * unit[:1000]), norm * unit[1000:]) == pytest.approx(
        relative_error(make(unit[:1000]), unit[1000:]), rel=0.1
    )


@pytest.mark.parametrize("norm", [0.3, 16.0])
def test_normalisation_takes_place_once_at_the_entrance(norm: float) -> None:
    z = structured_vectors(1000)
    quantizer = make(z, normalise="l2")
    unit = torch.nn.functional.normalize(z, dim=1)
    assert torch.equal(quantizer.encode(norm * z), quantizer.encode(z))
    vectors = quantizer.decode(quantizer.encode(norm * z))
    assert float((vectors - unit).square().sum() / unit.square().sum()) < 0.02
    assert float(quantizer.codebooks[2].norm(dim=1).max()) < 0.7  # entries of free norm: residuals are short


def test_levels_do_not_repeat_each_other() -> None:
    z = structured_vectors(20_000, branches=16)
    ours = make(z, codebook_size=16, kmeans_steps=30)
    codes = ours.encode(z)
    shared = mutual_information_bits(codes[:, 0], codes[:, 1], 16)
    wrong, _ = mixed_scale_codes(4 * torch.nn.functional.normalize(z, dim=1), ours.codebooks)
    assert shared < 1.0
    assert mutual_information_bits(wrong[:, 0], wrong[:, 1], 16) > shared + 0.5


# 2. Codebooks of each rank: tests/quantize/test_quantizer_distributed.py.
# 3. Labels that tell the position: a code is a function of its vector alone.


def test_a_code_depends_on_its_vector_alone() -> None:
    z = structured_vectors(500)
    quantizer = make(z)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    codes = quantizer.encode(z)
    assert torch.equal(quantizer.encode(z[order]), codes[order])
    assert torch.equal(quantizer(z[order]).codes, codes[order])
    assert torch.equal(quantizer.encode(z[100:101]), codes[100:101])
    assert torch.equal(quantizer.encode(z[:1].repeat(64, 1)), codes[:1].repeat(64, 1))
    one, two = quantizer(z).statistics, quantizer(z[order]).statistics
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


# 4. A start that uses few codes.


def test_the_start_uses_nearly_all_codes_of_every_level() -> None:
    quantizer = make(structured_vectors(4000), codebook_size=32)
    fresh = quantizer.encode(structured_vectors(4000, draw=1))
    for r in range(3):
        assert float(quantizer.metrics()[f"in_use/{r}"]) > 0.9
        assert float(quantizer.metrics()[f"perplexity/{r}"]) > 0.6
        assert len(fresh[:, r].unique()) > 0.9 * 32


# 5. Expired codes.


def collapsed(**settings: Any) -> tuple[ResidualQuantizer, torch.Tensor]:
    """Entries 2 to 15 of every level far from all data, usage in accord."""
    z = structured_vectors(4000)
    quantizer = make(z, **settings)
    quantizer.codebooks[:, 2:] = 50.0 + torch.arange(14)[:, None]
    quantizer.ema_usage[:] = torch.tensor([0.5, 0.5] + [0.0] * 14)
    return quantizer, z


def test_expired_codes_come_back_at_every_level_and_stay() -> None:
    quantizer, z = collapsed(decay=0.9)
    started = relative_error(quantizer, z)
    revived = torch.zeros(3)
    for step in range(150):
        batch = structured_vectors(512, draw=step)
        quantizer.update(quantizer(batch).statistics)
        revived += torch.stack([quantizer.metrics()[f"revived/{r}"] for r in range(3)])
    assert bool((revived >= 14).all())
    assert relative_error(quantizer, z) < 0.05 * started
    assert relative_error(quantizer, z) < 1.5 * relative_error(make(z), z)
    for r in range(3):
        assert float(quantizer.metrics()[f"in_use/{r}"]) > 0.9
    torch.testing.assert_close(quantizer.ema_usage.sum(1), torch.ones(3))


def test_a_revived_code_starts_with_the_state_of_its_half() -> None:
    quantizer, z = collapsed()
    quantizer.update(quantizer(z).statistics)
    for r in range(3):
        assert quantizer.metrics()[f"revived/{r}"] == 2  # two codes could be split
        live = quantizer.ema_usage[r] * 16 >= 0.1
        assert int(live.sum()) == 4
        assert float(quantizer.codebooks[r][live].norm(dim=1).max()) < 20  # where this level's residuals are
        assert float(quantizer.ema_usage[r][live].sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("repeats", [1, 8])
@pytest.mark.parametrize(("usage", "expected"), [(0.31, 0), (0.29, 1)])
def test_the_threshold_is_relative_to_uniform_and_not_to_the_batch_size(repeats: int, usage: float, expected: int) -> None:
    z = 10 * torch.eye(16).repeat(100, 1) + torch.randn(1600, 16, generator=torch.Generator().manual_seed(0))
    quantizer = make(z, num_codebooks=1, revive_below=0.3, decay=0.9)
    quantizer.codebooks[0] = 10 * torch.eye(16)
    quantizer.ema_usage.fill_(1 / 16)
    quantizer.ema_usage[0, 15] = (usage - 0.1) / 0.9 / 16  # becomes usage / 16, for the batch's share is uniform
    quantizer.update(quantizer(z.repeat(repeats, 1)).statistics)
    assert quantizer.metrics()["revived/0"] == expected


def test_zero_switches_revival_off() -> None:
    quantizer, z = collapsed(revive_below=0.0)
    before = quantizer.codebooks[:, 2:].clone()
    quantizer.update(quantizer(z).statistics)
    assert torch.equal(quantizer.codebooks[:, 2:], before)
    assert quantizer.metrics()["revived/0"] == 0


def test_eval_changes_no_state_at_all() -> None:
    quantizer, z = collapsed()
    quantizer.eval()
    before = state(quantizer)
    for _ in range(3):
        quantizer.update(quantizer(z).statistics)
    assert_same_state(quantizer, before)


# 7. Precision, and which codes are nearest.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(dtype: torch.dtype) -> None:
    z = structured_vectors(300)
    quantizer, other = make(z), make(z)
    out = quantizer(z)
    with torch.autocast("cpu", dtype):
        under = other(z)
        assert torch.equal(other.encode(z), out.codes)
        other.update(under.statistics)
        refit = make(z)
    quantizer.update(out.statistics)
    assert torch.equal(under.codes, out.codes)
    assert torch.equal(under.vectors, out.vectors)
    assert torch.equal(under.statistics, out.statistics)
    assert under.commitment.dtype == torch.float32
    assert torch.equal(other.codebooks, quantizer.codebooks)
    assert torch.equal(refit.codebooks, make(z).codebooks)


def test_a_code_is_the_nearest_entry_and_never_the_farthest() -> None:
    z = structured_vectors(500)
    quantizer = make(z)
    codes, residual = quantizer.encode(z), z
    for r in range(3):
        distances = torch.cdist(residual, quantizer.codebooks[r], compute_mode="donot_use_mm_for_euclid_dist")
        chosen = distances.gather(1, codes[:, r : r + 1])[:, 0]
        torch.testing.assert_close(chosen, distances.amin(1), rtol=0, atol=1e-4)
        residual = residual - quantizer.codebooks[r][codes[:, r]]


# 8. Faults that other libraries shipped. Unequal batches per rank: test_quantizer_distributed.py.


def test_a_sample_smaller_than_the_codebook_is_refused_by_both_numbers() -> None:
    quantizer = ResidualQuantizer(QuantizerConfig(codebook_size=64, code_dim=16))
    with pytest.raises(QuantizerError, match=r"63 vectors.*codebook_size 64.*gather more"):
        quantizer.fit(structured_vectors(63), 0)
    assert not quantizer.fitted
    quantizer.fit(structured_vectors(64), 0)
    assert quantizer.fitted


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_never_reaches_a_codebook(value: float) -> None:
    z = structured_vectors(300)
    quantizer = make(z)
    bad = z.clone()
    bad[7, 3] = value
    for read in (quantizer.encode, lambda x: quantizer.fit(x, 0)):
        before = state(quantizer)
        with pytest.raises(QuantizerError, match=r"level 0: 1 of 300"):
            read(bad)
        assert_same_state(quantizer, before)
    out = quantizer(bad.requires_grad_())
    assert not out.commitment.isfinite()
    assert not out.vectors[7].isfinite().all()
    assert torch.equal(out.codes[8:], quantizer.encode(z)[8:])
    quantizer.update(out.statistics + quantizer(z).statistics)
    assert_same_state(quantizer, before)
    quantizer.update(quantizer(z).statistics)
    assert quantizer.codebooks.isfinite().all()
    assert int(quantizer.updates) == 1


def test_a_non_finite_codebook_is_refused_by_its_level() -> None:
    z = structured_vectors(300)
    quantizer = make(z)
    quantizer.codebooks[1, 3, 0] = float("nan")
    with pytest.raises(QuantizerError, match=r"level 1: the codebook"):
        quantizer.encode(z)


def test_a_resumed_quantizer_goes_on_bit_for_bit_without_a_new_start() -> None:
    batches = [structured_vectors(200, draw=step) for step in range(12)]
    straight = make(structured_vectors(1000), decay=0.8)
    for batch in batches[:6]:
        straight.update(straight(batch).statistics)
    saved = {name: value.clone() for name, value in straight.state_dict().items()}
    resumed = ResidualQuantizer(straight.config).train()
    resumed.load_state_dict(saved, strict=True)
    assert resumed.fitted
    assert torch.equal(resumed.encode(batches[0]), straight.encode(batches[0]))
    for quantizer in (straight, resumed):
        for batch in batches[6:]:
            quantizer.update(quantizer(batch).statistics)
    assert_same_state(resumed, state(straight))


def test_loading_an_unfitted_state_is_noticed() -> None:
    quantizer = make(structured_vectors(300))
    quantizer(structured_vectors(10))
    quantizer.load_state_dict(ResidualQuantizer(quantizer.config).state_dict())
    with pytest.raises(QuantizerError, match="no codebooks yet"):
        quantizer(structured_vectors(10))


# The anchor of reconstruction.


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_reconstruction_is_level_with_faiss(seed: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed: pip install 'bridle[bench]'")
    train, held_out = (
        structured_vectors(8000, 32, branches=40, seed=seed),
        structured_vectors(2000, 32, branches=40, seed=seed, draw=1),
    )
    reference = faiss.ResidualQuantizer(32, 3, 5)
    reference.max_beam_size = 1
    reference.train(train.numpy())
    decoded = torch.from_numpy(reference.decode(reference.compute_codes(held_out.numpy())))
    ours = make(train, codebook_size=32, kmeans_steps=20)
    error = float((ours.decode(ours.encode(held_out)) - held_out).square().mean())
    assert error <= 1.05 * float((decoded - held_out).square().mean())
