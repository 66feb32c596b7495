"""How a run was made: one JSON line in ``history.jsonl`` for each call that trained it. It plays no part in what is learnt.

So a run that was stopped and resumed has several lines where an uninterrupted one has one; nothing else of a run depends on
them. A process that is killed writes none.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bridle import distributed
from bridle.files import explain_write_error

FILE_NAME = "history.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        command: as it was typed; of a program that calls bridle, its own.
        device: what it was computed on.
        num_processes: that trained together.
        versions: of Python, bridle and torch.
        first_step: finished steps of the run before it.
        last_step: finished steps behind it.
        seconds: it took.
    """

    command: str
    device: str
    num_processes: int
    versions: dict[str, str]
    first_step: int
    last_step: int
    seconds: float


class CallRecorder:
    """Measures a call from its making on, and writes its line at the end.

    Args:
        run: the run folder.
        device: where is computed.
        first_step: finished steps of the run so far.
    """

    def __init__(self, run: Path, device: torch.device, first_step: int) -> None:
        self._path, self._device, self._first_step = run / FILE_NAME, device, first_step
        self._started = time.monotonic()

    def close(self, last_step: int) -> None:
        """Append the line. A folder that cannot be written is no reason to lose a run: it is logged."""
        call = Call(
            command=shlex.join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
            device=torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type,
            num_processes=distributed.world_size(),
            versions={"python": platform.python_version(), "bridle": _version("bridle"), "torch": torch.__version__},
            first_step=self._first_step,
            last_step=last_step,
            seconds=round(time.monotonic() - self._started, 3),
        )
        try:
            with self._path.open("ab") as file:
                torn = file.tell() and not self._path.read_bytes().endswith(b"\n")  # what a killed process left
                file.write(b"\n" * torn + json.dumps(asdict(call)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            _log.warning("%s", explain_write_error(error, self._path.parent, FILE_NAME))


def read_history(run: Path) -> tuple[Call, ...]:
    """The calls that trained a run, in their order; none when nothing was recorded. Lines that are damaged are passed over."""
    path = run / FILE_NAME
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            call = Call(
                str(row["command"]),
                str(row["device"]),
                int(row["num_processes"]),
                {str(name): str(value) for name, value in row["versions"].items()},
                int(row["first_step"]),
                int(row["last_step"]),
                float(row["seconds"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue
        found.append(call)
    return tuple(found)


def _program(path: Path) -> str:
    """What was called; of ``python -m bridle`` its short form."""
    return path.parent.name if path.name == "__main__.py" else path.name


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
