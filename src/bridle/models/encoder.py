"""The encoder: one ViT for any grid of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from bridle.config import LATER
from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.nn.block import Block, BlockNorm, init_weights
from bridle.nn.patches import Patches, PatchSize, patch_values
from bridle.nn.positions import Axis, sequence, sine_cosine, stretch
from bridle.nn.relative import ConvolvedPositions, RelativeBias


@dataclass(frozen=True)
class EncoderConfig:
    """Size and front end of an encoder. The fields from ``positions`` on are for weights trained elsewhere.

    Attributes:
        width: D.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        patch: (time, height, width) of a patch in input units: frames, mel bands, 1 for audio.
        channels: input channels.
        axes: the axes that have a position, in the order of their shares of the width.
        positions: what is added to the patches: ``sine_cosine`` of each of ``axes``; ``sequence``: sine and cosine of the
            patch's number (VideoMAE); ``learned``: a table (ViT, DINOv2); ``convolved``: what a convolution makes of the
            patches before and after (BEATs), see ``position_kernel``.
        position_grid: (time, height, width) in patches that positions are counted on. A clip of another height or width gets
            positions stretched between them; a shorter one the first steps. Learned positions need it and end with its time
            steps. None: each grid counts for itself.
        position_kernel: (patches, groups) of the convolution of ``convolved`` positions.
        relative_positions: (num_buckets, max_distance) of biases by distance in attention, which every query weighs (BEATs);
            None for none. Distances and convolved positions are of patches, so there is no class token beside them.
        embed_width: a patch is brought to this width and normalised before it is brought to ``width`` (BEATs); None for one
            linear map.
        class_token: a token of no patch, whose features are the summary; without it the summary is the mean of the patches.
        block_norm: norms before attention and MLP, or behind their sums, which may be weighted; see
            :class:`~bridle.nn.block.Block`.
        input_norm: a norm between positions and first block.
        final_norm: a norm behind the last block.
        norm_eps: added to the variance in every norm.
        layer_scale: first value of the factors on what blocks add; None for none.

    Raises:
        ConfigError: a size below 1, ``heads`` that do not divide ``width``, learned positions without a ``position_grid``,
            ``norm_eps`` that is not positive, or positions by convolution or distance that cannot be.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    patch: PatchSize = (16, 16, 1)
    channels: int = 1
    axes: tuple[Axis, ...] = ("time", "height")
    positions: Literal["sine_cosine", "sequence", "learned", "convolved"] = "sine_cosine"
    position_grid: tuple[int, int, int] | None = None
    position_kernel: tuple[int, int] = field(default=(128, 16), metadata=LATER)
    relative_positions: tuple[int, int] | None = field(default=None, metadata=LATER)
    embed_width: int | None = field(default=None, metadata=LATER)
    class_token: bool = True
    block_norm: BlockNorm = "pre"
    input_norm: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-5
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.channels, *self.patch, *(self.position_grid or ()))
        if min(*sizes, *self.position_kernel, 1 if self.embed_width is None else self.embed_width) < 1:
            raise ConfigError(f"encoder sizes must be 1 or more, not {self}")
        if self.width % self.heads:
            raise ConfigError(f"encoder.heads={self.heads} must divide encoder.width={self.width}")
        if self.positions == "learned" and self.position_grid is None:
            raise ConfigError(
                "encoder.positions=learned needs encoder.position_grid, the table's time, height and width in patches"
            )
        if not 0 < self.mlp_ratio < math.inf or not math.isfinite(self.layer_scale or 0.0):
            raise ConfigError(
                f"encoder.mlp_ratio={self.mlp_ratio} must be above 0, and layer_scale={self.layer_scale} finite or None"
            )
        if not self.norm_eps > 0:
            raise ConfigError(f"encoder.norm_eps={self.norm_eps} must be above 0, e.g. 1e-5")
        convolved = self.positions == "convolved"
        if convolved and self.width % self.position_kernel[1]:
            raise ConfigError(f"encoder.position_kernel={self.position_kernel}: its groups must divide width={self.width}")
        if self.relative_positions is not None and not 4 <= self.relative_positions[0] < 4 * self.relative_positions[1]:
            raise ConfigError(
                f"encoder.relative_positions={self.relative_positions} must be 4 buckets or more, and a largest distance of "
                "more than a quarter of them, e.g. 320 800"
            )
        if self.class_token and (convolved or self.relative_positions is not None):
            raise ConfigError("encoder.class_token must be False with convolved or relative positions: it is no patch")

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
    """What the encoder makes of the patches it sees: ``patches`` (B, V, D) and their ``summary`` (B, D).

    The summary is the class token's, or the mean of the valid patches where the encoder has none.
    """

    summary: Tensor
    patches: Tensor


