"""The evaluation of a run as a whole: rows, gains, what is left out, errors, and the command that prints it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from bridle import cli
from bridle.config import from_dict, to_dict
from bridle.data.audio import AudioLoader
from bridle.data.manifest import read_manifest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError
from bridle.eval import evaluate as evaluate_module
from bridle.eval.evaluate import PROBING, RANDOM, READING, RUN, Columns, Evaluation, evaluate_run
from bridle.eval.features import BAG_OF_CODES
from bridle.eval.gain import paired_gain
from bridle.eval.intervals import t_interval
from bridle.eval.protocol import FeatureSet, ProbeResult, SplitResult, evaluate, knn_probe, linear_probe
from bridle.inference import load

CELLS = {
    "class": ["low", "high"] * 5,
    "fold": ["1", "1", "2", "2", "3", "3", "1", "1", "2", "3"],
    "split": ["train", "train", "train", "train", "test", "test", "train", "train", "test", "train"],
    "speaker": [str(i // 2) for i in range(10)],
    "same": ["one"] * 10,
}


@pytest.fixture(scope="module")
def model(tiny_run):
    return load(tiny_run, "cpu")


@pytest.fixture(scope="module")
def manifest(tiny_folder):
    return replace(read_manifest(tiny_folder), columns=CELLS)


@pytest.fixture(autouse=True)
def _small_grids(monkeypatch):
    monkeypatch.setattr(evaluate_module, "linear_probe", lambda: linear_probe((0.01, 1.0)))


@pytest.fixture(scope="module")
def evaluation(model, manifest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "linear_probe", lambda: linear_probe((0.01, 1.0)))
        return evaluate_run(model, manifest, Columns("class", fold="fold"))


def result_of(accuracies, probe="knn", predictions=None):
    """A probe's result with these accuracies on splits of 4 clips."""
    splits = [
        SplitResult(str(i), value, "mean", 1.0, value, 4, tuple(range(4 * i, 4 * i + 4)), predictions or ("a",) * 4)
        for i, value in enumerate(accuracies)
    ]
    low, high = t_interval(accuracies) if len(accuracies) > 1 else (0.0, 1.0)
    return ProbeResult(probe, float(np.mean(accuracies)), low, high, "", tuple(splits), ())


def test_rows_are_the_baselines_the_run_and_its_codes(evaluation, model, manifest):
    assert [row.features for row in evaluation.rows] == [AudioLoader.baseline_name, RANDOM, RUN, BAG_OF_CODES]
    assert evaluation.splits == "3 folds of column 'fold'"
    assert evaluation.classes == ("high", "low")
    assert evaluation.clips == tuple(entry.key for entry in manifest.entries)
    assert evaluation.fingerprint == model.fingerprint
    assert (evaluation.notes, evaluation.bad) == ((), ())
    for row in evaluation.rows:
        assert list(row.probes) == ["knn", "linear"]
        for result in row.probes.values():
            for split in result.splits:
                right = [CELLS["class"][i] == name for i, name in zip(split.test_index, split.predictions, strict=True)]
                assert split.accuracy == pytest.approx(np.mean(right))


def test_row_of_the_run_is_the_protocol_on_its_embeddings(evaluation, model, manifest):
    pooled = {
        pooling: torch.stack([model.embed(entry.path, pooling) for entry in manifest.entries]) for pooling in ("mean", "time")
    }
    expected = evaluate(FeatureSet(pooled, CELLS["class"], folds=CELLS["fold"]), knn_probe())
    (found,) = (row.probes["knn"] for row in evaluation.rows if row.features == RUN)
    assert [split.predictions for split in found.splits] == [split.predictions for split in expected.splits]


def test_gains_are_differences_of_the_rows(evaluation):
    rows = {row.features: row.probes for row in evaluation.rows}
    assert [(gain.probe, gain.over) for gain in evaluation.gains] == [
        (probe, over) for probe in ("knn", "linear") for over in (AudioLoader.baseline_name, RANDOM)
    ]
    for gain in evaluation.gains:
        assert gain.mean == pytest.approx(rows[RUN][gain.probe].accuracy - rows[gain.over][gain.probe].accuracy)
        assert gain.low <= gain.mean <= gain.high


def test_evaluation_goes_through_json_and_back(evaluation):
    assert from_dict(Evaluation, json.loads(json.dumps(to_dict(evaluation)))) == evaluation


def test_gain_over_folds_is_a_paired_t_interval():
    ours, theirs = [0.8, 0.75, 0.9, 0.7, 0.85], [0.7, 0.7, 0.75, 0.72, 0.7]
    gain = paired_gain(result_of(ours), result_of(theirs), ["a"] * 20, "other")
    expected = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert gain.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert gain.certain == (expected.low > 0)


