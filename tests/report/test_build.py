"""The page as a whole: what is on it for which run, errors, the command."""

import json
import shutil
import struct
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from reference.untrained_runs import small_config, write_run

from bridle import flops
from bridle.cli import main
from bridle.errors import BridleError, ConfigError, DataError, RunError
from bridle.inference import load
from bridle.objectives.supervised import FinetuneConfig
from bridle.phases import parse_phases
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.report import page as page_module
from bridle.report.build import ReportConfig, build_report
from bridle.report.gathering import earlier_tokenizers
from bridle.report.html import Html
from bridle.report.page import MAX_BYTES, whole_page
from bridle.report.recorded import cost, event_spans, step_operations
from bridle.run import clip_grid

CPU = torch.device("cpu")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.sections = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])

    def handle_data(self, data):
        self.text += data

    def attributes(self, *names):
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]


def test_everything_is_on_the_page(full_page):
    read = Reader(full_page)
    expected = ["training", "codebooks", "masked", "codes", "embeddings", "probes", "data", "settings"]
    assert read.sections == expected
    assert [value for value in read.attributes("href") if value in {f"#{name}" for name in expected}] == [
        f"#{name}" for name in expected
    ]
    for text in ("Confusion matrix", "since cold start", "Nearest neighbours", "kWh at 50 W", "seed 0", "--resume"):
        assert text in read.text
    figures = sum(tag == "figure" for tag, _ in read.tags)
    assert figures == sum(tag == "figcaption" for tag, _ in read.tags) >= 15
    assert sum(tag == "audio" for tag, _ in read.tags) > 20
    assert "kNN accuracy" in read.text and "linear probe accuracy" in read.text


def test_names_and_labels_of_files_are_no_markup(full_page):
    read = Reader(full_page)
    assert EVIL in read.text
    assert not {"script", "iframe", "object", "embed", "form"} & {tag for tag, _ in read.tags}
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]


def test_page_holds_everything_itself(full_page):
    read = Reader(full_page)
    assert read.attributes("src")
    assert all(value.startswith("data:") for value in read.attributes("src", "srcset", "poster", "action"))
    assert all(value.startswith(("data:", "#")) for value in read.attributes("href"))
    assert "@import" not in full_page
    assert "url(" not in full_page
    assert any(value.startswith("default-src 'none'") for value in read.attributes("content"))
    assert len(full_page.encode()) < MAX_BYTES / 3


@pytest.mark.parametrize("medium", ["image", "video"])
def test_pictures_and_films(media_runs, medium):
    run, folder = media_runs[medium]
    text = build_report(run, ReportConfig((str(folder),), num_clips=6), device=CPU)
    read = Reader(text)
    assert read.sections == ["training", "codebooks", "masked", "codes", "embeddings", "data", "settings"]
    assert "6 of the 10 files" in read.text
    assert "Without a label there are no probes" in read.text
    assert "<audio" not in text
    assert "These are the files that the run was trained on." in read.text


def test_without_data(media_runs):
    read = Reader(build_report(media_runs["audio"][0], device=CPU))
    assert read.sections == ["training", "codebooks", "settings"]
    assert "Without data there is no masked prediction" in read.text
    assert "The command that trains it further" in read.text  # every phase is done


def test_a_run_without_checkpoint_gets_its_curves(media_runs, tmp_path):
    run, folder = media_runs["audio"]
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path)
    read = Reader(build_report(tmp_path, ReportConfig((str(folder),)), device=CPU))
    assert read.sections == ["training", "codebooks", "data", "settings"]
    assert "There is no checkpoint yet" in read.text
    assert "no checkpoint" in read.text
    assert "The command that goes on from here" in read.text
    assert "What the doctor says of training on them" in read.text
    assert "Energy left" in read.text


