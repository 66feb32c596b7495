"""The evaluation of a run as a whole: rows, gains, what is left out, errors, and the command that prints it."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from bridle import cli
from bridle.commands.evaluate import code_table
from bridle.config import from_dict, to_dict
from bridle.data.audio import AudioLoader
from bridle.data.manifest import read_manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError
from bridle.eval import evaluate as evaluate_module
from bridle.eval.code_features import CodeStatistics
from bridle.eval.codes import CodeReport
from bridle.eval.evaluate import PROBING, RANDOM, READING, RUN, Columns, Evaluation, Plan, evaluate_run
from bridle.eval.features import BAG_OF_CODES, Choice, collect_features
from bridle.eval.gain import paired_gain
from bridle.eval.intervals import t_interval, wilson_interval
from bridle.eval.protocol import FeatureSet, ProbeResult, SplitResult, evaluate, knn_probe, linear_probe
from bridle.eval.tags import TagEvaluation, evaluate_tags_run
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


@pytest.mark.parametrize("num_splits", [1, 5])
def test_a_gain_of_nothing_has_the_width_of_what_so_few_clips_would_miss(num_splits):
    same = result_of([0.75] * num_splits)
    labels = ["a"] * sum(len(split.test_index) for split in same.splits)
    gain = paired_gain(same, same, labels, "other")
    missed = wilson_interval(0, len(labels))[1]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.0, -missed, missed))
    assert missed > 0.15
    right, wrong = (result_of([float(p == "a")] * num_splits, predictions=(p,) * 4) for p in "ab")
    every = paired_gain(right, wrong, labels, "other")
    assert (every.mean, every.low, every.high) == pytest.approx((1.0, 1.0 - missed, 1.0))


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


def everything(**change):
    return Plan(
        **{"probes": ("knn", "batchnorm", "attentive"), "shots": (1, 2), "num_draws": 2, "retrieval": True, "details": True}
        | change
    )


@pytest.fixture(scope="module")
def whole(model, manifest):
    return evaluate_run(model, manifest, Columns("class", fold="fold"), plan=everything())


def test_a_plan_adds_probes_few_shot_retrieval_and_details(whole, evaluation):
    by_name = {row.features: row for row in whole.rows}
    assert [row.features for row in whole.rows] == [row.features for row in evaluation.rows]
    for name, row in by_name.items():
        own = ["knn", "batchnorm"] + (["attentive"] if name in (RUN, RANDOM) else [])
        assert list(row.probes) == own
        assert [shot.shots for shot in row.few_shot] == [1, 2]
        assert row.retrieval.num_queries == 10
    assert [row.probes["knn"] for row in whole.rows] == [row.probes["knn"] for row in evaluation.rows]
    assert [(gain.probe, gain.over) for gain in whole.gains if gain.probe == "attentive"] == [("attentive", RANDOM)]
    best = max(by_name[RUN].probes.values(), key=lambda result: np.mean([each.inner_accuracy for each in result.splits]))
    assert (whole.details.features, whole.details.probe) == (RUN, best.probe)
    right = sum(
        name == CELLS["class"][i] for split in best.splits for i, name in zip(split.test_index, split.predictions, strict=True)
    )
    assert whole.details.metrics.accuracy == pytest.approx(right / 10)
    assert from_dict(Evaluation, json.loads(json.dumps(to_dict(whole), allow_nan=False))) == whole


def test_classes_with_too_few_clips_and_clips_alone_are_noted(model, manifest):
    columns = {**CELLS, "class": ["rare", *CELLS["class"][1:]]}
    plan = Plan(("knn",), shots=(1, 3), num_draws=2, retrieval=True)
    found = evaluate_run(model, replace(manifest, columns=columns), Columns("class", split="split"), plan=plan)
    assert found.notes == ("few-shot 3: 2 classes have fewer training clips in some split; all of those are taken",)
    columns = {**CELLS, "class": [*CELLS["class"][:8], "rare", "high"]}
    found = evaluate_run(model, replace(manifest, columns=columns), Columns("class", split="split"), plan=plan)
    assert found.notes[-1] == "retrieval leaves out 1 clip without another of the same class to be found"


def test_progress_counts_everything_that_is_asked_for(model, manifest):
    seen = []
    plan = everything(probes=("knn", "attentive"), details=False)
    evaluate_run(model, manifest, Columns("class", split="split"), on_progress=lambda *state: seen.append(state), plan=plan)
    assert [state for state in seen if state[0] == PROBING] == [(PROBING, i, 14) for i in range(15)]


def test_layers_are_joined_to_one_vector(model, manifest):
    choice = Choice((1, 2), concatenate=True)
    apart = collect_features({"run": model}, manifest, layers=(1, 2)).features["run"]
    joined = collect_features({"run": model}, manifest, choice=choice).features["run"]
    assert list(joined) == [f"{pooling} of layers 1 + 2" for pooling in ("mean", "time", "statistics")]
    for pooling in ("mean", "statistics"):
        expected = torch.cat([apart[f"{pooling} of layer 1"], apart[pooling]], dim=1)
        torch.testing.assert_close(joined[f"{pooling} of layers 1 + 2"], expected)
    plan = Plan(probes=("knn",), concatenate=True)
    found = evaluate_run(model, manifest, Columns("class", fold="fold"), layers=(1, 2), plan=plan)
    first = evaluate_run(model, manifest, Columns("class", split="split"), layers=(1,), plan=Plan(("attentive",)))
    assert first.rows[-1].probes["attentive"].splits[0].pooling == "patches of layer 1"
    assert {split.pooling for split in found.rows[2].probes["knn"].splits} <= set(joined)
    with pytest.raises(ConfigError, match="layer 2 alone cannot be concatenated"):
        evaluate_run(model, manifest, Columns("class"), layers=(2,), plan=plan)


def test_patches_are_those_of_the_highest_layer(model, manifest):
    found = collect_features({"run": model}, manifest, choice=Choice((2, 1), patch_gigabytes=1.0)).patches["run"]
    for entry, clip in zip(manifest.entries, found.clips, strict=True):
        expected = model.features(entry.path, layer=2).flatten(0, 1)
        normal = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
        torch.testing.assert_close(clip.float(), normal, atol=5e-3, rtol=5e-3)
    with pytest.raises(DataError, match="limit is 1e-09 GB"):
        collect_features({"run": model}, manifest, choice=Choice(None, patch_gigabytes=1e-9))


def test_cells_that_say_nan_are_left_out_with_a_note(model, manifest):
    columns = {**CELLS, "class": ["nan", "NaN", *CELLS["class"][2:]]}
    found = evaluate_run(model, replace(manifest, columns=columns), Columns("class", split="split"), plan=Plan(("knn",)))
    assert found.classes == ("high", "low")
    assert "left out: 2 clips without label (column 'class')" in found.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": ()}, "probes are none; name one or more of knn, linear, batchnorm, attentive"),
        ({"probes": ("svm",)}, "probes are svm"),
        ({"probes": ("knn", "knn")}, "each once"),
        ({"shots": (5, 0)}, "few-shot probes take 0 clips and 2 draws; at least 1 and 2 are needed"),
        ({"num_draws": 1}, "few-shot probes take 1 clips and 1 draws"),
        ({"probes": ("attentive",)}, "few-shot probes take the features that knn, linear or batchnorm chose"),
    ],
)
def test_plans_that_cannot_be_are_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        everything(**change)


TAGS = ["low;long", "high", "low", "high;long", "low", "high;long", "low;long", "high", ";", "low;high"]


def test_tags_of_a_run(model, manifest):
    tagged = replace(manifest, columns={**CELLS, "tags": TAGS})
    found = evaluate_tags_run(model, tagged, Columns("tags", split="split"), separator=";")
    assert found.classes == ("high", "long", "low")
    assert [row.features for row in found.rows] == [AudioLoader.baseline_name, RANDOM, RUN, BAG_OF_CODES]
    assert len(found.clips) == 10
    assert found.rows[0].result.splits[0].test_index == (4, 5, 8)
    assert from_dict(TagEvaluation, json.loads(json.dumps(to_dict(found), allow_nan=False))) == found
    with pytest.raises(DataError, match="the separator of labels is empty"):
        evaluate_tags_run(model, tagged, Columns("tags"), separator="")


def test_command_prints_what_was_asked_for(tiny_run, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table, target = write_table(tmp_path / "table.csv", manifest), tmp_path / "evaluation.json"
    asked = ["--probes", "knn", "attentive", "--few-shot", "1", "2", "--shots-seeds", "2", "--retrieval", "--details"]
    common = ["evaluate", str(tiny_run), table, "--label", "class", "--fold", "fold", "--path", "sound", "--device", "cpu"]
    assert cli.main([*common, *asked, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "attentive % (95 %)",
        "few-shot linear probe",
        "1 of each class % (95 %)",
        "recall@5 %",
        "balanced accuracy",
        "calibration error",
        "class, taken for",
    ):
        assert text in printed
    found = from_dict(Evaluation, {k: v for k, v in json.loads(target.read_text()).items() if k not in ("run", "manifest")})
    assert f"accuracy {100 * found.details.metrics.accuracy:.1f} %" in printed


def test_the_table_of_codes_fits_80_columns():
    report = CodeReport(1024, 123_456, (10.0,) * 4, (1.0,) * 4, (1.0,) * 4, (5.25,) * 4, (5.0,) * 4, (1.0,) * 4, (0.125,) * 4)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(code_table(CodeStatistics("cold start", (1.0,) * 4, report, churn=(1.0,) * 4)))
    text = console.export_text()
    assert "…" not in text
    for word in ("perplexity", "energy", "position,", "5.25 (5.00)", "100 (12)", "changed %"):
        assert word in text


def test_command_without_new_flags_prints_no_more_than_before(tiny_run, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    table = write_table(tmp_path / "table.csv", manifest)
    assert cli.main(["evaluate", str(tiny_run), table, "--label", "class", "--split", "split", "--path", "sound"]) == 0
    printed = capsys.readouterr().out
    assert not any(text in printed for text in ("few-shot", "retrieval", "attentive", "batch-norm", "balanced"))


def test_command_evaluates_tags(tiny_run, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setitem(CELLS, "tags", TAGS)
    table = write_table(tmp_path / "table.csv", manifest)
    common = ["evaluate", str(tiny_run), table, "--label", "tags", "--split", "split", "--path", "sound", "--device", "cpu"]
    assert cli.main([*common, "--multi-label", "--separator", ";", "--details"]) == 0
    printed = capsys.readouterr().out
    for text in ("10 clips, 3 tags", "batch-norm head, mAP %", "average precision %", "long"):
        assert text in printed
    assert cli.main([*common, "--multi-label", "--probes", "batchnorm", "knn"]) == 1
    assert capsys.readouterr().err == (
        "bridle: 'knn' is for one class per clip; with --multi-label the probe is batchnorm, so leave it out\n"
    )


def test_details_are_of_the_probe_that_promised_most_not_of_the_one_that_tested_best(model, manifest, monkeypatch):
    def promise(features, probe, seed=0):
        result = evaluate(features, probe, seed)
        best_tested = probe.name == "knn"
        splits = [replace(each, inner_accuracy=0.1 if best_tested else 0.9) for each in result.splits]
        return replace(result, accuracy=1.0 if best_tested else 0.0, splits=tuple(splits))

    monkeypatch.setattr(evaluate_module, "evaluate", promise)
    found = evaluate_run(model, manifest, Columns("class", split="split"), plan=Plan(details=True))
    assert found.details.probe == "linear"


def test_a_layer_named_twice_is_refused(model, manifest, tiny_run, tmp_path, capsys):
    for layers, concatenate in (((2, 2), True), ((1, 2, 1), False)):
        with pytest.raises(ConfigError, match=rf"layers are {' '.join(map(str, layers))}; name each once \(--layers\)"):
            evaluate_run(model, manifest, Columns("class"), layers=layers, plan=Plan(("knn",), concatenate=concatenate))
    table = write_table(tmp_path / "table.csv", manifest)
    assert cli.main(["evaluate", str(tiny_run), table, "--label", "class", "--path", "sound", "--layers", "2", "2"]) == 1
    assert capsys.readouterr().err == "bridle: layers are 2 2; name each once (--layers)\n"


def test_features_that_do_not_fit_are_refused_before_any_file_is_read(model, manifest, tiny_run, tmp_path, capsys):
    columns = {name: cells * 100_000 for name, cells in manifest.columns.items()}
    many = replace(manifest, entries=tuple(manifest.entries) * 100_000, columns=columns)
    with pytest.raises(DataError, match=r"pooled features of 1000000 clips need .* GB, and the limit is 1 GB; .*--feature-gig"):
        collect_features({"run": model}, many, on_file=lambda: pytest.fail("read a file"), choice=Choice(feature_gigabytes=1.0))
    found = collect_features({"run": model}, manifest).features
    held = 4e-9 * sum(values.numel() for name in ("run", BAG_OF_CODES) for values in found[name].values())
    assert collect_features({"run": model}, manifest, choice=Choice(feature_gigabytes=1.001 * held))
    with pytest.raises(DataError, match="pooled features of 10 clips need"):
        collect_features({"run": model}, manifest, choice=Choice(feature_gigabytes=0.999 * held))
    table = write_table(tmp_path / "table.csv", manifest)
    common = ["evaluate", str(tiny_run), table, "--label", "class", "--path", "sound", "--feature-gigabytes", "1e-6"]
    assert cli.main(common) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_blanks_around_labels_make_no_classes(model, manifest):
    columns = {**CELLS, "class": [f"{' ' * (i % 3)}{cell}{' ' * (i % 2)}" for i, cell in enumerate(CELLS["class"])]}
    plan = Plan(("knn", "attentive"), shots=(1,), num_draws=2, retrieval=True, details=True)
    spaced, plain = (
        evaluate_run(model, replace(manifest, columns=cells), Columns("class", split="split"), plan=plan)
        for cells in (columns, CELLS)
    )
    assert spaced == plain
    assert spaced.classes == ("high", "low")
    tags = [f" {cell.replace(';', ' ; ')}" for cell in TAGS]
    spaced_tags, plain_tags = (
        evaluate_tags_run(
            model, replace(manifest, columns={**CELLS, "tags": cells}), Columns("tags", split="split"), separator=";"
        )
        for cells in (tags, TAGS)
    )
    assert spaced_tags == plain_tags


def test_fewer_groups_than_splits_is_one_line_before_any_file_is_read(model, manifest):
    columns = {**CELLS, "speaker": ["a", "b", "c", "d", "a", "b", "c", "d", "a", "b"]}
    with pytest.raises(DataError, match=r"5 splits need as many clips or groups, and there are 4: .*--fold"):
        evaluate_run(
            model,
            replace(manifest, columns=columns),
            Columns("class", group="speaker"),
            on_progress=lambda *state: pytest.fail("read a file"),
        )


@pytest.mark.parametrize(
    ("target", "message"), [("gone/found.json", "the folder .*gone does not exist; make it"), (".", "is a folder")]
)
def test_where_json_goes_is_checked_before_anything_is_read(target, message, tmp_path, capsys):
    assert (
        cli.main(["evaluate", str(tmp_path / "no-run"), "no-table.csv", "--label", "x", "--json", str(tmp_path / target)]) == 1
    )
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
