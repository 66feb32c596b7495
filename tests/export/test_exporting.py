"""The command and the folder: what is printed, refused and left behind."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reference.media_folders import write_folder
from reference.untrained_runs import small_config, write_run

import bridle
from bridle.cli import main
from bridle.data.columns import Columns, subset, with_cells
from bridle.data.labels import read_labels
from bridle.data.manifest import read_manifest
from bridle.errors import ConfigError, DataError, RunError
from bridle.export import export_run, exporting
from bridle.finetuning.score import measure
from bridle.finetuning.tested import RunTest, write_evaluation
from bridle.objectives.supervised import FinetuneConfig


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "pictures", small_config("image", "cold:1"))


def front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    """Of the model card, and what follows it."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_command_writes_checks_and_says_so(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (pip install 'bridle[transformers]')")
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "made" / "here"
    call = ["export", str(tiny_run), "--to", "hf", "--out", str(out), "--licence", "cc-by-4.0", "--name", "Tiny sounds"]
    assert main([*call, "--trained-on", str(tiny_folder)]) == 0
    said = capsys.readouterr().out
    assert "done for transformers" in said
    assert said.count("features, AutoModel") == 3
    assert said.count("equal") == 3
    head, text = front_matter(out)
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "bridle"
    assert head["pipeline_tag"] == "feature-extraction"
    assert {"bridle", "audio", "tokenizer"} <= set(head["tags"])
    for part in (
        "# Tiny sounds",
        "bridle.export.hf.register()",
        "extractor(waveform, sampling_rate=16000)",
        "10 sounds, 0.2 minutes. Training took 6 steps of",
        "| 3-encoder | 2 steps | 2 | code/0 ",
        "| encoder | ViT, width 32, depth 2, 2 heads |",
        "## Codebooks",
    ):
        assert part in text, part
    assert sorted(path.name for path in out.parent.iterdir()) == ["here"]
    assert oct((out / "model.safetensors").stat().st_mode) == oct((out / "README.md").stat().st_mode)
    assert main(call) == 1
    assert "exists and is not an empty folder; choose another --out" in capsys.readouterr().err


def test_wrong_calls_are_one_line(picture_run: Path, tiny_run: Path, tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    def fails(*arguments: object) -> str:
        assert main(["export", *map(str, arguments), "--out", str(tmp_path / "out")]) == 1
        error = str(capsys.readouterr().err)
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    assert "no target 'onx'; did you mean 'onnx'?" in fails(picture_run, "--to", "onx")
    assert "no target 'coreml'; take hf, onnx or timm" in fails(picture_run, "--to", "coreml")
    assert "name it, such as --licence apache-2.0" in fails(picture_run, "--to", "hf")
    assert "licence is 'MIT License'" in fails(picture_run, "--to", "hf", "--licence", "MIT License")
    assert "this run is for audio, and timm's ViT is for images; take --to hf" in fails(tiny_run, "--to", "timm")
    assert "is not a run folder" in fails(tmp_path / "nowhere", "--to", "timm")
    (tiny_folder.parent / "other").mkdir(exist_ok=True)
    shutil.copy(tiny_folder / "a" / "sound-0.wav", tiny_folder.parent / "other")
    error = fails(tiny_run, "--to", "onnx", "--trained-on", tiny_folder.parent / "other")
    assert "--trained-on names other files than those of the run: 1 file of digest" in error


def test_an_empty_folder_is_taken_and_a_file_is_not(picture_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = export_run(picture_run, tmp_path / "empty", to="timm")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == set(made.files)
    head, text = front_matter(tmp_path / "empty")
    assert "license" not in head
    assert "trained elsewhere" in text
    assert "discrete codes" not in text, "timm has no place for them"
    assert any(note.startswith("codes: timm has no place") for note in made.notes)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="file exists and is not an empty folder"):
        export_run(picture_run, tmp_path / "file", to="timm")


@pytest.mark.parametrize(
    ("medium", "pooling", "settings"),
    [
        ("audio", "time", {}),
        ("image", "grid statistics", {"loss": "bce"}),
        ("video", "statistics", {"multi_label": True}),
        pytest.param("video", "grid", {}, marks=pytest.mark.slow),
        pytest.param("image", "mean", {}, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_gives_the_probabilities_of_its_run(medium: str, pooling: Any, settings: Any, tmp_path: Path) -> None:
    import onnxruntime
    import transformers

    from bridle.export.hf.extractor import as_transformers

    config = small_config(medium)
    finetune = FinetuneConfig(label="class", classes=("a", "b", "c"), pooling=pooling, **settings)
    run = write_run(tmp_path / "run", dataclasses.replace(config, phases="supervised:1", finetune=finetune))
    shown = [export_run(run, tmp_path / to, to=to, licence="mit") for to in ("hf", "onnx")]  # type: ignore[arg-type]
    assert all(sum("probabilities" in check.what for check in made.checks) == 3 for made in shown)
    model = bridle.load(run, "cpu")
    window = next(iter(model._windows(something(medium, model))))
    batch = model.batch([window])
    wanted = next(iter(model.probabilities([window]).finish().values()))
    name = f"AutoModelFor{medium.capitalize()}Classification"
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "hf")
    clips = as_transformers(medium, batch.inputs)
    logits = loaded(**{loaded.main_input_name: clips, "lengths": batch.lengths}).logits
    found = logits.sigmoid() if settings.get("multi_label") else logits.softmax(-1)
    torch.testing.assert_close(found[0].detach(), wanted, atol=1e-5, rtol=0)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "classifier.onnx"))
    given = {"inputs": batch.inputs.numpy(), "lengths": batch.lengths.numpy()}
    torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0])[0], wanted, atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())["classes"] == ["a", "b", "c"]
    assert name in (tmp_path / "hf" / "README.md").read_text()


