"""Losses against naive loops, invariances, gradients, and parts that add up to the whole."""

import math

import pytest
import torch

from bridle.losses import codes
from bridle.losses.codes import code_scores
from bridle.losses.features import cosine_distance, patch_regression


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOGITS, CODES = random(3, 4, 2, 7), torch.randint(7, (3, 4, 2), generator=torch.Generator().manual_seed(1))
VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture(params=[1 << 19, 4 * 7 * 5], ids=["whole", "in pieces of five rows"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "_CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("pieces")
def test_cross_entropy_and_accuracy_equal_loops() -> None:
    loss, right = [0.0, 0.0], [0, 0]
    for b in range(3):
        for m in range(4):
            for r in range(2):
                if VALID[b, m]:
                    row = LOGITS[b, m, r].tolist()
                    loss[r] += math.log(sum(map(math.exp, row))) - row[CODES[b, m, r]]
                    right[r] += row.index(max(row)) == CODES[b, m, r]
    found = code_scores(LOGITS, CODES, VALID)
    torch.testing.assert_close(found.cross_entropy, torch.tensor(loss))
    assert found.right.tolist() == right and not found.right.requires_grad


def test_cross_entropy_of_uniform_logits_is_log_k() -> None:
    found = code_scores(torch.zeros(3, 4, 2, 7), CODES, None)
    torch.testing.assert_close(found.cross_entropy, torch.full((2,), 12 * math.log(7)))


def test_cross_entropy_does_not_change_with_a_shift_of_the_logits() -> None:
    shifted, plain = (code_scores(logits, CODES, VALID).cross_entropy for logits in (LOGITS + 1e4, LOGITS))
    torch.testing.assert_close(shifted, plain, atol=0.02, rtol=1e-3)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("valid", [VALID, None])
def test_cross_entropy_gradient_is_that_of_torch_and_zero_on_padding(valid: torch.Tensor | None) -> None:
    weights = torch.tensor([0.3, -2.0])
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    (code_scores(ours, CODES, valid).cross_entropy * weights).sum().backward()
    each = torch.nn.functional.cross_entropy(theirs.flatten(0, 2), CODES.flatten(), reduction="none").view_as(CODES)
    (each * (1.0 if valid is None else valid[..., None]) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert valid is None or not ours.grad[~valid].any()
    assert torch.autograd.gradcheck(
        lambda logits: code_scores(logits, CODES, valid).cross_entropy, LOGITS.double().requires_grad_(), eps=1e-2, atol=1e-3
    )


def test_logits_in_bf16_are_scored_in_float32() -> None:
    logits = LOGITS.bfloat16().requires_grad_()
    exact = logits.detach().float().requires_grad_()
    found, expected = code_scores(logits, CODES, VALID), code_scores(exact, CODES, VALID)
    assert torch.equal(found.cross_entropy, expected.cross_entropy) and found.cross_entropy.dtype == torch.float32
    found.cross_entropy.sum().backward()
    expected.cross_entropy.sum().backward()
    assert logits.grad is not None and exact.grad is not None
    assert torch.equal(logits.grad, exact.grad.bfloat16())


def test_logits_that_are_not_finite_show_in_loss_and_gradient() -> None:
    for bad in (math.nan, math.inf):
        logits = LOGITS.clone()
        logits[0, 1, 0, 3] = bad
        logits.requires_grad_()
        found = code_scores(logits, CODES, VALID).cross_entropy
        assert not found[0].isfinite() and found[1].isfinite()
        found.sum().backward()
        assert logits.grad is not None and not logits.grad[0, 1, 0].isfinite().all()


def test_no_position_has_no_loss() -> None:
    empty = torch.zeros(0, 5, 2, 7, requires_grad=True)
    found = code_scores(empty, torch.zeros(0, 5, 2, dtype=torch.int64), None)
    assert found.cross_entropy.tolist() == [0, 0] == found.right.tolist()
    found.cross_entropy.sum().backward()
    assert empty.grad is not None and empty.grad.shape == empty.shape


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    whole = code_scores(LOGITS, CODES, VALID).cross_entropy
    parts = sum(code_scores(LOGITS[b : b + 1], CODES[b : b + 1], VALID[b : b + 1]).cross_entropy for b in range(3))
    torch.testing.assert_close(whole, parts)


def test_cosine_distance_equals_a_loop_and_ignores_scale() -> None:
    a, b = random(2, 3, 5), random(2, 3, 5, seed=1)
    expected = sum(1 - float(a[i, j] @ b[i, j] / a[i, j].norm() / b[i, j].norm()) for i in range(2) for j in range(3))
    assert math.isclose(float(cosine_distance(a, b, None)), expected, rel_tol=1e-5)
    torch.testing.assert_close(cosine_distance(7 * a, 0.1 * b, None), cosine_distance(a, b, None))


def test_cosine_distance_trains_the_prediction_only_and_survives_zeros() -> None:
    a, b = random(2, 3, 5).requires_grad_(), random(2, 3, 5, seed=1).requires_grad_()
    cosine_distance(a, b, None).backward()
    assert a.grad is not None and a.grad.abs().sum() > 0 and b.grad is None
    zero = torch.zeros(1, 1, 5, requires_grad=True)
    cosine_distance(zero, b, None).backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_patch_regression_equals_a_loop_and_skips_padding() -> None:
    a, b = random(3, 4, 6), random(3, 4, 6, seed=1)
    expected = sum(float((a[i, j] - b[i, j]).square().mean()) for i in range(3) for j in range(4) if VALID[i, j])
    assert math.isclose(float(patch_regression(a, b, VALID)), expected, rel_tol=1e-5)
    assert float(patch_regression(a, a, None)) == 0.0
