"""What one training step of the base recipes costs: operations by part, seconds and memory by phase.

    python benchmarks/base_recipes.py [--recipes audio-base image-base video-base] [--only both] [--clips 2] [--threads 1]

Operations are counted from the configuration by ``bridle.flops`` and, beside it, by torch's counter on one clip in float32:
part by part, and the whole step of the objective. Attention is counted as its products; a fused kernel computes one of them
anew in the backward pass. Steps are timed on noise in the shape of full clips, each recipe and phase in a process of its own:
one step to warm up and two that count; of a joint phase one with and one without the tokenizer's loss, weighted as they occur.
Memory is the growth of the peak resident set from before the networks were built. A phase runs with all networks of its
recipe; a phase that the recipe lacks is added to it, patches stands alone. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch

from bridle.doctor.plan import raw_loader
from bridle.doctor.speed import _fit_codebooks, random_batch
from bridle.flops import Flops, PatchCounts, masked_codes, masked_patches, measure, tokenizer_distillation
from bridle.masking import num_masked
from bridle.models.encoder import Features
from bridle.networks import Networks, build_objective
from bridle.objectives.masked import labels_at
from bridle.objectives.view import draw_view_masks, whole_view
from bridle.optim.groups import build_adamw
from bridle.phases import PhaseKind
from bridle.recipes import recipe
from bridle.run import RunConfig, clip_grid
from bridle.train.loop import resolve_precision, train_step

CPU = torch.device("cpu")
CLIPS = {"audio": 4, "image": 4, "video": 2}
KINDS: tuple[PhaseKind, ...] = ("cold", "tokenizer", "encoder", "joint", "patches")
TOLERANCE = 0.02


def counted(config: RunConfig, kind: PhaseKind) -> dict[str, Flops]:
    """Parts of a step on one clip, from the configuration; not for a joint phase, which is two steps in one."""
    grid = clip_grid(config)
    masked, predicted = (int(count) for count in num_masked(config.masks, grid, torch.tensor([grid.time])))
    counts = PatchCounts(grid.num_patches, grid.num_patches - masked, predicted, config.masks.num_masks)
    if kind == "tokenizer":
        return tokenizer_distillation(config, counts)
    return masked_patches(config, counts) if kind == "patches" else masked_codes(config, counts, cold=kind == "cold")


def measured(config: RunConfig, kind: PhaseKind, networks: Networks) -> tuple[list[Flops], Flops]:
    """Torch's count of the parts, in the order of :func:`counted`, and of the whole step of the objective."""
    phase = next(phase for phase in config.plan if phase.kind == kind)
    objective = build_objective(phase, networks, config).train()
    batch = raw_loader(config).finish(random_batch(config, 1), augment=True)
    whole = measure(lambda: torch.stack(list(objective(batch, 0).losses.values())))

    view = whole_view(batch, config.encoder.patch)
    encoder, patches, grid = networks.encoder, view.patches, view.patches.grid
    if kind == "tokenizer":
        tokenizer, estimator = networks.tokenizer, networks.estimator
        assert tokenizer is not None
        assert estimator is not None
        vectors = tokenizer.vectors(patches, view.every).detach().requires_grad_()
        return [
            measure(lambda: encoder(patches, view.every).patches),
            measure(lambda: tokenizer.quantizer(view.pick(tokenizer.vectors(patches, view.every))).vectors),
            measure(lambda: estimator(vectors, grid, view.every)),
        ], whole
    masks = draw_view_masks(view, config.masks, batch.seeds, patches.values.device)
    seen = encoder(patches, masks.visible)
    features = Features(seen.summary.detach().requires_grad_(), seen.patches.detach().requires_grad_())
    head = networks.patch_head if kind == "patches" else networks.head
    assert head is not None
    parts = [
        measure(lambda: encoder(patches, masks.visible).patches),
        measure(lambda: head(networks.predictor(features, grid, masks.visible, masks.predicted))),
    ]
    labels = networks.cold if kind == "cold" else networks.tokenizer
    if kind != "patches":
        assert labels is not None
        parts.append(measure(lambda: labels_at(labels, view, masks.predicted)))
    return parts, whole


def print_flops(name: str) -> list[dict[str, object]]:
    """The table of one recipe."""
    config = replace(recipe(name), phases=", ".join(f"{kind}:1steps" for kind in KINDS))
    networks = Networks(config)
    _fit_codebooks(networks, CPU)
    print(f"\n{name}: GFLOP of a step on one clip, {clip_grid(config).num_patches} patches")
    print(f"{'phase':<10} {'part':<26} {'forward':>9} {'step':>9} {'measured':>9} {'differs':>8} {'share':>6}")
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        if kind == "joint":
            continue
        own = counted(config, kind)
        parts, whole = measured(config, kind, networks)
        step = sum(own.values(), Flops())
        for part, ours, theirs in zip([*own, "whole step"], [*own.values(), step], [*parts, whole], strict=True):
            differs, share = ours.total / theirs.total - 1, ours.total / step.total
            rows.append({"phase": kind, "part": part, "counted": asdict(ours), "measured": asdict(theirs), "share": share})
            figures = f"{ours.forward / 1e9:>9.4g} {ours.total / 1e9:>9.4g} {theirs.total / 1e9:>9.4g}"
            print(f"{kind:<10} {part:<26} {figures} {differs:>8.2%} {share:>6.1%}", flush=True)
            if abs(differs) > TOLERANCE or abs(ours.forward / theirs.forward - 1) > TOLERANCE:
                print(f"{'':<10} differs by more than {TOLERANCE:.0%}: counted {ours}, measured {theirs}")
    return rows


