"""The two decoders behind :mod:`bridle.media.audio`.

libsndfile reads wav, flac, ogg (vorbis, opus) and its other formats; PyAV (FFmpeg) reads mp3, m4a, aac, webm, video
sound tracks and whatever libsndfile fails at, such as a cut flac. mp3 never goes to libsndfile, because the mpg123
inside prints its complaints to stderr; the samples are the same to 1e-5.

Seeking is sample-exact except where the format forbids it: AAC with noise substitution depends on all frames before,
codecs of variable frame size in Matroska are placed to the millisecond, and holes in the time stamps of a stream are
closed up. mp3 and raw aac have no index, so their frames are read (not decoded) up to the crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from bridle.media.reading import TimeLimit, Unreadable, opened_by_ffmpeg

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Samples = npt.NDArray[np.float32]

_MIN_RATE, _MAX_RATE = 1_000, 1_000_000
_MAX_PEAK = 1e12  # the power spectrum of a louder clip overflows float32
_BLOCK_VALUES = 1 << 20  # read at most this many values at once, so that a lying header cannot exhaust the memory
_MARGIN_SAMPLES = 256  # of the lower rate, on both sides: reach of soxr's HQ filter (measured: 1e-6 from 160 on)
_PREROLL_SECONDS = 0.5  # decoded and dropped after a seek: bit reservoir of mp3, overlap of aac, convergence of opus
_AV_FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,webm,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
NO_SOUND_TRACK = "no sound track"
"""Why a film without sound is unreadable."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a sound file announces; a cut file may hold less."""

    duration_seconds: float
    sample_rate: int
    num_channels: int
    format: str


@dataclass(frozen=True)
class Crop:
    """A crop in samples of the output rate; ``count`` None is all that follows."""

    rate: int
    first: int
    count: int | None

    @property
    def seconds(self) -> float:
        """Start of the crop."""
        return self.first / self.rate

    def window(self, rate_in: int) -> tuple[int, int | None, int]:
        """First input sample to read, how many (None: all), and the output sample that the first one stands for.

        The first one lies a margin before the crop, where input and output samples coincide, so the resampled crop
        has the phase of the resampled file.
        """
        if rate_in == self.rate:
            return self.first, self.count, self.first
        divisor = math.gcd(rate_in, self.rate)
        step_in, step_out = rate_in // divisor, self.rate // divisor
        lower = min(rate_in, self.rate)
        steps = max(0, (self.first - math.ceil(_MARGIN_SAMPLES * self.rate / lower)) // step_out)
        if self.count is None:
            return steps * step_in, None, steps * step_out
        end = math.ceil((self.first + self.count) * rate_in / self.rate) + math.ceil(_MARGIN_SAMPLES * rate_in / lower)
        return steps * step_in, end - steps * step_in, steps * step_out

    def resample(self, samples: Samples, rate_in: int) -> Samples:
        """The crop at the output rate, from the samples of :meth:`window`.

        soxr "HQ": its noise (-120 dB) lies under that of 16-bit sound, and "VHQ" costs 40 % more.
        """
        _, _, offset = self.window(rate_in)
        if rate_in != self.rate:
            samples = soxr.resample(samples, rate_in, self.rate, quality="HQ")
        skip = self.first - offset
        return samples[skip:] if self.count is None else samples[skip : skip + self.count]


def _check_format(rate: int, channels: int) -> None:
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise Unreadable(f"absurd sample rate {rate} Hz")
    if channels < 1:
        raise Unreadable("no channels")


def _finished(crop: Crop, samples: Samples, rate_in: int) -> Samples:
    samples = crop.resample(samples, rate_in)
    if len(samples) == 0:
        raise Unreadable(f"ends before {crop.seconds:g} s")
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise Unreadable("non-finite samples")
    if peak > _MAX_PEAK:
        raise Unreadable(f"samples up to {peak:.0e}")
    return samples


@contextmanager
def _soundfile(stream: BinaryIO) -> Iterator[soundfile.SoundFile]:
    # A descriptor spares a Python call per read and keeps libsndfile from guessing by the file's extension.
    handle = stream.fileno() if isinstance(stream, FileIO) else stream
    try:
        file = soundfile.SoundFile(handle, closefd=False)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise Unreadable("truncated or damaged header", recognised=False) from error
    with file:
        _check_format(file.samplerate, file.channels)
        if file.frames == 0:
            raise Unreadable("header without samples")
        if file.frames >= 2**62:  # a flac written to a pipe does not know its length
            raise Unreadable("unknown length", recognised=False)
        yield file


def probe_soundfile(stream: BinaryIO) -> AudioInfo:
    """The header as libsndfile reads it. Raises :class:`Unreadable`."""
    with _soundfile(stream) as file:
        kind = f"{file.format}/{file.subtype}".lower()
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels, kind)


