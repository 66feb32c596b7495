"""One path for three media: the same tests of training, resuming, two processes, features, codes, tables and evaluation."""

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch
from reference.media_folders import NUM_FILES, write_folder

from bridle import cli
from bridle.config import to_dict
from bridle.data.manifest import read_manifest
from bridle.data.medium import MEDIA
from bridle.engine.parts import Outcome
from bridle.errors import BridleError, ConfigError, DataError
from bridle.eval.features import POOLINGS, collect_features
from bridle.inference import load
from bridle.nn.pooling import MOTIONS, Pooling, pooled_width
from bridle.pretraining import pretrain
from bridle.recipes import RECIPES, recipe
from bridle.run import RunConfig, RunFolder, clip_grid
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint
from bridle.train.reporter import Silent

CPU = torch.device("cpu")
PHASES = "cold:3steps, tokenizer:3steps, encoder:3steps, joint:3steps, patches:2steps"
STEPS = 14


def debug(kind: str, phases: str = PHASES, **train: Any) -> RunConfig:
    config = dataclasses.replace(recipe(f"{kind}-debug"), phases=phases)
    settings: dict[str, Any] = {"batch_size": 4, "checkpoint_every_steps": 2, "precision": "fp32", **train}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


@pytest.fixture(scope="module", params=list(MEDIA))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def run(kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases, uninterrupted."""
    path = tmp_path_factory.mktemp("runs") / kind
    assert pretrain(debug(kind), [folder], path, device=CPU) == Outcome(True, STEPS, 0)
    return path


class Killed(Silent):
    """An exception between two steps, no goodbye."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, done: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise SystemExit("killed")


def state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    newest = latest_checkpoint(path)
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.weights, checkpoint.optimizer, checkpoint.state, metrics


def assert_equal(ours: Path, theirs: Path) -> None:
    got, expected = state(ours), state(theirs)
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert got[2:] == expected[2:]


def test_every_phase_trains_and_every_value_is_finite(run: Path, kind: str) -> None:
    metrics = state(run)[3]
    names = [name for name in ("cold", "tokenizer", "encoder", "joint") for _ in range(3)] + ["patches"] * 2
    assert [line["phase"].split("-")[1] for line in metrics] == names
    assert all(math.isfinite(value) for line in metrics for value in line.values() if isinstance(value, float))
    assert all(line["skipped"] == 0 and line["gradient_norm"] > 0 for line in metrics)
    assert all(f"code/{level}" in metrics[0] for level in range(2))


@pytest.mark.parametrize("killed_after", [1, 4, 5, 8, 11, 13])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(
    killed_after: int, kind: str, run: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        pretrain(debug(kind), [folder], tmp_path / "run", reporter=Killed(killed_after), device=CPU)
    assert pretrain(debug(kind), [folder], tmp_path / "run", resume=True, device=CPU) == Outcome(True, STEPS, 0)
    assert_equal(tmp_path / "run", run)


def test_decoding_processes_and_the_cache_change_no_number(kind: str, run: Path, folder: Path, tmp_path: Path) -> None:
    config = debug(kind, num_workers=2)
    config = config.with_clips(dataclasses.replace(config.clips, cache_gigabytes=0.0))
    pretrain(config, [folder], tmp_path / "run", device=CPU)
    assert_equal(tmp_path / "run", run)


_JOB = """
import json, sys, torch
from pathlib import Path
from typing import Literal
from bridle import distributed
from bridle.config import from_dict
from bridle.pretraining import pretrain
from bridle.run import RunConfig
config = from_dict(RunConfig, json.loads(Path(sys.argv[1]).read_text()))
torch.set_num_threads(1)
with distributed.process_group():
    pretrain(config, [sys.argv[2]], Path(sys.argv[3]))
"""


def test_two_processes_equal_one(kind: str, run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_dict(debug(kind))))
    (tmp_path / "job.py").write_text(_JOB)
    arguments = [str(tmp_path / "job.py"), str(tmp_path / "config.json"), str(folder), str(tmp_path / "two")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*torchrun, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    one, two = state(run), state(tmp_path / "two")
    for ours, theirs in zip(one[3], two[3], strict=True):
        bound = 1e-5 if ours["step"] == 1 else 2e-4  # later steps carry rounding through the optimiser
        for name, value in ours.items():
            if isinstance(value, float):
                assert theirs[name] == pytest.approx(value, abs=bound, rel=bound), (ours["step"], name)


def test_features_have_the_axes_of_the_medium(kind: str, run: Path, folder: Path) -> None:
    model = load(run, "cpu")
    grid = clip_grid(model.config)
    long = next(folder.rglob(f"{NUM_FILES - 1}.*"))
    features = model.features(long)
    if kind == "image":
        assert features.shape == (grid.height, grid.width, model.width)
    elif kind == "audio":
        assert features.shape == (30, grid.height, model.width)  # 12, 12 and 6 time steps
    else:  # 45 frames, every 2nd, in windows of 8: 23 frames, tubelets of 2
        assert features.shape == (12, grid.height, grid.width, model.width)
    assert model.features(long, "time").shape[-1] == model.width
    assert model.features(long, "grid").shape[-1] == model.width
    torch.testing.assert_close(model.embed(long), features.flatten(0, -2).mean(0), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="pooling is 'max'; it must be one of mean, time"):
        model.embed(long, "max")  # type: ignore[arg-type]
    for wrong in (0, model.depth + 1, "2", 1.5):
        with pytest.raises(ConfigError, match=r"layer .* does not exist"):
            model.features(long, layer=wrong)  # type: ignore[arg-type]
    for pooling in get_args(Pooling):
        if kind == "image" and pooling in MOTIONS:
            with pytest.raises(ConfigError, match="pictures do not move"):
                model.embed(long, pooling)
            continue
        assert model.embed(long, pooling).shape == (pooled_width(model.width, grid, pooling),)
    if kind == "video":
        assert model.features(long, "grid trajectory").shape == (8, 4, 2 * model.width)
    codes = model.tokenize(long)
    assert codes.codes.shape == (codes.grid.num_patches, 2)
    assert codes.grid.num_patches * model.width == features.numel()


def test_features_of_an_evaluation_are_embeddings_of_whole_files(kind: str, run: Path, folder: Path) -> None:
    model, manifest = load(run, "cpu"), read_manifest(folder, MEDIA[kind])  # type: ignore[index]
    found = collect_features({"run": model}, manifest, layers=[model.depth], batch_size=3).features["run"]
    assert tuple(found) == POOLINGS[MEDIA[kind].name]  # type: ignore[index]
    for pooling, rows in found.items():
        expected = torch.stack([model.embed(entry.path, pooling) for entry in manifest.entries])  # type: ignore[arg-type]
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


def test_embed_all_is_embed_of_each(kind: str, run: Path, folder: Path) -> None:
    model = load(run, "cpu")
    files = [str(entry.path) for entry in read_manifest(folder, MEDIA[kind]).entries]  # type: ignore[index]
    torch.testing.assert_close(model.embed_all(files), torch.stack([model.embed(file) for file in files]), atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="give a list of them"):
        model.embed_all(files[0])


def test_commands_take_the_medium(kind: str, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = load(run, "cpu")
    for command, column in (("embed", "embedding"), ("tokenize", "codes")):
        assert cli.main([command, str(run), str(folder), "--out", str(tmp_path / command), "--device", "cpu"]) == 0
        table = pq.read_table(tmp_path / command).to_pylist()
        assert {row["key"] for row in table} == {entry.key for entry in read_manifest(folder, model.config.medium).entries}
        assert all(row["fingerprint"] == model.fingerprint for row in table)
        first = table[0]
        if column == "embedding":
            expected = model.embed(folder / first["key"])
            torch.testing.assert_close(torch.tensor(first[column]), expected, atol=1e-5, rtol=1e-4)
        else:
            assert first[column] == model.tokenize(folder / first["key"]).codes.tolist()
        starts = [row["start_seconds"] for row in table if f"/{NUM_FILES - 1}." in row["key"]]
        assert starts == {"audio": [0.0, 2.0, 4.0], "image": [0.0], "video": [0.0, 1.6, 3.2]}[kind]
    assert cli.main(["inspect", str(run)]) == 0
    assert cli.main(["doctor", str(folder), "--recipe", f"{kind}-debug"]) in (0, 1)
    out = capsys.readouterr().out
    assert f"{NUM_FILES} {MEDIA[kind].nouns}" in out  # type: ignore[index]


def test_evaluation_reads_classes_from_folders(
    kind: str, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "e.json"
    assert cli.main(["evaluate", str(run), str(folder), "--label", "class", "--json", str(target), "--device", "cpu"]) == 0
    found = json.loads(target.read_text())
    baseline = {"audio": "log-mel statistics", "image": "raw pixels", "video": "raw-pixel statistics"}[kind]
    assert [row["features"] for row in found["rows"]] == [baseline, "random encoder", "this run", "bag of codes"]
    assert found["classes"] == ["a", "b"]
    assert len(found["clips"]) == NUM_FILES
    assert baseline in capsys.readouterr().out


def test_a_table_names_files_of_the_medium(kind: str, folder: Path, tmp_path: Path) -> None:
    medium = MEDIA[kind]  # type: ignore[index]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with (folder / "meta.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *((path.relative_to(folder), "x") for path in files)])
    manifest = read_manifest(folder / "meta.csv", medium)
    (folder / "meta.csv").unlink()
    assert len(manifest) == NUM_FILES
    assert manifest.columns == {"label": ["x"] * NUM_FILES}
    assert all((entry.duration_seconds > 0) == medium.timed for entry in manifest.entries)


def test_a_run_of_one_medium_is_not_resumed_with_another(kind: str, run: Path, folder: Path) -> None:
    other = "image" if kind != "image" else "audio"
    with pytest.raises(BridleError, match=r"the run to resume has|no readable"):
        pretrain(debug(other), [folder], run, resume=True, device=CPU)


def test_several_masks_share_a_clip(kind: str, folder: Path, tmp_path: Path) -> None:
    config = debug(kind, "cold:1steps")
    assert config.masks.num_masks == 2
    for masks in ("random", "tube", "block"):
        changed = dataclasses.replace(config, masks=dataclasses.replace(config.masks, kind=masks, num_masks=3))
        pretrain(changed, [folder], tmp_path / masks, device=CPU)
        assert math.isfinite(state(tmp_path / masks)[3][0]["code/0"])


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert config.medium.name == name.split("-", maxsplit=1)[0]
    RunFolder(tmp_path).write_config(config)
    assert RunFolder(tmp_path).read_config() == config
    assert config.encoder.channels == config.clip_shape[0]
