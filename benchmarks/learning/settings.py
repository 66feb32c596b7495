"""What makes masked prediction of codes learn more per minute? One setting of audio-small changed at a time, first round only.

Every variant trains for the same number of steps; its minutes stand beside its probes. Several processes of one thread may
share the variants (``--variants``) and the folder. Command: ``python benchmarks/learning/settings.py --data DATA --out RUNS``.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import SETS, UNLABELLED, machine, mean_text, own_probes, train

from bridle.recipes import recipe
from bridle.run import RunConfig


def part(name: str, **changes: Any) -> Callable[[RunConfig], RunConfig]:
    """A change of some settings of one part of the configuration."""
    return lambda config: dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **changes)})


def both(*changes: Callable[[RunConfig], RunConfig]) -> Callable[[RunConfig], RunConfig]:
    """One change after the other."""
    return lambda config: functools.reduce(lambda changed, change: change(changed), changes, config)


def top(**changes: Any) -> Callable[[RunConfig], RunConfig]:
    """A change of settings of the configuration itself."""
    return lambda config: dataclasses.replace(config, **changes)


VARIANTS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "as it is": top(),
    "level weights 1, 0.3, 0.3, 0.3": top(level_weights=(1.0, 0.3, 0.3, 0.3)),
    "cold start smoothed to 4 x 4 cells": part("cold_start", smooth=4),
    "cold start normalised by the set": part("cold_start", normalise="set"),
    "a quarter of the masked patches predicted": part("masks", predict_ratio=0.25),
    "a quarter predicted, predictor 4 deep": both(part("masks", predict_ratio=0.25), part("predictor", depth=4)),
    "all masked patches predicted": part("masks", predict_ratio=1.0),
    "mask ratio 0.7": part("masks", mask_ratio=0.7),
    "inverse block masks": part("masks", kind="block"),
    "two masks a clip": part("masks", num_masks=2),
    "learning rate 2e-3": part("encoder_optim", lr=2e-3),
    "batch 16": part("train", batch_size=16),
    "patch 8 x 16": part("encoder", patch=(8, 16, 1)),
    "VQ 1x1024": part("quantizer", num_codebooks=1, codebook_size=1024),
    "masked-patch regression": top(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table: dict[str, dict[str, list[float]]] = {}
    for seed in arguments.seeds:
        for name in arguments.variants:
            kind = "patches" if name == "masked-patch regression" else "cold"
            config = dataclasses.replace(recipe("audio-small"), phases=f"{kind}:{arguments.steps}steps", seed=seed)
            config = VARIANTS[name](config)
            run = arguments.out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            cells = {"minutes": train(config, [arguments.data / part for part in UNLABELLED], run)}
            for labelled in (SETS[0], SETS[2]):
                for probe, value in own_probes(run, arguments.data, labelled, config.phases).items():
                    cells[f"{labelled.name} {probe}"] = value
            for key, value in cells.items():
                table.setdefault(name, {}).setdefault(key, []).append(value)
            print(f"seed {seed}  {name}: {', '.join(f'{key} {value:.1f}' for key, value in cells.items())}", flush=True)
    print()
    for name, cells_of in table.items():
        shown = [f"{key} {mean_text(values)}" for key, values in cells_of.items()]
        print(f"{name:<44} {'   '.join(shown)}")
    print(json.dumps({"steps": arguments.steps, "table": table, "machine": machine()}))


if __name__ == "__main__":
    main()
