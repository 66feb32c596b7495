"""Mixing of the clips of a batch, on its device: mixup and cutmix. What is random follows from the clips' seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.randomness import counter_uniform, derive_seed

_STREAM = -11
_MAX_POWER = 60.0  # e^60 is far above any power of 16 bit sound, and far below the largest float32

Blend = Literal["values", "powers"]
"""What is added up: the values, or, of normalised log-mel, the powers."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Mixed clips (B, C, T, H, W), and how much of its own class each of them has: (B,) float32 in [0, 1], on the CPU.

    The rest is of the clip at the same place counted from the end of the batch.
    """

    inputs: Tensor
    weights: Tensor


@dataclass(frozen=True)
class MixConfig:
    """How clips of a batch are mixed.

    Attributes:
        mixup: a of beta(a, a), from which the weight of a clip in a mixture is drawn (arXiv 1710.09412); 0 for no mixup.
        cutmix: the same for the share of the area that is left of a clip (arXiv 1905.04899); 0 for no cutmix.
        ratio: share of the clips that are mixed; where both are on, half of them by each.

    Raises:
        ConfigError: a value out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    ratio: float = 1.0

    @property
    def on(self) -> bool:
        """True when any clip is mixed."""
        return self.ratio > 0 and self.mixup + self.cutmix > 0

    def __post_init__(self) -> None:
        if not all(0 <= value < math.inf for value in (self.mixup, self.cutmix)):
            raise ConfigError(f"mixup={self.mixup} and cutmix={self.cutmix} must be finite and at least 0; 0 turns them off")
        if not 0.0 <= self.ratio <= 1.0:
            raise ConfigError(f"mix_ratio={self.ratio} must lie between 0 and 1")


def draw_partners(seeds: Tensor, num_clips: int, config: MixConfig) -> tuple[Tensor, Tensor]:
    """With which of all ``num_clips`` each clip is mixed, and the weight of the clip itself: 1 for one that is not mixed.

    Returns:
        (B,) int64 rows and (B,) float32 weights, for ``seeds`` (B,).
    """
    choice, partner = counter_uniform(seeds, 2, _STREAM - 2).unbind(1)
    weights = draw_beta(seeds, config.mixup)
    return (partner * num_clips).long(), torch.where(choice < config.ratio, weights, torch.ones_like(weights))


def draw_beta(seeds: Tensor, alpha: float) -> Tensor:
    """A number of beta(alpha, alpha) for each of ``seeds`` (B,): (B,) float32."""
    draws = [np.random.Generator(np.random.PCG64(derive_seed(seed, "beta"))).beta(alpha, alpha) for seed in seeds.tolist()]
    return torch.tensor(draws, dtype=torch.float32)


def mix(
    inputs: Tensor, lengths: Tensor, seeds: Tensor, config: MixConfig, blend: Blend = "values", scale: float = 1.0
) -> Mixture:
    """Join each clip with the one at the same place counted from the end of the batch.

    Frames behind the end of either clip stay as they are.

    Args:
        inputs: (B, C, T, H, W) float32.
        lengths: (B,) valid frames, on the CPU.
        seeds: (B,), on the CPU.
        config: what is done to which share of the clips.
        blend: of mixup.
        scale: of ``powers``: log-mel is ``inputs * scale``, up to a constant.
    """
    choice, kind = counter_uniform(seeds, 2, _STREAM).unbind(1)
    chosen = (choice < config.ratio) & (torch.arange(len(seeds)) != torch.arange(len(seeds)).flip(0))
    by_box = chosen & ((kind < 0.5) if config.mixup and config.cutmix else torch.full_like(chosen, config.cutmix > 0))
    by_weight = chosen & ~by_box & (config.mixup > 0)
    weights = torch.ones(len(seeds))
    other = inputs.flip(0)
    shared = _shared_frames(inputs, lengths)
    mixed = inputs
    if bool(by_weight.any()):
        weights = torch.where(by_weight, draw_beta(seeds, config.mixup), weights)
        blended = _blend(inputs, other, _column(weights, inputs), blend, scale)
        mixed = torch.where(_column(by_weight, inputs) & shared, blended, mixed)
    if bool(by_box.any()):
        inside = _boxes(draw_beta(seeds, config.cutmix), seeds, inputs.shape[3], inputs.shape[4])
        weights = torch.where(by_box, 1 - inside.float().mean((1, 2)), weights)
        taken = (inside & by_box[:, None, None])[:, None, None].to(inputs.device, non_blocking=True)
        mixed = torch.where(taken & shared, other, mixed)
    return Mixture(mixed, weights)


def mix_powers(first: Tensor, second: Tensor, weight: float | Tensor, scale: float = 1.0) -> Tensor:
    """Log-mel of ``weight`` of one sound's power and the rest of another's: ``log(w exp(x) + (1 - w) exp(y))``."""
    low = torch.minimum(first, second) * scale
    high = torch.maximum(first, second) * scale
    low = torch.maximum(low, high - _MAX_POWER)
    return (high + torch.where(first >= second, _join(weight, high, low), _join(1 - weight, high, low))) / scale


def _join(weight: float | Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Logarithm of ``weight + (1 - weight) exp(low - high)``."""
    return (weight + (1 - weight) * (low - high).exp()).clamp_min(1e-26).log()


def _blend(first: Tensor, second: Tensor, weights: Tensor, blend: Blend, scale: float) -> Tensor:
    if blend == "powers":
        return mix_powers(first, second, weights, scale)
    return weights * first + (1 - weights) * second


def _boxes(left: Tensor, seeds: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool, True inside a box of about ``1 - left`` (B,) of the area, cut off where it leaves the picture."""
    middle = counter_uniform(seeds, 2, _STREAM - 1)
    half = (1 - left.double()).sqrt() / 2
    inside = []
    for axis, size in enumerate((height, width)):
        place = torch.arange(size)[None] + 0.5
        inside.append((place - middle[:, axis, None] * size).abs() < half[:, None] * size)
    return inside[0][:, :, None] & inside[1][:, None, :]


def _shared_frames(inputs: Tensor, lengths: Tensor) -> Tensor:
    """(B, 1, T, 1, 1) bool: frames that both clips have."""
    frames = torch.arange(inputs.shape[2]) < torch.minimum(lengths, lengths.flip(0))[:, None]
    return frames[:, None, :, None, None].to(inputs.device, non_blocking=True)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values[:, None, None, None, None].to(like.device, non_blocking=True)
