"""Films to uint8 tensors, decoding only from the key frame before a clip to its last frame.

PyAV (FFmpeg) reads them. How it gets at the frames and their times: ``stream.py``. What is settled here:

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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

import torch
from torch import Tensor

from bridle.errors import BridleError, ConfigError, DecodeError
from bridle.media.image import Fit, check_picture
from bridle.media.reading import TimeLimit, Unreadable, Wanted, check_pixels, decoder_faults
from bridle.media.source import Source, opened, source_name
from bridle.media.video.canvas import Canvas, shown_size
from bridle.media.video.file import open_film
from bridle.media.video.stream import Film, Lost, Way
from bridle.media.video.torchcodec import frames_at, require_torchcodec

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Decoder = Literal["pyav", "torchcodec"]
"""Who decodes; PyAV brings its FFmpeg along, torchcodec needs one of the system's. PyAV reads the headers for both."""

_MAGIC = (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\0\0\1\xb3", b"\0\0\1\xba", b"GIF8", b"DKIF", b"0&\xb2u\x8ef\xcf\x11")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


ENDS_BEFORE = "ends before"
"""How the reason begins when a film has no frame at the time that was asked for."""
_MAX_GAP_SECONDS = 1800.0
"""A frame shown longer makes a film unreadable: clips of it say nothing, and there may be thousands of them."""
_LONGER: dict[str, Way] = {"skip": "seek", "seek": "walk", "walk": "read"}  # what to try after a short cut that led astray


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


def probe_video(source: Source, key: str = "", max_pixels: int = 200_000_000) -> VideoInfo:
    """Read the header of a film, and decode one frame, which alone knows how it is turned.

    Where the header does not state the duration (bare streams, unfinished recordings), the whole file is read, though not
    decoded: two to five seconds for a gigabyte that is in memory. Of MPEG transport streams it is the last three seconds.
    So it is where the rate is not stated, as in browsers' recordings, which is that of the packets then.

    Args:
        source: path or seekable binary stream.
        key: name of the file in errors; the path when empty.
        max_pixels: most pixels of a frame; larger ones are refused before they are decoded.

    Raises:
        DecodeError: the file is missing, empty, not a film, without a video track, has a broken header or no frames, frames of
            too many pixels, or less than one in half an hour.
    """
    with _reading(source, key) as stream:
        with open_film(stream, TimeLimit(math.inf), max_pixels) as film:
            frame = film.first_frame()
            width, height = shown_size(frame, film.pixel_aspect) if frame is not None else film.stored_size
            num_frames, codec, form = film.num_frames, film.codec, film.format
            duration, rate, states_rate = film.stated_seconds(), film.rate_hz, film.states_rate
        if min(width, height) < 1:
            raise Unreadable("no picture can be decoded")
        if duration <= 0 or not states_rate:
            with open_film(stream, TimeLimit(math.inf)) as film:
                read, num_packets = film.read_seconds()
            duration = duration if duration > 0 else read
            if not states_rate and num_packets > 1 and duration > 0:
                rate = num_packets / duration
        if not 0 < duration < math.inf:
            raise Unreadable("header without frames")
        if rate * _MAX_GAP_SECONDS < 1:
            raise Unreadable(f"one frame for {1 / rate:,.0f} s, over {_MAX_GAP_SECONDS:,.0f} s")
        return VideoInfo(duration, width, height, rate, num_frames, codec, form)


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
        decoder: see :data:`Decoder`; how frames of the two differ: ``torchcodec.py``.
        key: name of the file in errors; the path when empty.

    Raises:
        ConfigError: an argument is out of range, or torchcodec cannot be imported.
        DecodeError: the file is missing, empty, not a film, without a video track, damaged beyond decoding, too large, ends
            before ``start_seconds``, takes too long, or shows a single frame for more than half an hour.
    """
    wanted = _checked(start_seconds, num_frames, step_seconds)
    check_picture(size, fit, channels, max_pixels)
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder is {decoder!r}; it must be one of {', '.join(get_args(Decoder))}")
    limit = TimeLimit(max_decode_seconds)

    if decoder == "torchcodec":
        require_torchcodec()
        with _reading(source, key) as stream:
            return _read_by_torchcodec(stream, wanted, limit, size, fit, channels, max_pixels)
    way: Way = "seek"
    skip = True
    with _reading(source, key) as stream:
        while True:
            try:
                with open_film(stream, limit, max_pixels, skip) as film:
                    return _pick(film, wanted, Canvas(size, fit, channels, film.pixel_aspect, max_pixels), way)
            except Lost as lost:
                if lost.short_cut == "skip":
                    skip = False
                else:
                    way = _LONGER[lost.short_cut]


def decode_windows(  # noqa: PLR0913 as decode_frames
    source: Source,
    *,
    num_frames: int,
    step_seconds: float,
    size: tuple[int, int],
    fit: Fit = "centre",
    channels: int = 3,
    max_decode_seconds: float = math.inf,
    max_pixels: int = 200_000_000,
    key: str = "",
) -> Iterator[Frames]:
    """The whole film in clips that follow each other, every frame decoded once: :func:`decode_frames` from each clip's start.

    Args:
        source: path or seekable binary stream, open until the last clip is drawn.
        num_frames: of a clip; the last one may have fewer.
        step_seconds: time from one frame to the next.
        size: (height, width) of the result.
        fit: as in :func:`decode_frames`, like the others.
        channels: 3 for RGB, 1 for grey.
        max_decode_seconds: for one clip.
        max_pixels: most pixels of a frame.
        key: name of the file in errors; the path when empty.

    Raises:
        ConfigError: as :func:`decode_frames`.
        DecodeError: as :func:`decode_frames`; also between two clips.
    """
    _checked(0.0, num_frames, step_seconds)
    check_picture(size, fit, channels, max_pixels)
    limit, done, skip = TimeLimit(max_decode_seconds), 0, True
    way: Way = "read"
    with _reading(source, key) as stream:
        while True:
            try:
                with open_film(stream, limit, max_pixels, skip) as film:
                    wanted = Wanted(done * step_seconds, step_seconds, sys.maxsize)
                    canvas = Canvas(size, fit, channels, film.pixel_aspect, max_pixels)
                    pictures = _pictures(film, wanted, canvas, way)
                    while clip := list(islice(pictures, num_frames)):
                        yield Frames(torch.stack(clip, dim=1), *canvas.shown, done * step_seconds)
                        done += num_frames
                        limit.restart()
                    if not done:
                        raise Unreadable(f"{ENDS_BEFORE} 0 s")
                    return
            except Lost as lost:  # a frame was left out by mistake; the clips before it are not decoded again
                skip, way = False, _LONGER[lost.short_cut]
                limit.restart()


def _read_by_torchcodec(
    stream: BinaryIO, wanted: Wanted, limit: TimeLimit, size: tuple[int, int] | None, fit: Fit, channels: int, max_pixels: int
) -> Frames:
    with open_film(stream, limit, max_pixels) as film:
        frame = film.first_frame()
        if frame is None:
            raise Unreadable("no picture can be decoded")
        shown = shown_size(frame, film.pixel_aspect)
        check_pixels(*shown, max_pixels)
        pixels = frames_at(stream, film, wanted, limit, shown, size or shown[::-1], fit if size else "squash", channels)
    if not pixels.shape[1]:
        raise Unreadable(f"{ENDS_BEFORE} {wanted.start:g} s")
    return Frames(pixels, *shown, wanted.start)


def _checked(start_seconds: float, num_frames: int, step_seconds: float) -> Wanted:
    """The times, if they make sense."""
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise ConfigError(f"start_seconds is {start_seconds}; it must be 0 or more")
    if num_frames < 1:
        raise ConfigError(f"num_frames is {num_frames}; it must be 1 or more")
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        raise ConfigError(f"step_seconds is {step_seconds}; it must be above 0, e.g. 0.04")
    return Wanted(start_seconds, step_seconds, num_frames)


@contextmanager
def _reading(source: Source, key: str) -> Iterator[BinaryIO]:
    """The source opened; all that fails while it is read are DecodeErrors."""
    key = key or source_name(source)
    with opened(source, key) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            raise DecodeError(key, "empty file")
        stream.seek(0)
        head = stream.read(16)
        try:
            yield stream
        except Unreadable as failure:
            damaged = not failure.recognised and (head.startswith(_MAGIC) or head[4:8] in _BOXES)
            raise DecodeError(key, "truncated or damaged header" if damaged else str(failure)) from failure
        except BridleError:
            raise
        except decoder_faults() as error:
            reason = " ".join(str(error).split())[:60] or type(error).__name__
            raise DecodeError(key, f"decoder failed: {reason}") from error


def _pick(film: Film, wanted: Wanted, canvas: Canvas, way: Way) -> Frames:
    """The frames that are shown at the wanted times. Raises Lost when a short cut led astray."""
    pictures = list(_pictures(film, wanted, canvas, way))
    if not pictures:
        raise Unreadable(f"{ENDS_BEFORE} {wanted.start:g} s")
    return Frames(torch.stack(pictures, dim=1), *canvas.shown, wanted.start)


def _pictures(film: Film, wanted: Wanted, canvas: Canvas, way: Way) -> Iterator[Tensor]:
    """(C, H, W) at each of the wanted times, until the film ends. Raises Lost like ``_pick``."""
    held: VideoFrame | None = None
    index, since, shown_until = 0, 0.0, 0.0
    for time, frame in chain(film.frames(wanted, way), [(math.inf, None)]):
        end = time if frame is not None else shown_until
        until = end - film.lenience(end - since)
        while held is not None and index < wanted.count and wanted[index] < until:
            if end - since > _MAX_GAP_SECONDS:
                raise Unreadable(f"one frame for {end - since:,.0f} s from {since:g} s on, over {_MAX_GAP_SECONDS:,.0f} s")
            film.confirm(since, wanted[index])
            yield canvas.picture(held)
            index += 1
        if index == wanted.count:
            return
        if frame is None:
            if held is not None:
                film.confirm_end(since, wanted[index])
            return
        held, since = frame, time
        shown_until = time + film.seconds_shown(frame)