def something(medium: str, model: bridle.Model) -> torch.Tensor:
    """Of a medium, in memory."""
    draws = torch.Generator().manual_seed(3)
    if medium == "audio":
        return torch.rand(20000, generator=draws) - 0.5
    size = (model.config.encoder.channels, 40, 60)
    return torch.randint(0, 256, size if medium == "image" else (5, *size), generator=draws, dtype=torch.uint8)


def test_timm_has_the_encoder_of_a_fine_tuned_run(tmp_path: Path) -> None:
    config = small_config("image")
    tuned = dataclasses.replace(config, phases="supervised:1", finetune=FinetuneConfig(label="class", classes=("a", "b")))
    made = export_run(write_run(tmp_path / "run", tuned), tmp_path / "out", to="timm", licence="mit")
    assert made.notes[0].startswith("classifier: it is not part of an export")
    assert "fine-tuned with labels" in front_matter(tmp_path / "out")[1]
    assert max(check.difference for check in made.checks) < 1e-4


def test_a_full_disk_leaves_nothing(picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_card", full)
    with pytest.raises(RunError, match=r"cannot write out to .*: No space left on device"):
        export_run(picture_run, tmp_path / "out", to="timm")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "check_timm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(picture_run, tmp_path / "out", to="timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("to", "module", "extra"), [("onnx", "onnxscript", "onnx"), ("hf", "transformers", "transformers")])
def test_a_missing_library_names_the_extra(
    to: Any, module: str, extra: str, picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"--to {to} needs .*: pip install 'bridle\[{extra}\]'"):
        export_run(picture_run, tmp_path / "out", to=to, licence="mit")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_folds_is_named(picture_run: Path, tmp_path: Path) -> None:
    for fold in ("1", "2"):
        shutil.copytree(picture_run, tmp_path / f"fold-{fold}")
    with pytest.raises(RunError, match=r"is a folder of 2 folds \(fold-1, fold-2\); give one of them"):
        export_run(tmp_path, tmp_path / "out", to="timm")