def test_gain_of_a_single_split_pairs_its_clips():
    labels = ["a", "a", "b", "b"]
    ours, theirs = (result_of([0.75], predictions=p) for p in (("a", "a", "b", "a"), ("b", "a", "b", "b")))
    gain = paired_gain(ours, replace(theirs, splits=(replace(theirs.splits[0], accuracy=0.5),)), labels, "other")
    half = 1.959964 * np.std([1, 0, 0, -1]) / 2
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert not gain.certain


def test_gain_needs_equal_probes_and_splits():
    with pytest.raises(DataError, match="not of the same probe and splits"):
        paired_gain(result_of([0.5] * 3), result_of([0.5] * 4), ["a"] * 16, "other")


def test_progress_covers_files_and_probes(model, manifest):
    seen = []
    evaluate_run(model, manifest, Columns("class", split="split"), on_progress=lambda *state: seen.append(state))
    assert [state for state in seen if state[0] == READING] == [(READING, i, 10) for i in range(1, 11)]
    assert [state for state in seen if state[0] == PROBING] == [(PROBING, i, 8) for i in range(9)]


def test_unreadable_files_and_empty_cells_are_left_out_with_a_note(model, manifest, tmp_path):
    entries = list(manifest.entries)
    entries[0] = replace(entries[0], path=str(tmp_path / "gone.wav"))
    columns = {**CELLS, "class": [*CELLS["class"][:9], " "]}
    broken = replace(manifest, entries=tuple(entries), columns=columns, bad=(BadFile("early.wav", "empty file"),))
    found = evaluate_run(model, broken, Columns("class", split="split"))
    assert found.clips == tuple(entry.key for entry in entries[1:9])
    assert found.bad == (BadFile("early.wav", "empty file"), BadFile(entries[0].key, "missing"))
    assert found.notes == (
        "left out: 1 clip without label (column 'class')",
        "left out: 2 unreadable files, first early.wav (empty file)",
    )


def test_official_column_that_is_not_used_is_pointed_out(model, manifest):
    found = evaluate_run(model, manifest, Columns("class", group="speaker"))
    assert found.notes[0] == "the manifest's column 'fold' is not used; where it is the official one, ask for --fold fold"
    assert found.splits == "5 stratified splits, groups of column 'speaker' kept together"
    for split in found.rows[0].probes["knn"].splits:
        tested = {CELLS["speaker"][i] for i in split.test_index}
        assert all((CELLS["speaker"][i] in tested) == (i in split.test_index) for i in range(10))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("clas"), "there is no label column 'clas'; the columns are class, fold, .*; did you mean 'class'?"),
        (Columns("class", fold="part"), "there is no fold column 'part'"),
        (Columns("same"), "labels hold 1 class"),
        (Columns("class", fold="same"), r"1 fold\(s\) found"),
        (Columns("class", split="class"), "split 'high' is unknown"),
    ],
)
def test_wrong_columns_show_before_any_file_is_read(model, manifest, columns, message):
    with pytest.raises(DataError, match=message):
        evaluate_run(model, manifest, columns, on_progress=lambda *state: pytest.fail("read a file"))


def test_a_flat_folder_without_table_has_no_columns(model, tiny_folder):
    with pytest.raises(DataError, match="the manifest has no columns; give a CSV"):
        evaluate_run(model, replace(read_manifest(tiny_folder), columns={}), Columns("class"))


def test_fold_and_split_together_are_refused():
    with pytest.raises(DataError, match="fold 'a' and split 'b' are both given"):
        Columns("class", fold="a", split="b")


def write_table(path, manifest):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sound", *CELLS])
        writer.writerows([entry.path, *cells] for entry, *cells in zip(manifest.entries, *CELLS.values(), strict=True))
    return str(path)


def test_command_prints_tables_and_writes_json(tiny_run, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    table, target = write_table(tmp_path / "table.csv", manifest), tmp_path / "evaluation.json"
    common = ["evaluate", str(tiny_run), table, "--label", "class", "--device", "cpu"]
    assert cli.main([*common, "--fold", "fold", "--path", "sound", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    for text in (
        AudioLoader.baseline_name,
        RANDOM,
        RUN,
        BAG_OF_CODES,
        "over random encoder",
        "codes of the trained tokenizer: 2 levels of 16",
    ):
        assert text in printed
    content = json.loads(target.read_text())
    assert (content.pop("run"), content.pop("manifest")) == (str(tiny_run), table)
    (row,) = (row for row in from_dict(Evaluation, content).rows if row.features == RUN)
    assert f"{100 * row.probes['knn'].accuracy:.1f} (" in printed


def test_command_explains_errors_in_one_line(tiny_run, manifest, tmp_path, capsys):
    table = write_table(tmp_path / "table.csv", manifest)
    assert cli.main(["evaluate", str(tiny_run), table, "--label", "clas", "--path", "sound", "--device", "cpu"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("bridle: there is no label column 'clas'")
    assert message.count("\n") == 1