class Encoder(nn.Module):
    """A ViT (arXiv 2010.11929) for any grid, by default pre-norm with a class token and sine-cosine positions."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Module = nn.Linear(config.patch_values, config.width)
        if config.embed_width is not None:
            self.embed = nn.Sequential(
                nn.Linear(config.patch_values, config.embed_width),
                nn.LayerNorm(config.embed_width, config.norm_eps),
                nn.Linear(config.embed_width, config.width),
            )
        self.class_token = nn.Parameter(torch.zeros(config.width)) if config.class_token else None
        self.position_table: nn.Parameter | None = None
        self.convolved = ConvolvedPositions(config.width, *config.position_kernel) if config.positions == "convolved" else None
        self.relative = RelativeBias(*config.relative_positions, config.heads) if config.relative_positions else None
        self.input_norm = nn.LayerNorm(config.width, config.norm_eps) if config.input_norm else nn.Identity()
        residual, gated = (2 * config.depth) ** 0.25, config.relative_positions is not None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                norm=config.block_norm,
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
                residual=residual,
                gated=gated,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.final_norm else nn.Identity()
        init_weights(self)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.02)
        if config.positions == "learned":
            assert config.position_grid is not None
            self.position_table = nn.Parameter(torch.zeros(math.prod(config.position_grid), config.width))
            nn.init.normal_(self.position_table, std=0.02)

    def forward(self, patches: Patches, subset: Subset, kept: Tensor | None = None) -> Features:
        """Encode the patches of ``subset``: the last layer's output after the final norm.

        Args:
            patches: (B, N, P) with their grid.
            subset: which V of them the encoder sees; entries that are not valid are attended to by nobody.
            kept: factors of drop path, see :func:`~bridle.nn.block.draw_drop_path`; None for 1.

        Returns:
            ``summary`` (B', D) and ``patches`` (B', V, D), B' = rows of the subset.
        """
        return self.at_layers(patches, subset, (self.config.depth,), kept)[0]

    def at_layers(
        self, patches: Patches, subset: Subset, layers: Sequence[int], kept: Tensor | None = None
    ) -> tuple[Features, ...]:
        """Like :meth:`forward`, with the output of each of ``layers``, from one pass.

        Args:
            patches: (B, N, P) with their grid.
            subset: as for :meth:`forward`.
            layers: numbers of blocks, 1 to ``depth``. The last block's output has passed the final norm, others have not.
            kept: as for :meth:`forward`.

        Raises:
            ConfigError: there is no such layer, or none is asked for; or more time steps than learned positions.
        """
        check_layers(layers, self.config.depth)
        tokens = self.embed(subset.gather(patches.values))
        # Positions are float32: under autocast the sum of all blocks stays float32, and small updates are not lost.
        if self.convolved is not None:
            x = tokens + self.convolved(tokens, subset, patches.grid.num_patches)
        else:
            x = tokens + self._positions(patches.grid, subset, tokens.device)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.input_norm(x)
        allowed = key_mask(subset.valid, extra=int(self.class_token is not None))
        bias = self.relative(subset, patches.grid.num_patches) if self.relative is not None else None
        found: dict[int, Features] = {}
        for number, block in enumerate(self.blocks[: max(layers)], 1):
            x = block(x, allowed, bias, None if kept is None else kept[number - 1])
            if number in layers:
                out = self.norm(x) if number == self.config.depth else x
                found[number] = self._features(out, subset.valid)
        return tuple(found[layer] for layer in layers)

    def _features(self, x: Tensor, valid: Tensor | None) -> Features:
        if self.class_token is not None:
            return Features(x[:, 0], x[:, 1:])
        if valid is None:
            return Features(x.mean(1), x)
        weight = valid.to(x.dtype)[..., None]
        return Features((x * weight).sum(1) / weight.sum(1), x)

    def _positions(self, grid: PatchGrid, subset: Subset, device: torch.device) -> Tensor:
        config = self.config
        steps, height, width = config.position_grid or grid.shape
        counted = PatchGrid(grid.time, height, width)
        if self.position_table is not None:
            if grid.time > steps:
                raise ConfigError(f"positions are learned for {steps} time steps, not {grid.time}; use shorter clips")
            positions = self.position_table[: counted.num_patches]
        elif config.positions == "sequence":
            positions = sequence(counted, config.width, device)
        else:
            positions = sine_cosine(counted, config.width, config.axes, device)
        positions = stretch(positions, counted, grid.height, grid.width)
        return positions if subset.indices is None else positions[subset.indices]


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise :class:`~bridle.errors.ConfigError` for no layer, or one outside 1 to ``depth``."""
    if not layers:
        raise ConfigError(f"no layer is asked for; the encoder has layers 1 to {depth}")
    for layer in layers:
        if not isinstance(layer, int) or not 1 <= layer <= depth:
            raise ConfigError(f"layer {layer!r} does not exist; the encoder has layers 1 to {depth}")


def key_mask(valid: Tensor | None, extra: int = 0) -> Tensor | None:
    """(B, N) validity of keys -> (B, 1, 1, extra + N) for attention, with ``extra`` keys in front that everybody may see."""
    if valid is None:
        return None
    return nn.functional.pad(valid, (extra, 0), value=True)[:, None, None, :]
