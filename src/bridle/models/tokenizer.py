"""Tokenizers: from the patches of an unmasked clip to a stack of codes for each patch; and the estimator that trains one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from bridle.distributed import all_reduce_sum
from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.models.encoder import Encoder, EncoderConfig, key_mask
from bridle.nn.block import Block, init_weights
from bridle.nn.patches import Patches, PatchSize, normalise_patches, without_mean_over_time
from bridle.nn.positions import Axis, sine_cosine
from bridle.quantize import QuantizerConfig, ResidualQuantizer
from bridle.randomness import generator


@dataclass(frozen=True)
class ColdStartConfig:
    """The random tokenizer that gives the first labels.

    Attributes:
        normalise: ``patch``: each patch to zero mean and unit variance before the projection; ``set``: the clip's own
            normalisation only; ``motion``: that, minus the mean over time at each place, so that codes tell what changes.
        smooth: after normalising, a patch is averaged over cells of ``smooth`` units along each of its axes that is longer
            than 1, so that codes tell its coarse shape and not its noise; 1 keeps every value. Must divide these axes.
        code_dim: width of the random projection; None for the quantizer's ``code_dim``. A trained tokenizer can do with
            few dimensions, a random one keeps of a patch only what its dimensions hold.
        seed: of the random projection.

    Raises:
        ConfigError: ``smooth`` or ``code_dim`` below 1.
    """

    normalise: Literal["patch", "set", "motion"] = "patch"
    smooth: int = 1
    code_dim: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.smooth < 1:
            raise ConfigError(f"cold_start.smooth={self.smooth} must be 1 or more")
        if self.code_dim is not None and self.code_dim < 1:
            raise ConfigError(f"cold_start.code_dim={self.code_dim} must be 1 or more")


@dataclass(frozen=True)
class EstimatorConfig:
    """Size of the estimator and what it estimates.

    Attributes:
        width: of its blocks.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        target: ``standardised``: the encoder's features, each dimension to zero mean and unit deviation over all patches;
            ``plain``: as they are. Features share a large mean, which a constant estimates well: on plain targets the
            loss starts near its end and the codes need to tell little.
        target_decay: of the moving averages of that mean and deviation, per step, in [0, 1).

    Raises:
        ConfigError: a value out of range.
    """

    width: int = 192
    depth: int = 3
    heads: int = 3
    target: Literal["standardised", "plain"] = "standardised"
    target_decay: float = 0.9

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ConfigError(f"estimator.heads={self.heads} must divide estimator.width={self.width}, all sizes 1 or more")
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"estimator.target_decay={self.target_decay} must be in [0, 1), e.g. 0.9")


class CodeSource(Protocol):
    """What an objective needs of a tokenizer."""

    quantizer: ResidualQuantizer

    def vectors(self, patches: Patches, subset: Subset) -> Tensor:
        """The vectors that the quantizer codes: (B, N, C) for all N patches; those past a clip's end mean nothing."""

    def vectors_at(self, patches: Patches, subset: Subset, indices: Tensor) -> Tensor:
        """:meth:`vectors` at ``indices`` (B, m) only: (B, m, C)."""


