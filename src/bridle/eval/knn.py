"""k nearest neighbours by cosine similarity on standardised features: the probe without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.errors import DataError

_CONSTANT = 1e-12  # relative deviation under which a column is constant: rounding of the mean, never float32 data


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean (D,) and scale (D,) of training features, float64; a constant column has scale 1."""

    mean: Tensor
    scale: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """``(features - mean) / scale``, (N, D) float64."""
        return (features.to(torch.float64) - self.mean) / self.scale


def fit_standardisation(features: Tensor) -> Standardisation:
    """Mean and population deviation of every column of ``features`` (N, D).

    Raises:
        DataError: ``features`` is not two-dimensional, has no rows, or holds NaN or infinity.
    """
    check_features(features)
    rows = features.to(torch.float64)
    mean = rows.mean(dim=0)
    deviation = (rows - mean).square().mean(dim=0).sqrt()
    constant = deviation <= _CONSTANT * rows.abs().amax(dim=0)
    return Standardisation(mean, deviation.masked_fill(constant, 1.0))


def check_features(features: Tensor) -> None:
    """Refuse features (N, D) that no probe can use.

    Raises:
        DataError: they are not two-dimensional, have no rows, or hold NaN or infinity.
    """
    if features.ndim != 2 or features.shape[0] == 0:
        raise DataError(f"features have shape {tuple(features.shape)}; a probe needs (rows, columns) with at least 1 row")
    bad = (~torch.isfinite(features)).any(dim=1)
    if bool(bad.any()):
        raise DataError(
            f"features hold NaN or infinity, first in row {int(bad.nonzero()[0])}; drop the row or check the encoder"
        )


def nearest(train: Tensor, queries: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The k most similar rows of ``train`` for every query, most similar first.

    Args:
        train: (N, D) rows of unit length.
        queries: (queries, D) rows of unit length.
        k: neighbours per query, 1 to N.
        chunk: queries per matrix product; bounds memory to ``chunk * N`` similarities.

    Returns:
        Cosine similarity (queries, k) and row of ``train`` (queries, k) int64.

    Raises:
        DataError: k is out of range.
    """
    if not 1 <= k <= train.shape[0]:
        raise DataError(f"k is {k}; it must be 1 to the number of training rows, {train.shape[0]}")
    starts = range(0, max(1, queries.shape[0]), chunk)
    found = [torch.topk(queries[start : start + chunk] @ train.T, k, dim=1) for start in starts]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def plain_votes(similarity: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """One vote per neighbour; a tie goes to the class whose neighbours are more similar in sum.

    Args:
        similarity: (queries, k) in [-1, 1].
        labels: (queries, k) int64 class of each neighbour.
        num_classes: number of classes.

    Returns:
        (queries, classes) votes plus a tie-breaker in [-1/4, 1/4], which never outweighs a vote.
    """
    return _sum_per_class(1.0 + similarity / (4 * similarity.shape[1]), labels, num_classes)


def weighted_votes(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float = 0.07) -> Tensor:
    """Votes weighted by ``exp(similarity / temperature)`` (Wu et al. 2018, arXiv 1805.01978, eq. in section 3.4).

    Shapes as :func:`plain_votes`. Weights are relative to the most similar neighbour, so no temperature overflows.
    """
    weights = ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp()
    return _sum_per_class(weights, labels, num_classes)


def knn_predictions(
    train: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[float], *, temperature: float | None = 0.07
) -> Tensor:
    """Predicted class of every query for every k.

    Features are standardised on the training rows, then scaled to unit length; neighbours are found once for all k.

    Args:
        train: (N, D) features.
        labels: (N,) int64, any values.
        queries: (queries, D) features.
        ks: numbers of neighbours; a k above N uses all N.
        temperature: of :func:`weighted_votes`; None takes :func:`plain_votes`.

    Returns:
        (len(ks), queries) int64, values of ``labels``.

    Raises:
        DataError: a k below 1, or features that cannot be standardised (see :func:`fit_standardisation`).
    """
    classes, coded = torch.unique(labels, return_inverse=True)
    votes = _votes(train, coded, queries, ks, len(classes), temperature)
    return torch.stack([classes[each.argmax(dim=1)] for each in votes])


def knn_probabilities(train: Tensor, labels: Tensor, queries: Tensor, k: float, temperature: float | None = 0.07) -> Tensor:
    """Share of the votes of every class that occurs in ``labels``, ascending, for every query: (queries, classes) float64.

    Arguments and errors as for :func:`knn_predictions`, which takes the class with most votes.
    """
    classes, coded = torch.unique(labels, return_inverse=True)
    votes = _votes(train, coded, queries, (k,), len(classes), temperature)[0].double()
    return votes / votes.sum(dim=1, keepdim=True)


def unit_rows(train: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, D) and (queries, D) standardised on the training rows, then scaled to unit length, float32.

    Raises:
        DataError: they cannot be standardised (see :func:`fit_standardisation`).
    """
    standardisation = fit_standardisation(train)
    unit_train, unit_queries = (F.normalize(standardisation.apply(x), dim=1).float() for x in (train, queries))
    return unit_train, unit_queries


def _votes(
    train: Tensor, coded: Tensor, queries: Tensor, ks: Sequence[float], num_classes: int, temperature: float | None
) -> list[Tensor]:
    """Votes (queries, classes) for every k; neighbours are found once for all of them."""
    unit_train, unit_queries = unit_rows(train, queries)
    counts = [min(int(k), train.shape[0]) for k in ks]
    if min(counts) < 1:
        raise DataError(f"k is {min(counts)}; it must be at least 1")
    similarity, index = nearest(unit_train, unit_queries, max(counts))
    votes = []
    for k in counts:
        near, near_labels = similarity[:, :k], coded[index[:, :k]]
        if temperature is None:
            votes.append(plain_votes(near, near_labels, num_classes))
        else:
            votes.append(weighted_votes(near, near_labels, num_classes, temperature))
    return votes


def _sum_per_class(weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return weights.new_zeros(weights.shape[0], num_classes).scatter_add_(1, labels, weights)