@dataclass(frozen=True)
class StepCost:
    """A phase's step: its seconds and clips, the growth of the peak resident set, and of what that is made, in bytes."""

    precision: str
    clips: int
    seconds: float
    peak: int
    weights: int
    gradients: int
    optimizer: int


def time_step(name: str, kind: PhaseKind, clips: int, threads: int) -> StepCost:
    """Run three steps. Must be called in a fresh process: a peak does not go down again."""
    torch.set_num_threads(threads)
    config = recipe(name)
    if kind not in {phase.kind for phase in config.plan}:
        phases = "patches:1steps" if kind == "patches" else f"{config.phases}, tokenizer:1steps, {kind}:1steps"
        config = replace(config, phases=phases)
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train.precision, CPU)))
    loader, batch = raw_loader(config), random_batch(config, clips)
    loader.finish(batch, augment=True)  # what it imports is not the step's
    before = resident("VmRSS")
    networks = Networks(config)
    _fit_codebooks(networks, CPU)
    objective = build_objective(next(phase for phase in config.plan if phase.kind == kind), networks, config).train()
    optim = config.tokenizer_optim if kind == "tokenizer" else config.encoder_optim
    optimizer = build_adamw(objective, optim)
    times = []
    for step in (0, 0, 1):
        start = time.perf_counter()
        train_step(objective, objective, optimizer, loader.finish(batch, augment=True), step, optim.clip_norm, config.train)
        times.append(time.perf_counter() - start)
    every = config.joint_every_steps if kind == "joint" else 2
    return StepCost(
        precision=config.train.precision,
        clips=clips,
        seconds=times[1] / every + times[2] * (1 - 1 / every),
        peak=resident("VmHWM") - before,
        weights=num_bytes(list(networks.state_dict().values())),
        gradients=num_bytes([p for p in objective.parameters() if p.requires_grad]),
        optimizer=num_bytes([t for state in optimizer.state.values() for t in state.values()]),
    )


def num_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``) or at most (``VmHWM``). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def print_steps(name: str, clips: int | None, threads: int) -> list[dict[str, object]]:
    """The table of one recipe."""
    config = recipe(name)
    clips = clips or CLIPS[config.medium.name]
    steps: dict[PhaseKind, int] = {
        kind: sum(counted(config, kind).values(), Flops()).total for kind in KINDS if kind != "joint"
    }
    steps["joint"] = steps["encoder"] + steps["tokenizer"] // config.joint_every_steps
    print(f"\n{name}: steps on {clips} clips; MiB")
    names = ("seconds", "clips/s", "GFLOP/s", "peak", "weights", "gradients", "optimiser")
    print(f"{'phase':<10} {'precision':<10}" + "".join(f"{name:>10}" for name in names))
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(time_step, name, kind, clips, threads).result()
        rate = clips / cost.seconds
        rows.append({"phase": kind, **asdict(cost), "clips_per_second": rate, "flops_per_second": rate * steps[kind]})
        memory = (f"{part / 2**20:>10.0f}" for part in (cost.peak, cost.weights, cost.gradients, cost.optimizer))
        figures = f"{cost.seconds:>10.2f}{rate:>10.3f}{rate * steps[kind] / 1e9:>10.0f}"
        print(f"{kind:<10} {cost.precision:<10}{figures}{''.join(memory)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["audio-base", "image-base", "video-base"])
    parser.add_argument("--only", choices=("flops", "steps", "both"), default="flops")
    parser.add_argument("--clips", type=int, help="of a timed batch; else 4 sounds or pictures, 2 films")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    assert set(KINDS) == set(get_args(PhaseKind))
    load = os.getloadavg()[0]
    print(f"{arguments.threads} threads of {os.cpu_count()} cores, torch {torch.__version__}, load of the machine {load:.1f}")
    results: dict[str, dict[str, object]] = {name: {} for name in arguments.recipes}
    for name in arguments.recipes:
        if arguments.only in ("flops", "both"):
            results[name]["flops"] = print_flops(name)
        if arguments.only in ("steps", "both"):
            results[name]["steps"] = print_steps(name, arguments.clips, arguments.threads)
    facts = {"torch": torch.__version__, "threads": arguments.threads, "load before": load, "load after": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "base_recipes", **facts, "results": results}))


if __name__ == "__main__":
    main()
