"""Paths that a user names: what is wrong is said in one line, before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridle import paths
from bridle.errors import ConfigError, DataError, RunError
from bridle.run import RunFolder


def test_a_folder_of_folds_names_them(tmp_path: Path) -> None:
    for name in ("fold-1", "fold-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    with pytest.raises(RunError, match=r"is a folder of 2 folds \(fold-1, fold-2\); give one of them: .*/fold-1$") as said:
        paths.check_run(tmp_path)
    with pytest.raises(RunError) as same:
        RunFolder(tmp_path).read_config()
    assert str(said.value) == str(same.value)
    paths.check_run(tmp_path / "fold-1")
    with pytest.raises(RunError, match=r"nothing is not a run folder: it has no config.yaml"):
        paths.check_run(tmp_path / "nothing")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    paths.check_sources([tmp_path, tmp_path / "a.wav", f"{tmp_path}/*.flac", "hf:some/set:train"])
    with pytest.raises(DataError, match=r"b.wav does not exist; give a folder, a .csv"):
        paths.check_sources([tmp_path, tmp_path / "b.wav"])


def test_files_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    for name in ("old.csv", "new.CSV", "new.parquet"):
        paths.check_file(tmp_path / name, paths.TABLE_SUFFIXES)
    paths.check_file(tmp_path / "any.thing")
    for name, message in (
        ("a.txt", "a.txt must end in .csv or .parquet"),
        ("folder.csv", "folder.csv is a folder; name a file"),
        ("none/a.csv", "the folder .*none does not exist; make it"),
        ("old.csv/a.csv", "the folder .*old.csv does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            paths.check_file(tmp_path / name, paths.TABLE_SUFFIXES)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=r"the folder .* cannot be written to"):
        paths.check_file(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=f"the folder {tmp_path} cannot be written to; choose another --out"):
        paths.check_folder(tmp_path / "new" / "deep")


def test_folders_that_could_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for good in (tmp_path, tmp_path / "new" / "deep", Path("new")):
        paths.check_folder(good)
    for bad in (tmp_path / "file", tmp_path / "file" / "deep", Path("file")):
        with pytest.raises(ConfigError, match=r"file is a file, so the folder .* cannot be there"):
            paths.check_folder(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "no-run", ".", "--out", "p.csv"], "no-run is not a run folder"),
        (["predict", "run", ".", "--out", "p.txt"], "must end in .csv or .parquet"),
        (["predict", "run", "gone", "--out", "p.csv"], "gone does not exist"),
        (["tokenize", "run", ".", "--out", "run/config.yaml"], "run/config.yaml is a file"),
        (["export", "no-run", "--to", "onnx", "--out", "out"], "no-run is not a run folder"),
        (["export", "run", "--to", "onnx", "--out", "out", "--trained-on", "gone"], "gone does not exist"),
    ],
)
def test_a_simple_mistake_is_told_without_torch(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    code = "import sys; from bridle.cli import main; done = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(done)"
    called = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (called.returncode, called.stdout) == (1, "False\n")
    assert message in called.stderr
    assert called.stderr.startswith("bridle: ") and called.stderr.count("\n") == 1
