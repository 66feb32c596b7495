"""What makes an encoder step faster, and what it does to what is learnt in the same time.

Each variant of audio-small trains cold and tokenizer phases of the same number of steps, then an encoder phase that lasts
``--minutes`` at the variant's own measured speed. Probes on esc10's official folds. Several processes of one thread may share
the variants (``--variants``) and the folder. Command: ``python benchmarks/learning/levers.py --data DATA --out RUNS``. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from runs import SETS, machine, mean_text, own_probes, seconds_per_step, train
from settings import both, part, top

from bridle.nn import attention
from bridle.recipes import recipe
from bridle.run import RunConfig

BEFORE = "cold:300steps, tokenizer:100steps"
TIMED_STEPS = (20, 60)
PLAIN = part("audio", shift=False, gain=False)
EVERY_TIME = part("train", label_cache_gigabytes=0.0)

VARIANTS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "as it is": top(),
    "4 masks a clip": part("masks", num_masks=4),
    "16 masks a clip": part("masks", num_masks=16),
    "all masked patches predicted": part("masks", predict_ratio=1.0),
    "a quarter predicted": part("masks", predict_ratio=0.25),
    "fp32": part("train", precision="fp32"),
    "fused attention": top(),
    "not augmented": both(PLAIN, EVERY_TIME),
    "not augmented, labels kept": PLAIN,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the encoder phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sources = [arguments.data / "esc10" / "audio"]
    rows: dict[str, dict[str, list[float]]] = {}
    for name in arguments.variants:
        attention.PLAIN_MAX_KEYS = 0 if name == "fused attention" else 1025
        for seed in arguments.seeds:
            config = dataclasses.replace(VARIANTS[name](recipe("audio-small")), seed=seed)
            folder = arguments.out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            kept = folder.with_suffix(".speed")
            if not kept.exists():
                timed = dataclasses.replace(config, phases=f"cold:1steps, tokenizer:1steps, encoder:{TIMED_STEPS[1]}steps")
                kept.write_text(repr(seconds_per_step(timed, sources, TIMED_STEPS)))
            seconds = float(kept.read_text())
            steps = round(60 * arguments.minutes / seconds)
            config = dataclasses.replace(config, phases=f"{BEFORE}, encoder:{steps}steps")
            train(config, sources, folder)
            cells = {"ms a step": 1000 * seconds, "steps": float(steps)}
            cells |= own_probes(folder, arguments.data, SETS[0], config.phases)
            for key, value in cells.items():
                rows.setdefault(name, {}).setdefault(key, []).append(value)
            print(f"seed {seed}  {name}: {', '.join(f'{key} {value:.1f}' for key, value in cells.items())}", flush=True)
    print()
    for name, cells_of in rows.items():
        print(f"{name:<32} {'   '.join(f'{key} {mean_text(values)}' for key, values in cells_of.items())}")
    print(json.dumps({"benchmark": "levers", "minutes": arguments.minutes, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
