"""Films to uint8 tensors, decoding only from the key frame before a clip to its last frame.

PyAV (FFmpeg) reads them. How it gets at the frames and their times: ``video_stream.py``. What is settled here:

* The picture is as shown: turned and mirrored by the display matrix, pixels that are not square made so by width,
  transparency dropped. Fields of interlaced films stay as they are.
* Colours become full-range RGB by the matrix and range that the film states, else as ITU-R 601 of limited range; grey
  is its ITU-R 601 luma. Transfer curves and primaries (HDR) are not converted.
* libswscale resizes while it converts, bicubic and antialiased: on average within a level of Pillow's bicubic on the
  converted picture, in a tenth to a quarter of the time. Without ACCURATE_RND and FULL_CHR_H_INT it halves the
  resolution of colours and darkens by 1.5 levels.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, get_args

import torch
from torch import Tensor

from bridle.errors import BridleError, ConfigError, DecodeError
from bridle.media.image import Fit
from bridle.media.reading import TimeLimit, Unreadable, decoder_faults
from bridle.media.source import Source, opened, source_name
from bridle.media.video_file import NO_PICTURES, open_film
from bridle.media.video_stream import Film, Lost, Wanted, Way, check_pixels
from bridle.media.video_torchcodec import frames_at, require_torchcodec

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["NO_PICTURES", "Decoder", "Fit", "Frames", "VideoInfo", "decode_frames", "probe_video"]

Decoder = Literal["pyav", "torchcodec"]
"""Who decodes; PyAV brings its FFmpeg along, torchcodec needs one of the system's. PyAV reads the headers for both."""

T = TypeVar("T")