def test_a_run_whose_metrics_are_gone(media_runs, tmp_path):
    run = shutil.copytree(media_runs["audio"][0], tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    read = Reader(build_report(run, device=CPU))
    assert read.sections == ["codebooks", "settings"]
    assert "No step was logged" in read.text
    assert "not recorded" in read.text


def test_a_run_with_nothing_is_one_line(media_runs, tmp_path, capsys):
    shutil.copy(media_runs["audio"][0] / "config.yaml", tmp_path)
    with pytest.raises(RunError, match="nothing to report"):
        build_report(tmp_path)
    for run in (tmp_path, tmp_path / "none"):
        assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_alarms_and_quarantine_are_shown(media_runs, tmp_path):
    run = shutil.copytree(media_runs["audio"][0], tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"skipped": 3.0, "code/0": float("nan"), "of our own/x": 0.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "quarantine.jsonl").write_text(json.dumps({"key": EVIL, "reason": "not audio", "found": "decoding"}) + '\n{"key')
    read = Reader(build_report(run, device=CPU))
    assert "3 steps skipped because the gradient was not finite" in read.text
    assert "data" in read.sections
    assert EVIL in read.text
    assert "of our own: x" in read.text  # a metric that nobody knows has a figure, too


def test_masked_prediction_says_when_the_tokenizer_has_moved(media_runs, tmp_path):
    config = replace(recipe("audio-debug"), phases="cold:1steps, joint:1steps, tokenizer:1steps")
    folder = media_runs["audio"][1]
    assert pretrain(config, [folder], tmp_path / "run", device=CPU).finished
    read = Reader(build_report(tmp_path / "run", ReportConfig((str(folder),), num_clips=4), device=CPU))
    assert "The tokenizer was trained further after the predictor" in read.text


def test_older_checkpoints_show_how_codes_settle(media_runs, tmp_path):
    base = recipe("audio-debug")
    train = replace(base.train, checkpoint_every_steps=1, num_checkpoints=3)
    config = replace(base, phases="cold:1steps, tokenizer:3steps", train=train)
    folder = media_runs["audio"][1]
    assert pretrain(config, [folder], tmp_path / "run", device=CPU).finished
    model = load(tmp_path / "run", "cpu")
    others = earlier_tokenizers(tmp_path / "run", config, model)
    assert list(others) == ["cold start", "step 2", "step 3"]
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"torn")
    assert list(earlier_tokenizers(tmp_path / "run", config, model)) == ["cold start", "step 3"]


def test_a_run_that_was_not_pretrained_here(media_runs, tmp_path):
    """Imported weights that took no step, and a fine-tuned run: neither has a trained predictor."""
    config = ReportConfig((str(media_runs["audio"][1]),), num_clips=4)
    imported = write_run(tmp_path / "imported", small_config("audio", phases="cold:1, tokenizer:1"))
    assert Reader(build_report(imported, config, device=CPU)).sections == [
        "codebooks",
        "codes",
        "embeddings",
        "data",
        "settings",
    ]
    finetune = FinetuneConfig(classes=("a", "b"))
    tuned = write_run(tmp_path / "tuned", replace(small_config("audio"), phases="supervised:1", finetune=finetune))
    read = Reader(build_report(tuned, config, device=CPU))
    assert read.sections == ["embeddings", "data", "settings"]
    assert "2 classes, pooling 'mean'" in read.text
    assert "not counted" in read.text


def test_a_single_file_is_enough(media_runs):
    run, folder = media_runs["image"]
    read = Reader(build_report(run, ReportConfig((str(folder / "a" / "0.jpg"),)), device=CPU))
    assert "Map of the clips (PCA)" in read.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label": "class"}, "there is no data"),
        ({"data": ("x",), "fold": "fold"}, "there is no label"),
        ({"num_clips": 1}, "at least 2"),
        ({"watts": 0.0}, "must be above 0"),
    ],
)
def test_wrong_settings(config, message):
    with pytest.raises(ConfigError, match=message):
        ReportConfig(**config)


