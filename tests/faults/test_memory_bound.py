"""Memory is bounded by crops times their number, not by the longest file: clips of 0.1 s and of an hour in one folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference.damage import RATE, sound, wav_header
from reference.video_files import film

KINDS, FOLDERS = ("train", "embed"), ("short", "long")
FEW_MEBIBYTES = 32
"""What a heap that is used for longer may take; an hour of sound takes 220 as float32 samples."""

SCRIPT = """
import dataclasses, json, os, resource, sys
from pathlib import Path
import torch
from reference.configs import normalised
from bridle.data.manifest import read_manifest
from bridle.inference import random_model
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.tables import write_codes, write_embeddings

def work(what, medium, folder, out):
    config = normalised(recipe(f"{medium}-debug"), 0.0, 1.0)
    if what == "train":
        train = dataclasses.replace(config.train, precision="fp32", log_every_steps=100)
        config = dataclasses.replace(config, phases="cold:1", train=train)
        assert pretrain(config, [folder], out, device=torch.device("cpu")).num_bad_files == 0
    else:
        written = write_embeddings(random_model(config, torch.device("cpu")), read_manifest(folder, config.medium), out)
        assert not written.bad
        return written.num_rows
    return 0

def mebibytes():  # of this process alone: the counter of getrusage begins where the parent's stood
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

results = []
for call in json.load(sys.stdin):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        rows = work(*call[:2], Path(call[2]), Path(call[3]))
        os.write(writer, json.dumps([mebibytes(), rows]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        results.append(json.load(told))
    os.waitpid(child, 0)
print(json.dumps(results))
"""


def measured(calls: list[list[str]]) -> list[tuple[float, int]]:
    """Largest memory in MiB and number of rows of each piece of work, each in a process of its own."""
    paths = os.pathsep.join(str(Path(__file__).parents[level] / place) for level, place in ((1, "."), (2, "src")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(calls), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def silence(path: Path, seconds: int, rate: int, channels: int) -> None:
    """A wav that takes no room on the disk."""
    num_bytes = seconds * rate * channels * 2
    with path.open("wb") as file:
        file.write(wav_header(rate, channels, num_bytes))
        file.truncate(44 + num_bytes)


def check_hour(medium: str, folder: Path, new_rows: int) -> None:
    """A file of ``long`` is twice as long as that of ``short``: all of it is read, and it takes next to no more memory."""
    calls = [[what, medium, str(folder / name), str(folder / f"{what} {name}")] for what in KINDS for name in FOLDERS]
    (train, _), (train_long, _), (embed, rows), (embed_long, rows_long) = measured(calls)
    assert rows_long >= rows + new_rows
    assert train_long < train + FEW_MEBIBYTES
    assert embed_long < embed + FEW_MEBIBYTES


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), pytest.param(44100, 2, marks=pytest.mark.slow)])
def test_an_hour_more_among_short_sounds_takes_no_more_memory(rate: int, channels: int, tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i}.wav").write_bytes(sound(np.random.default_rng(i), 0.1 * 1.1**i))
    silence(tmp_path / "short" / "hour.wav", 3600, rate, channels)
    silence(tmp_path / "long" / "hour.wav", 7200, rate, channels)
    check_hour("audio", tmp_path, 1800)


@pytest.mark.slow
def test_half_an_hour_more_among_short_films_takes_no_more_memory(tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        for i in range(10):
            film(tmp_path / name / f"{i}.mp4", 20 + 10 * i)
    film(tmp_path / "short" / "hour.mp4", 45_000)
    film(tmp_path / "long" / "hour.mp4", 90_000)
    check_hour("video", tmp_path, 2800)
