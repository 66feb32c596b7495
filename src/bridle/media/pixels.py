"""Augmentation of whole batches of pictures or films on their device. Frames of one film are treated alike.

Everything random follows from the clips' seeds by a counter-based generator, so it does not depend on the batch, the rank or
the device a clip is in. Resampling is kornia's, bicubic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bridle.randomness import counter_uniform

_CROP_STREAM, _FLIP_STREAM = -1, -2
_ATTEMPTS = 10


def draw_crops(aspects: Tensor, seeds: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Random crops of pictures, as Inception and ResNet training has them (Szegedy et al., arXiv 1409.4842).

    Area and aspect ratio are drawn up to 10 times until the crop fits into the picture; else it is the largest one in the
    centre that keeps to the ratios.

    Args:
        aspects: (B,) width over height of the whole pictures.
        seeds: (B,) int64.
        scale: least and largest share of the picture's area.
        ratio: least and largest width over height of a crop; their logarithm is uniform.

    Returns:
        (B, 4) float64: top, left, height, width as shares of the picture's height and width, each in [0, 1].
    """
    wide = aspects.double()[:, None]
    draws = counter_uniform(seeds, 2 * _ATTEMPTS + 2, _CROP_STREAM)
    area = wide * (scale[0] + (scale[1] - scale[0]) * draws[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS]).exp()
    widths, heights = (area * shape).sqrt(), (area / shape).sqrt()
    slack = 1 + 1e-12  # a crop of the whole picture fits, whatever the roots rounded
    fits = (widths <= wide * slack) & (heights <= slack)
    first = fits.double().argmax(1, keepdim=True)
    central = (torch.minimum(wide, torch.tensor(ratio[1])), torch.minimum(torch.tensor(1.0), wide / ratio[0]))
    found = fits.any(1, keepdim=True)
    width = torch.where(found, widths.gather(1, first), central[0]).minimum(wide)
    height = torch.where(found, heights.gather(1, first), central[1]).clamp(max=1.0)
    place = torch.where(found, draws[:, 2 * _ATTEMPTS :], 0.5)
    top, left = (1 - height) * place[:, :1], (wide - width) * place[:, 1:]
    return torch.cat([top, left / wide, height, width / wide], dim=1)


def draw_flips(seeds: Tensor) -> Tensor:
    """(B,) bool, True for half of the clips."""
    return counter_uniform(seeds, 1, _FLIP_STREAM)[:, 0] < 0.5


def crop_and_resize(pixels: Tensor, crops: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut crops out, turn some over and resize them, in one resampling.

    Pixel centres are matched (a crop of the whole picture at its own size is the picture), beyond the border its last pixels
    go on, and what bicubic overshoots is cut off.

    Args:
        pixels: (B, C, T, H, W) uint8, or float in [0, 1].
        crops: (B, 4) of :func:`draw_crops`, on any device.
        flips: (B,) bool, on any device.
        size: height and width of the result in pixels.

    Returns:
        (B, C, T, size, size) float32 in [0, 1].
    """
    from kornia.geometry.transform import crop_and_resize as resample

    values = to_unit(pixels)
    batch, channels, time, height, width = values.shape
    if batch == 0:
        return values.new_zeros(0, channels, time, size, size)
    top, bottom = _centres(crops[:, 0], crops[:, 2], height, size)
    left, right = _centres(crops[:, 1], crops[:, 3], width, size)
    left, right = torch.where(flips, right, left), torch.where(flips, left, right)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).reshape(-1, 4, 2)
    boxes = corners.to(values.device, torch.float32, non_blocking=True)
    frames = resample(values.flatten(1, 2), boxes, (size, size), mode="bicubic", padding_mode="border", align_corners=True)
    cut: Tensor = frames.clamp(0, 1).reshape(batch, channels, time, size, size)
    return cut


def _centres(start: Tensor, length: Tensor, pixels: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the centres of the first and the last pixel of the result lie among the centres of the source's pixels."""
    step = length * pixels / size
    first = start * pixels + step / 2 - 0.5
    return first, first + step * (size - 1)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; float stays."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def normalise(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(x - mean) / std`` of each channel of (B, C, T, H, W)."""
    shape = (1, -1, 1, 1, 1)
    device = values.device
    return (values - torch.tensor(mean, device=device).view(shape)) / torch.tensor(std, device=device).view(shape)
