"""Clips as small pictures inside the page, and where in a picture each patch lies."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.batch import valid_steps
from bridle.grid import PatchGrid
from bridle.report.html import Html, element
from bridle.run import RunConfig

QUALITY = 80
_PANEL_COLUMNS, _PANEL_GAP = 4, 2
_PIXELATED = 64
_LOSSLESS = 160
_TILE_EDGE = 96
# From quiet to loud, rising in lightness.
_COLOURS = torch.tensor(
    [[18, 15, 46], [59, 32, 112], [122, 45, 128], [190, 66, 110], [236, 112, 80], [250, 176, 92], [252, 244, 190]],
    dtype=torch.float32,
)

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A window as it is shown.

    Attributes:
        pixels: (height, width, 3) uint8. Of sound time runs to the right and pitch upwards; of a film one frame for each time
            step of patches, side by side in rows of four.
        grid: its patches.
        boxes: where each patch lies, in the grid's order.
        panels: of each patch, the frame that it lies in.
    """

    pixels: Tensor
    grid: PatchGrid
    boxes: tuple[Box, ...]
    panels: tuple[Box, ...]


def draw(inputs: Tensor, config: RunConfig) -> Picture:
    """A window (C, T, H, W) as its loader gives it, up to its last valid time step."""
    frames, height, width = inputs.shape[1:]
    t, h, w = config.encoder.patch
    steps = int(valid_steps(torch.tensor([frames]), t))
    grid = PatchGrid(steps, height // h, width // w)
    if config.audio is not None:
        pixels = _spectrogram(inputs[0, : steps * t, :, 0], steps * t)
        boxes = [(time * t, height - (row + 1) * h, t, h) for time, row, _ in grid.coordinates().tolist()]
        return Picture(pixels, grid, tuple(boxes), ((0, 0, pixels.shape[1], height),) * len(boxes))
    shown = _rgb(inputs[:, [min(step * t, frames - 1) for step in range(steps)]])
    panels = [_panel(step, height, width) for step in range(steps)]
    boxes = [
        (panels[time][0] + column * w, panels[time][1] + row * h, w, h) for time, row, column in grid.coordinates().tolist()
    ]
    frame_of = tuple((*panels[time], width, height) for time in grid.coordinates()[:, 0].tolist())
    return Picture(_mosaic(shown, panels), grid, tuple(boxes), frame_of)


def thumbnail(inputs: Tensor, config: RunConfig) -> Tensor:
    """A window in little, (height, width, 3) uint8: of a film four frames side by side."""
    if config.audio is not None:
        return _resized(_spectrogram(inputs[0, :, :, 0], inputs.shape[1]), 64, 200)
    frames = inputs.shape[1]
    chosen = sorted({round(i * (frames - 1) / 3) for i in range(4)}) if config.video is not None else [0]
    shown = _rgb(inputs[:, chosen])
    edge = min(72 if config.video is not None else 112, inputs.shape[2])
    small = torch.stack([_resized(frame, edge, round(edge * inputs.shape[3] / inputs.shape[2])) for frame in shown])
    return _mosaic(small, [_panel(i, *small.shape[1:3]) for i in range(len(small))])


def tile(picture: Picture, patch: int) -> Tensor:
    """A patch with a frame around it and its neighbours on all sides, (height, width, 3) uint8."""
    x, y, width, height = picture.boxes[patch]
    around = torch.full((3 * height, 3 * width, 3), 128, dtype=torch.uint8)
    top, left = y - height, x - width
    panel_x, panel_y, panel_width, panel_height = picture.panels[patch]
    rows = range(max(panel_y, top), min(panel_y + panel_height, top + 3 * height))
    columns = range(max(panel_x, left), min(panel_x + panel_width, left + 3 * width))
    around[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = picture.pixels[
        rows.start : rows.stop, columns.start : columns.stop
    ]
    scale = max(1, round(_TILE_EDGE / (3 * max(height, width))))
    large = around.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    top, bottom, left, right = (scale * edge for edge in (height, 2 * height, width, 2 * width))
    for offset, colour in ((1, 0), (0, 255)):  # white on black shows on any ground
        a, b, c, d = top - 1 - offset, bottom + offset, left - 1 - offset, right + offset
        large[[a, b], c : d + 1] = colour
        large[a : b + 1, [c, d]] = colour
    return large


def picture_uri(pixels: Tensor) -> str:
    """(height, width, 3) uint8 as a WebP data URI, without loss where no edge is longer than 160 pixels."""
    from PIL import Image

    stream = io.BytesIO()
    small = max(pixels.shape[:2]) <= _LOSSLESS
    Image.fromarray(pixels.contiguous().numpy()).save(stream, "WEBP", quality=QUALITY, method=4, lossless=small)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def image(pixels: Tensor, words: str, title: str | None = None) -> Html:
    """A picture on the page; a very small one is enlarged without being smoothed."""
    height, width = pixels.shape[:2]
    return element(
        "img",
        src=picture_uri(pixels),
        width=width,
        height=height,
        alt=words,
        title=title,
        class_="pixels" if max(height, width) <= _PIXELATED else None,
    )


def _spectrogram(fbank: Tensor, frames: int) -> Tensor:
    """(T, F) to (F, frames, 3): low bands below, colours from the quietest to nearly the loudest."""
    values = fbank.float()
    low, high = float(values.min()), float(torch.quantile(values.flatten()[:: max(1, values.numel() // 100_000)], 0.995))
    place = ((values - low) / max(high - low, 1e-6)).clamp(0, 1) * (len(_COLOURS) - 1)
    below = place.floor().clamp(max=len(_COLOURS) - 2)
    share = (place - below)[..., None]
    colours = _COLOURS[below.long()] * (1 - share) + _COLOURS[below.long() + 1] * share
    pixels = colours.round().to(torch.uint8).transpose(0, 1).flip(0)
    padding = max(0, frames - pixels.shape[1])
    return torch.cat([pixels, pixels.new_zeros(pixels.shape[0], padding, 3)], dim=1)


def _rgb(frames: Tensor) -> Tensor:
    """(C, n, H, W) uint8 to (n, H, W, 3)."""
    return frames.expand(3, *frames.shape[1:]).permute(1, 2, 3, 0)


def _panel(number: int, height: int, width: int) -> tuple[int, int]:
    """Left upper corner of a frame."""
    row, column = divmod(number, _PANEL_COLUMNS)
    return column * (width + _PANEL_GAP), row * (height + _PANEL_GAP)


def _mosaic(frames: Tensor, corners: list[tuple[int, int]]) -> Tensor:
    """(n, H, W, 3) with each frame at its corner; gaps are grey."""
    height, width = frames.shape[1:3]
    size = (max(y for _, y in corners) + height, max(x for x, _ in corners) + width)
    canvas = torch.full((*size, 3), 128, dtype=torch.uint8)
    for frame, (x, y) in zip(frames, corners, strict=True):
        canvas[y : y + height, x : x + width] = frame
    return canvas


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    import numpy as np

    small = Image.fromarray(pixels.contiguous().numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small))
