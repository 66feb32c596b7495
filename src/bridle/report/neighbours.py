"""The embeddings of a sample: two dimensions to look at, and the nearest neighbours of some clips."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.errors import ConfigError
from bridle.eval.knn import fit_standardisation, nearest
from bridle.randomness import derive_seed, permutation

Projection = Literal["auto", "pca", "tsne"]
_MIN_TSNE, _PCA_WIDTH = 12, 50


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A clip and those most similar to it, as rows of the sample, with their cosine similarity."""

    query: int
    found: tuple[int, ...]
    similarity: tuple[float, ...]


def unit_vectors(embeddings: Tensor) -> Tensor:
    """(n, X) standardised over the clips, then scaled to unit length, float32."""
    return F.normalize(fit_standardisation(embeddings).apply(embeddings), dim=1).float()


def project(vectors: Tensor, projection: Projection, seed: int) -> tuple[Tensor, str]:
    """Two coordinates (n, 2) for each of the vectors (n, X), and by which method: ``t-SNE`` or ``PCA``.

    ``auto`` takes t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components where scikit-learn is installed
    and there are clips enough, else the first two principal components. Vectors that are all alike have no t-SNE.

    Raises:
        ConfigError: t-SNE is asked for and scikit-learn is not installed, or there are fewer than 12 clips.
    """
    components = _principal(vectors, _PCA_WIDTH)
    alike = not bool(components[:, 0].std(correction=0) > 1e-6)  # where t-SNE divides by 0, which can kill the process
    if projection == "pca" or alike or (projection == "auto" and len(vectors) < _MIN_TSNE):
        return components[:, :2], "PCA"
    if len(vectors) < _MIN_TSNE:
        raise ConfigError(f"t-SNE of {len(vectors)} clips means nothing; it needs at least {_MIN_TSNE}: use --projection pca")
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-untyped]
    except ImportError:
        if projection == "auto":
            return components[:, :2], "PCA"
        raise ConfigError('t-SNE needs scikit-learn: pip install "bridle[demo]", or use --projection pca') from None
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    state = derive_seed(seed, "projection") % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads and future defaults; every default that matters is given
        made = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=state, n_jobs=1)
        return torch.from_numpy(made.fit_transform(components.numpy())).float(), "t-SNE"


def choose_queries(labels: Sequence[str], num: int, seed: int) -> list[int]:
    """Rows of ``num`` clips drawn by the seed, of different labels as far as there are."""
    order = permutation(len(labels), seed, "queries").tolist()
    first_of = {labels[row]: row for row in reversed(order) if labels[row]}
    new = sorted(first_of.values(), key=order.index)
    return sorted((new + [row for row in order if row not in new])[:num])


def find_neighbours(vectors: Tensor, queries: Sequence[int], num: int) -> tuple[Neighbours, ...]:
    """The ``num`` rows of ``vectors`` (n, X) of unit length that are most similar to each query, itself left out."""
    k = min(num + 1, len(vectors))
    similarity, rows = nearest(vectors, vectors[list(queries)], k)
    made = []
    for query, near, which in zip(queries, similarity.tolist(), rows.tolist(), strict=True):
        pairs = [(row, value) for row, value in zip(which, near, strict=True) if row != query][:num]
        made.append(Neighbours(query, tuple(row for row, _ in pairs), tuple(value for _, value in pairs)))
    return tuple(made)


def agreement(vectors: Tensor, labels: Sequence[str], k: int = 5) -> float | None:
    """Share of the k nearest neighbours of all labelled clips that have their label; None without two labelled clips."""
    known = [row for row, label in enumerate(labels) if label]
    if len(known) < 2:
        return None
    names = [labels[row] for row in known]
    found = find_neighbours(vectors[known], range(len(known)), min(k, len(known) - 1))
    hits = [names[near.query] == names[row] for near in found for row in near.found]
    return sum(hits) / len(hits)


def _principal(vectors: Tensor, width: int) -> Tensor:
    """The first ``width`` principal components (n, width), 0 where there are fewer; the largest weight is positive."""
    centred = vectors.double() - vectors.double().mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    strongest = right.gather(1, right.abs().argmax(1, keepdim=True))[:, 0]
    components = cast("Tensor", left * values * strongest.sign())[:, :width]
    return F.pad(components, (0, max(0, 2 - components.shape[1]))).float()
