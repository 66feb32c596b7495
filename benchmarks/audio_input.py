"""Clips per second of one core from flac files to log-mel, and how much of that is decoding.

    python benchmarks/audio_input.py [--clips 40] [--seconds 5] [--rate 44100] [--repeats 5]

CPU time of one thread, best of the repeats, on synthetic flac files. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from bridle.media import Fbank, decode_audio


def write_clips(folder: Path, count: int, seconds: float, rate: int) -> list[Path]:
    """Chords with noise: as hard to decode as music."""
    random = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    paths = []
    for i in range(count):
        chord = sum(np.sin(2 * np.pi * hz * t) for hz in random.uniform(80, 4000, 5)) / 10
        path = folder / f"{i}.flac"
        soundfile.write(path, chord + 0.02 * random.standard_normal(len(t)), rate, subtype="PCM_16")
        paths.append(path)
    return paths


def clips_per_second(work: Callable[[Path], object], paths: list[Path], repeats: int) -> float:
    work(paths[0])
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for path in paths:
            work(path)
        best = min(best, time.process_time() - start)
    return len(paths) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=int, default=44100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fbank = Fbank()
    ready = torch.from_numpy(0.1 * np.random.default_rng(1).standard_normal(round(arguments.seconds * 16000))).float()
    native = np.asarray(0.1 * np.random.default_rng(2).standard_normal(round(arguments.seconds * arguments.rate)), "f4")
    jobs: dict[str, Callable[[Path], object]] = {
        "soundfile decode alone": lambda path: soundfile.read(path, dtype="float32"),
        "soxr resample alone": lambda _: soxr.resample(native, arguments.rate, 16000, quality="HQ"),
        "fbank alone": lambda _: fbank(ready),
        "decode_audio": decode_audio,
        "decode_audio + fbank": lambda path: fbank(decode_audio(path).samples),
        "1 s crop + fbank": lambda path: fbank(
            decode_audio(path, start_seconds=arguments.seconds / 2, duration_seconds=1.0).samples
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = write_clips(Path(folder), arguments.clips, arguments.seconds, arguments.rate)
        results = {name: clips_per_second(job, paths, arguments.repeats) for name, job in jobs.items()}
    print(f"{'':24s} clips per core-second   ms per clip")
    for name, value in results.items():
        print(f"{name:24s} {value:21.0f}   {1000 / value:11.2f}")
    share = results["decode_audio + fbank"] / results["soundfile decode alone"]
    print(f"the whole front end runs at {share:.0%} of the speed of soundfile's decoding alone")
    print(json.dumps({"benchmark": "audio_input", **vars(arguments), "clips_per_core_second": results, "share": share}))


if __name__ == "__main__":
    main()
