"""Runs of each medium, made once."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.media_folders import write_folder

from bridle.cli import main
from bridle.inference import Model, load
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.report.build import ReportConfig, build_report

QUICK = ["--train.batch-size", "4", "--train.log-every-steps", "1", "--device", "cpu"]


@pytest.fixture(scope="session")
def media_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each medium a finished run, 2 steps of cold, tokenizer and encoder, and its folder of 10 files in ``a`` and ``b``."""
    runs = {}
    for medium in ("audio", "image", "video"):
        base = tmp_path_factory.mktemp(medium)
        folder = write_folder(medium, base / "data")
        config = replace(recipe(f"{medium}-debug"), phases="cold:2steps, tokenizer:2steps, encoder:2steps")
        assert pretrain(config, [folder], base / "run", device=torch.device("cpu")).finished
        runs[medium] = (base / "run", folder)
    return runs


@pytest.fixture(scope="session")
def models(media_runs: dict[str, tuple[Path, Path]]) -> dict[str, Model]:
    """Their models."""
    return {medium: load(run, "cpu") for medium, (run, _) in media_runs.items()}


@pytest.fixture(scope="session")
def labelled(media_runs: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the sounds of the audio run, whose names and labels are markup, with columns class, split and one."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for i in range(10):
        name = f"{i}<script>alert(1)<img src=x onerror=alert(2)>.wav"
        shutil.copy(media_runs["audio"][1] / "ab"[i % 2] / f"{i}.wav", folder / name)
        label = f"<script>alert(1)</script><img src=x onerror=alert(2)>{'ab'[i % 2]}"
        rows.append({"path": name, "class": label, "split": "test" if i > 6 else "train", "one": "same"})
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


@pytest.fixture(scope="session")
def full_page(media_runs: dict[str, tuple[Path, Path]], labelled: Path) -> str:
    """A page with every part."""
    config = ReportConfig((str(labelled),), "class", split="split", watts=50.0)
    return build_report(media_runs["audio"][0], config, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def label_table(media_runs: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten sounds of the audio run with a class, and with several labels."""
    path = tmp_path_factory.mktemp("table") / "meta.csv"
    files = sorted(media_runs["audio"][1].rglob("*.wav"))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["where", "class", "tags", "part"])
        writer.writeheader()
        for i, name in enumerate(files):
            tags = name.parent.name + (";rare" if i in (0, 6) else "")
            writer.writerow({"where": name, "class": name.parent.name, "tags": tags, "part": "test" if i % 3 == 0 else "train"})
    return path


def tuned(source: Path, table: Path, out: Path, *arguments: str) -> Path:
    split = ["--path", "where", "--split", "part", "--out", str(out)]
    assert main(["finetune", str(source), str(table), *split, *QUICK, *arguments]) == 0
    return out


@pytest.fixture(scope="session")
def class_run(media_runs: dict[str, tuple[Path, Path]], label_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chosen by validation clips among two looks."""
    out = tmp_path_factory.mktemp("classes") / "run"
    choice = ["--validation-ratio", "0.34", "--epochs", "2"]
    return tuned(media_runs["audio"][0], label_table, out, "--label", "class", *choice)


@pytest.fixture(scope="session")
def tag_run(media_runs: dict[str, tuple[Path, Path]], label_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tags") / "run"
    several = ["--multi-label", "--separator", ";", "--steps", "1"]
    return tuned(media_runs["audio"][0], label_table, out, "--label", "tags", *several)
