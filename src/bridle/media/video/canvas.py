"""Drawing the frames of a film: converted, resized, turned as shown."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridle.media.image import Fit
from bridle.media.reading import check_pixels

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_WIDEST = 16  # beyond this ratio of shapes, what is cut off is not resized first


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How the display matrix shows a frame, to the nearest right angle: rows become columns, then mirrored in x, in y."""
    from av.sidedata.sidedata import Type

    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None or len(bytes(matrix)) < 36:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def shown_size(frame: VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """(width, height) in pixels of a frame as shown."""
    size = (max(1, round(frame.width * pixel_aspect)), frame.height)
    return size[::-1] if _turn(frame)[0] else size


class Canvas:
    """Draws frames: converts, resizes and turns them. ``shown`` is (width, height) of the first one, whole."""

    def __init__(self, size: tuple[int, int] | None, fit: Fit, channels: int, pixel_aspect: float, max_pixels: int) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._size, self._fit, self._aspect, self._max_pixels = size, fit, pixel_aspect, max_pixels
        self._format = "gray" if channels == 1 else "rgb24"
        self._flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self._scaler = VideoReformatter()
        self._last: tuple[VideoFrame, Tensor] | None = None
        self.shown = (0, 0)

    def picture(self, frame: VideoFrame) -> Tensor:
        """(C, H, W) uint8."""
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        shown = shown_size(frame, self._aspect)
        check_pixels(*shown, self._max_pixels)
        if self._last is None:
            self.shown = shown
        if self._size is None:
            self._size, self._fit = self.shown[::-1], "squash"
        swap, mirror_x, mirror_y = _turn(frame)
        height, width = self._size[::-1] if swap else self._size
        pixels = self._resized(frame, height, width)
        if swap:
            pixels = pixels.transpose(1, 2)
        mirrored = [axis for axis, is_mirrored in ((1, mirror_y), (2, mirror_x)) if is_mirrored]
        picture = pixels.flip(mirrored) if mirrored else pixels
        self._last = frame, picture
        return picture

    def _resized(self, frame: VideoFrame, height: int, width: int) -> Tensor:
        if self._fit == "squash":
            return self._converted(frame, height, width)
        scale = max(width / (frame.width * self._aspect), height / frame.height)
        full_width = max(width, round(frame.width * self._aspect * scale))
        full_height = max(height, round(frame.height * scale))
        if full_width * full_height <= _WIDEST * width * height:
            return _centre(self._converted(frame, full_height, full_width), height, width)
        whole = self._converted(frame, frame.height, frame.width)
        cut = _centre(whole, max(1, round(height / scale)), max(1, round(width / scale / self._aspect)))
        part = cut.permute(1, 2, 0).squeeze(2).contiguous().numpy()
        return self._converted(type(frame).from_ndarray(part, format=self._format), height, width)

    def _converted(self, frame: VideoFrame, height: int, width: int) -> Tensor:
        drawn = self._scaler.reformat(
            frame, width=width, height=height, format=self._format, interpolation=self._flags, threads=1
        )
        pixels = torch.from_numpy(drawn.to_ndarray())
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _centre(pixels: Tensor, height: int, width: int) -> Tensor:
    """The centre of (C, H, W)."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]
