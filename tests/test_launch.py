"""Several processes as a user starts them: real ones, killed and stopped by real signals; and what each call leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference.faults import state
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bridle import launch
from bridle.errors import BridleError, ConfigError
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint
from bridle.train.stop import StopFlag

LONG = ("--phases", "cold:100000steps")
WHOLE = ("--phases", "cold:40steps, tokenizer:3steps, encoder:3steps")
SECONDS = 240


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    train = {"batch-size": 4, "checkpoint-every-steps": 4, "log-every-steps": 2, "precision": "fp32"}
    settings = [text for name, value in train.items() for text in (f"--train.{name}", str(value))]
    return ["-m", "bridle", "pretrain", "audio-debug", "--data", str(data), "--out", str(out), *settings, *more]


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever a failed test leaves running is killed."""
    yield
    while _STARTED:
        process = _STARTED.pop()
        if process.poll() is None:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.communicate()


def start(data: Path, out: Path, *more: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A call of the command, by ``torchrun`` where ``before`` is given."""
    command = [sys.executable, *before, *arguments(data, out, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    _STARTED.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    return _STARTED[-1]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=SECONDS)
    return process.returncode, out, error


def torchrun(*more: str) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *more)


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``, in the order of their start; dead ones that nobody asked after do not count."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def group_members(leaders: list[int]) -> list[int]:
    """Processes that live in the groups of these leaders."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) in leaders and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def assert_all_gone(leaders: list[int]) -> None:
    deadline = time.monotonic() + 30
    while alive := group_members(leaders):
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Bit for bit: weights, optimiser, position, logged values."""
    got, expected = state(ours), state(theirs)
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        # Every process begins with random numbers of its own, which nothing that is learnt depends on.
        assert [name for name in mine if name != "@rng/cpu" and not torch.equal(mine[name], other[name])] == []
    assert got[2:] == expected[2:]


@pytest.fixture(scope="module")
def undisturbed(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("launched") / "run"
    status, out, error = ended(start(tone_folder, run, *WHOLE, "--num-processes", "2"))
    assert (status, error) == (0, "")
    assert out.count("done after 46 steps") == out.count("8 sound files") == 1  # one process speaks
    return run


@pytest.mark.slow
def test_launched_processes_are_those_of_torchrun(undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    status, out, _ = ended(start(tone_folder, tmp_path / "run", *WHOLE, before=torchrun()))
    assert (status, out.count("done after 46 steps")) == (0, 1)
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    assert ended(start(tone_folder, tmp_path / "one", *WHOLE))[0] == 0
    one, two = state(tmp_path / "one")[3], state(undisturbed)[3]
    for mine, theirs in zip(one[:2], two[:2], strict=True):  # later, rounding has gone through the optimiser
        values = {name: value for name, value in mine.items() if isinstance(value, float)}
        assert values == pytest.approx({name: theirs[name] for name in values}, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("launcher", ["bridle", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_process_costs_nothing_but_time(launcher: str, undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ours = launcher == "bridle"
    more, before = (("--num-processes", "2"), ()) if ours else ((), torchrun("--max-restarts=3"))
    process = start(tone_folder, run, *WHOLE, *more, before=before)
    wait_for_checkpoint(run, process)
    workers = children(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    status, out, error = ended(process)
    assert status == 0
    assert "resuming after step" in out
    if ours:
        assert error == "bridle: process 1 was killed by SIGKILL; all 2 start again (restart 1 of 3)\n"
    assert_same_run(run, undisturbed)
    assert_all_gone(workers)


@pytest.mark.slow
def test_sigterm_saves_and_the_command_that_it_names_goes_on(undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tone_folder, run, *WHOLE, "--num-processes", "2")
    wait_for_checkpoint(run, process)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # `timeout` sends it to the process and to its group
    status, out, error = ended(process)
    assert (status, error) == (0, "")
    (again,) = re.findall(r"stopped after \d+ steps; a checkpoint is written. Continue with:\n +bridle (.*)\n", out)
    assert "--num-processes 2" in again and again.endswith("--resume")
    assert_all_gone(workers)
    status, out, _ = ended(start(tone_folder, run, *WHOLE, "--num-processes", "2", "--resume"))
    assert status == 0 and "resuming after step" in out
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_other_requests_to_stop(number: signal.Signals, status: int, tone_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tone_folder, run, *LONG, "--num-processes", "2")
    wait_for_checkpoint(run, process)
    workers = children(process.pid)
    for pid in (process.pid, *workers):  # all at once, as Slurm does it
        os.kill(pid, number)
    found, out, error = ended(process)
    assert (found, error) == (status, "")
    assert "a checkpoint is written" in out
    path = latest_checkpoint(run)
    assert path is not None and load_checkpoint(path).state["phase_step"] > 0
    assert_all_gone(workers)


@pytest.mark.parametrize("how", ["second SIGINT", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_leaving_at_once_leaves_no_process_behind(how: str, tone_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tone_folder, run, *LONG, "--num-processes", "2", "--train.num-workers", "1")
    wait_for_checkpoint(run, process)
    workers = children(process.pid)
    assert len(workers) == 2 and len(group_members(workers)) >= 4  # with their data workers
    if how == "SIGKILL":
        process.kill()
    else:
        # Stopped, so that neither can end before the second signal comes.
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        while not all(is_pending(worker, signal.SIGTERM) for worker in workers):  # the first was seen, and handed on
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    status, _, error = ended(process)
    assert (status, error) == ((-9, "") if how == "SIGKILL" else (130, "bridle: interrupted\n"))
    assert_all_gone(workers)


def is_pending(process: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process to go on."""
    status = Path(f"/proc/{process}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_stop_before_there_is_anything_to_save(tone_folder: Path, tmp_path: Path) -> None:
    process = start(tone_folder, tmp_path / "run", *LONG, "--num-processes", "2")
    while len(workers := children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, out, error = ended(process)
    assert (status, error) == (143, "")
    assert "stopped before a checkpoint could be written" in out and out.rstrip().endswith("--resume")
    assert_all_gone(workers)


def test_a_mistake_is_one_line_and_is_not_tried_again(undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found_by_processes = (tmp_path / "empty", tmp_path / "run", "no readable sound file")
    found_before = (tone_folder, undisturbed, "already holds a run")
    for data, run, what in (found_by_processes, found_before):
        status, out, error = ended(start(data, run, *WHOLE, "--num-processes", "2"))
        assert (status, out) == (1, "")
        assert what in error and error.startswith("bridle: ") and error.count("\n") == 1


@pytest.mark.slow
def test_torchrun_does_not_resume_what_its_first_attempt_refused(undisturbed: Path, tone_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    status, _, error = ended(start(tone_folder, undisturbed, *WHOLE, before=torchrun("--max-restarts=1")))
    assert status != 0
    assert error.count("already holds a run") >= 2  # both attempts
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


@pytest.mark.slow
def test_processes_that_always_die_end_in_one_line(tone_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(tone_folder, run, *LONG, "--num-processes", "2", "--max-restarts", "0")
    wait_for_checkpoint(run, process)
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    status, _, error = ended(process)
    assert status == 1
    assert error.startswith("bridle: process 0 was killed by SIGKILL, and no restart is left (--max-restarts 0)")
    assert error.count("\n") == 1
    assert_all_gone(workers)


def test_one_process_does_not_import_the_launcher(tone_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from bridle.cli import main; status = main(sys.argv[1:]);"
        "print([name for name in sys.modules if 'elastic.agent' in name]); sys.exit(status)"
    )
    call = arguments(tone_folder, tmp_path / "run", "--phases", "cold:1steps")[2:]
    result = subprocess.run([sys.executable, "-c", code, *call], capture_output=True, text=True, check=True, timeout=SECONDS)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("BRIDLE_LAUNCHER", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_starts_processes(alone: pytest.MonkeyPatch) -> None:
    assert launch.wants_launch(2) and not launch.wants_launch(1)
    with pytest.raises(ConfigError, match="--num-processes 0 must be 1 or more"):
        launch.wants_launch(0)
    with pytest.raises(ConfigError, match="--max-restarts -1"):
        launch.launch(["pretrain"], 2, -1)
    alone.setenv("TORCHELASTIC_RUN_ID", "job")
    assert not launch.wants_launch(1)
    with pytest.raises(ConfigError, match="leave --num-processes out"):
        launch.wants_launch(2)
    alone.setenv("BRIDLE_LAUNCHER", "1")
    assert not launch.wants_launch(2)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, refused in ((0, False), (2, True), (4, False)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        if refused:
            with pytest.raises(ConfigError, match="--num-processes 4 is more than the GPUs of this machine, 2"):
                launch.check_gpus(4)
        else:
            launch.check_gpus(4)


def test_errors_are_written_for_the_launcher(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "attempt_0" / "1" / "error.json"
    path.parent.mkdir(parents=True)
    alone.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    for error, message, explained in (
        (BridleError("too small; enlarge it"), "too small; enlarge it", True),
        (ValueError("a\nb"), "ValueError: a\nb", False),
    ):
        with pytest.raises(type(error)), launch.reported():  # under torchrun it passes through
            raise error
        failure = ProcessFailure(1, 99, 1, str(path))
        assert (failure.message, failure.error_file_data["explained"]) == (message, explained)
        assert "test_errors_are_written_for_the_launcher" in launch._last_words(failure, tmp_path)
    assert launch._what_happened(1, failure) == "process 1 failed (ValueError: a b)"
    alone.setenv("BRIDLE_LAUNCHER", str(os.getppid()))
    alone.setattr(launch, "_PR_SET_PDEATHSIG", 0)
    with pytest.raises(SystemExit) as stop, launch.reported():
        raise BridleError("told by the launcher")
    assert stop.value.code == 1
    alone.setenv("BRIDLE_LAUNCHER", str(os.getpid()))  # no parent of this process: the launcher has died
    with pytest.raises(SystemExit), launch.reported():
        raise AssertionError("not reached")


def failure(exitcode: int, seconds: int) -> ProcessFailure:
    found = ProcessFailure(0, 99, exitcode, "")
    found.timestamp = seconds
    return found


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ({0: failure(1, 10), 1: failure(-9, 11)}, 1),  # rank 0 lost its peer, and was quicker to say so
        ({0: failure(-9, 40), 1: failure(1, 10)}, 1),  # elastic killed rank 0, which hung after rank 1 had failed
        ({0: failure(-15, 11), 1: failure(1, 10)}, 1),
        ({0: failure(-15, 10)}, 0),
    ],
)
def test_the_cause_is_told_and_not_its_consequences(failures: dict[int, ProcessFailure], cause: int) -> None:
    assert launch._cause(failures)[0] == cause


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (launch.Ended(), 0),
        (launch.Ended(signal.SIGTERM), 0),
        (launch.Ended(signal.SIGUSR1), 0),
        (launch.Ended(signal.SIGINT), 130),
        (launch.Ended(signal.SIGTERM, orderly=False), 143),
    ],
)
def test_exit_status(ended: launch.Ended, status: int) -> None:
    assert ended.status == status


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    flag = StopFlag()
    with flag.installed():
        yield flag
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_counts_and_others_do_not_interrupt(first: signal.Signals, stop: StopFlag) -> None:
    assert stop.signal == 0
    for number in (first, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        signal.raise_signal(number)
        assert stop.signal == first


def test_a_second_sigint_interrupts(stop: StopFlag) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGTERM
