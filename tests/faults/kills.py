"""kill -9 at random moments of whole runs, and what must hold after each.

    python tests/faults/kills.py --kills 1000 [--seed 0] [--folder FOLDER]

This process imports the package once. Each attempt at a run is a child of it, forked, which is killed after a random time
and tells every step through a pipe, so that it is known how far it came. A run is attempted until it is finished, then the
next one begins, until there were enough kills. The last line is one JSON document. Exit status 1 when something did not hold.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.faults import state

from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint
from bridle.train.metrics import read_metrics
from bridle.train.reporter import Silent
from bridle.train.weights import read_weights

EVERY = 4
PHASES = "cold:10steps, tokenizer:9steps, encoder:10steps, joint:7steps"
TOTAL = 36


class Teller(Silent):
    """Writes the number of every finished step of the run to a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.before, self.newest = pipe, 0, 0

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        self.before = {1: 0, 2: 10, 3: 19, 4: 29}[number]

    def step(self, done: int) -> None:
        os.write(self.pipe, (self.before + done).to_bytes(2, "little"))


def sounds(folder: Path) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(8):
        soundfile.write(folder / f"noise-{i}.wav", (0.1 * generator.standard_normal(8000 + 3000 * i)).astype(np.float32), 16000)
    return folder


def config(num_workers: int) -> RunConfig:
    made = dataclasses.replace(recipe("audio-debug"), phases=PHASES)
    train = dataclasses.replace(
        made.train,
        batch_size=4,
        checkpoint_every_steps=EVERY,
        log_every_steps=1,
        precision="fp32",
        num_workers=num_workers,
        num_micro_batches=2,
    )
    return dataclasses.replace(made, train=train)


def attempt(run: Path, data: Path, num_workers: int, seconds: float) -> tuple[bool, int]:
    """A child that trains and is killed after some time; returns whether it came to its end, and the newest step it told."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.setpgid(0, 0)
        status = 1
        try:
            pretrain(config(num_workers), [data], run, resume=True, device=torch.device("cpu"), reporter=Teller(theirs))
            status = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(status)
    os.close(theirs)
    end = time.monotonic() + seconds
    told = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([ours], [], [], left)[0]:
            received = os.read(ours, 1 << 16)
            if not received:
                break  # it is done
            told += received
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(ours, False)
    while chunk := _read(ours):
        told += chunk
    os.close(ours)
    if status not in (0, -signal.SIGKILL):
        raise AssertionError(f"an attempt to go on ended with {status}")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # data workers see by themselves that nobody wants their batches, but later
    newest = int.from_bytes(told[-2:], "little") if len(told) > 1 else 0
    return status == 0, newest


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def check(run: Path, told: int, before: int) -> int:
    """What must hold after a kill; returns the newest checkpoint's step."""
    if not run.exists():
        return 0
    if RunFolder(run).exists():
        RunFolder(run).read_config()
    path = latest_checkpoint(run)
    if path is None:
        assert before == 0 and told <= EVERY, f"no checkpoint after step {told}"
        return 0
    checkpoint = load_checkpoint(path)
    assert checkpoint.step >= before, f"the newest checkpoint went back from {before} to {checkpoint.step}"
    assert told - checkpoint.step <= EVERY, f"step {told} was done, and the newest checkpoint is of {checkpoint.step}"
    assert all(value.isfinite().all() for value in checkpoint.weights.values() if value.is_floating_point())
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)) and len(lines) >= checkpoint.step
    weights = run / "model.safetensors"
    assert weights.exists() or checkpoint.step <= EVERY
    if weights.exists():
        read_weights(weights)
    left = [one.name for one in (run / "checkpoints").iterdir() if one.name.startswith(".")]
    assert len(left) <= 2, f"left-overs pile up: {left}"
    return checkpoint.step


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    got, expected = state(ours), state(theirs)
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        different = [key for key, value in mine.items() if not torch.equal(value, other[key])]
        assert not different, f"{different[0]} differs from the run that was never disturbed"
    assert got[2:] == expected[2:]


def rehearse(folder: Path, num_kills: int, seed: int) -> dict[str, object]:
    """Kill until there were enough kills; AssertionError when something does not hold."""
    torch.set_num_threads(1)
    data = sounds(folder / "sounds")
    started = time.monotonic()
    finished, _ = attempt(folder / "undisturbed", data, 0, 600)
    assert finished
    longest = time.monotonic() - started
    draw = random.Random(seed)
    kills, runs, lost, places = 0, 0, Counter[int](), Counter[str]()
    while kills < num_kills:
        run, before, workers, finished = folder / f"run-{runs}", 0, runs % 2 * 2, False
        while not finished:
            # More kills than are wanted would come of times that are too short to get anywhere.
            seconds = draw.uniform(0, 0.7 * longest) if kills < num_kills else 600
            finished, told = attempt(run, data, workers, seconds)
            step = check(run, told, before)
            if not finished:
                kills += 1
                lost[max(0, told - step)] += 1
                places["before the first step" if told == 0 else "while training"] += 1
            before = step
        assert_equal_runs(run, folder / "undisturbed")
        shutil.rmtree(run)
        runs += 1
    return {
        "kills": kills,
        "runs": runs,
        "total_steps": TOTAL,
        "checkpoint_every_steps": EVERY,
        "steps_lost": dict(sorted(lost.items())),
        "killed": dict(places),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are written; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bridle-kills-", dir=arguments.folder) as name:
        try:
            found = rehearse(Path(name), arguments.kills, arguments.seed)
        except AssertionError as error:
            print(f"did not hold: {error}", file=sys.stderr)
            return 1
    print(json.dumps({"benchmark": "kills", "seed": arguments.seed, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
