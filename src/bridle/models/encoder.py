"""The encoder: one pre-norm ViT for any grid of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.nn.block import Block, init_weights
from bridle.nn.patches import Patches, PatchSize, patch_values
from bridle.nn.positions import Axis, sine_cosine


@dataclass(frozen=True)
class EncoderConfig:
    """Size and front end of an encoder.

    Attributes:
        width: D.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        patch: (time, height, width) of a patch in input units: frames, mel bands, 1 for audio.
        channels: input channels.
        axes: the axes that have a position.

    Raises:
        ConfigError: a value below 1, or ``heads`` that do not divide ``width``.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    patch: PatchSize = (16, 16, 1)
    channels: int = 1
    axes: tuple[Axis, ...] = ("time", "height")

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.channels, *self.patch) < 1:
            raise ConfigError(f"encoder sizes must be 1 or more, not {self}")
        if self.width % self.heads:
            raise ConfigError(f"encoder.heads={self.heads} must divide encoder.width={self.width}")

    @property
    def patch_values(self) -> int:
        """P, the number of values in one patch."""
        return patch_values(self.patch, self.channels)


SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Standard (width, depth, heads)."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoder makes of the patches it sees: ``summary`` (B, D) of the class token, ``patches`` (B, V, D)."""

    summary: Tensor
    patches: Tensor


class Encoder(nn.Module):
    """A ViT (arXiv 2010.11929), pre-norm, with a class token and sine-cosine positions for any grid."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.patch_values, config.width)
        self.class_token = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        init_weights(self)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, patches: Patches, subset: Subset) -> Features:
        """Encode the patches of ``subset``: the last layer's output after the final norm.

        Args:
            patches: (B, N, P) with their grid.
            subset: which V of them the encoder sees; entries that are not valid are attended to by nobody.

        Returns:
            ``summary`` (B', D) and ``patches`` (B', V, D), B' = rows of the subset.
        """
        return self.at_layers(patches, subset, (self.config.depth,))[0]

    def at_layers(self, patches: Patches, subset: Subset, layers: Sequence[int]) -> tuple[Features, ...]:
        """Like :meth:`forward`, with the output of each of ``layers``, from one pass.

        Args:
            patches: (B, N, P) with their grid.
            subset: as for :meth:`forward`.
            layers: numbers of blocks, 1 to ``depth``. The last block's output has passed the final norm, others have not.

        Raises:
            ConfigError: there is no such layer, or none is asked for.
        """
        check_layers(layers, self.config.depth)
        tokens = self.embed(subset.gather(patches.values))
        # Positions are float32: under autocast the sum of all blocks stays float32, and small updates are not lost.
        tokens = tokens + self._positions(patches.grid, subset, tokens.device)
        x = torch.cat([self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], dim=1)
        allowed = key_mask(subset.valid, extra=1)
        kept: dict[int, Features] = {}
        for number, block in enumerate(self.blocks[: max(layers)], 1):
            x = block(x, allowed)
            if number in layers:
                out = self.norm(x) if number == self.config.depth else x
                kept[number] = Features(out[:, 0], out[:, 1:])
        return tuple(kept[layer] for layer in layers)

    def _positions(self, grid: PatchGrid, subset: Subset, device: torch.device) -> Tensor:
        positions = sine_cosine(grid, self.config.width, self.config.axes, device)
        return positions if subset.indices is None else positions[subset.indices]


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise :class:`~bridle.errors.ConfigError` for no layer, or one outside 1 to ``depth``."""
    if not layers:
        raise ConfigError(f"no layer is asked for; the encoder has layers 1 to {depth}")
    for layer in layers:
        if not 1 <= layer <= depth:
            raise ConfigError(f"layer {layer} does not exist; the encoder has layers 1 to {depth}")


def key_mask(valid: Tensor | None, extra: int = 0) -> Tensor | None:
    """(B, N) validity of keys -> (B, 1, 1, extra + N) for attention, with ``extra`` keys in front that everybody may see."""
    if valid is None:
        return None
    return nn.functional.pad(valid, (extra, 0), value=True)[:, None, None, :]
