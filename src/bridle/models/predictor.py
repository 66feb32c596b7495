"""The predictor: from the features of visible patches to one vector for each patch that must be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.models.encoder import Features, key_mask
from bridle.nn.block import Block, CrossBlock, init_weights
from bridle.nn.positions import Axis, sine_cosine


@dataclass(frozen=True)
class PredictorConfig:
    """Size and kind of a predictor.

    Attributes:
        kind: ``cross``: masked positions attend to the visible features, not to each other (CrossMAE); ``full``:
            self-attention over visible features and masked positions (MAE).
        width: width of the predictor.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        window: for ``full``: how many patches away along time and height a patch may look (Chebyshev distance); 0
            looks everywhere.

    Raises:
        ConfigError: a value out of range, or a window with ``cross``.
    """

    kind: Literal["cross", "full"] = "cross"
    width: int = 128
    depth: int = 2
    heads: int = 4
    window: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads or self.window < 0:
            raise ConfigError(f"predictor.heads={self.heads} must divide predictor.width={self.width}, all sizes 1 or more")
        if self.window and self.kind == "cross":
            raise ConfigError(f"predictor.window={self.window} needs predictor.kind=full; a cross predictor has no window")


class Predictor(nn.Module):
    """A small transformer; the output is computed at the masked positions only.

    Args:
        config: its size.
        encoder_width: D of the features.
        axes: the axes that have a position, as in the encoder.
    """

    def __init__(self, config: PredictorConfig, encoder_width: int, axes: tuple[Axis, ...]) -> None:
        super().__init__()
        self.config = config
        self.axes = axes
        self.embed = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        kind = CrossBlock if config.kind == "cross" else Block
        self.blocks = nn.ModuleList(kind(config.width, config.heads, 4.0) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        init_weights(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, grid: PatchGrid, visible: Subset, predicted: Subset) -> Tensor:
        """Predict.

        Args:
            features: of the V visible patches.
            grid: the grid both subsets refer to.
            visible: V indices per row.
            predicted: M indices of masked patches per row.

        Returns:
            (B, M, predictor width).
        """
        positions = sine_cosine(grid, self.config.width, self.axes, features.patches.device)
        context = self.embed(torch.cat([features.summary[:, None], features.patches], dim=1))
        context = context + nn.functional.pad(positions[_indices(visible)], (0, 0, 1, 0))
        queries = self.mask_token + positions[_indices(predicted)]
        if self.config.kind == "cross":
            allowed = key_mask(visible.valid, extra=1)
            for block in self.blocks:
                queries = block(queries, context, allowed)
            return self.norm(queries)  # type: ignore[no-any-return]
        x = torch.cat([context, queries], dim=1)
        allowed = self._allowed(grid, visible, predicted)
        for block in self.blocks:
            x = block(x, allowed)
        return self.norm(x[:, context.shape[1] :])  # type: ignore[no-any-return]

    def _allowed(self, grid: PatchGrid, visible: Subset, predicted: Subset) -> Tensor | None:
        valid = None
        if visible.valid is not None or predicted.valid is not None:
            parts = [
                torch.ones_like(_indices(s), dtype=torch.bool) if s.valid is None else s.valid for s in (visible, predicted)
            ]
            valid = key_mask(torch.cat(parts, dim=1), extra=1)
        if not self.config.window:
            return valid
        places = torch.cat([_indices(visible), _indices(predicted)], dim=1)
        near = window_mask(grid.coordinates(places.device)[places], self.config.window)
        near = nn.functional.pad(near, (1, 0, 1, 0), value=True)[:, None]
        return near if valid is None else near & valid


def window_mask(coordinates: Tensor, window: int) -> Tensor:
    """Which patches may look at each other: no axis farther apart than ``window``. (B, L, 3) -> (B, L, L) bool."""
    allowed = None
    for axis in coordinates.to(torch.int16).unbind(-1):  # axis by axis: the whole difference would be huge
        near = (axis[:, :, None] - axis[:, None, :]).abs() <= window
        allowed = near if allowed is None else allowed & near
    assert allowed is not None
    return allowed


def _indices(subset: Subset) -> Tensor:
    if subset.indices is None:
        raise ValueError("a predictor needs the indices of visible and masked patches")
    return subset.indices


class CodeHead(nn.Module):
    """Logits of the codes of every level: (..., width) -> (..., R, K)."""

    def __init__(self, width: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_codebooks * codebook_size)
        self.num_codebooks = num_codebooks
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., R, K)."""
        return self.linear(x).unflatten(-1, (self.num_codebooks, -1))  # type: ignore[no-any-return]


class PatchHead(nn.Module):
    """Values of a patch, for masked-patch regression: (..., width) -> (..., P)."""

    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch_values)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., P)."""
        return self.linear(x)  # type: ignore[no-any-return]
