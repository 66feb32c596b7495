"""Pictures and films: RQ, VQ and masked-patch regression beside a random encoder, raw pixels, and a peer of the same size.

The peer is ViTMAE or VideoMAE of transformers, trained on the same batches for as many minutes; its learning rate is the
best of three by accuracy inside the training part. Every method is given as many steps as fit into the same minutes at its
speed, measured once; the minutes that it took are in the table. Images: fashion_mnist, official split. Video: mouth crops of
grid_s1, colour, digit and letter on the suggested split. Runs go on where they were, and several processes may share the
folder once the first call has measured the speeds.
Command: ``python benchmarks/learning/peer_claim.py --medium image --data DATA --out RUNS``. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import peers
import torch
from runs import (
    LabelledSet,
    load_after,
    machine,
    mean_text,
    probe_models,
    seconds_per_step,
    train,
    with_one_codebook,
)

from bridle.config import fingerprint
from bridle.data.medium import MEDIA
from bridle.eval.evaluate import RANDOM, RUN, Columns
from bridle.files import write_atomically
from bridle.inference import Model, load, random_model
from bridle.recipes import recipe
from bridle.run import RunConfig

RQ, VQ, PATCHES, PEER = "RQ 4x256", "VQ 1x1024", "masked-patch regression", "transformers"
PEER_LRS = (3e-4, 1e-3, 3e-3)
TIMED_STEPS = (40, 100)


@dataclass(frozen=True)
class Data:
    """Where a medium's unlabelled files are, as patterns, and the labelled sets that judge."""

    unlabelled: str
    sets: tuple[LabelledSet, ...]


DATA = {
    "image": Data(
        "fashion_mnist/train-*.tar", (LabelledSet("fashion", "fashion_mnist", Columns("class", split="split"), None),)
    ),
    "video": Data(
        "grid_s1/mouth/*",
        tuple(
            LabelledSet(f"grid {name}", "grid_s1/meta.csv", Columns(name, split="suggested_split"), "mouth")
            for name in ("color", "digit", "letter")
        ),
    ),
}


def variant(medium: str, method: str, seed: int) -> RunConfig:
    config = dataclasses.replace(recipe(f"{medium}-small"), seed=seed)
    return with_one_codebook(config) if method == VQ else config


def kind_of(method: str) -> str:
    return "patches" if method == PATCHES else "cold"


def speeds(medium: str, sources: list[Path], kept: Path) -> dict[str, float]:
    """Seconds per step by method, measured once: the plan must not change between calls."""
    settings = fingerprint(variant(medium, RQ, 0))
    if not kept.exists():
        measured: dict[str, float] = {}
        for method in (RQ, VQ, PATCHES):
            config = dataclasses.replace(variant(medium, method, 0), phases=f"{kind_of(method)}:{TIMED_STEPS[1]}steps")
            measured[method] = seconds_per_step(config, sources, TIMED_STEPS)
        measured[PEER] = peers.seconds_per_step(variant(medium, RQ, 0), sources, TIMED_STEPS)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps({"settings": settings, "seconds": measured}))
    found = json.loads(kept.read_text())
    if found["settings"] != settings:
        raise SystemExit(f"{kept.parent} holds runs of other settings; choose another --out")
    return dict(found["seconds"])


def judge(
    model: Model, kept: Path, data: Path, sets: Sequence[LabelledSet], *, beside: bool = False
) -> dict[str, dict[str, float]]:
    """By features, accuracy in percent by set and probe, and under ``inner`` the mean accuracy inside the training parts.

    The model's own features and, with ``beside``, all that stands beside them. What the file ``kept`` holds is not judged
    anew: remove it to have later poolings tried. It also says which ones were chosen.
    """
    if not kept.exists():
        models = {RUN: model, RANDOM: random_model(model.config, model.device, "bf16")} if beside else {RUN: model}
        rows: dict[str, dict[str, float]] = {}
        chosen: dict[str, dict[str, str]] = {}
        inner: dict[str, list[float]] = {}
        for (set_name, name), results in probe_models(models, data, sets, None if beside else [RUN]).items():
            for probe, result in results.items():
                rows.setdefault(name, {})[f"{set_name} {probe}"] = 100 * result.accuracy
                chosen.setdefault(name, {})[f"{set_name} {probe}"] = result.splits[0].pooling
                inner.setdefault(name, []).append(100 * result.splits[0].inner_accuracy)
        for name, values in inner.items():
            rows[name]["inner"] = sum(values) / len(values)
        write_atomically(kept, json.dumps({"rows": rows, "poolings": chosen}))
    found: dict[str, dict[str, float]] = json.loads(kept.read_text())["rows"]
    return found