def test_brackets_in_a_path_are_shown(picture_run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "a [bold] name"
    assert main(["export", str(picture_run), "--to", "timm", "--out", str(out)]) == 0
    assert f"done for timm, in {out}: README.md, config.json" in capsys.readouterr().out


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    config = small_config("image", "patches:3steps")
    line = "training is not finished (1 of 3 steps): these are the weights of step 1"
    made = export_run(write_run(tmp_path / "run", config, steps=(1, 3)), tmp_path / "out", to="timm")
    assert made.notes[0] == line
    text = front_matter(tmp_path / "out")[1]
    assert f"* {line}" in text and f"\n\nT{line[1:]}." in text
    assert "Training took 1 step of" in text
    made = export_run(write_run(tmp_path / "done", config, steps=(3, 3)), tmp_path / "all", to="timm")
    assert not any("not finished" in note for note in made.notes)
    assert "not finished" not in front_matter(tmp_path / "all")[1]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fine-tuned run with what its test clips say, and the table of all its clips; a class has a bar in its name."""
    folder = tmp_path_factory.mktemp("tuned")
    sounds = write_folder("audio", folder / "sounds")
    rows = [(path, "a|b" if path.parent.name == "a" else "c") for path in sorted(sounds.rglob("*.wav"))]
    (folder / "meta.csv").write_text("path,kind\n" + "".join(f"{path},{name}\n" for path, name in rows) + f"{rows[0][0]},\n")
    finetune = FinetuneConfig(label="kind", classes=("a|b", "c"))
    config = dataclasses.replace(small_config("audio"), phases="supervised:1", finetune=finetune)
    run = write_run(folder / "run", config)
    manifest, _ = with_cells(read_manifest(folder / "meta.csv"), Columns("kind"))
    tested = subset(manifest, range(0, 10, 3))
    measured = measure(bridle.load(run, "cpu"), tested, read_labels(tested.columns["kind"], multi_label=False))
    write_evaluation(run, RunTest(measured, step=0, fold="5", num_train=6, num_validation=0, notes=()))
    return run, folder / "meta.csv"


def test_the_card_of_a_fine_tuned_run_says_how_good_it_is(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    run, table = tuned
    export_run(run, tmp_path / "out", to="hf", licence="mit", trained_on=[table])
    head, text = front_matter(tmp_path / "out")
    assert head["pipeline_tag"] == "audio-classification"
    assert {"bridle", "audio", "fine-tuned"} <= set(head["tags"])
    assert not {"self-supervised", "tokenizer"} & set(head["tags"])
    assert head["metrics"] == ["accuracy", "f1"]
    content = json.loads((run / "evaluation.json").read_text())
    metrics = content["measured"]["metrics"]
    for part in (
        "Its classifier knows 2 classes, of which a clip has one.",
        r"2, of the column kind: a\|b, c.",
        "4 test clips of fold 5, which neither trained nor chose anything.",
        f"| accuracy | {100 * metrics['accuracy']:.1f} |",
        f"| macro F1 | {100 * metrics['macro_f1']:.1f} |",
        rf"| a\|b | {metrics['classes'][0]['support']} | ",
        "10 labelled sounds, ",
        "Of them 6 trained it, 4 tested it.",
    ):
        assert part in text, part
    (run.parent / "stale").mkdir()
    stale = shutil.copytree(run, run.parent / "stale" / "run")
    (stale / "evaluation.json").write_text(json.dumps(content | {"measured": content["measured"] | {"fingerprint": "another"}}))
    export_run(stale, tmp_path / "stale", to="hf", licence="mit")
    head, text = front_matter(tmp_path / "stale")
    assert "metrics" not in head and "No test clips were measured." in text and "accuracy |" not in text


def test_clips_of_no_class_are_among_those_it_was_trained_on(tmp_path: Path) -> None:
    sounds = write_folder("audio", tmp_path / "sounds")
    rows = [(path, ("a", "b", "")[number % 3]) for number, path in enumerate(sorted(sounds.rglob("*.wav")))]
    table = tmp_path / "meta.csv"
    table.write_text("path,tags\n" + "".join(f"{path},{tag}\n" for path, tag in rows))
    finetune = FinetuneConfig(label="tags", classes=("a", "b"), multi_label=True)
    run = write_run(tmp_path / "run", dataclasses.replace(small_config("audio"), phases="supervised:1", finetune=finetune))
    manifest = subset(read_manifest(table), range(6))
    measured = measure(bridle.load(run, "cpu"), manifest, read_labels(manifest.columns["tags"], multi_label=True))
    tested = RunTest(measured, 0, "", num_train=3, num_validation=1, notes=("left out: /home/me",), taught_before=True)
    write_evaluation(run, tested)
    export_run(run, tmp_path / "out", to="hf", licence="mit", trained_on=[table])
    text = front_matter(tmp_path / "out")[1]
    assert "Of them 3 trained it, 1 chose its weights, 6 tested it." in text
    assert "may know them from there" in text and "/home/me" not in text


def test_what_a_fine_tuned_run_was_not_trained_on(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    run, table = tuned
    lines = table.read_text().splitlines()
    for content, message in (
        ([line.replace("kind", "word") for line in lines], "has no column 'kind', by which this run was fine-tuned"),
        (
            [*lines, f"{lines[1].split(',')[0]},d"],
            "has other classes than this run: 'd' is only in --trained-on; give the MANIFEST",
        ),
        ([line.replace(",c", ",e") for line in lines], "'c' is only in the run"),
        ([lines[0], *lines[2:]], "lacks '.*', which was tested"),
    ):
        (tmp_path / "other.csv").write_text("\n".join(content) + "\n")
        with pytest.raises(DataError, match=message):
            export_run(run, tmp_path / "out", to="onnx", trained_on=[tmp_path / "other.csv"])
