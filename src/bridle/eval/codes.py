"""Statistics of discrete codes: how much of each codebook is used, and what the codes tell about one another.

Everything is a pure function of integer arrays; entropies and information are in bits, from observed frequencies.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.errors import DataError
from bridle.randomness import permutation


@dataclass(frozen=True, slots=True)
class CodeReport:
    """Codes of N patches at R levels; every tuple has one number per level, level 0 first.

    Attributes:
        codebook_size: K.
        num_patches: N.
        entropy_bits: entropy of the codes, at most log2 K.
        perplexity: 2 ** entropy as a share of K, in [1/K, 1]; 1 = all entries equally used.
        used: share of the K entries that occur.
        position_bits: information of the code about the position of its patch.
        position_floor_bits: the same after shuffling, i.e. the bias of the estimate; only the excess is real.
        shared: information shared with the level before, as a fraction of the smaller entropy; 0 at level 0.
        shared_floor: the same after shuffling.
    """

    codebook_size: int
    num_patches: int
    entropy_bits: tuple[float, ...]
    perplexity: tuple[float, ...]
    used: tuple[float, ...]
    position_bits: tuple[float, ...]
    position_floor_bits: tuple[float, ...]
    shared: tuple[float, ...]
    shared_floor: tuple[float, ...]


def code_report(codes: Tensor, positions: Tensor, codebook_size: int, seed: int = 0) -> CodeReport:
    """Statistics of ``codes`` (N, R) whose patches sit at ``positions`` (N,), e.g. the patch index in its grid.

    Raises:
        DataError: wrong shapes, no patches, or a code outside [0, codebook_size).
    """
    _check_codes(codes, codebook_size)
    if positions.shape != codes.shape[:1]:
        raise DataError(f"positions have shape {tuple(positions.shape)}; it must be ({codes.shape[0]},), one per patch")
    levels = list(codes.T)
    entropies = tuple(entropy_bits(level) for level in levels)
    neighbours = list(itertools.pairwise(levels))
    return CodeReport(
        codebook_size=codebook_size,
        num_patches=codes.shape[0],
        entropy_bits=entropies,
        perplexity=tuple(2**entropy / codebook_size for entropy in entropies),
        used=tuple(used_share(level, codebook_size) for level in levels),
        position_bits=tuple(mutual_information_bits(level, positions) for level in levels),
        position_floor_bits=tuple(shuffled_information_bits(level, positions, seed) for level in levels),
        shared=(0.0, *(shared_fraction(a, b) for a, b in neighbours)),
        shared_floor=(0.0, *(_fraction(shuffled_information_bits(a, b, seed), a, b) for a, b in neighbours)),
    )


def entropy_bits(values: Tensor) -> float:
    """Entropy of the observed frequencies of integer ``values`` (any shape), in bits.

    Raises:
        DataError: no values.
    """
    if values.numel() == 0:
        raise DataError("0 codes given; statistics need at least 1")
    counts = torch.unique(values, return_counts=True)[1].to(torch.float64)
    share = counts / counts.sum()
    return max(0.0, float(-(share * share.log2()).sum()))


def perplexity(codes: Tensor, codebook_size: int) -> float:
    """``2 ** entropy / K`` of the codes (any shape): 1 when all entries are equally used, 1/K when only one is.

    Raises:
        DataError: no codes, or a code outside [0, codebook_size).
    """
    _check_range(codes, codebook_size)
    return float(2 ** entropy_bits(codes) / codebook_size)


def used_share(codes: Tensor, codebook_size: int) -> float:
    """Share of the K entries that occur in ``codes`` (any shape).

    Raises:
        DataError: no codes, or a code outside [0, codebook_size).
    """
    _check_range(codes, codebook_size)
    return float(torch.unique(codes).numel() / codebook_size)


def mutual_information_bits(a: Tensor, b: Tensor) -> float:
    """Mutual information of two discrete variables from their joint frequencies, in bits.

    Biased upwards: for independent variables with A and B values and N pairs it is about
    ``(A - 1) * (B - 1) / (2 N ln 2)`` (Miller 1955), not 0. Compare with :func:`shuffled_information_bits`.

    Args:
        a: integers, any shape.
        b: integers, paired with ``a``.

    Raises:
        DataError: different numbers of values, or none.
    """
    if a.numel() != b.numel():
        raise DataError(f"{a.numel()} and {b.numel()} values cannot be paired; give as many of both")
    together = entropy_bits(_joint(a, b))
    return max(0.0, entropy_bits(a) + entropy_bits(b) - together)


def shuffled_information_bits(a: Tensor, b: Tensor, seed: int = 0, repeats: int = 4) -> float:
    """Floor of :func:`mutual_information_bits`: its mean over seeded shuffles of ``b``, which leave only the bias.

    Raises:
        DataError: different numbers of values, or none.
    """
    flat = b.reshape(-1)
    orders = (permutation(flat.numel(), seed, "shuffled", repeat).to(flat.device) for repeat in range(repeats))
    return sum(mutual_information_bits(a, flat[order]) for order in orders) / repeats


def shared_fraction(a: Tensor, b: Tensor) -> float:
    """Mutual information as a fraction of the smaller entropy, in [0, 1]; 0 when either variable is constant.

    Raises:
        DataError: different numbers of values, or none.
    """
    return _fraction(mutual_information_bits(a, b), a, b)


def label_churn(old: Tensor, new: Tensor) -> float:
    """How much the codes of the same patches changed: ``1 - 2 I(old; new) / (H(old) + H(new))``, in [0, 1].

    0 when one coding is a renaming of the other (no matching of entries is needed), 1 when they are independent. The
    bias of the information lowers it on small samples: use many more patches than ``K * K``.

    Raises:
        DataError: different numbers of codes, or none.
    """
    information = mutual_information_bits(old, new)
    total = entropy_bits(old) + entropy_bits(new)
    return min(1.0, max(0.0, 1.0 - 2 * information / total)) if total > 0 else 0.0


def bag_of_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """A clip as the square roots of its code frequencies, level after level: dot products are Hellinger affinities.

    Args:
        codes: (N, R) int64 codes of the clip's valid patches.
        codebook_size: K.

    Returns:
        (R * K,) float32; the K numbers of each level have unit length.

    Raises:
        DataError: wrong shape, no patches, or a code outside [0, codebook_size).
    """
    _check_codes(codes, codebook_size)
    offsets = torch.arange(codes.shape[1], device=codes.device) * codebook_size
    counts = torch.bincount((codes + offsets).reshape(-1), minlength=codes.shape[1] * codebook_size)
    return (counts / codes.shape[0]).sqrt()


def _fraction(bits: float, a: Tensor, b: Tensor) -> float:
    smaller = min(entropy_bits(a), entropy_bits(b))
    return min(1.0, bits / smaller) if smaller > 0 else 0.0


def _joint(a: Tensor, b: Tensor) -> Tensor:
    """One integer per pair, equal for equal pairs; both are renumbered, so the product cannot overflow."""
    values, index = torch.unique(b.reshape(-1), return_inverse=True)
    joint: Tensor = torch.unique(a.reshape(-1), return_inverse=True)[1] * values.numel() + index
    return joint


def _check_codes(codes: Tensor, codebook_size: int) -> None:
    if codes.ndim != 2:
        raise DataError(f"codes have shape {tuple(codes.shape)}; it must be (patches, levels)")
    _check_range(codes, codebook_size)


def _check_range(codes: Tensor, codebook_size: int) -> None:
    if codes.numel() == 0:
        raise DataError("0 codes given; statistics need at least 1")
    low, high = (int(value) for value in codes.aminmax())
    if low < 0 or high >= codebook_size:
        raise DataError(f"codes run from {low} to {high}; they must lie in [0, {codebook_size}), the codebook size")
