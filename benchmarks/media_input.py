"""Clips per core-second that the loaders read, beside what their decoders do alone: sound, pictures, films.

    python benchmarks/media_input.py [--media audio image video] [--files 40] [--repeats 5]

CPU time of one thread on synthetic files; jobs run in turns, ratios are medians of neighbours' ratios. Sound: flac of 5 s at
44.1 kHz to log-mel (wanted: 350 clips per core-second). Pictures: JPEG of 500 x 375 to squashed 256 x 256, beside Pillow's own
opening and bicubic resizing, with and without its decoding at reduced size (wanted: 0.9 of its rate). Films: H.264 of
320 x 240, 16 frames that follow each other from a random start, beside two things that PyAV does in one thread: decoding all
frames of a film, which it leaves as they are, and seeking, decoding and resizing the very frames of the loader to RGB of
256 x 256 (wanted: 0.9 of its rate). What is decoded from the key frame before a clip on counts as decoded frames. Nothing is
cached. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from audio_input import write_clips
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image
from shared.steps import Times, alternate, machine

from bridle.data.dataset import Loader
from bridle.data.loaders import build_loader, plain
from bridle.data.manifest import Entry, read_manifest
from bridle.data.medium import MEDIA
from bridle.data.video import VideoConfig
from bridle.media.augment import crop_start
from bridle.randomness import generator
from bridle.recipes import recipe

PICTURE, FILM, RATE_HZ, KEY_FRAMES = (500, 375), (320, 240), 25, 12
"""Width and height of pictures and films; frames per second, and from one key frame to the next."""
WANTED = {"audio": "350 clips per core-second", "image": "0.9 of Pillow", "video": "0.9 of PyAV"}


def texture(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth shapes with grain, (height, width, 3) uint8: compresses like a photograph."""
    coarse = random.integers(0, 256, (height // 25 + 2, width // 25 + 2, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(texture(random, *PICTURE)).save(folder / f"{i}.jpg", quality=90)


def write_films(folder: Path, count: int, seconds: float) -> None:
    """A texture that moves by two pixels a frame."""
    random, (width, height), frames = np.random.default_rng(0), FILM, round(seconds * RATE_HZ)
    for i in range(count):
        ground = texture(random, width + 2 * frames, height)
        with av.open(str(folder / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=RATE_HZ, options={"g": str(KEY_FRAMES), "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for t in range(frames):
                picture = np.ascontiguousarray(ground[:, 2 * t : 2 * t + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))


def decode_film(path: str) -> int:
    """All frames of a film by PyAV in one thread, not converted; returns how many."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def clip_by_pyav(path: str, start: int, count: int) -> int:
    """``count`` frames from frame ``start`` on, resized to RGB as a user would who needs no more; returns how many."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(round(start / RATE_HZ / stream.time_base), stream=stream)
        scaler, taken = VideoReformatter(), []
        for frame in container.decode(stream):
            if round(frame.time * RATE_HZ) >= start:
                drawn = scaler.reformat(frame, 256, 256, "rgb24", interpolation=Interpolation.BICUBIC)
                taken.append(drawn.to_ndarray())
            if len(taken) == count:
                break
        return len(np.stack(taken))


def pillow(path: str, drafted: bool) -> Image.Image:
    with Image.open(path) as image:
        if drafted:
            image.draft("RGB", (2 * 256, 2 * 256))
        return image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC, reducing_gap=3.0)


def loader_of(medium: str) -> Loader:
    """The base recipe's, without memory; films at their own rate."""
    clips = plain(recipe(f"{medium}-base").clips)
    if isinstance(clips, VideoConfig):
        clips = replace(clips, stride=1)
    return build_loader(replace(clips, cache_gigabytes=0.0))


def loading(loader: Loader, entries: list[Entry]) -> Callable[[], object]:
    return lambda: [loader.load(entry, generator("bench", i)).inputs.shape for i, entry in enumerate(entries)]


def measure(medium: str, files: int, repeats: int, seconds: float) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        if medium == "audio":
            write_clips(Path(folder), files, seconds, 44100)
        elif medium == "image":
            write_pictures(Path(folder), files)
        else:
            write_films(Path(folder), files, seconds)
        entries = list(read_manifest([Path(folder)], MEDIA[medium]).entries)
        loader = loader_of(medium)
        paths = [str(entry.path) for entry in entries]
        jobs: dict[str, Callable[[], object]]
        units: dict[str, float] = {}
        if medium == "audio":
            jobs = {"soundfile alone": lambda: [soundfile.read(path, dtype="float32") for path in paths]}
        elif medium == "image":
            jobs = {
                "Pillow": lambda: [pillow(path, False) for path in paths],
                "Pillow, reduced where it can": lambda: [pillow(path, True) for path in paths],
            }
        else:
            total, span = round(entries[0].duration_seconds * RATE_HZ), loader.crop_frames
            starts = [crop_start(total, span, generator("bench", i)) for i in range(len(paths))]
            decoded = statistics.mean(span + start % KEY_FRAMES for start in starts)
            jobs = {
                "PyAV, the same clips": lambda: [clip_by_pyav(*each, span) for each in zip(paths, starts, strict=True)],
                "PyAV, whole films as they are": lambda: [decode_film(path) for path in paths],
            }
            units = {"PyAV, the same clips": decoded, "PyAV, whole films as they are": float(total), "loader": decoded}
        jobs["loader"] = loading(loader, entries)
        times = alternate(jobs, repeats)
    return [row_of(medium, name, times, units, len(entries)) for name in jobs]


def row_of(medium: str, name: str, times: dict[str, Times], units: dict[str, float], files: int) -> dict[str, object]:
    base = next(iter(times))
    return {
        "medium": medium,
        "job": name,
        "files_per_core_second": files / times[name].seconds,
        "milliseconds": 1e3 * times[name].seconds / files,
        "decoded_frames_per_core_second": units[name] * files / times[name].seconds if units else None,
        "rate_over_decoder": units.get(name, 1) / units.get(base, 1) / times[name].over(times[base]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", nargs="+", default=list(WANTED), choices=list(WANTED))
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a sound or film")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = [row for medium in arguments.media for row in measure(medium, arguments.files, arguments.repeats, arguments.seconds)]
    print(f"{'':<38}{'files / core-s':>15}{'ms a file':>11}{'frames / core-s':>17}{'of decoder':>12}")
    for row in rows:
        frames = row["decoded_frames_per_core_second"]
        shown = f"{frames:.0f}" if frames else "-"
        print(
            f"{row['medium'] + ', ' + row['job']:<38}{row['files_per_core_second']:>15.1f}{row['milliseconds']:>11.2f}"
            f"{shown:>17}{row['rate_over_decoder']:>12.2f}"
        )
    print("; ".join(f"{medium}: wanted {WANTED[medium]}" for medium in arguments.media))
    print(json.dumps({"benchmark": "media_input", **vars(arguments), "machine": facts, "rows": rows}))


if __name__ == "__main__":
    main()
