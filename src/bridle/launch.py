"""Several processes of one command on this machine, by torch's elastic launcher; and what each of them does to be one.

The launcher starts the command again N times, each with the environment that torchrun gives. What goes wrong in a process
is written to its error file, and the launcher tells it once: an error that was explained ends the command, for it would come
again; after anything else (a signal, an exception nobody expected) all processes start anew, ``max_restarts`` times at most.

A request to stop (SIGTERM, SIGINT, SIGUSR1) is handed on to the processes as SIGTERM, and the launcher waits until all of
them have ended, however long that takes. A second SIGINT kills them. When the launcher itself is killed, the kernel kills
them (Linux).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridle.errors import BridleError, ConfigError
from bridle.files import write_atomically

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_LAUNCHER = "BRIDLE_LAUNCHER"  # in a process: the id of its launcher
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_AT_ONCE_SECONDS = 5  # failures so close together have one cause; elastic kills what does not end after 30
_SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class Ended:
    """How the processes of a command ended.

    Attributes:
        signal: what asked them to stop, else 0.
        orderly: all of them came to the end of their work, or stopped as they do when asked to; False when a stop reached one
            that was not ready for it.
    """

    signal: int = 0
    orderly: bool = True

    @property
    def status(self) -> int:
        """Exit status: 0, 130 after SIGINT, 128 and the signal after a stop that was not orderly."""
        return 128 + self.signal if self.signal == signal.SIGINT or not self.orderly else 0


def launched() -> bool:
    """True in a process that :func:`launch` started."""
    return _LAUNCHER in os.environ


def is_restart() -> bool:
    """True when torchrun or :func:`launch` started this process because an earlier attempt failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def wants_launch(num_processes: int) -> bool:
    """True when this process is to start ``num_processes`` others instead of working itself.

    Raises:
        ConfigError: it is below 1, or this is one of several processes already, and not of as many.
    """
    if num_processes < 1:
        raise ConfigError(f"--num-processes {num_processes} must be 1 or more")
    if num_processes == 1 or launched():
        return False
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(f"--num-processes {num_processes} and torchrun both start processes; leave --num-processes out")
    return True


def check_gpus(num_processes: int) -> None:
    """Refuse more processes than GPUs, where there are any.

    Raises:
        ConfigError: there are fewer.
    """
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < num_processes:
        raise ConfigError(
            f"--num-processes {num_processes} is more than the GPUs of this machine, {gpus}; give at most {gpus}, or hide "
            "them all with CUDA_VISIBLE_DEVICES="
        )


@contextmanager
def reported() -> Iterator[None]:
    """Around a command that may be one of several processes: its error goes to the file that the launcher reads.

    In a process of :func:`launch` nothing is printed, for the launcher does that, and the process ends with its launcher.
    Under torchrun errors pass through; an attempt after one that was explained ends with the same error, for torchrun
    starts again whatever happened, and must not resume a run that the first attempt refused to write to.

    Raises:
        BridleError: what the attempt before this one ended with.
    """
    if launched():
        _end_with(int(os.environ[_LAUNCHER]))
    elif is_restart() and (explained := _explained_before()):
        raise BridleError(explained)
    try:
        yield
    except Exception as error:
        if path := os.environ.get(_ERROR_FILE):
            _write_error(Path(path), error)
        if launched():
            raise SystemExit(1) from error
        raise


def _end_with(launcher: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        raise SystemExit(1)


def _write_error(path: Path, error: Exception) -> None:
    """In the form that elastic reads, with what it passes over."""
    explained = isinstance(error, BridleError)
    message = str(error) if explained else f"{type(error).__name__}: {error}"
    told = {"message": message, "timestamp": int(time.time()), "explained": explained, "traceback": traceback.format_exc()}
    with suppress(OSError):
        write_atomically(path, json.dumps(told))


def _explained_before() -> str | None:
    """What this process's attempt before this one was explained to have ended with, as torchrun keeps its error files."""
    path = Path(os.environ.get(_ERROR_FILE, ""))
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) - 1
    with suppress(OSError, ValueError, KeyError):
        told = json.loads((path.parents[1].with_name(f"attempt_{attempt}") / path.parent.name / path.name).read_text())
        return str(told["message"]) if told["explained"] else None
    return None


class _Stopped(Exception):
    """The processes ended because they were asked to stop, and not all in order."""


