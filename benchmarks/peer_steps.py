"""Masked views per second in training, beside ViTMAE and VideoMAE of transformers at the same sizes.

    python benchmarks/peer_steps.py [--media image video] [--sizes small base] [--threads 2] [--clips 4]

Encoder, decoder and predictor of equal width, depth and heads (base: the decoders of the papers), the same pixels, batch and
mask ratio (0.75 random, 0.9 tubes), the same optimiser and clipping. Theirs runs in fp32 and bf16, with fused and with plain
attention, and the fastest of the four is the one that ours are compared with; ours in bf16 where the device has it. Ours:
regression, the same work as theirs; codes of the cold start and of the trained tokenizer, labels included; and the trained
tokenizer's with 4 masks for each clip, with half of the masked patches predicted, and by a cross predictor. All run in
turns; the speed-up is the median of the ratios of neighbours. Wanted: at least 1.2. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from learning.peers import MASK_RATIO, MAX_NORM, build, optimizer_of
from shared.steps import Bench, alternate, device_of, keep_freed_memory, machine

from bridle.masking import MaskConfig, draw_masks
from bridle.models.predictor import PredictorConfig
from bridle.optim.groups import clip_gradients
from bridle.recipes import recipe
from bridle.run import RunConfig, clip_grid

DECODERS = {("image", "base"): (512, 8, 16), ("video", "base"): (384, 4, 6)}
"""(width, depth, heads) of the papers; a small recipe has its own."""
PRECISIONS, KERNELS = ("fp32", "bf16"), ("sdpa", "eager")


def config_of(medium: str, size: str) -> RunConfig:
    """The recipe, with a predictor that is the peer's decoder and with the peer's masks."""
    config = recipe(f"{medium}-{size}")
    predictor = config.predictor
    width, depth, heads = DECODERS.get((medium, size), (predictor.width, predictor.depth, predictor.heads))
    masks = MaskConfig(kind="tube" if medium == "video" else "random", mask_ratio=MASK_RATIO[medium])
    return replace(config, predictor=PredictorConfig("full", width, depth, heads), masks=masks)


def their_steps(bench: Bench, kernels: list[str]) -> dict[str, Callable[[], object]]:
    """Training steps of one peer on the same pixels, by precision and attention."""
    config, device, seeds = bench.config, bench.device, bench.batch.seeds
    model = build(config, 0).to(device).train()
    optimizer = optimizer_of(model, 1e-4)
    grid, pixels = clip_grid(config), bench.batch.inputs
    inputs: dict[str, torch.Tensor] = {"pixel_values": pixels[:, :, 0]}
    if config.video is not None:
        visible = draw_masks(config.masks, grid, torch.full((len(pixels),), grid.time), seeds).visible.indices
        hidden = torch.ones(len(pixels), grid.num_patches, dtype=torch.bool).scatter_(1, visible, False)
        inputs = {"pixel_values": pixels.transpose(1, 2), "bool_masked_pos": hidden.to(device)}

    def run(precision: str, kernel: str) -> object:
        model.set_attn_implementation(kernel)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**inputs).loss
        loss.backward()
        norm = clip_gradients(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    return {f"theirs, {p}, {k}": partial(run, p, k) for p in PRECISIONS for k in kernels}


def measure(medium: str, size: str, clips: int | None, repeats: int, device: torch.device, kernels: list[str]) -> list[dict]:
    config = config_of(medium, size)
    clips = clips or (config.train.batch_size if size == "small" else {"image": 4, "video": 2}[medium])
    bench = Bench(config, clips, device)
    cross = Bench(replace(config, predictor=replace(config.predictor, kind="cross")), clips, device)
    several, half = replace(config.masks, num_masks=4), replace(config.masks, predict_ratio=0.5)
    jobs = their_steps(bench, kernels)
    theirs = list(jobs)
    ours: dict[str, tuple[Callable[[], object], int]] = {
        "regression": (bench.step("patches"), 1),
        "codes, cold start": (bench.step("cold"), 1),
        "codes": (bench.step("encoder"), 1),
        "codes, 4 masks": (bench.step("encoder", several), 4),
        "codes, 4 masks, 0.5 predicted": (bench.step("encoder", replace(several, predict_ratio=0.5)), 4),
        "codes, cross predictor": (cross.step("encoder"), 1),
        "codes, cold start, cross": (cross.step("cold"), 1),
        "codes, cold start, cross, 0.5": (cross.step("cold", half), 1),
        "codes, cross, 4 masks, 0.5": (cross.step("encoder", replace(several, predict_ratio=0.5)), 4),
    }
    times = alternate(jobs | {name: step for name, (step, _) in ours.items()}, repeats)
    best = min(theirs, key=lambda name: times[name].seconds)
    rows = []
    print(
        f"\n{medium}, {size}: {clips} clips of {clip_grid(config).num_patches} patches, ours in {bench.config.train.precision}"
    )
    print(f"{'step':<34}{'ms':>10}{'views / s':>12}{'speed-up':>10}")
    for name in times:
        views = ours[name][1] if name in ours else 1
        row = {
            "medium": medium,
            "size": size,
            "clips": clips,
            "step": name,
            "seconds": times[name].seconds,
            "views_per_second": clips * views / times[name].seconds,
            "speed_up": views / times[name].over(times[best]),
            "fastest_of_theirs": name == best,
        }
        rows.append(row)
        mark = "  <- compared with" if name == best else ""
        print(
            f"{name:<34}{1e3 * row['seconds']:>10.1f}{row['views_per_second']:>12.1f}{row['speed_up']:>10.2f}{mark}", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", nargs="+", default=["image", "video"], choices=["image", "video"])
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], help="of the recipes medium-size")
    parser.add_argument(
        "--clips", type=int, help="of a batch; else the small recipe's own, 4 pictures or 2 films of a base one"
    )
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS, help="attention of theirs")
    parser.add_argument("--repeats", type=int, default=3)
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
    for size in arguments.sizes:
        for medium in arguments.media:
            rows += measure(medium, size, arguments.clips, arguments.repeats, device, arguments.kernels)
    print(json.dumps({"benchmark": "peer_steps", **vars(arguments), "machine": facts, "rows": rows}))


if __name__ == "__main__":
    main()
