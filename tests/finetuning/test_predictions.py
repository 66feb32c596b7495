"""Tables of predictions: every row against the model's own word, files that break, odd names, and both formats."""

import csv
import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from reference.finetuned import CLASSES, finetuned_model, write_breaking, write_sounds
from reference.untrained_runs import random_networks, small_config

from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError, RunError
from bridle.finetuning.predictions import whole_files, write_predictions
from bridle.inference import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return finetuned_model()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Two short ones, a long one of three windows, one that breaks off in its third window, one that is no sound."""
    folder = tmp_path_factory.mktemp("sounds")
    return [*write_sounds(folder, 0.6, 1.9, 5.0, 0), write_breaking(folder / "breaks.wav")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_what_the_model_says(model: Model, sounds: list[Entry], tmp_path: Path) -> None:
    known, done = BadFile("listed.wav", "missing"), []
    manifest = Manifest(tuple(sounds), bad=(known,))
    found = write_predictions(model, manifest, tmp_path / "p.csv", progress=done.append)
    assert found.num_rows == 3 and done == [5]
    assert [file.key for file in found.bad] == ["listed.wav", "3.wav", "breaks.wav"]
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["key", "path", "prediction", "probability", "p_bee", "p_cat", "p_dog"]
    for row, entry in zip(rows, sounds[:3], strict=True):
        expected = model.predict(entry.path)
        assert (row["key"], row["path"], row["prediction"]) == (entry.key, entry.path, expected.label)
        chances = [float(row[f"p_{name}"]) for name in CLASSES]
        assert chances == pytest.approx(expected.probabilities.tolist(), abs=1e-5)
        assert float(row["probability"]) == max(chances)
        assert sum(chances) == pytest.approx(1.0, abs=1e-4)
    write_predictions(model, manifest, tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.schema.names == list(rows[0])
    assert [str(kind) for kind in table.schema.types] == [*["string"] * 3, *["float"] * 4]
    for row, other in zip(rows, table.to_pylist(), strict=True):
        assert [row["key"], row["path"], row["prediction"]] == [other["key"], other["path"], other["prediction"]]
        assert [float(row[name]) for name in list(row)[3:]] == pytest.approx([other[name] for name in list(row)[3:]], rel=1e-5)


def test_windows_of_a_long_file_are_averaged_by_their_length(model: Model, sounds: list[Entry]) -> None:
    bad: list[BadFile] = []
    found = whole_files(model, [sounds[2]], bad)[0]
    windows = list(model.windows([sounds[2]], bad))
    assert len(windows) == 3 and not bad
    sums, total = torch.zeros(3, dtype=torch.float64), 0
    for window in windows:
        chances = next(iter(model.probabilities([window]).finish().values()))
        steps = (window.inputs.shape[1] + 8) // 16
        sums, total = sums + steps * chances.double(), total + steps
    torch.testing.assert_close(found.double(), sums / total, atol=1e-5, rtol=1e-5)


def test_a_file_that_breaks_in_the_middle_has_no_row(model: Model, sounds: list[Entry]) -> None:
    bad: list[BadFile] = []
    assert len(list(model.windows([sounds[4]], bad))) == 2 and len(bad) == 1
    bad = []
    found = whole_files(model, [sounds[4], sounds[0], sounds[3], sounds[1]], bad)
    assert list(found) == [1, 3]
    assert [file.key for file in bad] == ["breaks.wav", "3.wav"]


def test_a_good_file_is_not_lost_for_a_broken_one_of_the_same_key(model: Model, sounds: list[Entry], tmp_path: Path) -> None:
    same = [dataclasses.replace(entry, key="same.wav") for entry in (sounds[3], sounds[0], sounds[4], sounds[1])]
    bad: list[BadFile] = []
    assert list(whole_files(model, same, bad)) == [1, 3]
    found = write_predictions(model, Manifest(tuple(same)), tmp_path / "p.csv")
    assert (found.num_rows, len(found.bad)) == (2, 2)
    assert [row["key"] for row in rows_of(tmp_path / "p.csv")] == ["same.wav"] * 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_names_of_any_kind_come_through(sounds: list[Entry], tmp_path: Path, suffix: str) -> None:
    odd = ('an "odd", name', "カモメ\n🐦", "a;b")
    model = finetuned_model(odd, multi_label=True)
    names = ["Größe, 1.wav", "broken \udcff name.wav"]  # the second is no UTF-8 on the disk
    manifest = Manifest(tuple(dataclasses.replace(sounds[row], key=name) for row, name in enumerate(names)))
    path = tmp_path / f"p{suffix}"
    write_predictions(model, manifest, path, separator="|")
    if suffix == ".parquet":
        rows, expected = pq.read_table(path).to_pylist(), [names[0], "broken � name.wav"]
    else:
        rows, expected = rows_of(path), names
    assert [row["key"] for row in rows] == expected
    for row, entry in zip(rows, sounds, strict=False):
        found = model.predict(entry.path)
        assert list(row)[4:] == [f"p_{name}" for name in odd]
        assert row["prediction"] == "|".join(found.labels)
        assert [float(row[f"p_{name}"]) for name in odd] == pytest.approx(found.probabilities.tolist(), abs=1e-5)


def test_a_clip_without_any_tag_has_an_empty_cell(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model(multi_label=True)
    model.classifier.linear.bias.fill_(-100.0)
    write_predictions(model, Manifest((sounds[0],)), tmp_path / "p.csv")
    (row,) = rows_of(tmp_path / "p.csv")
    assert row["prediction"] == "" and float(row["probability"]) < 0.01


def test_many_files_are_read_in_slabs(
    model: Model, sounds: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridle.finetuning.predictions._SLAB_FILES", 2)
    done: list[int] = []
    write_predictions(model, Manifest(tuple(sounds)), tmp_path / "p.csv", progress=done.append)
    assert done == [2, 4, 5]
    assert [row["key"] for row in rows_of(tmp_path / "p.csv")] == ["0.wav", "1.wav", "2.wav"]


def test_what_cannot_be_is_said_and_an_old_table_stays(model: Model, sounds: list[Entry], tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    write_predictions(model, Manifest((sounds[0],)), out)
    before = out.read_bytes()
    with pytest.raises(DataError, match=r"none of 2 files can be read; first: 3.wav \("):
        write_predictions(model, Manifest((sounds[3], sounds[4])), out)
    config = small_config("audio")
    plain = Model(config, random_networks(config), torch.device("cpu"))
    with pytest.raises(RunError, match="this run has no classifier; bridle finetune makes a run that predicts classes"):
        write_predictions(plain, Manifest((sounds[0],)), out)
    assert out.read_bytes() == before
    with pytest.raises(ConfigError, match=r"p.txt must end in .csv or .parquet"):
        write_predictions(model, Manifest((sounds[0],)), tmp_path / "p.txt")
    with pytest.raises(ConfigError, match=r"the folder .*none does not exist"):
        write_predictions(model, Manifest((sounds[0],)), tmp_path / "none" / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
