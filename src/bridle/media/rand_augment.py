"""RandAugment and random erasing of a batch of pictures or films, on its device. Frames of one film are treated alike.

Which operations a clip gets, and how strong they are, follows from its seed alone; clips that get the same one are treated
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bridle.randomness import counter_uniform

_STREAM, _ERASE_STREAM = -21, -22
NUM_OPERATIONS = 2
"""Operations for each clip."""
_CHANCE = 0.5
_DEVIATION = 0.5
_LEVELS = 10.0


class _Strength(NamedTuple):
    """``level`` (n,) in [0, 1] of n clips, and ``sign`` (n,) -1 or 1."""

    level: Tensor
    sign: Tensor


Operation = Callable[[Tensor, _Strength], Tensor]
"""Clips (n, C, T, H, W) in [0, 1] and how much to change them, to the same shape."""


def rand_augment(values: Tensor, seeds: Tensor, magnitude: float) -> Tensor:
    """Two operations out of 15 for each clip, each with a chance of a half (RandAugment, arXiv 1909.13719).

    Operations and their ranges are those of the usual setting of masked image models' fine-tuning, ``rand-m9-mstd0.5-inc1``:
    the larger the magnitude, the farther from the original.

    Args:
        values: (B, C, T, H, W) float32 in [0, 1].
        seeds: (B,) int64, on the CPU.
        magnitude: 0 to 10; of each operation it is drawn with a deviation of 0.5 around this.

    Returns:
        (B, C, T, H, W) in [0, 1].
    """
    draws = counter_uniform(seeds, 5 * NUM_OPERATIONS, _STREAM).reshape(len(seeds), NUM_OPERATIONS, 5)
    numbers = (draws[..., 0] * len(OPERATIONS)).long()
    levels = ((magnitude + _DEVIATION * _normal(draws[..., 1], draws[..., 2])) / _LEVELS).clamp(0, 1)
    signs = torch.where(draws[..., 3] < 0.5, -1.0, 1.0)
    applied = draws[..., 4] < _CHANCE
    for turn in range(NUM_OPERATIONS):
        for number, operation in enumerate(OPERATIONS.values()):
            rows = ((numbers[:, turn] == number) & applied[:, turn]).nonzero()[:, 0]
            if len(rows):
                where = rows.to(values.device, non_blocking=True)
                strength = _Strength(*(x[rows, turn].float().to(values.device, non_blocking=True) for x in (levels, signs)))
                changed = operation(values.index_select(0, where), strength).clamp(0, 1)
                values = values.index_copy(0, where, changed)
    return values


def erase(values: Tensor, seeds: Tensor, chance: float) -> Tensor:
    """Set a box to 0 in a share of the clips (random erasing, arXiv 1708.04896): 2 to 33 % of the area.

    The box is 0.3 to 3.3 times as wide as it is high; what would leave the picture is cut off.

    Args:
        values: (B, C, T, H, W) normalised, so that 0 is the mean.
        seeds: (B,) int64, on the CPU.
        chance: share of the clips.
    """
    draws = counter_uniform(seeds, 5, _ERASE_STREAM)
    height, width = values.shape[-2:]
    area = (0.02 + (1 / 3 - 0.02) * draws[:, 1]) * height * width
    ratio = (math.log(0.3) * (1 - 2 * draws[:, 2])).exp()
    tall = (area / ratio).sqrt().clamp(max=height)
    wide = (area * ratio).sqrt().clamp(max=width)
    top, left = (height - tall) * draws[:, 3], (width - wide) * draws[:, 4]
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    in_rows = (rows > top[:, None]) & (rows < (top + tall)[:, None])
    in_columns = (columns > left[:, None]) & (columns < (left + wide)[:, None])
    box = in_rows[:, :, None] & in_columns[:, None, :] & (draws[:, 0] < chance)[:, None, None]
    return values.masked_fill(box[:, None, None].to(values.device, non_blocking=True), 0.0)


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Standard normal numbers of two uniform ones (Box & Muller 1958)."""
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()


def _spread(factors: Tensor) -> Tensor:
    return factors[:, None, None, None, None]


def _auto_contrast(clips: Tensor, strength: _Strength) -> Tensor:
    low, high = clips.amin((2, 3, 4), keepdim=True), clips.amax((2, 3, 4), keepdim=True)
    return torch.where(high > low, (clips - low) / (high - low).clamp_min(1e-6), clips)


def _equalise(clips: Tensor, strength: _Strength) -> Tensor:
    from kornia.enhance import equalize

    flat = clips.flatten(2, 3)  # one histogram for all frames
    found: Tensor = equalize(flat)
    return found.reshape(clips.shape)


