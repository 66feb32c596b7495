"""What pictures and films share on their way to a batch: settings, what is done on the device, and the baseline."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bridle.config import LATER
from bridle.data.batch import Batch
from bridle.errors import ConfigError, DataError
from bridle.media.pixels import crop_and_resize, draw_crops, draw_flips, normalise, to_unit
from bridle.media.rand_augment import erase, rand_augment

_ROUNDING = 1e-3  # by which floats may leave [0, 1], as after resizing
BASELINE_SIZE = 32
"""Most pixels along an edge of a picture that stands for itself in an evaluation."""


@dataclass(frozen=True)
class PixelConfig:
    """How pixels become clips.

    Attributes:
        size: height and width in pixels of what the encoder sees.
        decode_size: height and width in pixels to which a whole picture is brought for training, before it is cropped.
        channels: 1 for grey, 3 for colour.
        mean: of each channel's values in [0, 1], subtracted; None until it is estimated from the data.
        std: of each channel's values, divided by; None like ``mean``.
        scale: least and largest share of a picture's area that a training crop has; with 1 1 and ``ratio`` 1 1 a
            square picture is not cropped.
        ratio: least and largest width over height of a training crop.
        flip: turn half of the training crops over, left to right.
        rand_augment: magnitude of RandAugment in training, 0 to 10; 0 for none.
        erase: share of the training clips in which a box is set to the mean.
        cache_gigabytes: memory for decoded files, over all workers of a process; 0 for none.
        cache_folder: folder that keeps decoded files for other processes and runs; "" for none.
        max_pixels: most pixels of a picture; a larger one counts as unreadable.
        max_decode_seconds: time that decoding one clip may take; a file that takes longer counts as unreadable.

    Raises:
        ConfigError: a value out of range.
    """

    size: int = 224
    decode_size: int = 256
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rand_augment: float = field(default=0.0, metadata=LATER)
    erase: float = field(default=0.0, metadata=LATER)
    cache_gigabytes: float = 1.0
    cache_folder: str = field(default="", metadata=LATER)
    max_pixels: int = 200_000_000
    max_decode_seconds: float = 60.0

    def __post_init__(self) -> None:
        if min(self.size, self.decode_size, self.max_pixels) < 1 or self.channels not in (1, 3):
            raise ConfigError(
                f"size={self.size}, decode_size={self.decode_size} and max_pixels={self.max_pixels} must be 1 or more, "
                f"channels={self.channels} must be 1 or 3"
            )
        if self.decode_size < self.size:
            raise ConfigError(f"decode_size={self.decode_size} must be at least size={self.size}: set both")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale={self.scale} must rise within 0 and 1, 0 excluded")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio={self.ratio} must rise and be above 0")
        if not (0 <= self.rand_augment <= 10 and 0 <= self.erase <= 1):
            raise ConfigError(f"rand_augment={self.rand_augment} must lie between 0 and 10, erase={self.erase} between 0 and 1")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"mean is {self.mean} and std is {self.std}; set both, or neither to have them estimated")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ConfigError(f"{name}={values} has {len(values)} values; channels={self.channels} needs as many")
        if self.std is not None and not min(self.std) > 0:
            raise ConfigError(f"std is {self.std}; it must be above 0")
        if not self.max_decode_seconds > 0:
            raise ConfigError(f"max_decode_seconds is {self.max_decode_seconds}; it must be above 0, e.g. 60")
        if not 0 <= self.cache_gigabytes < math.inf:
            raise ConfigError(f"cache_gigabytes is {self.cache_gigabytes}; it must be finite and at least 0")


def is_unchanged(config: PixelConfig, aspect: float) -> bool:
    """True when :func:`finish_pixels` crops and augments nothing of a picture of this width over height."""
    whole = config.scale == (1.0, 1.0) and config.ratio == (1.0, 1.0) and aspect == 1.0
    return whole and not (config.flip or config.rand_augment or config.erase)


def finish_pixels(batch: Batch, config: PixelConfig, augment: bool) -> Batch:
    """uint8 (B, C, T, H, W) to normalised float32 (B, C, T, size, size), on the batch's device.

    Frames behind the end of a clip repeat its last one, so that nothing moves in a patch that it fills in part.

    Args:
        batch: of squashed pictures of ``decode_size`` when ``augment``, else of ``size``.
        config: its mean and std set.
        augment: crop and flip at random.
    """
    if config.mean is None or config.std is None:
        raise ConfigError("mean and std of the pixels are not set; set them, or have them estimated")
    pixels, frames = batch.inputs, batch.inputs.shape[2]
    if bool((batch.lengths < frames).any()):
        shown = torch.arange(frames).minimum(batch.lengths[:, None] - 1).to(pixels.device, non_blocking=True)
        pixels = pixels.gather(2, shown[:, None, :, None, None].expand_as(pixels))
    if augment:
        crops = draw_crops(batch.aspects, batch.seeds, config.scale, config.ratio)
        flips = draw_flips(batch.seeds) if config.flip else torch.zeros(len(batch), dtype=torch.bool)
        values = crop_and_resize(pixels, crops, flips, config.size)
        if config.rand_augment:
            values = rand_augment(values, batch.seeds, config.rand_augment)
    else:
        values = to_unit(pixels)
    values = normalise(values, config.mean, config.std)
    if augment and config.erase:
        values = erase(values, batch.seeds, config.erase)
    return dataclasses.replace(batch, inputs=values)


def pixel_baseline(pixels: Tensor) -> Tensor:
    """The pixels of a clip (C, T, H, W) as rows (T, X) in [0, 1], averaged to at most 32 x 32 pixels."""
    values = to_unit(pixels).transpose(0, 1)
    if max(values.shape[2:]) > BASELINE_SIZE:
        height, width = (min(BASELINE_SIZE, edge) for edge in values.shape[2:])
        values = torch.nn.functional.adaptive_avg_pool2d(values, (height, width))
    return values.flatten(1)


def uint8_pixels(item: Any, what: str, axes: tuple[str, ...]) -> Tensor:
    """Pixels in memory as uint8 on the CPU; floats are rounded to 255ths.

    Args:
        item: what a user gave.
        what: it is, in errors.
        axes: it must have, channels third from the end.

    Raises:
        DataError: it is no tensor of these axes, empty, or holds anything but uint8 or floats in [0, 1].
    """
    wanted = f"{what} must be a path{', a PIL image' if what == 'a picture' else ''} or a tensor ({', '.join(axes)}) of uint8"
    if not isinstance(item, Tensor):
        raise DataError(f"{wanted}, not {type(item)}" + ("; torch.from_numpy makes one" if hasattr(item, "__array__") else ""))
    pixels = item.detach().cpu()
    is_pixels = pixels.dtype == torch.uint8 or pixels.is_floating_point()
    if pixels.ndim != len(axes) or pixels.shape[-3] not in (1, 3) or pixels.numel() == 0 or not is_pixels:
        batch = "; embed_all takes a batch" if pixels.ndim == len(axes) + 1 else ""
        raise DataError(f"{wanted} or of floats in [0, 1], not {tuple(pixels.shape)} {pixels.dtype}{batch}")
    if pixels.dtype == torch.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise DataError(
            f"{what} holds floats from {low:g} to {high:g}; divide by 255, or undo the normalisation: [0, 1] is wanted"
        )
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
