"""Seeded vectors with structure, for tests of quantizers."""

from __future__ import annotations

import torch
from torch import Tensor


def structured_vectors(count: int, dim: int = 16, *, branches: int = 8, seed: int = 0, draw: int = 0) -> Tensor:
    """(count, dim) float32: a coarse centre plus an independent finer one plus noise, lengths near ``sqrt(dim)``.

    ``seed`` fixes the centres, ``draw`` the sample.
    """
    centres = torch.Generator().manual_seed(seed)
    coarse = torch.randn(branches, dim, generator=centres)
    fine = 0.3 * torch.randn(branches, dim, generator=centres)
    sample = torch.Generator().manual_seed(seed * 1000 + draw + 1)
    first, second = torch.randint(branches, (2, count), generator=sample)
    return coarse[first] + fine[second] + 0.03 * torch.randn(count, dim, generator=sample)
