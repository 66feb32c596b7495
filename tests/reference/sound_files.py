"""Sounds and files for the tests of decoding."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import soundfile

LAYOUTS = {1: "mono", 2: "stereo"}


def melody(seconds: float, rate: int, top_hz: float = 2000.0) -> np.ndarray:
    """A sweep that never repeats, with a strong tone: any shift by a sample changes it."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (300 * t + (top_hz - 300) / (2 * max(seconds, 1e-3)) * t**2)
    return (0.4 * np.sin(phase) + 0.2 * np.sin(2 * np.pi * 440 * t + 1)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, subtype: str) -> Path:
    kind = {".opus": "OGG", ".ogg": "OGG"}.get(path.suffix, path.suffix[1:].upper())
    with soundfile.SoundFile(path, "w", rate, 1 if samples.ndim == 1 else samples.shape[1], subtype, format=kind) as f:
        for start in range(0, len(samples), rate):  # libsndfile's encoders overflow their stack on long writes
            f.write(samples[start : start + rate])
    return path


def mux(
    path: Path,
    codec: str | None,
    samples: np.ndarray,
    rate: int,
    *,
    video: bool = False,
    channels: int = 1,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode with FFmpeg, the frames of picture and sound in turns."""
    with av.open(
        str(path), "w", format="adts" if path.suffix == ".aac" else None, container_options=container_options or {}
    ) as container:
        # The noise substitution of AAC draws from a generator that runs on from frame to frame: no seek can be exact.
        options = {"aac_pns": "0"} if codec == "aac" else {}
        sound = container.add_stream(codec, rate=rate, layout=LAYOUTS[channels], options=options) if codec else None
        picture = container.add_stream("mpeg4", rate=25) if video else None
        if picture is not None:
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        for start in range(0, len(samples), rate):
            if picture is not None:
                for i in range(25):
                    image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
                    container.mux(picture.encode(image))
            if sound is not None:
                part = np.ascontiguousarray(np.stack([samples[start : start + rate]] * channels))
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=LAYOUTS[channels])
                frame.sample_rate, frame.pts = rate, start
                container.mux(sound.encode(frame))
        for stream in (sound, picture):
            if stream is not None:
                container.mux(stream.encode())
    return path


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


class CountingFile(io.RawIOBase):
    """A stream that counts the bytes read from it; optionally only ``size`` bytes of the file from ``offset`` on."""

    def __init__(self, path: Path, offset: int = 0, size: int | None = None) -> None:
        data = path.read_bytes()[offset:]
        self.inner = io.BytesIO(data[:size])
        self.bytes_read = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.inner.seek(offset, whence)

    def tell(self) -> int:
        return self.inner.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.inner.read(size)
        self.bytes_read += len(data)
        return data

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