def _invert(clips: Tensor, strength: _Strength) -> Tensor:
    return 1 - clips


def _posterise(clips: Tensor, strength: _Strength) -> Tensor:
    steps = _spread(2.0 ** (8 - (4 - (strength.level * 4).floor())))
    return ((clips * 255).round() / steps).floor() * steps / 255


def _solarise(clips: Tensor, strength: _Strength) -> Tensor:
    first = _spread(256 - (256 * strength.level).floor())  # of the values 0 to 255; 256 leaves white as it is
    return torch.where((clips * 255).round() >= first, 1 - clips, clips)


def _solarise_add(clips: Tensor, strength: _Strength) -> Tensor:
    return torch.where(clips < 0.5, (clips + _spread(strength.level) * 110 / 255).clamp(max=1.0), clips)


def _grey(clips: Tensor) -> Tensor:
    if clips.shape[1] != 3:
        return clips.mean(1, keepdim=True)
    weights = clips.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    return (clips * weights).sum(1, keepdim=True)


def _enhance(clips: Tensor, plain: Tensor, strength: _Strength) -> Tensor:
    """Away from ``plain``, or towards it."""
    return plain + _spread(1 + strength.sign * strength.level * 0.9) * (clips - plain)


def _colour(clips: Tensor, strength: _Strength) -> Tensor:
    return _enhance(clips, _grey(clips), strength)


def _contrast(clips: Tensor, strength: _Strength) -> Tensor:
    return _enhance(clips, _grey(clips).mean((2, 3, 4), keepdim=True), strength)


def _brightness(clips: Tensor, strength: _Strength) -> Tensor:
    return _enhance(clips, torch.zeros_like(clips), strength)


def _sharpness(clips: Tensor, strength: _Strength) -> Tensor:
    kernel = clips.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]])[None, None] / 13
    frames = clips.transpose(1, 2).flatten(0, 2)[:, None]
    smooth = frames.clone()
    smooth[..., 1:-1, 1:-1] = torch.nn.functional.conv2d(frames, kernel)
    plain = smooth.reshape(len(clips), clips.shape[2], clips.shape[1], *clips.shape[3:]).transpose(1, 2)
    return _enhance(clips, plain, strength)


def _warp(clips: Tensor, matrices: Tensor) -> Tensor:
    """Clips by (n, 2, 2 + 1) affine maps of places counted in pixels from the middle; what is outside is grey."""
    from kornia.geometry.transform import warp_affine

    height, width = clips.shape[3:]
    middle = clips.new_tensor([(width - 1) / 2, (height - 1) / 2])
    shift = middle - (matrices[:, :, :2] @ middle) + matrices[:, :, 2]
    found: Tensor = warp_affine(
        clips.flatten(1, 2) - 0.5,
        torch.cat([matrices[:, :, :2], shift[:, :, None]], dim=2),
        (height, width),
        align_corners=True,
    )
    return found.reshape(clips.shape) + 0.5


def _matrices(strength: _Strength, **places: Tensor) -> Tensor:
    """(n, 2, 3): the identity with the values of ``places``, whose names end with row and column."""
    matrices = torch.eye(2, 3, device=strength.level.device).repeat(len(strength.level), 1, 1)
    for place, values in places.items():
        matrices[:, int(place[-2]), int(place[-1])] = values
    return matrices


def _rotate(clips: Tensor, strength: _Strength) -> Tensor:
    angle = torch.deg2rad(30 * strength.level * strength.sign)
    cosine, sine = angle.cos(), angle.sin()
    return _warp(clips, _matrices(strength, at00=cosine, at01=sine, at10=-sine, at11=cosine))


def _shear_x(clips: Tensor, strength: _Strength) -> Tensor:
    return _warp(clips, _matrices(strength, at01=0.3 * strength.level * strength.sign))


def _shear_y(clips: Tensor, strength: _Strength) -> Tensor:
    return _warp(clips, _matrices(strength, at10=0.3 * strength.level * strength.sign))


def _translate_x(clips: Tensor, strength: _Strength) -> Tensor:
    return _warp(clips, _matrices(strength, at02=0.45 * clips.shape[4] * strength.level * strength.sign))


def _translate_y(clips: Tensor, strength: _Strength) -> Tensor:
    return _warp(clips, _matrices(strength, at12=0.45 * clips.shape[3] * strength.level * strength.sign))


OPERATIONS: dict[str, Operation] = {
    "auto contrast": _auto_contrast,
    "equalise": _equalise,
    "invert": _invert,
    "rotate": _rotate,
    "posterise": _posterise,
    "solarise": _solarise,
    "solarise add": _solarise_add,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
}
"""By name."""
