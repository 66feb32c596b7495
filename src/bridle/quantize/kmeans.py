"""k-means that starts the codebooks: greedy k-means++ in a few principal directions, then Lloyd's steps in ever more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bridle.errors import QuantizerError
from bridle.quantize.codebook import nearest
from bridle.randomness import counter_uniform, derive_seed, permutation

_START_DIMS = 8
_STAGE_STEPS = 5
_START_ROWS_PER_CLUSTER = 8  # k-means++ costs K passes over its rows; 32 gained nothing


def check_sample(sample: Tensor, num_clusters: int) -> None:
    """Refuse vectors (n, C) that no codebook of ``num_clusters`` can start from.

    Raises:
        QuantizerError: there are fewer, or all are equal.
    """
    if len(sample) < num_clusters:
        raise QuantizerError(
            f"the k-means sample has {len(sample)} vectors, fewer than codebook_size {num_clusters}: "
            "gather more batches or choose a smaller codebook_size"
        )
    if len(sample) > 1 and bool((sample == sample[0]).all()):
        raise QuantizerError(
            f"all {len(sample)} vectors of the k-means sample are equal: the clips are silent, of one colour or, "
            "for codes of motion (cold_start.normalise), still; look at the files with `bridle doctor`"
        )


def kmeans(x: Tensor, num_clusters: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means (1982), equal for an equal seed; at most ``steps`` steps in full, fewer when it has converged.

    It starts in the first 8 principal directions and doubles their number every few steps (the progressive dimensions of
    FAISS). On log-mel patches the residual quantizer's squared error came out 5 % lower than from k-means++ in full.
    A cluster without vectors starts again at the vector farthest from its centre.

    Args:
        x: (n, C) float32, finite, n >= num_clusters.
        num_clusters: K.
        steps: upper bound of Lloyd steps in all C dimensions.
        seed: of the start.

    Returns:
        centres (K, C) and the nearest centre of every vector (n,) int64.
    """
    stages = [_START_DIMS * 2**i for i in range(32) if _START_DIMS * 2**i < x.shape[1]]
    if not stages:
        return _lloyd(x, plus_plus(x, num_clusters, seed), steps)[:2]
    rotated = _principal(x, stages[-1])
    centres = plus_plus(rotated[:, : stages[0]], num_clusters, seed)
    for dims, next_x in zip(stages, [*(rotated[:, :d] for d in stages[1:]), x], strict=True):
        _, codes, distances = _lloyd(rotated[:, :dims].contiguous(), centres, _STAGE_STEPS)
        centres = _means(next_x, codes, distances, num_clusters)
    return _lloyd(x, centres, steps)[:2]


def plus_plus(x: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007) on a subsample of ``x``: (K, C) rows of it.

    Candidates for a centre are drawn in proportion to the squared distance to the centres before; the one that leaves
    the least distance stays.
    """
    rows = permutation(len(x), seed, "start")[: _START_ROWS_PER_CLUSTER * num_clusters]
    x = x[rows.to(x.device)]
    trials = 2 + int(math.log(num_clusters))
    seeds = torch.tensor([derive_seed(seed, "plus-plus")])
    draws = counter_uniform(seeds, num_clusters * trials).view(num_clusters, trials).to(x.device)
    norms = x.square().sum(1)
    chosen = torch.zeros(num_clusters, dtype=torch.int64, device=x.device)  # row 0 is a random row
    distances = (x - x[0]).square().sum(1)
    for index in range(1, num_clusters):
        summed = distances.double().cumsum(0)
        candidates = torch.searchsorted(summed, draws[index] * summed[-1], right=True).clamp(max=len(x) - 1)
        apart = torch.addmm(norms + norms[candidates, None], x[candidates], x.T, alpha=-2).clamp(min=0)
        apart = torch.minimum(apart.scatter(1, candidates[:, None], 0.0), distances)
        best = apart.sum(1).argmin()
        chosen[index] = candidates[best]
        distances = apart[best]
    return x[chosen]


def _principal(x: Tensor, dims: int) -> Tensor:
    """(n, dims) coordinates along the directions of the largest variance, largest first."""
    centred = x - x.mean(0)
    directions: Tensor = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors
    return centred @ directions.flip(1)[:, :dims].float()


def _lloyd(x: Tensor, centres: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (K, C) after at most ``steps`` steps; nearest centre (n,) and squared distance to it (n,)."""
    codes, distances = nearest(x, centres)
    for _ in range(steps):
        centres = _means(x, codes, distances, len(centres))
        before = codes
        codes, distances = nearest(x, centres)
        if torch.equal(codes, before):
            break
    return centres, codes, distances


def _means(x: Tensor, codes: Tensor, distances: Tensor, num_clusters: int) -> Tensor:
    sums = x.new_zeros(num_clusters, x.shape[1]).index_add_(0, codes, x)
    counts = torch.bincount(codes, minlength=num_clusters)
    empty = (counts == 0).nonzero()[:, 0]
    centres = sums / counts.clamp(min=1)[:, None]
    centres[empty] = x[distances.topk(len(empty)).indices]
    return centres
