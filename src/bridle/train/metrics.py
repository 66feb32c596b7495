"""Metrics of a run: one JSON line per logged step, and TensorBoard events where tensorboard is installed.

Values are written in full, so a resumed run's ``metrics.jsonl`` equals the uninterrupted one's. NaN and infinity are
written as Python's ``json`` does (``NaN``, ``Infinity``).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.errors import ConfigError, RunError
from bridle.files import explain_write_error, write_atomically

FILE_NAME = "metrics.jsonl"
_RESERVED = ("step", "phase")


class MetricsWriter:
    """Collects values while the device runs ahead; :meth:`flush` fetches them all at once and appends them.

    Args:
        run: the run folder, created if missing.
        resume_step: finished steps of the checkpoint the run goes on from; lines of later steps and a torn last line
            are dropped. None when the run starts from the beginning: every line is dropped.

    Raises:
        RunError: an existing ``metrics.jsonl`` is damaged, or the folder cannot be written.
    """

    def __init__(self, run: Path, resume_step: int | None) -> None:
        self._path = run / FILE_NAME
        self._buffer: list[tuple[int, str, dict[str, Tensor | float]]] = []
        last_step = -1 if resume_step is None else resume_step
        try:
            run.mkdir(parents=True, exist_ok=True)
            old = self._path.read_bytes() if self._path.exists() else None
            kept = b"".join(raw for raw, line in _lines(old or b"", self._path) if line["step"] <= last_step)
            if kept != old:
                write_atomically(self._path, kept)
        except OSError as error:
            raise RunError(explain_write_error(error, run, FILE_NAME)) from error
        self._events = _event_writer(run / "tensorboard", last_step + 1)

    def write(self, step: int, phase: str, values: Mapping[str, Tensor | float]) -> None:
        """Keep the values of a step until the next :meth:`flush`; tensors stay on their device and are not waited for.

        Args:
            step: number of finished steps of the run, over all phases: what a checkpoint's step counts.
            phase: name of the phase the step belongs to.
            values: numbers or tensors of one element; a tensor may change afterwards.

        Raises:
            ConfigError: a name is ``step`` or ``phase``, or a tensor has more than one element.
        """
        record: dict[str, Tensor | float] = {}
        for name, value in values.items():
            if name in _RESERVED:
                raise ConfigError(f"a metric is called '{name}'; this name is taken, choose another")
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ConfigError(f"metric '{name}' has shape {tuple(value.shape)}; give one number per name")
            record[name] = value.detach().reshape(()).clone() if isinstance(value, Tensor) else value
        self._buffer.append((step, phase, record))

    def flush(self) -> None:
        """Append everything collected so far: one transfer per device and dtype, one write.

        Raises:
            RunError: the file cannot be written. It then ends where it ended before, and the values are kept.
        """
        if not self._buffer:
            return
        numbers = to_numbers([record for _, _, record in self._buffer])
        lines = [
            {"step": step, "phase": phase, **record} for (step, phase, _), record in zip(self._buffer, numbers, strict=True)
        ]
        _append(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        if self._events is not None:
            for (step, phase, _), record in zip(self._buffer, numbers, strict=True):
                for name, value in record.items():
                    self._events.add_scalar(f"{phase}/{name}", value, step)
            self._events.flush()
        self._buffer.clear()

    def close(self) -> None:
        """Flush and release the files. Closing twice is allowed."""
        self.flush()
        if self._events is not None:
            self._events.close()
            self._events = None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """A run's metrics, a dict per line: ``step``, ``phase`` and the numbers by name; a torn last line is left out.

    Raises:
        RunError: the run has no metrics, or a line before the last is damaged.
    """
    path = run / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; give the folder of a run that has started") from error
    return [line for _, line in _lines(content, path)]


def _lines(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Whole lines with their newline, raw and parsed."""
    rows = content.split(b"\n")[:-1]  # what follows the last newline was torn
    result = []
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row)
            if not isinstance(line["step"], int):
                raise ValueError("its step is no integer")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"line {number} of {path} is damaged ({error}); delete it") from error
        result.append((row + b"\n", line))
    return result


def to_numbers(records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """The same records with tensors as Python numbers, fetched by one stack for each device and dtype."""
    numbers: list[dict[str, float]] = [dict.fromkeys(record, 0.0) for record in records]
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, str, Tensor]]] = {}
    for i, record in enumerate(records):
        for name, value in record.items():
            if isinstance(value, Tensor):
                groups.setdefault((value.device, value.dtype), []).append((i, name, value))
            else:
                numbers[i][name] = value
    for group in groups.values():
        fetched = torch.stack([tensor for _, _, tensor in group]).tolist()
        for (i, name, _), number in zip(group, fetched, strict=True):
            numbers[i][name] = number
    return numbers


def _append(path: Path, data: bytes) -> None:
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # half a line would spoil the next one
        raise RunError(explain_write_error(error, path.parent, path.name)) from error


def _event_writer(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer that hides events from ``first_step`` on of an earlier attempt; None without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
