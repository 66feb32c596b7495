"""``bridle finetune`` and ``bridle predict`` as a user calls them, and ``bridle pretrain --probe``."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from reference import published_sets
from reference.media_folders import write_folder
from reference.untrained_runs import small_config, write_run

import bridle
from bridle.cli import main
from bridle.summary import resume_command
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint

QUICK = ["--train.batch-size", "4", "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("source") / "run", small_config("audio"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder("audio", tmp_path_factory.mktemp("sounds"), num_files=12)


@pytest.fixture(scope="module")
def classes(source: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classes") / "run"
    assert main(["finetune", str(source), str(sounds), "--label", "class", "--out", str(out), *QUICK]) == 0
    return out


def test_finetune_says_how_good_it_is_and_what_comes_next(
    source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ["--drop-path", "0.2", "--optim.lr", "2e-3", "--audio.mask-frames", "7", "--validation-ratio", "0.25"]
    assert main(["finetune", str(source), str(sounds), "--label", "class", "--out", str(out), *QUICK, *settings]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "balanced" in shown and "calibration error" in shown
    assert "20 % of the clips, drawn by class, are tested" in " ".join(shown.split())
    assert f"bridle predict {out} DATA --out predictions.csv" in shown
    config = bridle.load(out, "cpu").config
    assert config.finetune is not None and config.audio is not None
    assert (config.finetune.drop_path, config.finetune.optim.lr, config.audio.mask_frames) == (0.2, 2e-3, 7)
    assert config.phases == "supervised:2steps" and config.recipe == "small"
    again = ["finetune", str(source), str(sounds), "--label", "class", "--out", str(out), *QUICK, *settings, "--resume"]
    assert main(again) == 0
    assert main([argument for argument in again if argument != "--resume"]) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_folds_have_a_table_of_their_own(
    source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(path, index % 3) for index, path in enumerate(sorted(sounds.rglob("*.wav")))]
    table = tmp_path / "meta.csv"
    table.write_text("path,word,part\n" + "".join(f"{path},{path.parent.name},{part}\n" for path, part in rows))
    arguments = ["finetune", str(source), str(table), "--label", "word", "--fold", "part", *QUICK]
    assert main([*arguments, "--out", str(tmp_path / "all")]) == 0
    shown = capsys.readouterr().out
    joined = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    assert joined["interval"]["made"] in " ".join(shown.split()) and "2 classes: a, b" in shown
    assert (tmp_path / "all" / "fold-2" / "evaluation.json").is_file()
    assert main([*arguments, "--only-fold", "1", "--out", str(tmp_path / "one")]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["fold-1"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "one" / "fold-1"), str(table), "--label", "word", "--fold", "part"]) == 0
    assert "was trained with labels ('word'): clips that it learnt from make these numbers too good" in capsys.readouterr().out
    assert main([*arguments, "--only-fold", "7", "--out", str(tmp_path / "none")]) == 1
    assert "there is no fold '7' in column 'part'; there are 0, 1, 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "all" / "evaluation.json").read_text())["folds"][0]["num_clips"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "there is no column of labels; name it with --label COLUMN"),
        (["--label", "clas", "--out", "x"], "did you mean 'class'?"),
        (["--label", "class", "--out", "x", "--epochs", "2", "--steps", "3"], "are both given"),
        (["--label", "class", "--out", "x", "--recipe", "imagenet"], "recipe imagenet is for image"),
        (["--label", "class", "--out", "x", "--recipe", "esc5"], "there is no recipe 'esc5'"),
        (["--label", "class", "--out", "x", "--only-fold", "1"], "add --fold COLUMN"),
        (["--label", "class", "--out", "x", "--cutmix", "1.0"], "is for pixels"),
        (["--label", "class", "--out", "x", "--test-ratio", "0.9"], "between 0 and 0.5"),
        (["--label", "class", "--out", "x", "--epochs", "0"], "--epochs 0 must be more than 0; to measure frozen features"),
        (["--label", "class", "--out", "x", "--untagged", "negative"], "add --multi-label"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_one_line(
    arguments: list[str], message: str, source: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(source), str(sounds), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("protocol", "write", "runs"),
    [("ESC-50", "esc50", 5), ("speech-commands-v2", "speech_commands", 1), ("audioset-20k", "audioset", 1)],
)
def test_a_published_set_says_labels_and_splits_itself(
    protocol: str, write: str, runs: int, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = getattr(published_sets, write)(tmp_path / "set") or tmp_path / "set"
    for name in ("--PJHxphWEs", "_-_-_-_-_-_", "evaluation1") if write == "audioset" else ():
        published_sets.sound(folder / f"{name}.wav")
    out = tmp_path / "out"
    assert main(["finetune", str(source), str(folder), "--protocol", protocol, "--out", str(out), *QUICK]) == 0
    found = sorted(out.rglob("config.yaml"))
    assert len(found) == runs
    finetune = bridle.load(found[0].parent, "cpu").config.finetune
    assert finetune is not None and finetune.multi_label == (write == "audioset")
    assert main(["finetune", str(source), str(folder), "--protocol", protocol, "--label", "x", "--out", "y"]) == 1
    assert "give the set's folder alone" in capsys.readouterr().err


def test_the_run_comes_before_the_settings(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--label", "class", str(source)]) == 1
    assert "the run comes first, and --label was found" in capsys.readouterr().err


def test_from_scratch_has_no_layer_wise_decay_unless_it_is_asked_for(source: Path, sounds: Path, tmp_path: Path) -> None:
    start = ["finetune", str(source), str(sounds), "--label", "class", *QUICK]
    start += ["--recipe", "esc50"]
    for name, more, decay in (
        ("trained", [], 0.75),
        ("new", ["--from-scratch"], 1.0),
        ("new-too", ["--from_scratch"], 1.0),
        ("asked", ["--from-scratch", "--layer-decay", "0.5"], 0.5),
    ):
        assert main([*start, *more, "--out", str(tmp_path / name)]) == 0
        config = bridle.load(tmp_path / name, "cpu").config
        assert config.finetune is not None and config.finetune.layer_decay == decay


def test_what_could_not_be_read_is_told_with_the_score(
    source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "meta.csv"
    rows = [
        (path, path.parent.name, "test" if number % 2 else "train") for number, path in enumerate(sorted(sounds.rglob("*.wav")))
    ]
    torn = tmp_path / "torn.wav"
    torn.write_bytes(b"no sound at all")
    rows.append((torn, "a", "test"))
    table.write_text("path,word,part,duration_seconds\n" + "".join(f"{path},{word},{part},1.0\n" for path, word, part in rows))
    start = ["finetune", str(source), str(table), "--label", "word", "--split", "part", *QUICK]
    assert main([*start, "--out", str(tmp_path / "run")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    tested = sum(part == "test" for _, _, part in rows)
    assert f"not tested: 1 of {tested} clips cannot be read, first {torn}" in shown


def test_help_names_the_recipes_and_every_setting(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    assert "audioset-2m" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["finetune", str(source), "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert all(
        name in shown for name in ("--layer-decay", "--optim.lr", "--audio.mask-mels", "--train.batch-size", "--patch-drop")
    )
    assert "--image." not in shown


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_row_for_each_file_that_can_be_read(
    suffix: str, classes: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(sounds.rglob("*.wav"))[:3]:
        (data / path.name).write_bytes(path.read_bytes())
    (data / "broken.wav").write_bytes(b"RIFF no sound at all")
    out = tmp_path / f"found{suffix}"
    assert main(["predict", str(classes), str(data), "--out", str(out), "--device", "cpu"]) == 0
    assert "unreadable files: 1" in capsys.readouterr().out
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == sorted(path.name for path in data.iterdir() if path.name != "broken.wav")
    model = bridle.load(classes, "cpu")
    for row in rows:
        found = model.predict(row["path"])
        assert row["prediction"] == found.label
        assert float(row["probability"]) == pytest.approx(float(found.probabilities.max()), abs=1e-4)
        chances = torch.tensor([float(row[f"p_{name}"]) for name in found.classes])
        torch.testing.assert_close(chances, found.probabilities, atol=1e-4, rtol=0)


def test_predict_refuses_what_it_cannot_do_before_it_reads(
    classes: Path, source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, out, message in (
        (source, tmp_path / "x.csv", "this run has no classifier; bridle finetune makes a run that predicts classes"),
        (classes, tmp_path / "x.txt", "must end in .csv or .parquet"),
        (classes, tmp_path / "no" / "x.csv", "does not exist; make it"),
    ):
        assert main(["predict", str(run), str(sounds), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err


def test_probes_while_pretraining_are_logged_and_change_no_weight(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--phases", "cold:4steps", "--train.batch-size", "4", "--train.precision", "fp32"]
    start = ["pretrain", "audio-debug", "--data", str(sounds), *quick]
    probe = ["--probe", str(sounds), "--probe-label", "class", "--probe-every", "2"]
    assert main([*start, "--out", str(tmp_path / "plain")]) == 0
    assert main([*start, "--out", str(tmp_path / "probed"), *probe]) == 0
    lines = [json.loads(line) for line in (tmp_path / "probed" / "metrics.jsonl").read_text().splitlines()]
    probed = [line for line in lines if "probe/knn" in line]
    assert [line["step"] for line in probed] == [2, 4]
    assert all(0 <= line[f"probe/{name}"] <= 1 for line in probed for name in ("knn", "linear"))
    plain = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "probe/knn" not in line] == plain
    weights = []
    for run in ("plain", "probed"):
        path = latest_checkpoint(tmp_path / run)
        assert path is not None
        weights.append(load_checkpoint(path).weights)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    shown = capsys.readouterr().out
    assert re.search(r"^step 2: probe kNN [0-9.]+%  probe linear [0-9.]+%$", shown, re.MULTILINE) and "step 4: probe" in shown
    assert main([*start, "--out", str(tmp_path / "third"), "--probe", str(sounds)]) == 1
    assert "needs the column with the class: --probe-label COLUMN" in capsys.readouterr().err
    assert main([*start, "--out", str(tmp_path / "fourth"), "--probe-label", "class"]) == 1
    assert "--probe-label is given, and no --probe MANIFEST" in capsys.readouterr().err


def test_inspect_shows_what_a_fine_tuned_run_is_and_how_it_goes_on(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(classes)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of column 'class': a, b" in shown and f"bridle predict {classes} DATA --out FILE" in shown
    assert "codebooks" not in shown and "tokenize" not in shown
    config = bridle.load(classes, "cpu").config
    calls = [json.loads(line) for line in (classes / "history.jsonl").read_text().splitlines()]
    assert resume_command(config, str(classes)) == f"{calls[-1]['command']} --resume"
    elsewhere = resume_command(config, str(tmp_path / "my run"))
    assert elsewhere == f"bridle finetune RUN MANIFEST --label class --out '{tmp_path}/my run' --resume"


def test_names_of_classes_may_look_like_markup_and_folds_may_not_leave_the_folder(
    source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"a": "[/noise]", "b": "[unk]"}
    rows = [f"{path},{names[path.parent.name]},../{index % 3}" for index, path in enumerate(sorted(sounds.rglob("*.wav")))]
    table = tmp_path / "meta.csv"
    table.write_text("\n".join(["path,word,part", *rows]) + "\n")
    assert main(["finetune", str(source), str(table), "--label", "word", "--out", str(tmp_path / "run"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "[/noise]" in shown and "[unk]" in shown
    folds = ["--fold", "part", "--out", str(tmp_path / "folds")]
    assert main(["finetune", str(source), str(table), "--label", "word", *folds, *QUICK]) == 1
    assert "cannot name a folder" in capsys.readouterr().err
