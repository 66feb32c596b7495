"""Pure functions on stacks of codebooks: nearest-code search, its statistics, their EMA, and revival of expired codes.

Everything is float32, runs in chunks of rows so that an (N, K) table never exists, and waits for no device.
Letters: N vectors, R levels, K entries, C code dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_ROWS, _CHUNK_SCORES = 4096, 2**22  # on CPU: 2**20 ... 2**22 scores are level on one thread, 2**22 best on two
_DEVICE_FACTOR = 4
_SMALLEST_USAGE = 1e-30


class Statistics(NamedTuple):
    """Named views of one packed float32 tensor, so that all levels travel in one all-reduce.

    Every number is a sum over vectors: statistics of two micro-batches, or of two ranks, are added. The vectors of a
    code are kept in two halves, on either side of a plane through the code's entry, which is what revival needs.
    """

    counts: Tensor  # (R, 2, K) vectors per half
    errors: Tensor  # (R, 2, K, C) sum of (residual - entry) per half
    energies: Tensor  # (R + 1,) squared length of the input, then of the residual after every level


def statistics_length(codebooks: Tensor) -> int:
    """Numbers in the packed statistics of ``codebooks`` (R, K, C)."""
    levels, size, dim = codebooks.shape
    return levels * 2 * size * (1 + dim) + levels + 1


def unpack(packed: Tensor, codebooks: Tensor) -> Statistics:
    """Views into ``packed``; writing to them writes to it."""
    levels, size, dim = codebooks.shape
    rows = levels * 2 * size
    counts, errors, energies = torch.split(packed, [rows, rows * dim, levels + 1])
    return Statistics(counts.view(levels, 2, size), errors.view(levels, 2, size, dim), energies)


def nearest(x: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest entry of every row in Euclidean distance; the first of equals.

    Args:
        x: (n, C) float32.
        entries: (K, C) float32.

    Returns:
        codes (n,) int64 and squared distances (n,), never negative.
    """
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distances = x.new_empty(len(x))
    half_norms = entries.square().sum(1) / 2
    scores, chunks = _chunks(x, len(entries))
    for rows in chunks:
        part = x[rows]
        torch.addmm(half_norms, part, entries.T, alpha=-1, out=scores[: len(part)])
        torch.min(scores[: len(part)], dim=1, out=(distances[rows], codes[rows]))
        distances[rows].mul_(2).add_(part.square().sum(1)).clamp_(min=0)
    return codes, distances


