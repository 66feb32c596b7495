"""``bridle inspect``."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

from bridle.cli import main
from bridle.commands.inspect import screen
from bridle.inference import load
from bridle.summary import LevelHealth, summarise


def text_of(summary, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in screen(summary):
        console.print(part)
    return console.export_text()


def test_shows_a_finished_run(tiny_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["inspect", str(tiny_run)]) == 0
    out = capsys.readouterr().out
    for expected in (
        "finished, 6 steps",
        load(tiny_run).fingerprint,
        "recipe         audio-debug, seed 0",
        "2-tokenizer",
        "codebooks of the trained tokenizer",
        "parameters: encoder",
        "step-00000004, step-00000006",
        "unreadable files in quarantine: 0",
        f"bridle embed {tiny_run} DATA --out VECTORS",
    ):
        assert expected in out
    assert "ALARM" not in out


def test_writes_json(tiny_run, tmp_path):
    assert main(["inspect", str(tiny_run), "--json", str(tmp_path / "run.json")]) == 0
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["finished"]
    assert data["config"]["recipe"] == "audio-debug"
    assert [phase["steps_done"] for phase in data["phases"]] == [2, 2, 2]


def test_shows_what_labelled_clips_said_last(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (phase,) = {line["phase"] for line in lines[-2:]}
    examined = {"step": lines[-1]["step"], "phase": phase, "probe/knn": 0.5, "probe/linear": 0.625}
    lines += [examined | {"step": lines[-2]["step"], "probe/knn": 0.25}, examined]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown, before = text_of(summarise(run), 200), text_of(summarise(tiny_run), 200)
    assert f"labelled clips after step 2 of {phase}: probe kNN 50.0%  probe linear 62.5%" in shown
    assert "labelled clips" not in before
    (row,) = [line for line in before.splitlines() if line.split()[1:2] == [phase]]
    assert row in shown  # what training logged last stays


def test_shows_a_run_without_checkpoint(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run / "config.yaml", run)
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "no checkpoint yet, 0 steps" in out
    assert "checkpoints: none" in out
    assert f'bridle pretrain audio-debug --data DATA --out {run} --phases "cold:2steps' in out.replace("'", '"')


def test_collapsed_level_raises_the_alarm(tiny_run):
    summary = dataclasses.replace(summarise(tiny_run), levels=(LevelHealth(0.9, 0.8, 0.3), LevelHealth(0.05, 0.04, None)))
    text = text_of(summary)
    assert "ALARM: level 1 has collapsed: perplexity / K is 4.0 %, below 10 %" in text
    assert "level 0 has" not in text


def test_what_is_no_run_is_one_line(tmp_path, tiny_run, capsys):
    for name, content in {"empty": None, "damaged": "][", "other": "format_version: 99\n"}.items():
        run = tmp_path / name
        run.mkdir()
        if content is not None:
            (run / "config.yaml").write_text(content)
        assert main(["inspect", str(run)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
    assert main(["inspect", str(tiny_run), "--json", str(tmp_path / "none" / "x.json")]) == 1
    assert "none does not exist; make it" in capsys.readouterr().err


def test_wrong_calls(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect"])
    assert stop.value.code == 2
    assert "RUN" in capsys.readouterr().err
