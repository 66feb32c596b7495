"""Sound files to mono float32 at one sample rate, decoding only the crop that is asked for.

How each format is read, and how exactly: ``decoders.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from bridle.errors import BridleError, ConfigError, DecodeError
from bridle.media.decoders import (
    AudioInfo,
    Crop,
    decode_pyav,
    decode_soundfile,
    probe_pyav,
    probe_soundfile,
)
from bridle.media.reading import TimeLimit, Unreadable, decoder_faults
from bridle.media.source import Source, opened, source_name

__all__ = ["AudioInfo", "Clip", "Source", "decode_audio", "probe_audio"]

T = TypeVar("T")

_MAGIC = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3", b".snd", b"caff", b"\x1aE\xdf\xa3")


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded crop: ``samples`` (S,) float32 mono in [-1, 1], the first one at ``start_seconds`` of the file."""

    samples: Tensor
    sample_rate: int
    start_seconds: float


def probe_audio(source: Source, key: str = "") -> AudioInfo:
    """Read the header of a sound file, without decoding the sound.

    Args:
        source: path or seekable binary stream.
        key: name of the file in errors; the path when empty.

    Raises:
        DecodeError: the file is missing, empty, not audio, has a broken header or announces no samples.
    """
    key = key or source_name(source)
    with opened(source, key) as stream:
        return _first_success(stream, key, probe_soundfile, probe_pyav)


def decode_audio(
    source: Source,
    *,
    sample_rate: int = 16000,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    max_decode_seconds: float = math.inf,
    key: str = "",
) -> Clip:
    """Decode a crop to mono (mean of the channels) at ``sample_rate``, reading the crop and a margin only.

    The crop equals that crop of the whole decoded file to about 1e-4. It has ``round(duration_seconds * sample_rate)``
    samples, fewer only where the file ends; a file that is cut short gives what is there.

    Args:
        source: path or seekable binary stream.
        sample_rate: wanted rate in Hz.
        start_seconds: where the crop starts, rounded to a sample of the wanted rate.
        duration_seconds: length of the crop; None decodes to the end.
        max_decode_seconds: time the decoding may take; a read that never returns is not interrupted.
        key: name of the file in errors; the path when empty.

    Raises:
        ConfigError: a negative start, or a rate or duration that is not positive.
        DecodeError: the file is missing, empty, not audio, without a sound track, damaged, ends before the crop,
            holds non-finite samples in the crop, or takes too long.
    """
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise ConfigError(f"start_seconds is {start_seconds}; it must be 0 or more")
    if sample_rate < 1:
        raise ConfigError(f"sample_rate is {sample_rate} Hz; it must be positive, e.g. 16000")
    count = None if duration_seconds is None else _round_samples(duration_seconds, sample_rate)
    crop = Crop(sample_rate, round(start_seconds * sample_rate), count)
    key, limit = key or source_name(source), TimeLimit(max_decode_seconds)

    with opened(source, key) as stream:
        samples = _first_success(
            stream, key, lambda file: decode_soundfile(file, crop, limit), lambda file: decode_pyav(file, crop, limit)
        )
    return Clip(torch.from_numpy(samples), sample_rate, crop.seconds)


def _round_samples(duration_seconds: float, sample_rate: int) -> int:
    count = round(duration_seconds * sample_rate) if math.isfinite(duration_seconds) else 0
    if count < 1:
        raise ConfigError(f"duration_seconds is {duration_seconds}; it must hold at least one sample at {sample_rate} Hz")
    return count


def _first_success(stream: BinaryIO, key: str, *readers: Callable[[BinaryIO], T]) -> T:
    """The result of the first of the readers (soundfile, PyAV) that succeeds; else DecodeError with the best reason."""
    if stream.seek(0, os.SEEK_END) == 0:
        raise DecodeError(key, "empty file")
    stream.seek(0)
    head = stream.read(16)
    is_mpeg = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0)
    failures: list[Unreadable] = []
    for reader in readers[1:] if is_mpeg else readers:
        stream.seek(0)
        try:
            return reader(stream)
        except Unreadable as failure:
            failures.append(failure)
        except (BridleError, OSError):
            raise
        except decoder_faults() as error:
            failures.append(Unreadable(f"decoder failed: {' '.join(str(error).split())[:60] or type(error).__name__}"))
    known = [failure for failure in failures if failure.recognised]
    if known:
        raise DecodeError(key, str(known[0])) from known[0]
    damaged = head.startswith(_MAGIC) or head[4:8] == b"ftyp"
    raise DecodeError(key, "truncated or damaged header" if damaged else "not audio") from failures[-1]
