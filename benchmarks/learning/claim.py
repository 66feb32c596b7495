"""Do residual codes pay? RQ, VQ, masked-patch regression and the random encoder at equal steps and at equal minutes.

Every method gets a first round; the two with a tokenizer go on with a second round, which stands beside first rounds of the
same total minutes. Probes on esc10's official folds and on grid_s1's digits. Every run goes on where it was, and several
processes may share the rows (``--rows``, ``--seeds``) and the folder, once the first call has measured the speeds by which
minutes are equal. Command: ``python benchmarks/learning/claim.py --data DATA --out RUNS``. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from runs import (
    SETS,
    UNLABELLED,
    machine,
    mean_text,
    own_probes,
    probes,
    seconds_per_step,
    train,
    with_one_codebook,
)

from bridle.files import write_atomically
from bridle.recipes import recipe
from bridle.run import RunConfig

RQ, VQ, PATCHES = "RQ 4x256", "VQ 1x1024", "masked-patch regression"
SECOND_LR = 2e-4
"""Peak of the second encoder phase: it goes on from weights that are good already."""

JUDGED = (SETS[0], SETS[2])
TIMED_STEPS = (80, 160)
"""A method's speed is the time between these steps; by the first, all files are in memory."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a method trained for ``phases`` in the run ``run``, which rows may share: later phases follow."""

    method: str
    phases: str
    run: str


def variant(method: str, phases: str, seed: int) -> RunConfig:
    config = dataclasses.replace(recipe("audio-small"), phases=phases, seed=seed)
    return with_one_codebook(config) if method == VQ else config


def speed_of(method: str, kind: str, data: Path) -> float:
    before = {"encoder": "cold:1steps, tokenizer:1steps, ", "tokenizer": "cold:1steps, "}.get(kind, "")
    config = variant(method, f"{before}{kind}:{TIMED_STEPS[1]}steps", 0)
    return seconds_per_step(config, [data / part for part in UNLABELLED], TIMED_STEPS)


def speeds(data: Path, kept: Path) -> dict[str, float]:
    """Seconds per step by ``method/kind``, measured once: the plan must not change between calls."""
    if not kept.exists():
        kinds = {RQ: ("cold", "tokenizer", "encoder"), VQ: ("cold", "tokenizer", "encoder"), PATCHES: ("patches",)}
        measured = {f"{method}/{kind}": speed_of(method, kind, data) for method, own in kinds.items() for kind in own}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(measured))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def plan(steps: int, speed: dict[str, float]) -> dict[str, Row]:
    """The rows of the table; ``steps`` is the length of the RQ first round."""
    minutes = steps * speed[f"{RQ}/cold"]
    tokenizer, encoder = max(1, steps // 20), max(1, steps // 4)
    rows: dict[str, Row] = {}
    for method in (RQ, VQ):
        rows[f"{method}, round 1"] = Row(method, f"cold:{steps}steps", method)
    rows[f"{PATCHES}, equal steps"] = Row(PATCHES, f"patches:{steps}steps", f"{PATCHES} steps")
    for method, kind in ((VQ, "cold"), (PATCHES, "patches")):
        equal = round(minutes / speed[f"{method}/{kind}"])
        rows[f"{method}, equal minutes"] = Row(method, f"{kind}:{equal}steps", f"{method} minutes")
    for method in (RQ, VQ):
        second = f"cold:{steps}steps, tokenizer:{tokenizer}steps, encoder:{encoder}steps lr={SECOND_LR:g}"
        rows[f"{method}, rounds 1 and 2"] = Row(method, second, method)
        extra = tokenizer * speed[f"{method}/tokenizer"] + encoder * speed[f"{method}/encoder"]
        longer = steps + round(extra / speed[f"{method}/cold"])
        rows[f"{method}, round 1 of as many minutes as both"] = Row(method, f"cold:{longer}steps", f"{method} long")
    extra = tokenizer * speed[f"{RQ}/tokenizer"] + encoder * speed[f"{RQ}/encoder"]
    longer = round((minutes + extra) / speed[f"{PATCHES}/patches"])
    rows[f"{PATCHES}, minutes of both rounds"] = Row(PATCHES, f"patches:{longer}steps", f"{PATCHES} long")
    return rows


def judge(run: Path, data: Path, phases: str) -> dict[str, float]:
    """Accuracy in percent of the run after ``phases`` by set and probe."""
    found = {labelled.name: own_probes(run, data, labelled, phases) for labelled in JUDGED}
    return {f"{name} {probe}": value for name, by_probe in found.items() for probe, value in by_probe.items()}


def judge_baselines(run: Path, data: Path, phases: str) -> dict[str, dict[str, float]]:
    """The same of the random encoder of the run's seed and of log-mel statistics, by their names."""
    table: dict[str, dict[str, float]] = {}
    for labelled in JUDGED:
        for features, by_probe in probes(run, data, labelled, phases).items():
            if features in ("random encoder", "log-mel statistics"):
                table.setdefault(features, {}).update({f"{labelled.name} {probe}": value for probe, value in by_probe.items()})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7500, help="length of the first round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--rows", nargs="+", metavar="TEXT", help="only rows whose name holds one of these texts, and rows of the same runs"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = plan(arguments.steps, speeds(arguments.data, arguments.out / f"speeds-{arguments.threads}-threads.json"))
    if arguments.rows:
        wanted = {row.run for name, row in rows.items() if any(text in name for text in arguments.rows)}
        rows = {name: row for name, row in rows.items() if row.run in wanted}  # a run's earlier stages are probed on the way
    table: dict[str, dict[str, list[float]]] = {}
    for seed in arguments.seeds:
        for name, row in rows.items():
            run = arguments.out / f"{row.run.replace(' ', '-')}-seed{seed}"
            minutes = train(variant(row.method, row.phases, seed), [arguments.data / part for part in UNLABELLED], run)
            found = {name: {"minutes": minutes, **judge(run, arguments.data, row.phases)}}
            if name == f"{RQ}, round 1":
                found |= judge_baselines(run, arguments.data, row.phases)
            for shown, cells in found.items():
                for key, value in cells.items():
                    table.setdefault(shown, {}).setdefault(key, []).append(value)
                print(f"seed {seed}  {shown}: {', '.join(f'{key} {value:.1f}' for key, value in cells.items())}", flush=True)
    print()
    for name, cells in table.items():
        phases = rows[name].phases if name in rows else ""
        shown = [f"{key} {mean_text(values)}" for key, values in cells.items()]
        print(f"{name:<48} {'   '.join(shown)}   {phases}")
    described = {name: dataclasses.asdict(row) for name, row in rows.items()}
    print(json.dumps({"steps": arguments.steps, "rows": described, "table": table, "machine": machine()}))


if __name__ == "__main__":
    main()
