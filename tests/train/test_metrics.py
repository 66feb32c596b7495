"""Metrics: exact numbers, truncation on resume, torn lines, one transfer per flush."""

import errno
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from bridle.errors import ConfigError, RunError
from bridle.train.metrics import MetricsWriter, read_metrics


@pytest.fixture(autouse=True)
def no_events(request, monkeypatch):
    """As if tensorboard were not installed, but for the test of it."""
    if "tensorboard" not in request.node.name:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def lines(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


def write_steps(run, steps, resume_step=None):
    writer = MetricsWriter(run, resume_step)
    for step in steps:
        writer.write(step, "encoder", {"loss": torch.tensor(1.0 / (step + 3)), "lr": 0.1 * step})
    writer.close()


def test_numbers_are_exact(tmp_path):
    values = {
        "float32": torch.tensor(0.1),
        "float64": torch.tensor(0.1, dtype=torch.float64),
        "bfloat16": torch.tensor([0.1], dtype=torch.bfloat16),
        "int64": torch.tensor(2**60 + 1),
        "float": 1 / 3,
        "second": torch.tensor(-7.25),
    }
    writer = MetricsWriter(tmp_path / "run", None)
    writer.write(3, "tokenizer", values)
    writer.close()
    (line,) = read_metrics(tmp_path / "run")
    assert line == {
        "step": 3,
        "phase": "tokenizer",
        "float32": torch.tensor(0.1).item(),
        "float64": 0.1,
        "bfloat16": torch.tensor(0.1, dtype=torch.bfloat16).item(),
        "int64": 2**60 + 1,
        "float": 1 / 3,
        "second": -7.25,
    }
    assert list(line)[2:] == list(values)


def test_non_finite_values_survive(tmp_path):
    writer = MetricsWriter(tmp_path, None)
    writer.write(0, "encoder", {"a": torch.tensor(math.nan), "b": math.inf, "c": torch.tensor(-math.inf)})
    writer.flush()
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"]) == (math.inf, -math.inf)


def test_nothing_is_fetched_before_flush_and_then_once_per_dtype(tmp_path, monkeypatch):
    fetched = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(self.shape) or tolist(self))
    for name in ("item", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waited for the device"))
    writer = MetricsWriter(tmp_path, None)
    for step in range(4):
        writer.write(step, "encoder", {"a": torch.tensor(1.5), "b": torch.tensor(2.5), "n": torch.tensor(step)})
    assert fetched == []
    assert lines(tmp_path) == b""
    writer.flush()
    assert fetched == [(8,), (4,)]
    writer.flush()
    assert fetched == [(8,), (4,)]
    assert [line["n"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_tensor_may_change_after_write(tmp_path):
    usage = torch.tensor(0.5, requires_grad=True)
    writer = MetricsWriter(tmp_path, None)
    writer.write(0, "encoder", {"usage": usage})
    with torch.no_grad():
        usage.add_(1.0)
    writer.close()
    assert read_metrics(tmp_path)[0]["usage"] == 0.5


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "phase": "enc', b'{"step": 4, "phase": "encoder"}'])
def test_resumed_equals_uninterrupted(tmp_path, tail):
    write_steps(tmp_path / "whole", range(10))
    write_steps(tmp_path / "cut", range(7))
    with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    write_steps(tmp_path / "cut", range(5, 10), resume_step=4)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["metrics.jsonl"]


def test_start_from_the_beginning_drops_all_lines(tmp_path):
    write_steps(tmp_path, range(5))
    write_steps(tmp_path, range(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


def test_torn_last_line_is_left_out(tmp_path):
    write_steps(tmp_path, range(3))
    whole = lines(tmp_path)
    start = whole.rindex(b"{")
    for end in range(start, len(whole)):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:end])
        assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


@pytest.mark.parametrize("bad", [b"{torn", b"\x00\xff", b"[1]", b'{"phase": "x"}', b'{"step": "1"}', b""])
def test_damage_in_the_middle_is_named(tmp_path, bad):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "phase": "a"}\n' + bad + b'\n{"step": 3, "phase": "a"}\n')
    with pytest.raises(RunError, match=r"line 2 of .* is damaged"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match=r"line 2 of .* is damaged"):
        MetricsWriter(tmp_path, 3)


def test_missing_file(tmp_path):
    with pytest.raises(RunError, match="give the folder of a run"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"step": 1.0}, "called 'step'"), ({"phase": 1.0}, "called 'phase'"), ({"x": torch.ones(2)}, r"shape \(2,\)")],
)
def test_bad_metric(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        MetricsWriter(tmp_path, None).write(0, "encoder", values)


class HalfWriting:
    """A file on a disk that is full after ten bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[:10])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full_leaves_no_half_line_and_keeps_the_values(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, None)
    writer.write(0, "encoder", {"loss": 1.0})
    writer.flush()
    before = lines(tmp_path)
    writer.write(1, "encoder", {"loss": torch.tensor(2.0)})
    with monkeypatch.context() as patch:
        path_open = Path.open
        patch.setattr(Path, "open", lambda self, *arguments: HalfWriting(path_open(self, *arguments)))
        with pytest.raises(RunError, match=r"No space left on device .* MB free.; free disk space"):
            writer.flush()
    assert lines(tmp_path) == before
    writer.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0]


def test_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write metrics\.jsonl"):
        MetricsWriter(tmp_path / "file" / "run", None)


def test_lines_are_json_for_other_readers(tmp_path):
    write_steps(tmp_path, range(2))
    parsed = [json.loads(line) for line in lines(tmp_path).decode("ascii").splitlines()]
    assert parsed == read_metrics(tmp_path)


def test_tensorboard_events_hide_what_was_dropped(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, range(6))
    write_steps(tmp_path, [5], resume_step=4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = events.Scalars("encoder/loss")
    assert [event.step for event in found] == list(range(6))
    assert [event.value for event in found] == pytest.approx([1.0 / (step + 3) for step in range(6)])


def test_close_twice(tmp_path):
    writer = MetricsWriter(tmp_path, None)
    writer.write(0, "encoder", {"loss": 1.0})
    writer.close()
    writer.close()
    assert len(read_metrics(tmp_path)) == 1
