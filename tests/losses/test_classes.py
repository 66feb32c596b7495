"""Losses of classes against torch's and against loops in float64, their gradients and their minima."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.losses.classes import binary_cross_entropy, smooth, soft_cross_entropy

B, C = 6, 4


def noise(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels() -> Tensor:
    return torch.tensor([0, 3, 1, 1, 2, 0])


def tags() -> Tensor:
    return (noise(B, C, seed=5) > 0).double()


def naive_soft(logits: Tensor, targets: Tensor) -> list[float]:
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        losses.append(-sum(share * (value - total) for value, share in zip(row, target, strict=True)))
    return losses


def naive_binary(logits: Tensor, targets: Tensor, weights: list[float]) -> list[float]:
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        chances = [1 / (1 + math.exp(-value)) for value in row]
        each = [
            -weight * y * math.log(p) - (1 - y) * math.log(1 - p) for p, y, weight in zip(chances, target, weights, strict=True)
        ]
        losses.append(sum(each) / len(each))
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_equals_torch_and_a_loop(smoothing: float) -> None:
    logits, targets = noise(B, C), smooth(F.one_hot(labels(), C).double(), smoothing, exclusive=True)
    found = soft_cross_entropy(logits, targets)
    assert found.shape == (B,)
    expected = F.cross_entropy(logits, labels(), label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert found.tolist() == pytest.approx(naive_soft(logits, targets), rel=1e-5)


def test_weighted_cross_entropy_is_that_of_torch_times_the_weight_of_the_class() -> None:
    weights, logits = torch.tensor([0.5, 1.0, 2.0, 7.0], dtype=torch.float64), noise(B, C)
    targets = F.one_hot(labels(), C).double()
    found = soft_cross_entropy(logits, targets) * (targets @ weights)
    expected = F.cross_entropy(logits, labels(), weight=weights, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_cross_entropy_of_a_mixture_is_the_mixture_of_cross_entropies() -> None:
    logits = noise(B, C)
    one, two = F.one_hot(labels(), C).double(), F.one_hot(labels().flip(0), C).double()
    found = soft_cross_entropy(logits, 0.3 * one + 0.7 * two)
    torch.testing.assert_close(found, 0.3 * soft_cross_entropy(logits, one) + 0.7 * soft_cross_entropy(logits, two))


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 40.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_equals_torch_and_a_loop(weights: list[float] | None, smoothing: float) -> None:
    logits, targets = noise(B, C), smooth(tags(), smoothing, exclusive=False)
    factors = None if weights is None else torch.tensor(weights)
    found = binary_cross_entropy(logits, targets, factors)
    assert found.shape == (B,)
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=factors, reduction="none").mean(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert found.tolist() == pytest.approx(naive_binary(logits, targets, weights or [1.0] * C), rel=1e-5)


def test_smoothing_by_its_formulas() -> None:
    targets = F.one_hot(labels(), C).double()
    exclusive, each = smooth(targets, 0.2, exclusive=True), smooth(targets, 0.2, exclusive=False)
    for row, label in enumerate(labels().tolist()):
        for name in range(C):
            assert float(exclusive[row, name]) == pytest.approx(0.8 * (name == label) + 0.2 / C)
            assert float(each[row, name]) == pytest.approx(0.9 if name == label else 0.1)
    torch.testing.assert_close(exclusive.sum(1), torch.ones(B, dtype=torch.float64))
    assert torch.equal(smooth(targets, 0.0, exclusive=True), targets)
    assert torch.equal(smooth(targets, 0.0, exclusive=False), targets)


def test_gradients_are_those_of_their_formulas() -> None:
    """Softmax less target, and sigmoid less target, in float64; losses compute in float32."""
    logits, targets = noise(B, C).requires_grad_(), smooth(F.one_hot(labels(), C).double(), 0.1, exclusive=True)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, targets).sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(1) - targets, atol=1e-6, rtol=1e-5)
    weights = torch.tensor([0.5, 1.0, 2.0, 40.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(binary_cross_entropy(logits, tags(), weights).sum(), logits)
    chances = logits.detach().sigmoid()
    expected = ((1 - tags()) * chances - weights * tags() * (1 - chances)) / C
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_cross_entropy])
def test_gradients_are_those_of_finite_differences(loss: object) -> None:
    logits = noise(B, C, scale=1.0).requires_grad_()
    targets = smooth(F.one_hot(labels(), C).double(), 0.1, exclusive=loss is soft_cross_entropy)
    # The step is one that float32, in which the losses compute, can tell from none.
    assert torch.autograd.gradcheck(lambda x: loss(x, targets).sum(), (logits,), eps=1e-2, atol=2e-3)  # type: ignore[operator]


def test_extreme_logits_are_finite_and_low_precision_is_raised() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for loss in (soft_cross_entropy, binary_cross_entropy):
        given = logits.clone().requires_grad_()
        found = loss(given, targets)
        found.sum().backward()
        assert given.grad is not None
        assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(given.grad).all())
        assert loss(logits.bfloat16(), targets).dtype == torch.float32
        assert loss(logits[:0], targets[:0]).shape == (0,)
    assert soft_cross_entropy(logits, targets)[0].item() == pytest.approx(2e4)
    assert soft_cross_entropy(logits, targets)[1].item() == pytest.approx(math.log(3))


def test_a_clips_loss_does_not_depend_on_its_batch_nor_cross_entropy_on_a_constant() -> None:
    logits, targets = noise(B, C), smooth(F.one_hot(labels(), C).double(), 0.1, exclusive=True)
    torch.testing.assert_close(soft_cross_entropy(logits + 7, targets), soft_cross_entropy(logits, targets))
    for loss in (soft_cross_entropy, binary_cross_entropy):
        together = loss(logits, targets)
        torch.testing.assert_close(loss(logits.flip(0), targets.flip(0)), together.flip(0))
        torch.testing.assert_close(loss(logits[2:3], targets[2:3]), together[2:3])
