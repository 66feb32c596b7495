"""From patch features to classes."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.nn.pooling import Averages, pool_moments, pooled_width, time_moments


class Classifier(nn.Module):
    """Pool, normalise, one linear layer.

    Args:
        pooling: how patch features become one vector.
        width: D of the features.
        grid: of the patches; its time plays no part.
        num_classes: C.

    Raises:
        ConfigError: the pooling is one of motion.
    """

    def __init__(self, pooling: Averages, width: int, grid: PatchGrid, num_classes: int) -> None:
        super().__init__()
        if pooling not in get_args(Averages):
            raise ConfigError(f"pooling={pooling!r} is for frozen features; a classifier takes {', '.join(get_args(Averages))}")
        self.pooling: Averages = pooling
        pooled = pooled_width(width, grid, pooling)
        self.norm = nn.LayerNorm(pooled)
        self.linear = nn.Linear(pooled, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, grid: PatchGrid, valid_steps: Tensor) -> Tensor:
        """Logits (B, C) float32.

        Args:
            features: (B, N, D) of all patches.
            grid: N patches.
            valid_steps: (B,) time steps that count.
        """
        return self.classify(pool_moments(time_moments(features, grid, valid_steps), grid, self.pooling))

    def of_subset(self, features: Tensor, subset: Subset) -> Tensor:
        """Logits (B, C) float32 of the features (B, V, D) of some patches, by their mean; for the pooling ``mean`` only."""
        features = features.float()
        if subset.valid is None:
            return self.classify(features.mean(1))
        weight = subset.valid.to(features.dtype)[..., None]
        return self.classify((features * weight).sum(1) / weight.sum(1))

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (B, C) float32 of pooled features (B, X)."""
        return self.linear(self.norm(pooled)).float()  # type: ignore[no-any-return]
