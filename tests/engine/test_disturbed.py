"""Whole runs under faults of the machine: workers killed, data gone, disk full or read-only, clocks that jump, signals."""

import dataclasses
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.faults import After, die, state

from bridle.data import dataset as dataset_module
from bridle.engine.parts import Outcome
from bridle.errors import BridleError, RunError, TooManyBadFiles, WorkerDied
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint

CPU = torch.device("cpu")
PHASES = "cold:6steps, tokenizer:5steps, encoder:5steps"


def debug(**train: Any) -> RunConfig:
    config = dataclasses.replace(recipe("audio-debug"), phases=PHASES)
    settings = {"batch_size": 4, "checkpoint_every_steps": 4, "log_every_steps": 1, "precision": "fp32", **train}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


def train(folder: Path, run: Path, config: RunConfig | None = None, **settings: Any) -> Outcome:
    return pretrain(config or debug(), [folder], run, device=CPU, **settings)


@pytest.fixture(scope="module")
def undisturbed(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(tone_folder, run) == Outcome(True, 16, 0)
    return run


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    got, expected = state(ours), state(theirs)
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        assert [key for key, value in mine.items() if not torch.equal(value, other[key])] == []
    assert got[2:] == expected[2:]


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_killed_at_random_steps_with_any_workers_the_run_ends_the_same(
    num_workers: int, num_micro_batches: int, undisturbed: Path, tone_folder: Path, tmp_path: Path
) -> None:
    config = debug(num_workers=num_workers, num_micro_batches=num_micro_batches)
    whole = undisturbed
    if num_micro_batches > 1:
        whole = tmp_path / "whole"
        train(tone_folder, whole, debug(num_micro_batches=num_micro_batches))
    draw = random.Random(num_workers)
    for killed_after in (draw.randint(1, 7), draw.randint(1, 7)):
        with pytest.raises(SystemExit):
            train(tone_folder, tmp_path / "run", config, resume=True, reporter=After(killed_after, die))
    assert train(tone_folder, tmp_path / "run", config, resume=True).finished
    assert_equal_runs(tmp_path / "run", whole)


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "LOOK_SECONDS", 0.2)


def kill_a_worker() -> None:
    """As the kernel does when memory runs out."""
    worker = random.Random(0).choice(multiprocessing.active_children())
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.usefixtures("looking_often")
@pytest.mark.parametrize("after", [1, 6, 9])
def test_a_killed_worker_costs_nothing(after: int, tone_folder: Path, tmp_path: Path) -> None:
    long = dataclasses.replace(debug(), phases="tokenizer:18steps")  # so that workers still have something to do
    train(tone_folder, tmp_path / "undisturbed", long)
    told: list[str] = []
    reporter = After(after, kill_a_worker)
    reporter.message = told.append  # type: ignore[method-assign]
    config = dataclasses.replace(long, train=dataclasses.replace(long.train, num_workers=2))
    assert train(tone_folder, tmp_path / "run", config, reporter=reporter) == Outcome(True, 18, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "undisturbed")
    assert [text for text in told if "worker died" in text and "started again" in text]


@pytest.mark.usefixtures("looking_often")
def test_workers_that_always_die_cost_no_step(tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataclasses.replace(debug(), phases="cold:16steps")
    train(tone_folder, tmp_path / "whole", whole)
    load = dataset_module.ClipDataset.__getitem__
    main = os.getpid()

    def dies_in_the_fifth_epoch(self: Any, key: tuple[int, int]) -> Any:
        if key[0] >= 4 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, key)

    monkeypatch.setattr(dataset_module.ClipDataset, "__getitem__", dies_in_the_fifth_epoch)
    run = tmp_path / "run"
    config = dataclasses.replace(debug(num_workers=1, checkpoint_every_steps=100), phases="cold:16steps")
    with pytest.raises(WorkerDied, match="a data worker died"):
        train(tone_folder, run, config)
    path = latest_checkpoint(run)
    assert path is not None and load_checkpoint(path).step == len(state(run)[3]) > 0
    assert train(tone_folder, run, whole, resume=True).finished  # without workers, as the message says
    assert_equal_runs(run, tmp_path / "whole")