def decode_soundfile(stream: BinaryIO, crop: Crop, limit: TimeLimit) -> Samples:
    """The crop, (S,) float32, through libsndfile. Raises :class:`Unreadable`."""
    with _soundfile(stream) as file:
        start, count, _ = crop.window(file.samplerate)
        left = file.frames - start if count is None else min(count, file.frames - start)
        if left <= 0:
            raise Unreadable(f"ends before {crop.seconds:g} s")
        blocks = []
        try:
            file.seek(start)
            while left > 0:
                limit.check()
                block = file.read(min(left, max(1, _BLOCK_VALUES // file.channels)), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                # numpy's mean over a short last axis takes 20 times as long, and a product may start threads
                blocks.append(sum(block.T) / np.float32(file.channels))
                left -= len(block)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise Unreadable("truncated") from error
        if not blocks:
            raise Unreadable("truncated")
        return _finished(crop, np.concatenate(blocks), file.samplerate)


@contextmanager
def _container(stream: BinaryIO, limit: TimeLimit) -> Iterator[tuple[InputContainer, AudioStream]]:
    with opened_by_ffmpeg(stream, limit, _AV_FORMATS, "not audio") as (container, watched):
        if not container.streams.audio:
            raise Unreadable(NO_SOUND_TRACK if container.streams.video else "not audio")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise Unreadable("no decoder for its codec")
        track.codec_context.thread_count = 1
        _check_format(track.rate, track.channels)
        try:
            yield container, track
        finally:
            watched.check()  # a fault of the disk comes before what it made of the sound


def probe_pyav(stream: BinaryIO) -> AudioInfo:
    """The header as FFmpeg reads it, of the first sound track. Raises :class:`Unreadable`."""
    with _container(stream, TimeLimit(math.inf)) as (container, track):
        if track.duration is not None and track.time_base is not None:
            duration = float(track.duration * track.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6
        else:  # a recording that was never finished: the last packet knows
            ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux(track) if p.pts is not None]
            duration = max(ends, default=0.0)
        if duration <= 0:
            raise Unreadable("header without samples")
        kind = f"{container.format.name.split(',')[0]}/{track.codec_context.name}"
        return AudioInfo(duration, track.rate, track.channels, kind)


def decode_pyav(stream: BinaryIO, crop: Crop, limit: TimeLimit) -> Samples:
    """The crop, (S,) float32, of the first sound track through FFmpeg. Raises :class:`Unreadable`."""
    with _container(stream, limit) as (container, track):
        frames = _frames(container, track, limit)
        opening = list(islice(frames, 2))
        if not opening:
            raise Unreadable("truncated" if track.duration or container.duration else "header without samples")
        rate = opening[0].sample_rate  # the header of HE-AAC may tell half of it
        start, count, _ = crop.window(rate)
        position, frames = 0, chain(opening, frames)
        if start > (_PREROLL_SECONDS + 1) * rate:
            position, frames = _seek(container, track, opening, start, limit)
        blocks = []
        for frame in frames:
            if frame.sample_rate != rate:
                raise Unreadable("sample rate changes within the file")
            if position + frame.samples > start:
                blocks.append(_mono(frame)[max(0, start - position) :])
            position += frame.samples
            if count is not None and position >= start + count:
                break
        if not blocks:
            announced = float(track.duration * track.time_base) if track.duration and track.time_base else 0.0
            raise Unreadable("truncated" if announced * rate > start else f"ends before {crop.seconds:g} s")
        return _finished(crop, np.concatenate(blocks)[:count], rate)


def _seek(
    container: InputContainer, track: AudioStream, opening: list[AudioFrame], start: int, limit: TimeLimit
) -> tuple[int, Iterator[AudioFrame]]:
    """Jump a little before sample ``start``: the position of the next frame in samples, and the frames from there on.

    Matroska rounds time stamps to milliseconds. Where frames have one size, the position is put back on their grid, by
    the first whole frame: FFmpeg shortens the one after a jump, as it does at the start of the file.
    """
    import av

    first, size, rate = opening[0], opening[-1].samples, opening[0].sample_rate
    unit = float(track.time_base or 1)
    origin = _seconds(first)
    on_grid = unit * rate > 1 and track.codec_context.name != "vorbis"
    for target in (origin + start / rate - _PREROLL_SECONDS, origin):  # the second for a file whose index is wrong
        try:
            container.seek(int(target / unit), stream=track)
        except av.error.FFmpegError:
            continue
        frames = _frames(container, track, limit)
        for frame in frames:
            if frame.pts is None or (on_grid and frame.samples != size):
                continue
            position = round((_seconds(frame) - origin) * rate)
            if on_grid:
                snapped = first.samples + round((position - first.samples) / size) * size
                position = snapped if abs(snapped - position) <= 0.002 * rate else position
            if position > start:
                break
            return position, chain([frame], frames)
    raise Unreadable("truncated")


def _frames(container: InputContainer, track: AudioStream, limit: TimeLimit) -> Iterator[AudioFrame]:
    """The frames that decode; damaged packets are passed over."""
    import av

    packets = container.demux(track)
    while True:
        limit.check()
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except av.error.FFmpegError:
            continue


def _seconds(frame: AudioFrame) -> float:
    return float((frame.pts or 0) * (frame.time_base or 0))


def _mono(frame: AudioFrame) -> Samples:
    values: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(frame.samples, -1).T
    mono = values[0].astype(np.float32) if len(values) == 1 else values.mean(axis=0, dtype=np.float32)
    if values.dtype == np.uint8:
        mono = mono * np.float32(1 / 128) - np.float32(1)
    elif values.dtype.kind == "i":
        mono = mono * np.float32(2.0 ** (1 - 8 * values.itemsize))
    return cast("Samples", mono)