_MAGIC = (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\0\0\1\xb3", b"\0\0\1\xba", b"GIF8", b"DKIF", b"0&\xb2u\x8ef\xcf\x11")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_WIDEST = 16  # beyond this ratio of shapes, what is cut off is not resized first


ENDS_BEFORE = "ends before"
"""How the reason begins when a film has no frame at the time that was asked for."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the header of a film announces; a cut file may hold less.

    Attributes:
        duration_seconds: of the video track.
        width: of a frame as shown, in pixels.
        height: of a frame as shown, in pixels.
        rate_hz: average frame rate; 25 where it is not known.
        num_frames: as stated, 0 when it is not.
        codec: FFmpeg's name of the coding.
        format: FFmpeg's name of the file format.
    """

    duration_seconds: float
    width: int
    height: int
    rate_hz: float
    num_frames: int
    codec: str
    format: str


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames: ``pixels`` (C, T, H, W) uint8; ``width`` and ``height`` of the whole picture as shown, before resizing.

    ``start_seconds`` is the time asked for the first frame.
    """

    pixels: Tensor
    width: int
    height: int
    start_seconds: float


def probe_video(source: Source, key: str = "") -> VideoInfo:
    """Read the header of a film, and decode one frame, which alone knows how it is turned.

    Where the header does not state the duration (bare streams, unfinished recordings), the whole file is read, though not
    decoded: two to five seconds for a gigabyte that is in memory. Of MPEG transport streams it is the last three seconds.

    Args:
        source: path or seekable binary stream.
        key: name of the file in errors; the path when empty.

    Raises:
        DecodeError: the file is missing, empty, not a film, without a video track, has a broken header or no frames.
    """

    def read(stream: BinaryIO) -> VideoInfo:
        with open_film(stream, TimeLimit(math.inf)) as film:
            frame = film.first_frame()
            width, height = _shown_size(frame, film.pixel_aspect) if frame is not None else film.stored_size
            info = (width, height, film.rate_hz, film.num_frames, film.codec, film.format)
            duration = film.stated_seconds()
        if min(width, height) < 1:
            raise Unreadable("no picture can be decoded")
        if duration <= 0:
            with open_film(stream, TimeLimit(math.inf)) as film:
                duration = film.read_seconds()
        if not 0 < duration < math.inf:
            raise Unreadable("header without frames")
        return VideoInfo(duration, *info)

    return _read(source, key, read)


def decode_frames(  # noqa: PLR0913 one call, one clip
    source: Source,
    *,
    start_seconds: float = 0.0,
    num_frames: int,
    step_seconds: float,
    size: tuple[int, int] | None = None,
    fit: Fit = "centre",
    channels: int = 3,
    max_decode_seconds: float = math.inf,
    max_pixels: int = 200_000_000,
    decoder: Decoder = "pyav",
    key: str = "",
) -> Frames:
    """Decode the frames that are on the screen at ``start_seconds + i * step_seconds``, counted from the first frame.

    There are ``num_frames``, fewer only where the film ends or breaks. A time up to a twentieth of a frame before the next
    frame gets that one, so multiples of the frame duration give every frame once, however they are rounded.

    Args:
        source: path or seekable binary stream.
        start_seconds: time of the first frame.
        num_frames: how many frames, at most.
        step_seconds: time from one to the next.
        size: (height, width) of the result; None leaves the frames as the first one is shown.
        fit: "squash" resizes the whole frame to ``size``; "centre" resizes it until it just covers ``size`` and cuts out
            the centre.
        channels: 3 for RGB, 1 for grey.
        max_decode_seconds: time the decoding may take; a read that never returns, or a single frame, is not interrupted.
        max_pixels: most pixels of a frame; larger ones are refused before they are decoded.
        decoder: see :data:`Decoder`; how frames of the two differ: ``video_torchcodec.py``.
        key: name of the file in errors; the path when empty.

    Raises:
        ConfigError: an argument is out of range, or torchcodec cannot be imported.
        DecodeError: the file is missing, empty, not a film, without a video track, damaged beyond decoding, too large, ends
            before ``start_seconds``, or takes too long.
    """
    wanted = _checked(start_seconds, num_frames, step_seconds)
    _check_canvas(size, fit, channels, max_pixels)
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder is {decoder!r}; it must be one of {', '.join(get_args(Decoder))}")
    limit = TimeLimit(max_decode_seconds)

    def read_by_torchcodec(stream: BinaryIO) -> Frames:
        with open_film(stream, limit, max_pixels) as film:
            frame = film.first_frame()
            if frame is None:
                raise Unreadable("no picture can be decoded")
            shown = _shown_size(frame, film.pixel_aspect)
        check_pixels(*shown, max_pixels)
        pixels = frames_at(stream, film, wanted, limit, shown, size or shown[::-1], fit if size else "squash", channels)
        if not pixels.shape[1]:
            raise Unreadable(f"{ENDS_BEFORE} {wanted.start:g} s")
        return Frames(pixels, *shown, wanted.start)

    def read(stream: BinaryIO) -> Frames:
        way: Way = "seek"
        skip = True
        while True:
            try:
                with open_film(stream, limit, max_pixels, skip) as film:
                    canvas = _Canvas(size, fit, channels, film.pixel_aspect, max_pixels)
                    return _pick(film, wanted, canvas, way)
            except Lost as lost:
                if lost.short_cut == "skip":
                    skip = False
                else:
                    way = "walk" if lost.short_cut == "seek" else "read"

    if decoder == "pyav":
        return _read(source, key, read)
    require_torchcodec()
    return _read(source, key, read_by_torchcodec)


def _checked(start_seconds: float, num_frames: int, step_seconds: float) -> Wanted:
    """The times, if they make sense."""
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise ConfigError(f"start_seconds is {start_seconds}; it must be 0 or more")
    if num_frames < 1:
        raise ConfigError(f"num_frames is {num_frames}; it must be 1 or more")
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        raise ConfigError(f"step_seconds is {step_seconds}; it must be above 0, e.g. 0.04")
    return Wanted(start_seconds, step_seconds, num_frames)


def _check_canvas(size: tuple[int, int] | None, fit: Fit, channels: int, max_pixels: int) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"size is {size}; it must be (height, width), both positive, or None")
    if fit not in get_args(Fit):
        raise ConfigError(f"fit is {fit!r}; it must be one of {', '.join(get_args(Fit))}")
    if channels not in (1, 3):
        raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
    if max_pixels < 1:
        raise ConfigError(f"max_pixels is {max_pixels}; it must be positive, e.g. 200000000")


def _read(source: Source, key: str, reader: Callable[[BinaryIO], T]) -> T:
    """What the reader makes of the source; all its failures are DecodeErrors."""
    key = key or source_name(source)
    with opened(source, key) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            raise DecodeError(key, "empty file")
        stream.seek(0)
        head = stream.read(16)
        try:
            return reader(stream)
        except Unreadable as failure:
            damaged = not failure.recognised and (head.startswith(_MAGIC) or head[4:8] in _BOXES)
            raise DecodeError(key, "truncated or damaged header" if damaged else str(failure)) from failure
        except BridleError:
            raise
        except decoder_faults() as error:
            reason = " ".join(str(error).split())[:60] or type(error).__name__
            raise DecodeError(key, f"decoder failed: {reason}") from error


def _pick(film: Film, wanted: Wanted, canvas: _Canvas, way: Way) -> Frames:
    """The frames that are shown at the wanted times. Raises Lost when a short cut led astray."""
    pictures: list[Tensor] = []
    held: VideoFrame | None = None
    since = shown_until = 0.0

    def emit(until: float) -> None:
        """Add the held frame for each of the wanted times before ``until``."""
        while held is not None and len(pictures) < wanted.count and (time := wanted[len(pictures)]) < until:
            film.confirm(since, time)
            pictures.append(canvas.picture(held))

    for time, frame in film.frames(wanted, way):
        emit(time - film.lenience(time - since))
        if len(pictures) == wanted.count:
            break
        held, since = frame, time
        shown_until = time + film.seconds_shown(frame)
    else:
        emit(shown_until - film.lenience(shown_until - since))
    if not pictures:
        raise Unreadable(f"{ENDS_BEFORE} {wanted.start:g} s")
    width, height = canvas.shown
    return Frames(torch.stack(pictures, dim=1), width, height, wanted.start)


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


def _shown_size(frame: VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """(width, height) in pixels of a frame as shown."""
    size = (max(1, round(frame.width * pixel_aspect)), frame.height)
    return size[::-1] if _turn(frame)[0] else size


class _Canvas:
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
        shown = _shown_size(frame, self._aspect)
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
