"""What labels cost: a step on masked codes beside masked-patch regression, and what each lever gives, alone and together.

    python benchmarks/training_step.py [--recipes audio-small image-small video-small audio-base] [--clips N] [--threads 1]

All steps of a recipe share networks and one batch of noise in the shape of full clips, and run in turns: forward, backward,
clipping, optimiser, labels included. A view is one mask of one clip. Time is CPU time with one thread, which other work on
the machine hardly moves, else the clock's. "plain" is the time of a view over that of masked-patch regression with one mask
for each clip and every masked patch predicted; "same" is that over regression with the same masks. Wanted: at most 1.1.
Stored codes stand for labels that are kept from the epoch before (what it costs to find them is not in). The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from shared.steps import Bench, alternate, device_of, keep_freed_memory, machine

import bridle.nn.attention as attention
from bridle.masking import MaskConfig
from bridle.recipes import recipe

CLIPS = {"audio": 4, "image": 4, "video": 1}
"""Of a base recipe's batch; small recipes have their own."""


def with_attention(step: Callable[[], object], longest: int) -> Callable[[], object]:
    """The step with plain attention up to so many keys, and the fused kernel beyond."""

    def run() -> object:
        before = attention.PLAIN_MAX_KEYS
        attention.PLAIN_MAX_KEYS = longest
        try:
            return step()
        finally:
            attention.PLAIN_MAX_KEYS = before

    return run


def measure(name: str, clips: int | None, masks: list[int], ratios: list[float], repeats: int, device: torch.device) -> list:
    config = recipe(name)
    base = name.endswith("-base")
    bench = Bench(config, clips or (CLIPS[config.medium.name] if base else config.train.batch_size), device)
    one = replace(bench.config.masks, num_masks=1, predict_ratio=1.0)
    jobs: dict[str, Callable[[], object]] = {}
    facts: dict[str, tuple[MaskConfig, str]] = {}

    def add(name: str, step: Callable[[], object], setting: MaskConfig = one, kind: str = "codes") -> None:
        jobs[name], facts[name] = step, (setting, kind)

    for count, ratio in [(count, 1.0) for count in masks] + [(1, ratio) for ratio in ratios]:
        setting = replace(one, num_masks=count, predict_ratio=ratio)
        what = f"{count} masks, {ratio:g} predicted"
        add(f"regression, {what}", bench.step("patches", setting), setting, "regression")
        add(f"codes, {what}", bench.step("encoder", setting), setting)
    add("codes of the cold start", bench.step("cold", one))
    add("stored codes", bench.step("encoder", one, stored=True))
    both = replace(one, num_masks=min(4, max(masks)), predict_ratio=0.5)
    what = f"{both.num_masks} masks, 0.5 predicted"
    add(f"regression, {what}", bench.step("patches", both), both, "regression")
    add(f"codes, {what}", bench.step("encoder", both), both)
    add(f"stored codes, {what}", bench.step("encoder", both, stored=True), both)
    if device.type == "cpu":
        add("codes, fused attention only", with_attention(jobs["codes, 1 masks, 1 predicted"], 0))
    other = "fp32" if bench.config.train.precision == "bf16" else "bf16"
    add(f"codes, {other}", bench.step("encoder", one, precision=other))
    add(f"regression, {other}", bench.step("patches", one, precision=other), one, f"regression {other}")

    times = alternate(jobs, repeats)
    plain, rows = times["regression, 1 masks, 1 predicted"], []
    print(f"\n{name}: {len(bench.batch)} clips, {bench.config.train.precision}")
    print(f"{'step':<42}{'masks':>6}{'predicted':>10}{'ms':>9}{'ms / view':>11}{'plain':>8}{'same':>8}")
    for job, (setting, kind) in facts.items():
        same = next(n for n, (own, k) in facts.items() if own == setting and k == "regression")
        if job.endswith(other):
            same = f"regression, {other}"
        views = len(bench.batch) * setting.num_masks
        row = {
            "recipe": name,
            "step": job,
            "kind": kind,
            "masks": setting.num_masks,
            "predicted": setting.predict_ratio,
            "seconds": times[job].seconds,
            "seconds_per_view": times[job].seconds / views,
            "over_plain_regression": times[job].over(plain) / setting.num_masks,
            "over_same_regression": times[job].over(times[same]),
        }
        rows.append(row)
        figures = f"{1e3 * row['seconds']:>9.1f}{1e3 * row['seconds_per_view']:>11.2f}"
        print(
            f"{job:<42}{setting.num_masks:>6}{setting.predict_ratio:>10g}{figures}"
            f"{row['over_plain_regression']:>8.2f}{row['over_same_regression']:>8.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["audio-small", "image-small", "video-small"])
    parser.add_argument("--clips", type=int, help="of a batch; else the small recipe's own, 4 or 1 of a base recipe")
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 4, 16], help="masks of a clip; 1 must be among them")
    parser.add_argument("--predicted", type=float, nargs="*", default=[0.5, 0.25], help="shares of the masked patches")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory from step to step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_freed_memory()
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for name in arguments.recipes:
        masks = sorted({1, *arguments.masks})
        rows += measure(name, arguments.clips, masks, arguments.predicted, arguments.repeats, device_of(arguments.device))
    print(json.dumps({"benchmark": "training_step", **vars(arguments), "machine": facts, "rows": rows}))


if __name__ == "__main__":
    main()
