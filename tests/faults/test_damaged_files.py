"""Runs on folders with files damaged in twenty ways: what can be read is learnt from, the rest is listed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference.configs import normalised
from reference.damage import PICTURES, SOUNDS, film_bytes, films, picture, picture_readable, sound, sound_readable

from bridle.data.dataset import ClipDataset
from bridle.data.loaders import build_loader
from bridle.data.manifest import read_manifest
from bridle.data.quarantine import BadFile
from bridle.errors import TooManyBadFiles
from bridle.inference import load
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig
from bridle.tables import write_embeddings

CPU = torch.device("cpu")
SHORT = 80  # letters of a reason


def plant(medium: str, folder: Path, num_healthy: int, num_each: int) -> dict[str, bool]:
    """A folder of healthy and damaged files, and by their names whether they can be read."""
    folder.mkdir()
    content: dict[str, tuple[bytes, bool]] = {}
    for i in range(num_healthy):
        random = np.random.default_rng([1, i])
        if medium == "audio":
            content[f"healthy-{i}.wav"] = sound(random), True
        elif medium == "image":
            content[f"healthy-{i}.png"] = picture(random), True
    if medium == "video":
        whole = film_bytes(folder.parent, "mp4")
        content |= {f"healthy-{i}.mp4": (whole, True) for i in range(num_healthy)}
        content |= {f"{name}.{suffix}": (damaged, ok) for name, (suffix, damaged, ok) in films(folder.parent).items()}
    for name, kind in {"audio": SOUNDS, "image": PICTURES}.get(medium, {}).items():
        for i in range(num_each):
            damaged = kind.make(np.random.default_rng([2, i, *name.encode()]))
            readable = (sound_readable if medium == "audio" else picture_readable)(name, damaged)
            content[f"{name}-{i}.{kind.suffix}"] = damaged, readable
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)
    return {name: readable for name, (_, readable) in content.items()}


def debug(medium: str, **train: object) -> RunConfig:
    """One epoch, so that every file is read."""
    config = replace(recipe(f"{medium}-debug"), phases="cold:1")
    changed = {"batch_size": 16, "checkpoint_every_steps": 1000, "precision": "fp32", **train}
    config = replace(config, train=replace(config.train, **changed))  # type: ignore[arg-type]
    return normalised(config, *((-8.0, 4.0) if medium == "audio" else (0.5, 0.25)))


def listed(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "each file once"
    return {line["key"]: line["reason"] for line in lines}


def check_run(medium: str, folder: Path, run: Path, files: dict[str, bool]) -> None:
    """A run finishes; its list holds the unreadable files and no other; all that it computes is finite."""
    unreadable = {name for name, readable in files.items() if not readable}
    outcome = pretrain(debug(medium, max_bad_fraction=0.4 if medium == "video" else 0.2), [folder], run, device=CPU)
    found = listed(run / "quarantine.jsonl")
    assert outcome.finished
    assert found.keys() == unreadable
    assert outcome.num_bad_files == len(unreadable)
    assert all(0 < len(reason) < SHORT and "\n" not in reason for reason in found.values()), found
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == outcome.step > 0
    for line in lines:
        assert line["skipped"] == 0
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))


def check_default(medium: str, folder: Path, run: Path, files: dict[str, bool]) -> None:
    """With the usual limit of one in a hundred the run stops with the list."""
    unreadable = {name for name, readable in files.items() if not readable}
    with pytest.raises(TooManyBadFiles) as error:
        pretrain(debug(medium), [folder], run, device=CPU)
    found = listed(run / "quarantine.jsonl")
    assert len(found) > max(1, len(files) // 100)
    assert found.keys() <= unreadable
    message = str(error.value)
    assert "\n" not in message
    assert str(run / "quarantine.jsonl") in message and "max_bad_fraction" in message
    assert sum(name in message for name in found) == 3, "the first of them are named"


@pytest.mark.parametrize(("medium", "num_healthy"), [("audio", 180), ("image", 180), ("video", 40)])
def test_a_run_on_damaged_files(medium: str, num_healthy: int, tmp_path: Path) -> None:
    folder, run = tmp_path / "data", tmp_path / "run"
    files = plant(medium, folder, num_healthy, 1)
    check_run(medium, folder, run, files)
    check_default(medium, folder, tmp_path / "strict", files)

    manifest = read_manifest(folder, recipe(f"{medium}-debug").medium)
    data = ClipDataset(manifest, build_loader(debug(medium).clips), 0)
    items = {manifest.entries[row].key: data[0, row] for row in range(len(manifest))}
    for key, item in items.items():
        assert isinstance(item, BadFile) != files[key]
        assert isinstance(item, BadFile) or bool(torch.isfinite(item.inputs).all()), key

    written = write_embeddings(load(run, "cpu"), manifest, tmp_path / "vectors")
    assert {file.key for file in written.bad} == {name for name, readable in files.items() if not readable}
    assert listed(tmp_path / "vectors" / "_quarantine.jsonl").keys() == {file.key for file in written.bad}
    rows = pq.read_table(tmp_path / "vectors").to_pydict()
    assert set(rows["key"]) == {name for name, readable in files.items() if readable}
    assert np.isfinite(np.array(rows["embedding"])).all()


@pytest.mark.slow
@pytest.mark.parametrize(("medium", "num_healthy", "num_each"), [("audio", 1800, 10), ("image", 900, 5)])
def test_a_run_on_many_damaged_files(medium: str, num_healthy: int, num_each: int, tmp_path: Path) -> None:
    files = plant(medium, tmp_path / "data", num_healthy, num_each)
    check_run(medium, tmp_path / "data", tmp_path / "run", files)
    check_default(medium, tmp_path / "data", tmp_path / "strict", files)
