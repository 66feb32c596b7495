"""Runs by several processes: a job in JSON, done by torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_JOB = """
import dataclasses, json, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from bridle import distributed
from bridle.config import from_dict
from bridle.objectives.masked import MaskedCodes
from bridle.pretraining import pretrain
from bridle.run import RunConfig
from reference.faults import After

torch.set_num_threads(1)
forward, spoilt = MaskedCodes.forward, set()

def sometimes(self, batch, step):
    output = forward(self, batch, step)
    if step + 1 in spoilt and rank in (-1, distributed.rank()):
        output.losses["code/0"] = output.losses["code/0"] * torch.nan
    return output

MaskedCodes.forward = sometimes
with distributed.process_group():
    for task in json.loads(Path(sys.argv[1]).read_text()):
        reporter = After(task["stop_after"], lambda: signal.raise_signal(signal.SIGTERM)) if task["stop_after"] else None
        spoilt.clear()
        spoilt.update(task["spoilt"])
        rank = task["rank"]
        config = from_dict(RunConfig, task["config"])
        outcome = pretrain(config, [task["data"]], task["out"], resume=True, reporter=reporter, device=torch.device("cpu"))
        print(json.dumps(dataclasses.asdict(outcome))) if distributed.rank() == 0 else None
"""


def task(config: Any, data: Path, out: Path, stop_after: int = 0, spoilt: Sequence[int] = (), rank: int = -1) -> dict[str, Any]:
    """A run that is begun or resumed; with ``stop_after``, rank 0 gets SIGTERM after so many steps of this call. The loss of
    codes is NaN in the steps ``spoilt`` of each phase, counted from 1, on one rank or on all.
    """
    from bridle.config import to_dict

    return {
        "config": to_dict(config),
        "data": str(data),
        "out": str(out),
        "stop_after": stop_after,
        "spoilt": list(spoilt),
        "rank": rank,
    }


def run_tasks(num_processes: int, folder: Path, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How each of the runs ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.py").write_text(_JOB)
    (folder / "tasks.json").write_text(json.dumps(tasks))
    call = [str(folder / "job.py"), str(folder / "tasks.json"), str(Path(__file__).parents[1])]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_processes), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *call], capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