def test_data_that_vanish_stop_the_run_with_a_checkpoint_and_it_goes_on_when_they_are_back(
    undisturbed: Path, tone_folder: Path, tmp_path: Path
) -> None:
    data, away = shutil.copytree(tone_folder, tmp_path / "sounds"), tmp_path / "away"
    run = tmp_path / "run"
    config = debug(max_bad_fraction=1.0, max_bad_in_a_row=6)
    assert config.audio is not None
    config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, cache_gigabytes=0.0))
    with pytest.raises(TooManyBadFiles, match=r"in a row are unreadable .*check that the data is still there"):
        train(data, run, config, reporter=After(7, lambda: data.rename(away)))
    path = latest_checkpoint(run)
    assert path is not None and load_checkpoint(path).step == len(state(run)[3]) > 7
    with pytest.raises(BridleError, match="does not exist"):
        train(data, run, config, resume=True)
    away.rename(data)
    assert train(data, run, config, resume=True).finished


def test_clocks_that_jump_change_nothing(
    undisturbed: Path, tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(-1e9, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: draw.randint(-(10**18), 4 * 10**18))
    with pytest.raises(SystemExit):
        train(tone_folder, tmp_path / "run", debug(num_workers=1), reporter=After(7, die))
    for path in sorted((tmp_path / "run").rglob("*")):  # files from the future, older than those they were written before
        os.utime(path, (draw.uniform(0, 4e9),) * 2)
    assert train(tone_folder, tmp_path / "run", resume=True).finished
    assert_equal_runs(tmp_path / "run", undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on_when_there_is_room(
    undisturbed: Path, tone_folder: Path, tmp_path: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC

    with pytest.raises(RunError, match=r"No space left on device .* free"):
        train(tone_folder, run, debug(num_checkpoints=1), reporter=After(6, fill))
    path = latest_checkpoint(run)
    assert path is not None and load_checkpoint(path).step in (4, 6)
    ballast.unlink()
    assert train(tone_folder, run, debug(num_checkpoints=1), resume=True).finished
    assert_equal_runs(run, undisturbed)


def test_a_run_folder_that_becomes_read_only_is_explained(
    undisturbed: Path, tone_folder: Path, tmp_path: Path, small_disk: Path
) -> None:
    run = small_disk / "run"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    with pytest.raises(RunError, match=r"Read-only file system .*mount it writable"):
        train(tone_folder, run, debug(num_checkpoints=1), reporter=After(6, lambda: remount("ro")))
    with pytest.raises(RunError, match="Read-only file system"):
        train(tone_folder, run, debug(num_checkpoints=1), resume=True)
    remount("rw")
    assert train(tone_folder, run, debug(num_checkpoints=1), resume=True).finished
    assert_equal_runs(run, undisturbed)


_CHILD = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_disturbed import After, Path, debug, os, signal, train
number = signal.Signals[sys.argv[5]]
outcome = train(Path(sys.argv[3]), Path(sys.argv[4]), debug(checkpoint_every_steps=100), reporter=After(5, lambda: [
    os.kill(os.getpid(), number) for _ in range(2)]))
print("left by itself", outcome.step)
"""


def test_a_second_interrupt_leaves_at_once_and_the_run_goes_on(undisturbed: Path, tone_folder: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent
    call = [sys.executable, "-c", _CHILD, str(here), str(here.parent), str(tone_folder), str(tmp_path / "run"), "SIGINT"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert "KeyboardInterrupt" in done.stderr and "left by itself" not in done.stdout
    path = latest_checkpoint(tmp_path / "run")
    assert path is None, "nothing was written in a hurry"
    assert train(tone_folder, tmp_path / "run", resume=True).finished
    assert_equal_runs(tmp_path / "run", undisturbed)
