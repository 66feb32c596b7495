"""Steps of a ViT-B on ten seconds of sound (1024 x 128, 512 patches), and how much of the machine's product rate they reach.

    python benchmarks/vit_base_step.py [--recipe audio-base] [--clips 4] [--threads 2] [--predictors recipe cross:512:8:16]

Phases cold, encoder (labelled at every step, and with kept labels), tokenizer and regression, in turns; forward, backward,
clipping, optimiser, labels included. In the same turns the rate of a bf16 product of 1600 x 384 x 1536. "at 2.3" is the
step's time on a machine where that product runs at 2.3 TFLOP/s: wanted are an encoder step of 1.0 s and a tokenizer step of
2.2 s at most. "share" is the step's operations (``bridle.flops``) per second over the rate. Two threads want two idle
cores. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

import torch
from shared.steps import KINDS, PRODUCT, Bench, alternate, device_of, keep_freed_memory, machine, product_rate

from bridle.flops import Flops, PatchCounts, masked_codes, masked_patches, tokenizer_distillation
from bridle.masking import num_masked
from bridle.recipes import recipe
from bridle.run import RunConfig, clip_grid

REFERENCE = 2.3e12
"""Operations per second of the machine that the goals are stated for."""
GOALS = {"cold": 1.0, "encoder": 1.0, "kept labels": 1.0, "tokenizer": 2.2}
PHASES = (*KINDS, "kept labels")
"""``kept labels``: the encoder phase where clips are the same in every epoch, so that the tokenizer has looked before."""


def operations(config: RunConfig, kind: str) -> int:
    """Of a step on one clip."""
    grid = clip_grid(config)
    masked, predicted = (int(count) for count in num_masked(config.masks, grid, torch.tensor([grid.time])))
    counts = PatchCounts(grid.num_patches, grid.num_patches - masked, predicted, config.masks.num_masks)
    if kind == "tokenizer":
        parts = tokenizer_distillation(config, counts)
    else:
        cheap = kind in ("cold", "kept labels")
        parts = masked_patches(config, counts) if kind == "patches" else masked_codes(config, counts, cold=cheap)
    return sum(parts.values(), Flops()).total


def with_predictor(config: RunConfig, text: str) -> RunConfig:
    """The recipe with its own predictor (``recipe``) or with one of ``kind:width:depth:heads``, perhaps with ``:share`` of the
    masked patches that it predicts.
    """
    if text == "recipe":
        return config
    kind, width, depth, heads, *share = text.split(":")
    config = replace(config, masks=replace(config.masks, predict_ratio=float(share[0]) if share else 1.0))
    sizes = {"width": int(width), "depth": int(depth), "heads": int(heads)}
    return replace(config, predictor=replace(config.predictor, kind=kind, window=0, **sizes))


def measure(name: str, predictor: str, clips: int, kinds: list[str], repeats: int, device: torch.device) -> list[dict]:
    bench = Bench(with_predictor(recipe(name), predictor), clips, device)
    rates: list[float] = []
    jobs = {kind: bench.step("encoder", stored=True) if kind == "kept labels" else bench.step(kind) for kind in kinds}
    times = alternate(jobs | {"rate": lambda: rates.append(product_rate(device, repeats=10))}, repeats)
    rate, rows = statistics.median(rates[1:]), []
    print(f"\n{name}, predictor {predictor}, {clips} clips of {clip_grid(bench.config).num_patches} patches")
    print(f"product of {' x '.join(map(str, PRODUCT))} in bf16: {rate / 1e12:.2f} TFLOP/s")
    print(f"{'phase':<12}{'seconds':>9}{'fastest':>9}{'at 2.3':>9}{'wanted':>9}{'GFLOP':>9}{'GFLOP/s':>9}{'share':>8}")
    for kind in kinds:
        seconds, work = statistics.median(times[kind].wall), clips * operations(bench.config, kind)
        row = {
            "recipe": name,
            "predictor": predictor,
            "phase": kind,
            "clips": clips,
            "product_rate": rate,
            "seconds": seconds,
            "fastest_seconds": min(times[kind].wall),
            "cpu_seconds": statistics.median(times[kind].cpu),
            "seconds_at_reference_rate": seconds * rate / REFERENCE,
            "operations": work,
            "share_of_product_rate": work / seconds / rate,
        }
        rows.append(row)
        figures = f"{seconds:>9.2f}{row['fastest_seconds']:>9.2f}{row['seconds_at_reference_rate']:>9.2f}"
        wanted = GOALS.get(kind, "-")
        share = row["share_of_product_rate"]
        print(f"{kind:<12}{figures}{wanted!s:>9}{work / 1e9:>9.0f}{work / seconds / 1e9:>9.0f}{share:>8.0%}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="audio-base")
    parser.add_argument(
        "--predictors",
        nargs="+",
        default=["recipe", "cross:512:8:16", "cross:512:4:16:0.5"],
        metavar="recipe|KIND:WIDTH:DEPTH:HEADS[:SHARE]",
    )
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory from step to step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_freed_memory()
    facts, device = machine(), device_of(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for predictor in arguments.predictors:
        rows += measure(arguments.recipe, predictor, arguments.clips, arguments.phases, arguments.repeats, device)
    print(json.dumps({"benchmark": "vit_base_step", **vars(arguments), "machine": facts, "rows": rows}))


if __name__ == "__main__":
    main()
