"""Linear probe: multinomial logistic regression on standardised features, by full-batch L-BFGS.

The objective is scikit-learn's, ``C * sum of cross-entropies + |weights|^2 / 2`` with free biases. Two exact changes of
variables make it fast. Features are rotated to their principal axes, at most N of them when there are more columns than
rows; the l2 penalty does not see a rotation. Each axis is then scaled by its expected curvature, so that L-BFGS starts
from a nearly round problem; a whole path of C takes some tens of iterations per C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.errors import DataError
from bridle.eval.knn import Standardisation, fit_standardisation

_ONE_THREAD = 10**9  # products of the widest step, tens of milliseconds


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted probe: ``logits = standardised features @ weight.T + bias``.

    ``weight`` (classes, D) and ``bias`` (classes,) are float64, biases sum to 0; ``classes`` (classes,) holds the label of
    each row; ``converged`` is False when the search stopped before the gradient was within the tolerance.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    standardisation: Standardisation
    converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """(N, classes) float64 for features (N, D)."""
        return self.standardisation.apply(features) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """(N,) label of the largest logit for features (N, D)."""
        return self.classes[self.logits(features).argmax(dim=1)]


def fit_path(
    features: Tensor,
    labels: Tensor,
    strengths: Sequence[float],
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
) -> list[LinearProbe]:
    """One probe per C. Weak C come first, each starts from the one before; the rotation is shared by all.

    Args:
        features: (N, D) training features.
        labels: (N,) int64, any values, at least two different ones.
        strengths: values of C, the inverse of the l2 penalty as in scikit-learn, in any order.
        tolerance: largest gradient (of the mean loss, in scaled variables) that counts as converged.
        max_iterations: L-BFGS iterations per C.
        dtype: of the iterations; float32 is three times as fast on large sets and reaches tolerances down to 1e-5.

    Returns:
        The probes, in the order of ``strengths``.

    Raises:
        DataError: fewer than two classes, labels of another length than the features, a C that is not positive, or
            features that cannot be standardised (see :func:`bridle.eval.knn.fit_standardisation`).
    """
    standardisation = fit_standardisation(features)
    classes, coded = torch.unique(labels, return_inverse=True)
    if labels.shape != features.shape[:1]:
        raise DataError(f"{labels.numel()} labels for {features.shape[0]} rows of features; give one label per row")
    if len(classes) < 2:
        raise DataError(f"the training rows hold {len(classes)} class; a linear probe needs at least 2")
    if not strengths or min(strengths) <= 0:
        raise DataError(f"strengths are {list(strengths)}; give at least one C, all above 0")
    fitted: dict[float, LinearProbe] = {}
    with _threads_for(features.numel() * max(min(features.shape), len(classes))):
        rows = standardisation.apply(features)
        axes = _principal_axes(rows)
        problem = _Problem.of(rows @ axes, coded, len(classes), dtype)
        solution = rows.new_zeros(len(classes), axes.shape[1] + 1, dtype=dtype)
        for strength in sorted(set(strengths)):
            solution, converged = problem.solve(solution, strength, tolerance, max_iterations)
            exact = solution.to(torch.float64)
            bias = exact[:, -1] - exact[:, -1].mean()
            fitted[strength] = LinearProbe(exact[:, :-1] @ axes.T, bias, classes, standardisation, converged)
    return [fitted[strength] for strength in strengths]


def linear_predictions(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    strengths: Sequence[float],
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Predicted class of every query (M, D) for every C, (len(strengths), M) int64; see :func:`fit_path`."""
    probes = fit_path(train, labels, strengths, tolerance=tolerance, max_iterations=max_iterations, dtype=dtype)
    return torch.stack([probe.predict(queries) for probe in probes])


def linear_probabilities(train: Tensor, labels: Tensor, queries: Tensor, strength: float) -> Tensor:
    """Probability of every class that occurs in ``labels``, ascending, for every query: (M, classes); see :func:`fit_path`."""
    return fit_path(train, labels, (strength,))[0].logits(queries).softmax(dim=1)


def _principal_axes(rows: Tensor) -> Tensor:
    """Orthonormal (D, P) that spans the rows (N, D), P at most min(N, D), along the directions of their variance.

    With more columns than rows, directions with less than 1e-10 of the largest variance are left out: no probe can use them,
    and the others are orthonormal to 1e-6.
    """
    if rows.shape[1] > rows.shape[0]:
        variances, directions = torch.linalg.eigh(rows @ rows.T)
        kept = variances > 1e-10 * variances[-1]
        spanned: Tensor = rows.T @ (directions[:, kept] * variances[kept].rsqrt())
        return spanned
    axes: Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors
    return axes


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One thread for a fit of so few products: several gain little, and wait for each other wherever others compute, too."""
    before = torch.get_num_threads()
    if before > 1 and products < _ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Rotated features with a column of ones, both ways round (products with K columns want contiguous rows)."""

    rows: Tensor  # (N, P)
    columns: Tensor  # (P, N)
    targets: Tensor  # (K, N), one-hot

    @classmethod
    def of(cls, rotated: Tensor, labels: Tensor, num_classes: int, dtype: torch.dtype) -> _Problem:
        rows = F.pad(rotated, (0, 1), value=1.0).to(dtype)
        return cls(rows, rows.T.contiguous(), F.one_hot(labels, num_classes).T.to(dtype).contiguous())

    def solve(self, start: Tensor, strength: float, tolerance: float, max_iterations: int) -> tuple[Tensor, bool]:
        """Weights (K, P) of least penalised mean cross-entropy, and whether the gradient is within the tolerance."""
        num_classes, num_rows = self.targets.shape
        # Two softmax rows share one direction; twice the penalty makes that scikit-learn's binary problem.
        penalty = self.rows.new_full(self.rows.shape[1:], (2.0 if num_classes == 2 else 1.0) / (strength * num_rows))
        penalty[-1] = 0.0
        chance = torch.softmax(start @ self.columns, dim=0)
        curvature = (chance * (1 - chance)).mean().clamp_min(1e-8)
        scale = (self.rows.square().mean(dim=0) * curvature + penalty).sqrt()
        scaled = (start * scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=1e-14,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> float:
            weights = scaled / scale
            log_chance = torch.log_softmax(weights @ self.columns, dim=0)
            shrink = weights * penalty
            error = (log_chance.exp() - self.targets) / num_rows
            scaled.grad = (error @ self.rows + shrink) / scale
            cross_entropy = -(log_chance * self.targets).sum() / num_rows
            return float(cross_entropy + 0.5 * (shrink * weights).sum())

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        loss()
        assert scaled.grad is not None
        return scaled.detach() / scale, bool(scaled.grad.abs().amax() <= tolerance)