class RandomTokenizer(nn.Module):
    """Cold start: a frozen random projection of the patches, without positions, and a quantizer fitted once.

    The projection is orthogonal, so that distances between patches survive it as well as ``code_dim`` allows.

    Args:
        config: normalisation, smoothing, width and seed of the projection.
        encoder: gives the patch and its channels.
        quantizer: its quantizer, of the projection's width.

    Raises:
        ConfigError: ``smooth`` does not divide the patch, or clips without time are to be coded by their motion.
    """

    projection: Tensor

    def __init__(self, config: ColdStartConfig, encoder: EncoderConfig, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        check_cold_start(config, encoder)
        self.patch, self.cell = encoder.patch, smoothing_cell(config, encoder.patch)
        quantizer = replace(quantizer, code_dim=config.code_dim or quantizer.code_dim)
        patch_values = encoder.patch_values // math.prod(self.cell)
        size = (max(patch_values, quantizer.code_dim), min(patch_values, quantizer.code_dim))
        noise = torch.randn(size, generator=generator(config.seed, "cold start"))
        basis = torch.linalg.qr(noise).Q
        self.register_buffer("projection", basis if patch_values >= quantizer.code_dim else basis.T.contiguous())
        self.quantizer = ResidualQuantizer(quantizer)

    def vectors(self, patches: Patches, subset: Subset) -> Tensor:
        """(B, N, C): projection of every patch; by ``motion`` those past a clip's end, by ``subset``, do not count."""
        return self._project(self._values(patches, subset))

    def vectors_at(self, patches: Patches, subset: Subset, indices: Tensor) -> Tensor:
        """(B, m, C): projection of the patches at ``indices`` (B, m)."""
        return self._project(Subset(indices, None).gather(self._values(patches, subset)))

    def _values(self, patches: Patches, subset: Subset) -> Tensor:
        if self.config.normalise != "motion":
            return patches.values
        return without_mean_over_time(patches, subset.valid, self.patch)

    def _project(self, values: Tensor) -> Tensor:
        values = values.float()
        with torch.autocast(values.device.type, enabled=False):
            if self.config.normalise == "patch":
                values = normalise_patches(values)
            if self.config.smooth > 1:
                values = self._smoothed(values)
            return values @ self.projection

    def _smoothed(self, values: Tensor) -> Tensor:
        axes = [size for units, cell in zip(self.patch, self.cell, strict=True) for size in (units // cell, cell)]
        return values.reshape(*values.shape[:-1], -1, *axes).mean((-5, -3, -1)).flatten(-4)


def check_cold_start(config: ColdStartConfig, encoder: EncoderConfig) -> None:
    """Whether the random tokenizer can be made for an encoder.

    Raises:
        ConfigError: ``smooth`` does not divide the patch, or clips without time are to be coded by their motion.
    """
    smoothing_cell(config, encoder.patch)
    if config.normalise == "motion" and "time" not in encoder.axes:
        raise ConfigError(f"cold_start.normalise=motion needs clips with a time, not axes {encoder.axes}; use patch or set")


def smoothing_cell(config: ColdStartConfig, patch: PatchSize) -> PatchSize:
    """(time, height, width) of the cells over which the cold start averages a patch.

    Raises:
        ConfigError: ``smooth`` does not divide an axis that is longer than 1.
    """
    time, height, width = (config.smooth if units > 1 else 1 for units in patch)
    if patch[0] % time or patch[1] % height or patch[2] % width:
        raise ConfigError(f"cold_start.smooth={config.smooth} must divide every axis of encoder.patch={patch} longer than 1")
    return (time, height, width)


class Tokenizer(nn.Module):
    """A ViT over all patches, then Linear, Tanh, Linear to ``code_dim``, then the quantizer (BEATs, arXiv 2212.09058).

    Args:
        encoder: size of its own ViT.
        quantizer: its quantizer.
    """

    def __init__(self, encoder: EncoderConfig, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.neck = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.Tanh(), nn.Linear(encoder.width, quantizer.code_dim)
        )
        init_weights(self.neck)
        self.quantizer = ResidualQuantizer(quantizer)

    def vectors(self, patches: Patches, subset: Subset) -> Tensor:
        """(B, N, C) for all N patches; entries that ``subset`` marks as not valid mean nothing."""
        return self.neck(self.encoder(patches, subset).patches).float()  # type: ignore[no-any-return]

    def vectors_at(self, patches: Patches, subset: Subset, indices: Tensor) -> Tensor:
        """(B, m, C) at ``indices`` (B, m)."""
        features = self.encoder(patches, subset).patches
        return self.neck(Subset(indices, None).gather(features)).float()  # type: ignore[no-any-return]


class Estimator(nn.Module):
    """From quantized vectors back to the encoder's features of the unmasked clip; trains the tokenizer only.

    It also knows the scale of those features, by moving averages that are equal on all ranks: see :meth:`target`.

    Args:
        config: its size.
        code_dim: C.
        encoder_width: D of the features it estimates.
        axes: the axes that have a position.
    """

    target_mean: Tensor
    target_square: Tensor
    target_updates: Tensor

    def __init__(self, config: EstimatorConfig, code_dim: int, encoder_width: int, axes: tuple[Axis, ...]) -> None:
        super().__init__()
        self.config = config
        self.axes = axes
        self.register_buffer("target_mean", torch.zeros(encoder_width))
        self.register_buffer("target_square", torch.ones(encoder_width))
        self.register_buffer("target_updates", torch.zeros((), dtype=torch.int64))
        self.embed = nn.Linear(code_dim, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, 4.0) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, encoder_width)
        init_weights(self)

    def forward(self, vectors: Tensor, grid: PatchGrid, subset: Subset) -> Tensor:
        """(B, N, C) quantized vectors of all patches -> (B, N, D) estimated features."""
        x = self.embed(vectors)
        x = x + sine_cosine(grid, self.config.width, self.axes, x.device)
        allowed = key_mask(subset.valid)
        for block in self.blocks:
            x = block(x, allowed)
        return self.out(self.norm(x))  # type: ignore[no-any-return]

    def target(self, features: Tensor) -> Tensor:
        """What :meth:`forward` is to estimate of the encoder's features (..., D): (..., D) float32."""
        if self.config.target == "plain":
            return features.float()
        variance = (self.target_square - self.target_mean.square()).clamp_min(1e-8)
        return (features.float() - self.target_mean) * variance.rsqrt()

    @staticmethod
    def statistics(features: Tensor) -> Tensor:
        """Features (n, D) -> packed (2D + 1,) float32 for :meth:`update`: sums, sums of squares, n."""
        rows = features.detach().float()
        return torch.cat([rows.sum(0), rows.square().sum(0), rows.new_full((1,), len(rows))])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move the averages that :meth:`target` uses; nothing in eval mode. All ranks call it together.

        Args:
            statistics: this rank's, added over its micro-batches. Those that are not finite change nothing on any rank.
        """
        if not self.training:
            return
        packed = all_reduce_sum(statistics.clone())
        mean, square = (packed[:-1] / packed[-1].clamp(min=1.0)).chunk(2)
        sound = packed.isfinite().all() & (packed[-1] > 0)
        decay = torch.where(self.target_updates > 0, self.config.target_decay, 0.0)
        for buffer, new in ((self.target_mean, mean), (self.target_square, square)):
            buffer.copy_(torch.where(sound, decay * buffer + (1 - decay) * new, buffer))
        self.target_updates += sound.long()
