"""Randomness as a pure function of named integers, so that order, masks and augmentation can be recomputed anywhere.

No function here reads or changes torch's global random state. ``counter_uniform`` is a counter-based generator (the
finaliser of SplitMix64, Steele et al. 2014), so a batch of per-clip streams is one vectorised call and a clip's numbers
do not depend on the batch, the rank or the device it is in.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any named parts, equal on every platform: ``derive_seed(seed, "order", epoch)``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator seeded by :func:`derive_seed` of the parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def counter_uniform(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) per seed.

    Args:
        seeds: (B,) int64, one stream of numbers each.
        count: numbers per seed.
        stream: different streams of one seed are independent.

    Returns:
        (B, count) float64 on the device of ``seeds``.
    """
    counter = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64)
    state = _mix(seeds.to(torch.int64) ^ _mix(torch.full_like(seeds, stream)))[:, None] + counter * _signed(0x9E3779B97F4A7C15)
    return _shift_right(_mix(state), 11).to(torch.float64) * 2.0**-53


def permutation(size: int, *parts: int | str) -> Tensor:
    """A permutation of ``range(size)`` as a pure function of the parts, (size,) int64, equal on every platform."""
    seed = torch.tensor([derive_seed(*parts)], dtype=torch.int64)
    return torch.argsort(counter_uniform(seed, size)[0], stable=True)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)
