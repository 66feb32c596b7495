"""What a header does not tell: whether a file holds anything, and all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.manifest import Entry
from bridle.data.medium import Info
from bridle.data.pixels import PixelConfig
from bridle.data.quarantine import BadFile
from bridle.errors import DecodeError
from bridle.media.audio import AudioInfo, decode_audio
from bridle.media.image import ImageInfo, decode_image
from bridle.media.video import VideoInfo, decode_frames

_MAX_DECODE_SECONDS = PixelConfig.max_decode_seconds  # as in training, if not set otherwise
_WHOLE_SECONDS = 60.0  # a longer sound is decoded at its start and at its end only
_END_SECONDS = 30.0
_ENDS = (0.0, 0.9)  # where in a film frames are looked at, as shares of its duration
_BETWEEN = (0.5, 0.25, 0.75, 0.125, 0.375, 0.625)  # there, too, while it shows one colour only


@dataclass(frozen=True, slots=True)
class Content:
    """Of a file that could be decoded.

    Attributes:
        blank: silence, or pixels of one colour.
        cut_short: it holds less than its header says.
    """

    blank: bool
    cut_short: bool


def examine_content(entry: Entry, info: Info) -> Content | BadFile:
    """Decode a file; of a long sound the two ends, of a film a few frames."""
    try:
        if isinstance(info, AudioInfo):
            return _sound(entry, info)
        return _picture(entry) if isinstance(info, ImageInfo) else _film(entry, info)
    except (DecodeError, OSError) as error:
        return BadFile.of(entry, error)


def _sound(entry: Entry, info: AudioInfo) -> Content:
    seconds = info.duration_seconds
    crops = [(0.0, None)] if seconds <= _WHOLE_SECONDS else [(0.0, _END_SECONDS), (seconds - _END_SECONDS, None)]
    silent, found = True, 0.0
    for start, length in crops:
        with entry.opened() as source:
            clip = decode_audio(
                source, sample_rate=info.sample_rate, start_seconds=start, duration_seconds=length, key=entry.key
            )
        silent &= not bool(clip.samples.any())
        found = start + len(clip.samples) / info.sample_rate
    return Content(silent, found < seconds - max(0.1, 0.02 * seconds))


def _picture(entry: Entry) -> Content:
    with entry.opened() as source:
        pixels = decode_image(source, max_decode_seconds=_MAX_DECODE_SECONDS, key=entry.key).pixels
    return Content(_one_colour(pixels), False)


def _film(entry: Entry, info: VideoInfo) -> Content:
    """Its first frames, and some of its last tenth; some between them as long as all are of one colour."""
    shown: list[Tensor] = []
    cut_short = False
    for place in (*_ENDS, *_BETWEEN):
        if place in _BETWEEN and not _one_colour(torch.stack(shown, dim=1)):
            break
        try:
            pixels = _frames(entry, info, place * info.duration_seconds)
        except DecodeError:
            if not place:
                raise
            cut_short = True
        else:
            flat = pixels.flatten(1)
            shown += [flat.amin(1), flat.amax(1)]
    return Content(_one_colour(torch.stack(shown, dim=1)), cut_short)


def _frames(entry: Entry, info: VideoInfo, start_seconds: float) -> Tensor:
    with entry.opened() as source:
        step = 1 / info.rate_hz
        return decode_frames(
            source,
            start_seconds=start_seconds,
            num_frames=2,
            step_seconds=step,
            max_decode_seconds=_MAX_DECODE_SECONDS,
            key=entry.key,
        ).pixels


def _one_colour(pixels: Tensor) -> bool:
    """Whether each channel of (C, ...) has a single value."""
    values = pixels.flatten(1)
    return bool((values == values[:, :1]).all())