def residual_search(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy residual quantization: level r takes the entry nearest to what the levels before it left.

    Args:
        z: (N, C) float32.
        codebooks: (R, K, C) float32.

    Returns:
        codes (N, R) int64, and the sum of their entries (N, C), not finite where ``z`` is not.
    """
    return _search(z, codebooks, None, codebooks)


def residual_search_with_statistics(z: Tensor, codebooks: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`residual_search`, and the packed statistics of the vectors.

    Args:
        z: (N, C) float32.
        codebooks: (R, K, C) float32.
        planes: (R, C) normals of the planes that halve the codes of a level.

    Returns:
        codes (N, R) int64, their sum of entries (N, C), packed statistics.
    """
    packed = codebooks.new_zeros(statistics_length(codebooks))
    codes, vectors = _search(z, codebooks, unpack(packed, codebooks), planes)
    return codes, vectors, packed


def _search(z: Tensor, codebooks: Tensor, statistics: Statistics | None, planes: Tensor) -> tuple[Tensor, Tensor]:
    levels, size, _ = codebooks.shape
    codes = torch.empty(len(z), levels, dtype=torch.int64, device=z.device)
    vectors = torch.empty_like(z)
    half_norms = codebooks.square().sum(2) / 2
    scores, chunks = _chunks(z, size)
    for rows in chunks:
        residual = z[rows].clone()
        _add_energy(statistics, 0, residual)
        for level in range(levels):
            table = codebooks[level]
            torch.addmm(half_norms[level], residual, table.T, alpha=-1, out=scores[: len(residual)])
            chosen = scores[: len(residual)].argmin(1)
            codes[rows, level] = chosen
            residual -= table.index_select(0, chosen)
            if statistics is not None:
                half = chosen + size * (residual.mv(planes[level]) > 0)
                statistics.counts[level].view(-1).index_add_(0, half, residual.new_ones(1).expand(len(half)))
                statistics.errors[level].flatten(0, 1).index_add_(0, half, residual)
                _add_energy(statistics, level + 1, residual)
        torch.sub(z[rows], residual, out=vectors[rows])
    return codes, vectors


def _chunks(x: Tensor, size: int) -> tuple[Tensor, Iterator[slice]]:
    """A buffer for the scores of one chunk, and the chunks of rows."""
    factor = 1 if x.device.type == "cpu" else _DEVICE_FACTOR
    step = min(_CHUNK_ROWS * factor, max(_CHUNK_SCORES * factor // size, 128), max(len(x), 1))
    return x.new_empty(step, size), (slice(start, start + step) for start in range(0, len(x), step))


def _add_energy(statistics: Statistics | None, index: int, residual: Tensor) -> None:
    if statistics is not None:
        flat = residual.view(-1)
        statistics.energies[index] += torch.dot(flat, flat)


def ema(codebooks: Tensor, usage: Tensor, statistics: Statistics, decay: float) -> tuple[Tensor, Tensor]:
    """Codebooks and usage after one step of exponential moving averages (van den Oord et al. 2017, appendix A.1).

    With the share s = count / N of a code, its usage becomes ``u' = decay u + (1 - decay) s`` and its entry
    ``c' = (decay u c + (1 - decay) s mean) / u'``, written as ``c + (1 - decay) (sum of errors / N) / u'``. The EMA of
    the sum is ``u c`` by construction and needs no buffer, and an entry without vectors keeps its value, exactly and
    finite, however small its usage gets (Laplace smoothing would pull rare codes to the origin).

    Args:
        codebooks: (R, K, C).
        usage: (R, K), EMA of the share of the vectors that chose a code; sums to 1 per level.
        statistics: of at least one vector.
        decay: in [0, 1).
    """
    total = statistics.counts.sum((1, 2)).clamp(min=1)
    usage = decay * usage + (1 - decay) * statistics.counts.sum(1) / total[:, None]
    step = (1 - decay) / (usage.clamp(min=_SMALLEST_USAGE) * total[:, None])
    return torch.addcmul(codebooks, statistics.errors.sum(1), step[..., None]), usage


def revive(codebooks: Tensor, usage: Tensor, statistics: Statistics, below: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give every expired code half of the vectors of a code that gains by being split (Linde, Buzo and Gray 1980).

    A code is expired when its usage is under ``below`` of the uniform 1/K. A code may be split when the means of its
    halves are further apart than the spread of the level's vectors explains (``gain = n0 n1 / n |m1 - m0|^2 - spread``
    estimates without bias the error that the split removes) and both halves keep above the threshold; the largest gains
    come first. The halves move apart by the distance shrunken by ``gain / (gain + spread)``, share the parent's usage
    and keep its mean, so the EMA state stays consistent; what the expired code had is dropped. All of it is arithmetic
    on reduced statistics: no random numbers, and equal on all ranks. A random vector as new entry, the usual remedy,
    wins few neighbours in many dimensions.

    Args:
        codebooks: (R, K, C).
        usage: (R, K), sums to 1 per level.
        statistics: of the last step, of all ranks.
        below: threshold, relative to uniform usage.

    Returns:
        codebooks (R, K, C), usage (R, K), number of revived codes per level (R,).
    """
    size = codebooks.shape[1]
    counts = statistics.counts
    left, right = (statistics.errors / counts.clamp(min=1)[..., None]).unbind(1)
    both = counts.sum(1).clamp(min=1)
    fraction = counts[:, 1] / both
    spread = (statistics.energies[1:] / counts.sum((1, 2)).clamp(min=1))[:, None]
    apart = right - left
    between = counts[:, 0] * counts[:, 1] / both * apart.square().sum(2)
    gain = between - spread
    allowed = (gain > 0) & (torch.minimum(fraction, 1 - fraction) * usage * size >= below)
    expired = usage * size < below
    children = torch.where(expired, usage, torch.inf).argsort(dim=1, stable=True)
    parents = torch.where(allowed, gain, -torch.inf).argsort(dim=1, descending=True, stable=True)
    revived = torch.minimum(expired.sum(1), allowed.sum(1))
    active = torch.arange(size, device=usage.device) < revived[:, None]

    apart = apart * (gain / between.clamp(min=_SMALLEST_USAGE))[..., None]
    moved_left = _take(codebooks - fraction[..., None] * apart, parents)
    moved_right = _take(codebooks + (1 - fraction)[..., None] * apart, parents)
    codebooks = _put(_put(codebooks, parents, moved_left, active), children, moved_right, active)
    usage = usage[..., None]
    left_usage = _take((1 - fraction)[..., None] * usage, parents)
    right_usage = _take(fraction[..., None] * usage, parents)
    usage = _put(_put(usage, parents, left_usage, active), children, right_usage, active)[..., 0]
    return codebooks, usage / usage.sum(1, keepdim=True), revived


def _take(table: Tensor, rows: Tensor) -> Tensor:
    return table.gather(1, rows[..., None].expand(-1, -1, table.shape[2]))


def _put(table: Tensor, rows: Tensor, values: Tensor, active: Tensor) -> Tensor:
    """``table[r, rows[r, i]] = values[r, i]`` where ``active``; rows are distinct."""
    index = rows[..., None].expand(-1, -1, table.shape[2])
    return table.scatter(1, index, torch.where(active[..., None], values, table.gather(1, index)))