def test_wrong_columns_and_data(media_runs, labelled, tmp_path):
    run = media_runs["audio"][0]
    with pytest.raises(DataError, match="did you mean 'class'"):
        build_report(run, ReportConfig((str(labelled),), "clas"), device=CPU)
    with pytest.raises(BridleError, match="does not exist"):
        build_report(run, ReportConfig((str(tmp_path / "none"),)), device=CPU)
    with pytest.raises(DataError):
        build_report(run, ReportConfig((str(labelled),), "one"), device=CPU)


def test_command_gives_the_same_bytes_as_the_function(media_runs, labelled, full_page, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    run, out = media_runs["audio"][0], tmp_path / "page.html"
    columns = ["--label", "class", "--split", "split"]
    call = ["report", str(run), "--data", str(labelled), *columns, "--watts", "50", "--device", "cpu", "--out", str(out)]
    assert main(call) == 0
    assert f"done {out}, " in capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == full_page
    assert main(["report", str(run), "--out", str(tmp_path / "no" / "page.html")]) == 1
    assert "no does not exist; make it" in capsys.readouterr().err
    assert main(["report", str(run), "--label", "class"]) == 1
    assert "give --data too" in capsys.readouterr().err


def test_a_page_that_is_too_large_is_an_error(monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 100)
    with pytest.raises(RunError, match=r"more than 0\.0001"):
        whole_page("title", Html(""), [])


def record(time, step=1):
    """A TFRecord of an Event with its wall time and step; checksums are not looked at."""
    number = bytes([step]) if step < 128 else bytes([step & 127 | 128, step >> 7])
    content = b"\x09" + struct.pack("<d", time) + (b"\x10" + number if step else b"\x1a\x00")
    return struct.pack("<Q", len(content)) + b"\0" * 4 + content + b"\0" * 4


def write_events(run, name, *events):
    """A file of (time, step)."""
    folder = run / "tensorboard"
    folder.mkdir(exist_ok=True)
    (folder / f"events.out.tfevents.{name}").write_bytes(b"".join(record(*event) for event in events))


def write_calls(run, *calls):
    """A history of (first step, last step, seconds)."""
    made = {"command": "bridle", "device": "cpu", "num_processes": 1, "versions": {}}
    lines = [made | {"first_step": first, "last_step": last, "seconds": seconds} for first, last, seconds in calls]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_time_of_event_files(tmp_path):
    assert event_spans(tmp_path / "tensorboard") == ()
    write_events(tmp_path, 1, (90.0, 0), (100.0, 10), (160.0, 300), (130.0, 20))
    with (tmp_path / "tensorboard" / "events.out.tfevents.1").open("ab") as file:
        file.write(record(900.0)[:-9])  # torn
    write_events(tmp_path, 2, (5000.0, 301), (5010.5, 400))
    write_events(tmp_path, 3)
    write_events(tmp_path, 4, (6000.0, 0))
    first, second = event_spans(tmp_path / "tensorboard")
    assert (first.seconds, first.first_step, first.last_step) == (70.0, 10, 300)
    assert (second.seconds, second.first_step, second.last_step) == (10.5, 301, 400)


def test_a_killed_call_counts_up_to_its_last_record(tmp_path):
    def time_of(steps):
        found = cost(tmp_path, recipe("audio-debug"), [steps, 0, 0, 0], 3.6e6)
        assert found.kilowatt_hours == (None if found.seconds is None else pytest.approx(found.seconds))
        return found.seconds, found.at_least

    assert time_of(0) == (None, False)
    write_events(tmp_path, 1, (0.0, 1), (50.0, 100))
    assert time_of(100) == (50.0, True)  # it was killed, and nothing else is known
    write_calls(tmp_path, (0, 100, 60.0))
    assert time_of(100) == (60.0, False)
    write_events(tmp_path, 2, (100.0, 101), (130.0, 170))  # killed; its newest checkpoint was that of step 150
    assert time_of(150) == (90.0, True)
    write_events(tmp_path, 3, (200.0, 151), (220.0, 200))
    write_calls(tmp_path, (0, 100, 60.0), (150, 200, 25.0))
    assert time_of(200) == (60.0 + 30.0 + 25.0, True)
    write_events(tmp_path, 0, (-50.0, 1), (-30.0, 20))  # killed before its first checkpoint
    assert time_of(200) == (20.0 + 60.0 + 30.0 + 25.0, True)
    shutil.rmtree(tmp_path / "tensorboard")  # without tensorboard nothing is left of it but the gap
    assert time_of(200) == (85.0, True)
    write_calls(tmp_path, (0, 100, 60.0), (100, 200, 25.0))
    assert time_of(200) == (85.0, False)


def test_page_says_that_the_time_is_a_bound(media_runs, tmp_path):
    run = shutil.copytree(media_runs["audio"][0], tmp_path / "run")
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    assert "at least 2" not in Reader(build_report(run, device=CPU)).text
    write_calls(run, (4, 6, 7200.0))
    read = Reader(build_report(run, ReportConfig(watts=100.0), device=CPU))
    assert "at least 2.0 hours" in read.text
    assert "at least 0.2 kWh at 100 W" in read.text


def test_time_is_what_tensorboard_reads(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    for step in (3, 200, 70000):
        writer.add_scalar("1-cold/x", 1.0, step)
    writer.close()
    (path,) = tmp_path.glob("events*")
    times = [event.wall_time for event in loader.EventFileLoader(str(path)).Load()]
    (span,) = event_spans(tmp_path)
    assert span.seconds == pytest.approx(max(times) - min(times))
    assert (span.first_step, span.last_step) == (3, 70000)


def test_calls_that_trained_a_run_are_shown(media_runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(media_runs["audio"][0], run, ignore=shutil.ignore_patterns("history.jsonl"))
    assert "are not recorded in this run" in Reader(build_report(run, device=CPU)).text
    call = {
        "command": f"bridle pretrain {EVIL}",
        "device": "cpu",
        "num_processes": 2,
        "versions": {"torch": "2.0"},
        "first_step": 0,
        "last_step": 6,
        "seconds": 7200.0,
    }
    (run / "history.jsonl").write_text(json.dumps(call) + "\n")
    read = Reader(build_report(run, ReportConfig(watts=100.0), device=CPU))
    for text in (EVIL, "2 x cpu", "torch 2.0", "2.0 hours", "about 0.2 kWh at 100 W"):
        assert text in read.text


def test_operations_are_those_of_the_phases(tmp_path):
    config = recipe("audio-debug")
    grid = clip_grid(config)
    masked = round(0.8 * grid.num_patches)
    counts = flops.PatchCounts(grid.num_patches, grid.num_patches - masked, masked, 2)
    cold = 8 * sum(part.total for part in flops.masked_codes(config, counts, cold=True).values())
    tokenizer = 8 * sum(part.total for part in flops.tokenizer_distillation(config, counts).values())
    encoder = 8 * sum(part.total for part in flops.masked_codes(config, counts, cold=False).values())
    patches = 8 * sum(part.total for part in flops.masked_patches(config, counts).values())
    plan = parse_phases("cold:1, tokenizer:1, encoder:1, joint:1, patches:1")
    steps = [step_operations(phase, config) for phase in plan]
    assert steps == pytest.approx([cold, tokenizer, encoder, encoder + tokenizer / 4, patches])
    assert cost(tmp_path, config, [3, 0, 2, 0], 100.0).operations == pytest.approx(3 * cold + 2 * encoder)
    assert cost(tmp_path, config, [3, 0, 2, 0], 100.0).kilowatt_hours is None


def test_real_recordings(real_data, media_runs, tmp_path):
    """A page of real sounds stays small."""
    folder = real_data / "esc10" / "audio"
    for path in sorted(folder.glob("*.flac"))[:4]:
        samples, rate = soundfile.read(path)
        soundfile.write(tmp_path / f"{path.stem}.wav", np.asarray(samples, dtype=np.float32), rate)
    text = build_report(media_runs["audio"][0], ReportConfig((str(tmp_path),)), device=CPU)
    assert len(text.encode()) < MAX_BYTES / 3
