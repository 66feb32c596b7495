"""Small labelled folders of each medium: ``a/`` and ``b/``, files of different size and length."""

from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

NUM_FILES = 10


def write_folder(medium: str, folder: Path, num_files: int = NUM_FILES) -> Path:
    """The folder with readable files of the medium; the last one is longer than a clip of the debug recipe."""
    random = np.random.default_rng(len(medium))
    for i in range(num_files):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        last = i == num_files - 1
        if medium == "audio":
            time = np.arange(round((5.0 if last else 0.4 + 0.2 * i) * 16000)) / 16000
            sound = 0.2 * np.sin(2 * np.pi * (150 + 90 * i) * time * (1 + time)) + 0.02 * random.standard_normal(time.size)
            soundfile.write(place / f"{i}.wav", sound.astype(np.float32), 16000)
        elif medium == "image":
            height, width = 30 + 3 * i, 50 - 2 * i
            picture = texture(random, height, width, i % 2)
            Image.fromarray(picture).save(place / (f"{i}.png" if i % 3 else f"{i}.jpg"))
        else:
            write_film(place / f"{i}.mp4", random, 45 if last else 6 + 2 * i, i % 2)
    return folder


def texture(random: np.random.Generator, height: int, width: int, kind: int) -> np.ndarray:
    """(height, width, 3) uint8: noise on stripes, level or upright."""
    axis = np.arange(height)[:, None] if kind else np.arange(width)[None]
    stripes = 128 + 80 * np.sin(axis * 0.7)[..., None]
    return np.clip(stripes + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def write_film(path: Path, random: np.random.Generator, num_frames: int, kind: int) -> None:
    """A film of a texture that moves, 48 x 40 pixels, 10 frames per second."""
    ground = texture(random, 40, 48 + num_frames, kind)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for t in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(ground[:, t : t + 48]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