@dataclass
class _Processes:
    """The processes of a command as their launcher sees them: who they are, what it was asked to do, how often they failed."""

    num_processes: int
    max_restarts: int
    logs: Path
    signal: int = 0
    interrupts: int = 0
    restarts: int = 0
    pids: list[int] = field(default_factory=list)

    @contextmanager
    def signalled(self) -> Iterator[None]:
        """Hand on the signals that the launcher gets inside the ``with``."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            self._send(os.killpg, signal.SIGKILL)  # each leads a group, with its data workers
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = number
            self._send(
                os.kill, signal.SIGTERM
            )  # never SIGINT: who has got one from the terminal too would take it for the second

    def _send(self, kill: Callable[[int, int], None], number: int) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                kill(pid, number)

    def started(self, pids: Iterable[int]) -> None:
        """These are the processes now; a stop that was asked for before reaches them too."""
        self.pids = list(pids)
        if self.signal:
            self._send(os.kill, signal.SIGTERM)

    def failed(self, failures: Mapping[int, ProcessFailure]) -> None:
        """Return when all are to be started again.

        Raises:
            BridleError: a process explained why it ended, or there were too many failures.
            _Stopped: they were asked to stop.
        """
        explained = next((f for f in failures.values() if f.error_file_data.get("explained")), None)
        if explained is not None:
            raise BridleError(explained.message)
        if not self.signal and any(failure.exitcode == 128 + signal.SIGINT for failure in failures.values()):
            self.signal = signal.SIGINT  # of the processes, not of their launcher
        if self.signal:
            raise _Stopped
        rank, cause = _cause(failures)
        what = _what_happened(rank, cause)
        if self.restarts >= self.max_restarts:
            sys.stderr.write(_last_words(cause, self.logs))
            kept = "what was saved is kept"
            if -cause.exitcode == signal.SIGKILL:
                kept += ". The system kills processes when its memory is full: take fewer processes or smaller batches"
            raise BridleError(f"{what}, and no restart is left (--max-restarts {self.max_restarts}); {kept}")
        self.restarts += 1
        again = f"all {self.num_processes} start again (restart {self.restarts} of {self.max_restarts})"
        sys.stderr.write(f"bridle: {what}; {again}\n")


def launch(arguments: Sequence[str], num_processes: int, max_restarts: int) -> Ended:
    """Run ``bridle ARGUMENTS`` in several processes on this machine, and wait for them.

    Rank 0 has the terminal; what the others print is shown only when they fail. Each gets its share of the cores
    (``OMP_NUM_THREADS``, unless it is set). Must be called in the main thread.

    Args:
        arguments: of ``bridle``. The command passes :func:`reported`, and asks :func:`wants_launch`.
        num_processes: at least 2.
        max_restarts: how often all are started again after one of them failed.

    Returns:
        How they ended. Restarts are told on standard error.

    Raises:
        BridleError: one of them ended with an error that was explained, or they failed too often.
        ConfigError: ``max_restarts`` is below 0.
        KeyboardInterrupt: a second SIGINT; all processes are killed.
    """
    if max_restarts < 0:
        raise ConfigError(f"--max-restarts {max_restarts} must be 0 or more")
    with tempfile.TemporaryDirectory(prefix="bridle-") as folder:
        processes = _Processes(num_processes, max_restarts, Path(folder))
        with processes.signalled(), _environment(num_processes), _silent_logging():
            try:
                _agent(arguments, processes).run()
            except _Stopped:
                return Ended(processes.signal, orderly=False)
    return Ended(processes.signal)


def _agent(arguments: Sequence[str], processes: _Processes) -> LocalElasticAgent:
    """Elastic's agent, which starts, watches and restarts; what it asks ``processes`` is all that is not its own."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

    class Agent(LocalElasticAgent):
        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            pids: dict[int, Any] = super()._start_workers(worker_group)
            processes.started(pids.values())
            return pids

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result: RunResult = super()._monitor_workers(worker_group)
            if result.is_failed():
                processes.failed(result.failures)
            return result

    run_id = str(uuid.uuid4())
    rendezvous = RendezvousParameters("c10d", "localhost:0", run_id, min_nodes=1, max_nodes=1, local_addr="localhost")
    spec = WorkerSpec(
        role="bridle",
        local_world_size=processes.num_processes,
        rdzv_handler=registry.get_rendezvous_handler(rendezvous),
        entrypoint=sys.executable,
        args=("-m", "bridle", *(argument.replace("$", "$$") for argument in arguments)),  # elastic fills in ${local_rank}
        max_restarts=processes.max_restarts,
        local_addr="localhost",
    )
    others = range(1, processes.num_processes)
    return Agent(spec, DefaultLogsSpecs(str(processes.logs), redirects=dict.fromkeys(others, Std.ALL)))


@contextmanager
def _environment(num_processes: int) -> Iterator[None]:
    """What the processes inherit, and elastic reads."""
    before = dict(os.environ)
    os.environ |= {_LAUNCHER: str(os.getpid()), "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}  # the others are ours
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_processes)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Elastic logs every failure that is told here in other words."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of who began: when one is killed, the others fail for want of it."""
    first = min(failure.timestamp for failure in failures.values())
    at_once = [item for item in failures.items() if item[1].timestamp <= first + _AT_ONCE_SECONDS]

    def lateness(item: tuple[int, ProcessFailure]) -> tuple[bool, int]:
        killed = item[1].exitcode < 0 and -item[1].exitcode != signal.SIGTERM  # which elastic sends to those that are left
        return not killed, item[1].timestamp

    return min(at_once, key=lateness)


def _what_happened(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"process {rank} was killed by {failure.signal_name()}"
    if "traceback" in failure.error_file_data:
        return f"process {rank} failed ({' '.join(failure.message.split())})"
    return f"process {rank} ended with status {failure.exitcode}"


def _last_words(failure: ProcessFailure, logs: Path) -> str:
    """The traceback of a failure, or what the process printed last; rank 0 printed to the terminal."""
    if "traceback" in failure.error_file_data:
        return str(failure.error_file_data["traceback"])
    written = max(logs.glob(f"*/attempt_*/{failure.local_rank}/stderr.log"), default=Path(os.devnull))
    return "".join(written.read_text(errors="replace").splitlines(keepends=True)[-_SHOWN_LINES:])
