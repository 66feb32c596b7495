"""What does a recipe learn from a few thousand unlabelled clips? Frozen features on four labelled tasks, several seeds.

Command: ``python benchmarks/learning/small.py --data DATA --out RUNS``; DATA holds esc10, fsdd, grid_s1. Every run can be
interrupted and goes on where it was. Prints tables; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from runs import SETS, UNLABELLED, machine, mean_text, probes, train

from bridle.recipes import recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="audio-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    minutes = []
    for seed in arguments.seeds:
        run = arguments.out / f"{arguments.recipe}-seed{seed}"
        config = dataclasses.replace(recipe(arguments.recipe), seed=seed)
        minutes.append(train(config, [arguments.data / part for part in UNLABELLED], run))
        for labelled in SETS:
            for features, by_probe in probes(run, arguments.data, labelled, config.phases).items():
                for probe, value in by_probe.items():
                    results.setdefault(labelled.name, {}).setdefault(features, {}).setdefault(probe, []).append(value)
    print(f"{arguments.recipe}, seeds {arguments.seeds}, minutes of pretraining {[round(m, 1) for m in minutes]}")
    for name, rows in results.items():
        print(f"\n{name}")
        for features, by_probe in rows.items():
            cells = [f"{probe} {mean_text(values)}" for probe, values in by_probe.items()]
            print(f"  {features:<22} {'   '.join(cells)}")
    print(json.dumps({"recipe": arguments.recipe, "minutes": minutes, "results": results, "machine": machine()}))


if __name__ == "__main__":
    main()
