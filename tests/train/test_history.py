"""The line that each call leaves in the run folder."""

import sys

import torch

from bridle.train.history import FILE_NAME, CallRecorder, read_history


def test_every_call_leaves_its_line(tmp_path, monkeypatch):
    assert read_history(tmp_path) == ()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/bridle", "pretrain", "audio-small", "--data", "my recordings"])
    CallRecorder(tmp_path, torch.device("cpu"), 0).close(10)
    monkeypatch.setattr(sys, "argv", ["/src/bridle/__main__.py", "pretrain"])
    CallRecorder(tmp_path, torch.device("cpu"), 10).close(25)
    first, second = read_history(tmp_path)
    assert first.command == "bridle pretrain audio-small --data 'my recordings'"
    assert second.command == "bridle pretrain"
    assert (first.device, first.num_processes, first.versions["torch"]) == ("cpu", 1, torch.__version__)
    assert [(each.first_step, each.last_step) for each in (first, second)] == [(0, 10), (10, 25)]
    assert 0 <= first.seconds < 60


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    CallRecorder(tmp_path, torch.device("cpu"), 0).close(1)
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(b"[]\n{}\n" + whole + whole[:20])
    CallRecorder(tmp_path, torch.device("cpu"), 1).close(2)
    assert [each.last_step for each in read_history(tmp_path)] == [1, 2]


def test_a_folder_that_is_gone_is_logged_and_ends_no_run(tmp_path, caplog):
    CallRecorder(tmp_path / "none", torch.device("cpu"), 0).close(1)
    assert f"cannot write {FILE_NAME}" in caplog.text