def peer_rows(medium: str, sources: list[Path], data: Path, out: Path, steps: int, seed: int) -> dict[str, float]:
    """The peer of a seed; seed 0 tries three learning rates, the others take the best one."""
    sets = DATA[medium].sets

    def one(lr: float) -> dict[str, float]:
        config = variant(medium, RQ, seed)
        run = out / f"peer-{lr:g}-seed{seed}"
        minutes = peers.train(peers.Peer(config, lr, steps, seed), sources, run)
        cells = judge(load(run, precision="bf16"), run / f"judged-{steps}-steps.json", data, sets)[RUN]
        return {"minutes": minutes, "lr": lr, **cells}

    chosen = out / "peer-lr.json"
    if not chosen.exists():
        if seed:
            raise SystemExit("the peer's learning rate is chosen by seed 0; run that first")
        tried = [one(lr) for lr in PEER_LRS]
        write_atomically(chosen, json.dumps(tried))
    tried = json.loads(chosen.read_text())
    lr = max(tried, key=lambda cells: cells["inner"])["lr"]
    if lr in (PEER_LRS[0], PEER_LRS[-1]):
        print(f"the best learning rate, {lr:g}, is at the edge of {PEER_LRS}", flush=True)
    return one(lr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--medium", choices=list(DATA), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[RQ, VQ, PATCHES, PEER], choices=[RQ, VQ, PATCHES, PEER])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    own = DATA[arguments.medium]
    sources = sorted(path for path in arguments.data.glob(own.unlabelled) if not path.name.startswith("."))
    if not sources:
        raise SystemExit(f"{arguments.data} holds no {own.unlabelled}, {MEDIA[arguments.medium].nouns} to train on")
    speed = speeds(arguments.medium, sources, arguments.out / f"speeds-{arguments.threads}-threads.json")
    table: dict[str, dict[str, list[float]]] = {}

    def note(seed: int, name: str, cells: dict[str, float]) -> None:
        for key, value in cells.items():
            table.setdefault(name, {}).setdefault(key, []).append(value)
        print(f"seed {seed}  {name}: {', '.join(f'{key} {value:.4g}' for key, value in cells.items())}", flush=True)

    for seed in arguments.seeds:
        for method in arguments.methods:
            steps = round(60 * arguments.minutes / speed[method])
            if method == PEER:
                note(seed, PEER, peer_rows(arguments.medium, sources, arguments.data, arguments.out, steps, seed))
                continue
            phases = f"{kind_of(method)}:{steps}steps"
            run = arguments.out / f"{method.replace(' ', '-')}-seed{seed}"
            minutes = train(dataclasses.replace(variant(arguments.medium, method, seed), phases=phases), sources, run)
            model, kept = load_after(run, phases, "bf16"), run / f"judged-{steps}-steps.json"
            for features, cells in judge(model, kept, arguments.data, own.sets, beside=method == RQ).items():
                if features == RUN:
                    note(seed, method, {"minutes": minutes, "steps": steps, **cells})
                else:
                    note(seed, features, cells)
    print()
    for name, cells in table.items():
        print(f"{name:<28} {'   '.join(f'{key} {mean_text(values)}' for key, values in cells.items())}")
    print(json.dumps({"medium": arguments.medium, "minutes": arguments.minutes, "table": table, "machine": machine()}))


if __name__ == "__main__":
    main()
