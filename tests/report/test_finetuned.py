"""Pages of fine-tuned runs: their test, their curves, and sentences that are true of an encoder that has seen labels."""

import html
import json
import re
import shutil

import pytest
import torch

from bridle.cli import main
from bridle.errors import RunError
from bridle.finetuning.tested import chosen_step, read_tested
from bridle.report.build import ReportConfig, build_report

CPU = torch.device("cpu")


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def sections(page):
    return re.findall(r'<section id="(\w+)"', page)


def test_the_test_of_a_run_is_shown(class_run):
    page = build_report(class_run, device=CPU)
    assert sections(page) == ["test", "training", "settings"]
    text = text_of(page)
    metrics = json.loads((class_run / "evaluation.json").read_text())["measured"]["metrics"]
    assert f"{100 * metrics['accuracy']:g}\u202f%" in text
    assert f"The weights are those of step {chosen_step(class_run)}, which 2 validation clips chose" in text
    for words in ("test accuracy", "calibration error", "Confusion matrix, classifier", "balanced accuracy", "Every class"):
        assert words in text
    for row in metrics["classes"]:
        assert f'scope="row" class="text">{row["name"]}</th><td class="number">{row["support"]}' in page
    assert "masked prediction" not in text


def test_every_series_of_a_run_has_its_figure(class_run, tag_run, tmp_path):
    text = text_of(build_report(class_run, device=CPU))
    for title in ("Loss of the classes", "Accuracy of the classes"):
        assert title in text
    assert "last training accuracy" in text
    assert "last validation accuracy" in text
    assert "as it was logged" not in text
    run = shutil.copytree(tag_run, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"validation/mean_average_precision": 0.25, "probe/knn": 0.5, "probe/linear": 0.75}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = re.sub(r"\s+", " ", text_of(build_report(run, device=CPU)))
    for words in (
        "Mean average precision",
        "Probes while training",
        "last validation mAP 25 %",
        "training 50 %",
        "training 75 %",
    ):
        assert words in text
    assert "as it was logged" not in text


def test_a_test_with_several_labels(tag_run):
    text = text_of(build_report(tag_run, device=CPU))
    for words in ("test mAP", "mean average precision", "Every tag", "rare", "AUC", "The weights are the last ones"):
        assert words in text
    assert "Confusion matrix" not in text


def test_sentences_are_true_of_an_encoder_that_has_seen_labels(class_run, label_table):
    config = ReportConfig((str(label_table),), "class", split="part", path="where")
    text = text_of(build_report(class_run, config, device=CPU))
    assert "groups show what it was taught" in text
    assert "how well it learnt them" in text
    assert "test accuracy" in text
    # At the head of the page, where nothing explains them, stand no probes of clips that it may have learnt from.
    for words in (
        "kNN accuracy",
        "linear probe accuracy",
        "No label was used",
        "played no part in its place",
        "The list differs",
    ):
        assert words not in text


def test_without_a_test(class_run, tmp_path):
    run = shutil.copytree(class_run, tmp_path / "run")
    (run / "evaluation.json").unlink()
    assert read_tested(run) is None
    text = text_of(build_report(run, device=CPU))
    assert "There is no test" in text
    assert f"The weights are those of step {chosen_step(run)}" in text
    (run / "evaluation.json").write_text('{"torn')
    with pytest.raises(RunError, match=r"cannot be read; 'bridle finetune ... --resume' tests the run anew"):
        read_tested(run)
    assert "evaluation.json cannot be read" in text_of(build_report(run, device=CPU))
    (run / "chosen.safetensors").write_bytes(b"torn")
    assert chosen_step(run) is None


def test_pages_with_several_labels(media_runs, label_table, tmp_path):
    call = ["report", str(media_runs["audio"][0]), "--data", str(label_table), "--path", "where", "--label", "tags"]
    out = tmp_path / "page.html"
    options = ["--multi-label", "--separator", ";", "--split", "part", "--device", "cpu", "--out", str(out)]
    assert main([*call, *options]) == 0
    text = text_of(out.read_text(encoding="utf-8"))
    for words in ("batch-norm head mAP", "Every tag", "3 tags of column 'tags'", "the rarest of its labels", "micro mAP"):
        assert words in text
    assert "b;rare" not in text


def test_inspect_shows_the_test_and_the_weights(class_run, tag_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(class_run), "--json", str(tmp_path / "run.json")]) == 0
    out = capsys.readouterr().out
    accuracy = json.loads((class_run / "evaluation.json").read_text())["measured"]["metrics"]["accuracy"]
    assert f"test: accuracy {100 * accuracy:.1f} % on 4 clips" in out
    assert f"weights: those of step {chosen_step(class_run)}, which the validation clips chose" in out
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["test"] == {"accuracy": accuracy, "num_clips": 4, "fold": "", "num_train": 4}
    assert said["chosen_step"] == chosen_step(class_run)
    assert main(["inspect", str(tag_run)]) == 0
    out = capsys.readouterr().out
    assert "test: mAP " in out
    assert "weights: the newest" in out
    assert "finished, 1 step " in out


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_folder_of_folds_is_one_line(class_run, command, tmp_path, capsys):
    for name in ("fold-1", "fold-2"):
        (tmp_path / name).mkdir()
        shutil.copy(class_run / "config.yaml", tmp_path / name)
    assert main([command, str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"bridle: {tmp_path} is a folder of 2 folds (fold-1, fold-2); give one of them: {tmp_path}/fold-1\n"
