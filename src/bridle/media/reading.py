"""What every decoder reads through: its failures, its time limit, and a stream that FFmpeg cannot stumble over."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer


class Unreadable(Exception):
    """One decoder's failure. ``recognised``: it knew the format, so its reason is the one to tell."""

    def __init__(self, reason: str, recognised: bool = True) -> None:
        super().__init__(reason)
        self.recognised = recognised


def decoder_faults() -> tuple[type[Exception], ...]:
    """What the libraries behind the decoders raise on a broken file besides :class:`Unreadable` and OSError."""
    import av

    return (ValueError, MemoryError, RuntimeError, ArithmeticError, EOFError, IndexError, av.error.FFmpegError)


def check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    """Raises :class:`Unreadable` for a picture of too many pixels."""
    if max_pixels is not None and width * height > max_pixels:
        raise Unreadable(f"{width}x{height} = {width * height} pixels, over max_pixels = {max_pixels}")


@dataclass(frozen=True)
class Wanted:
    """The times asked for, in seconds: ``start + i * step`` for each i below ``count``."""

    start: float
    step: float
    count: int

    def __getitem__(self, index: int) -> float:
        return self.start + index * self.step

    def within(self, first: float, last: float) -> bool:
        """Whether one of the times lies there."""
        index = max(0, math.ceil((first - self.start) / self.step))
        return index < self.count and self[index] <= last


class TimeLimit:
    """Ends a decoding ``seconds`` after it began; the decoders ask between blocks and packets."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def restart(self) -> None:
        """Begin anew."""
        self._end = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raises :class:`Unreadable` when the time is up."""
        if time.monotonic() > self._end:
            raise Unreadable(f"takes longer than {self._seconds:g} s to decode")


class Watched:
    """A stream that never raises: it seems to end when the time is up or the disk fails.

    FFmpeg goes on after an exception, and PyAV writes a second one to the screen. It has no name, so that FFmpeg tells the
    format by the content, as it must for the member of a tar shard.
    """

    def __init__(self, stream: BinaryIO, limit: TimeLimit) -> None:
        self._stream, self._limit = stream, limit
        self._fault: Exception | None = None
        self.tell = stream.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new place; -1 for one that cannot be, such as damaged headers point to."""
        try:
            return self._stream.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def read(self, size: int) -> bytes:
        """What the stream gives, until the fault."""
        if self._fault is None:
            try:
                self._limit.check()
                return self._stream.read(size)
            except (OSError, Unreadable) as fault:
                self._fault = fault
        return b""

    def check(self) -> None:
        """Raises the fault, if there was one, and Unreadable when the time is up."""
        if self._fault is not None:
            raise self._fault
        self._limit.check()


@contextmanager
def opened_by_ffmpeg(
    stream: BinaryIO, limit: TimeLimit, formats: str, otherwise: str
) -> Iterator[tuple[InputContainer, Watched]]:
    """A file of sound or film as FFmpeg (PyAV) sees it, and the stream that it reads.

    Args:
        stream: read from its first byte wherever it stands.
        limit: for all reading.
        formats: FFmpeg's names of those let in. FFmpeg also "plays" text, pictures and play lists that open other files and
            addresses.
        otherwise: reason of a file that is of no such format.

    Raises:
        Unreadable: it is not, or its header is damaged.
    """
    import av  # heavy, and needed by few sounds

    stream.seek(0)
    watched = Watched(stream, limit)
    try:
        # Given a stream, FFmpeg opens no path or address itself.
        container = av.open(watched, mode="r", options={"format_whitelist": formats}, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        watched.check()
        raise Unreadable(otherwise, recognised=False) from error
    with container:
        watched.check()
        yield container, watched
