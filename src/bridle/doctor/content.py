"""What a header does not tell: whether a file holds anything, and all of it."""

from __future__ import annotations

from dataclasses import dataclass

from bridle.data.manifest import Entry
from bridle.data.medium import Info
from bridle.data.quarantine import BadFile
from bridle.errors import DecodeError
from bridle.media.audio import AudioInfo, decode_audio
from bridle.media.image import ImageInfo, decode_image
from bridle.media.video import VideoInfo, decode_frames

_WHOLE_SECONDS = 60.0  # a longer sound is decoded at its start and at its end only
_END_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Content:
    """Of a file that could be decoded.

    Attributes:
        blank: silence, or pixels of one value.
        cut_short: it holds less than its header says.
    """

    blank: bool
    cut_short: bool


def examine_content(entry: Entry, info: Info) -> Content | BadFile:
    """Decode a file; of a long one the two ends."""
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
        pixels = decode_image(source, key=entry.key).pixels
    return Content(int(pixels.min()) == int(pixels.max()), False)


def _film(entry: Entry, info: VideoInfo) -> Content:
    """Its first frames, and one of its last tenth."""
    blank = cut_short = False
    for start in (0.0, 0.9 * info.duration_seconds):
        try:
            with entry.opened() as source:
                pixels = decode_frames(
                    source, start_seconds=start, num_frames=2, step_seconds=1 / info.rate_hz, key=entry.key
                ).pixels
        except DecodeError:
            if not start:
                raise
            cut_short = True
        else:
            blank = int(pixels.min()) == int(pixels.max()) and (blank or not start)
    return Content(blank, cut_short)
