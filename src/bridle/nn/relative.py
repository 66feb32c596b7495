"""Positions told by neighbours and by distance, for encoders of the family of BEATs and WavLM.

Both read the order in which a grid numbers its patches, not its axes: the patch after the last mel band of a step is the
next step's first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.grid import Subset

GATES = 8
"""Outputs of a head's gate, added up to two."""


class ConvolvedPositions(nn.Module):
    """A grouped convolution over the patches in their order, then GELU (wav2vec 2.0, arXiv 2006.11477, section 2).

    Hidden patches and those that are not valid count as zeros, so neither padding nor the order of a subset changes anything.

    Args:
        width: D.
        kernel: patches that a position is made of.
        groups: of channels that see each other; must divide ``width``.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)

    def forward(self, tokens: Tensor, subset: Subset, num_patches: int) -> Tensor:
        """Positions (B, V, D) float32 of the ``tokens`` (B, V, D) of ``subset``, out of ``num_patches``."""
        if subset.valid is not None:
            tokens = tokens.masked_fill(~subset.valid[..., None], 0)
        row = tokens
        if subset.indices is not None:
            index = subset.indices[..., None].expand_as(tokens)
            # Entries that only fill up a row may repeat an index, and add their zeros.
            row = tokens.new_zeros(len(tokens), num_patches, tokens.shape[-1]).scatter_add(1, index, tokens)
        convolved: Tensor = F.gelu(self.convolution(row.transpose(1, 2))[..., : row.shape[1]])
        return subset.gather(convolved.transpose(1, 2)).float()


class RelativeBias(nn.Module):
    """What attention adds to a pair's score by the distance of its patches, for each head; one table for all blocks (T5).

    Args:
        num_buckets: classes of distance, half of them for each direction; the nearer half of those are single distances, the
            others grow with the distance (arXiv 1910.10683, section 2.1).
        max_distance: from here on all is one class.
        heads: H.
    """

    def __init__(self, num_buckets: int, max_distance: int, heads: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.bias = nn.Parameter(torch.empty(num_buckets, heads))
        nn.init.normal_(self.bias, std=0.02)

    def forward(self, subset: Subset, num_patches: int) -> Tensor:
        """(B, H, V, V) for the patches of ``subset``, queries before keys; (1, H, N, N) where it holds all of them."""
        if subset.indices is None:
            places = torch.arange(num_patches, device=self.bias.device)[None]
        else:
            places = subset.indices
        ahead = places[:, None, :] - places[:, :, None]
        return self.bias[distance_buckets(ahead, len(self.bias), self.max_distance)].permute(0, 3, 1, 2)


def distance_buckets(ahead: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The class of each distance, int64 in [0, num_buckets): of keys ``ahead`` of their query, negative for those behind."""
    half = num_buckets // 2
    exact = half // 2
    distance = ahead.abs()
    growth = (distance.clamp(min=exact).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (ahead > 0)


class BiasGate(nn.Module):
    """How much of the bias a query takes (WavLM, arXiv 2110.13900, section 3.1; BEATs gives it the projected query).

    Args:
        head_width: d.
        heads: H.
    """

    def __init__(self, head_width: int, heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(head_width, GATES)
        self.scale = nn.Parameter(torch.ones(heads))

    def forward(self, query: Tensor) -> Tensor:
        """Factors (B, H, Q, 1) for the queries (B, H, Q, d)."""
        gates: Tensor = self.linear(query).unflatten(-1, (2, GATES // 2)).sum(-1).sigmoid()
        keep, reset = gates.chunk(2, dim=-1)
        return keep * (reset * self.scale[:, None, None] - 1) + 2
