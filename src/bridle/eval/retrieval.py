"""Retrieval: of the clips most similar to a clip, how many are of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.errors import DataError
from bridle.eval.knn import unit_rows
from bridle.eval.protocol import MAX_INNER_TEST, FeatureSet, choose_splits
from bridle.eval.ranking import thin
from bridle.eval.splits import Indices

RECALL_AT = (1, 5, 10)
_CHUNK = 256  # queries at a time; bounds memory to so many times the gallery


@dataclass(frozen=True, slots=True)
class RecallAt:
    """Share of queries with a clip of their class among the ``k`` most similar ones."""

    k: int
    share: float


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How well some features find clips of the same class.

    Attributes:
        mean_average_precision: mean over queries of the average precision of their whole ranking.
        recall: at each k.
        num_queries: with a clip of their class in the gallery; only they count.
        num_alone: queries without.
        poolings: that were chosen, a set of features for each split.
    """

    mean_average_precision: float
    recall: tuple[RecallAt, ...]
    num_queries: int
    num_alone: int
    poolings: tuple[str, ...]


def retrieval(features: FeatureSet, recall_at: Sequence[int] = RECALL_AT, seed: int = 0) -> Retrieval:
    """Mean average precision and recall by cosine similarity, on features standardised as for kNN.

    With official folds or an official split the queries are the test clips, and the gallery is the training part. Without,
    every clip is asked for once among all others. Clips of the query's own group are not in its gallery. The pooling of
    a split is the one of the best mean average precision inside its training part, clip by clip among the others.

    Args:
        features: of the clips.
        recall_at: values of k.
        seed: of stratified splits.

    Raises:
        DataError: the splits cannot be made, a k below 1, or no clip shares its class with another one.
    """
    if min(recall_at, default=1) < 1:
        raise DataError(f"recall is asked for at k = {min(recall_at)}; it must be at least 1")
    official = features.folds is not None or features.splits is not None
    every = np.arange(len(features.labels))
    rankings, poolings = [], []
    for split in choose_splits(features, seed):
        asked = thin(split.train_index, MAX_INNER_TEST, seed)
        inside = {
            name: _Ranked.of(features, name, asked, split.train_index, recall_at).mean_precision for name in features.pooled
        }
        poolings.append(max(inside, key=lambda name: inside[name]))
        gallery = split.train_index if official else every
        rankings.append(_Ranked.of(features, poolings[-1], split.test_index, gallery, recall_at))
    precision = np.concatenate([ranked.precision for ranked in rankings])
    hits = np.concatenate([ranked.hits for ranked in rankings])
    counts = ~np.isnan(precision)
    if not counts.any():
        raise DataError(f"none of {len(precision)} queries has a clip of its class in the gallery; retrieval needs at least 1")
    return Retrieval(
        mean_average_precision=float(precision[counts].mean()),
        recall=tuple(RecallAt(int(k), float(share)) for k, share in zip(recall_at, hits[counts].mean(axis=0), strict=True)),
        num_queries=int(counts.sum()),
        num_alone=int((~counts).sum()),
        poolings=tuple(poolings),
    )


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Average precision (queries,), NaN for a query without a clip of its class, and hits (queries, ks) bool."""

    precision: NDArray[np.float64]
    hits: NDArray[np.bool_]

    @classmethod
    def of(cls, features: FeatureSet, pooling: str, queries: Indices, gallery: Indices, ks: Sequence[int]) -> _Ranked:
        """Of the rows ``queries`` among the rows ``gallery``, less the query itself and its group."""
        rows = torch.as_tensor(features.pooled[pooling])
        near, asked = unit_rows(rows[gallery], rows[queries])
        labels = np.unique(np.asarray(features.labels), return_inverse=True)[1]
        groups = np.arange(len(labels)) if features.groups is None else np.unique(features.groups, return_inverse=True)[1]
        precision, hits = [], []
        for start in range(0, len(queries), _CHUNK):
            part = queries[start : start + _CHUNK]
            same = torch.from_numpy(labels[part][:, None] == labels[gallery]).to(near.device)
            out = torch.from_numpy(groups[part][:, None] == groups[gallery]).to(near.device)
            found = average_precisions(asked[start : start + _CHUNK] @ near.T, same, ~out, ks)
            precision.append(found[0].cpu().numpy())
            hits.append(found[1].cpu().numpy())
        return cls(np.concatenate(precision), np.concatenate(hits))

    @property
    def mean_precision(self) -> float:
        """Over the queries that have a clip to be found; -1 when none has."""
        known = self.precision[~np.isnan(self.precision)]
        return float(known.mean()) if len(known) else -1.0


def average_precisions(similarity: Tensor, relevant: Tensor, allowed: Tensor, ks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Average precision of every ranking, and whether its first k hold something relevant.

    Args:
        similarity: (Q, N); of equal ones the earlier row comes first.
        relevant: (Q, N) bool.
        allowed: (Q, N) bool; the others are as if they were not there.
        ks: values of k.

    Returns:
        (Q,) float64, the mean over relevant rows of the precision at their rank, NaN without any; and (Q, len(ks)) bool.
    """
    order = similarity.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
    right = (relevant & allowed).gather(1, order).double()
    rank = torch.arange(1, right.shape[1] + 1, device=right.device)
    precision = (right * right.cumsum(dim=1) / rank).sum(dim=1) / right.sum(dim=1)
    hits = torch.stack([right[:, :k].any(dim=1) for k in ks], dim=1)
    return precision, hits
