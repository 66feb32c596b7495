"""Losses against naive loops, invariances, gradients, and parts that add up to the whole."""

import math

import torch

from bridle.losses.codes import code_accuracy, code_cross_entropy
from bridle.losses.features import cosine_distance, patch_regression


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOGITS, CODES = random(3, 4, 2, 7), torch.randint(7, (3, 4, 2), generator=torch.Generator().manual_seed(1))
VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)


def test_cross_entropy_and_accuracy_equal_loops() -> None:
    loss, right = [0.0, 0.0], [0, 0]
    for b in range(3):
        for m in range(4):
            for r in range(2):
                if VALID[b, m]:
                    row = LOGITS[b, m, r].tolist()
                    loss[r] += math.log(sum(map(math.exp, row))) - row[CODES[b, m, r]]
                    right[r] += row.index(max(row)) == CODES[b, m, r]
    torch.testing.assert_close(code_cross_entropy(LOGITS, CODES, VALID), torch.tensor(loss))
    assert code_accuracy(LOGITS, CODES, VALID).tolist() == right


def test_cross_entropy_of_uniform_logits_is_log_k() -> None:
    torch.testing.assert_close(code_cross_entropy(torch.zeros(3, 4, 2, 7), CODES, None), torch.full((2,), 12 * math.log(7)))


def test_cross_entropy_does_not_change_with_a_shift_of_the_logits() -> None:
    torch.testing.assert_close(code_cross_entropy(LOGITS + 5, CODES, VALID), code_cross_entropy(LOGITS, CODES, VALID))


def test_cross_entropy_gradient_is_softmax_minus_one_hot_and_zero_on_padding() -> None:
    logits = LOGITS.clone().requires_grad_()
    code_cross_entropy(logits, CODES, VALID).sum().backward()
    expected = (LOGITS.softmax(-1) - torch.nn.functional.one_hot(CODES, 7)) * VALID[..., None, None]
    torch.testing.assert_close(logits.grad, expected)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    whole = code_cross_entropy(LOGITS, CODES, VALID)
    parts = sum(code_cross_entropy(LOGITS[b : b + 1], CODES[b : b + 1], VALID[b : b + 1]) for b in range(3))
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
