"""Do residual codes pay? RQ, VQ, masked-patch regression and the random encoder at equal steps and at equal minutes.

Trains each method for a first round, and the two that have a tokenizer for a second round; the second round stands beside
a first round of the same total minutes. Probes on esc10's official folds. Every run goes on where it was. Command:
``python benchmarks/learning/claim.py --data DATA --out RUNS --steps 1000``. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from runs import SETS, UNLABELLED, machine, mean_interval, probes, train

from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig

PROBE_STEPS = 12
"""Steps whose time gives a method's speed."""


def variant(method: str, phases: str, seed: int) -> RunConfig:
    config = dataclasses.replace(recipe("audio-small"), phases=phases, seed=seed)
    if method == "VQ 1x1024":
        quantizer = dataclasses.replace(config.quantizer, num_codebooks=1, codebook_size=1024)
        return dataclasses.replace(config, quantizer=quantizer, level_weights=())
    return config


def seconds_per_step(method: str, kind: str, data: Path) -> float:
    """Slope between a short run and a longer one, so that reading files and k-means do not count."""
    before = {"encoder": "cold:1steps, tokenizer:1steps, ", "tokenizer": "cold:1steps, "}.get(kind, "")
    elapsed = []
    for steps in (2, 2 + PROBE_STEPS):
        with tempfile.TemporaryDirectory() as folder:
            config = variant(method, f"{before}{kind}:{steps}steps", 0)
            start = time.perf_counter()
            pretrain(config, [data / part for part in UNLABELLED[:1]], Path(folder) / "run")
            elapsed.append(time.perf_counter() - start)
    return max(elapsed[1] - elapsed[0], 1e-3) / PROBE_STEPS


def plan(steps: int, data: Path, speeds_file: Path) -> dict[str, tuple[str, str]]:
    """Row of the table -> (method, phases). ``steps`` is the length of the RQ first round."""
    kinds = {
        "RQ 4x256": ("cold", "tokenizer", "encoder"),
        "VQ 1x1024": ("cold", "tokenizer", "encoder"),
        "patches": ("patches",),
    }
    if not speeds_file.exists():
        measured = {f"{m}/{k}": seconds_per_step(m, k, data) for m, own in kinds.items() for k in own}
        speeds_file.parent.mkdir(parents=True, exist_ok=True)
        speeds_file.write_text(json.dumps(measured))
    speed: dict[str, float] = json.loads(speeds_file.read_text())
    budget = steps * speed["RQ 4x256/cold"]
    rows: dict[str, tuple[str, str]] = {}
    for method in ("RQ 4x256", "VQ 1x1024"):
        rows[f"{method}, round 1, equal steps"] = (method, f"cold:{steps}steps")
    rows["masked-patch regression, equal steps"] = ("patches", f"patches:{steps}steps")
    rows["masked-patch regression, equal minutes"] = ("patches", f"patches:{round(budget / speed['patches/patches'])}steps")
    tokenizer, encoder = max(1, steps // 8), steps // 2
    for method in ("RQ 4x256", "VQ 1x1024"):
        second = f"cold:{steps}steps, tokenizer:{tokenizer}steps, encoder:{encoder}steps"
        extra = tokenizer * speed[f"{method}/tokenizer"] + encoder * speed[f"{method}/encoder"]
        rows[f"{method}, rounds 1 + 2"] = (method, second)
        longer = steps + round(extra / speed[f"{method}/cold"])
        rows[f"{method}, round 1 of the same minutes"] = (method, f"cold:{longer}steps")
        if method == "RQ 4x256":
            longer = round((budget + extra) / speed["patches/patches"])
            rows["masked-patch regression, minutes of both rounds"] = ("patches", f"patches:{longer}steps")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = plan(arguments.steps, arguments.data, arguments.out / "speeds.json")
    table: dict[str, dict[str, list[float]]] = {}
    for seed in arguments.seeds:
        for name, (method, phases) in rows.items():
            run = arguments.out / f"{name.replace(',', '').replace(' ', '-')}-seed{seed}"
            minutes = train(variant(method, phases, seed), arguments.data, run)
            found = probes(run, arguments.data, SETS[0])
            cells = {"minutes": minutes, **found["this run"]}
            table.setdefault(name, {key: [] for key in cells})
            for key, value in cells.items():
                table[name][key].append(value)
            for baseline in ("random encoder", "log-mel statistics"):
                own = table.setdefault(baseline, {key: [] for key in found[baseline]})
                if len(next(iter(own.values()))) <= arguments.seeds.index(seed):
                    for key, value in found[baseline].items():
                        own[key].append(value)
            print(f"seed {seed}  {name}: {', '.join(f'{key} {value:.1f}' for key, value in cells.items())}", flush=True)
    print()
    for name, cells in table.items():
        phases = rows[name][1] if name in rows else ""
        shown = [f"{key} {m:5.1f} ± {w:4.1f}" for key, v in cells.items() for m, w in [mean_interval(v)]]
        print(f"{name:<48} {'   '.join(shown)}   {phases}")
    print(json.dumps({"steps": arguments.steps, "rows": rows, "table": table, "machine": machine()}))


if __name__ == "__main__":
    main()
