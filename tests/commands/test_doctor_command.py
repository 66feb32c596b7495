"""``bridle doctor``."""

import json
import shutil

from bridle.cli import main


def doctor(*arguments):
    return main(["doctor", *map(str, arguments), "--recipe", "audio-debug"])


def test_says_ready_and_how(tiny_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    assert doctor(tiny_folder, "--json", tmp_path / "report.json") == 0
    out = capsys.readouterr().out
    for expected in (
        "10 sound files, 10 readable as far as seen, 15 s, ",
        "16000 Hz: 4   ",
        "wav/pcm_16: 8   flac/pcm_16: 2",
        "10 files, of which 0 silent, 0 cut short",
        "1 s - 2 s",
        "10 clips of up to 2 s, 80 % of the time, steps: 2",
        "estimated time",
        "what to do",
        "ready to train",
        f"bridle pretrain audio-debug --data {tiny_folder} --out runs/first",
    ):
        assert expected in out, expected
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["files"]["num_files"] == 10
    assert [phase["kind"] for phase in report["speed"]["phases"]] == ["cold", "tokenizer", "encoder", "joint"]


def test_the_first_ten_broken_files_are_named_and_training_would_not_start(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    for i in range(12):
        (data / f"text-{i:02d}.wav").write_text("no sound")
    (data / "empty.wav").write_bytes(b"")
    assert doctor(data, "--no-speed") == 1
    out = capsys.readouterr().out
    assert "unreadable: 13" in out
    assert "text-08.wav" in out
    assert "text-09.wav" not in out
    assert "training would not start: 13 of 23 files are unreadable (limit 1)" in out
    assert "ready to train" not in out
    assert "estimated time" not in out


def test_all_decodes_all(tiny_folder, capsys):
    assert doctor(tiny_folder, "--no-speed", "--decode", 3) == 0
    assert "3 files, of which" in capsys.readouterr().out
    assert doctor(tiny_folder, "--no-speed", "--decode", 3, "--all") == 0
    assert "10 files, of which" in capsys.readouterr().out


def test_wrong_calls_are_one_line(tiny_folder, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        ([tmp_path / "empty"], "no readable sound file"),
        ([tmp_path / "text.wav"], "none of 1 files is readable; first: text.wav (not audio)"),
        ([tmp_path / "nothing"], "does not exist"),
        ([], "there is no DATA"),
        ([tiny_folder, "--decode", "-1"], "num_decoded is -1"),
    ):
        assert doctor(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
        assert expected in error
    assert main(["doctor", str(tiny_folder), "--recipe", "audio-smal"]) == 1
    assert "there is no recipe 'audio-smal'" in capsys.readouterr().err
