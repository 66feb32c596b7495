"""Clips per second of the base recipes on a GPU, the share of its matrix rate that they reach, and where the time goes.

    python benchmarks/gpu.py [--recipes audio-base image-base video-base] [--clips 64] [--compiled no yes] [--rows 12]

Steps of the phases cold, encoder and tokenizer on noise in the shape of full clips: forward, backward, clipping, optimiser,
labels. The rate is that of a bf16 product of 8192 x 8192 x 8192 in the same run; "share" is the step's operations
(``bridle.flops``) per second over it. "compiled" has torch.compile compile the networks first. Then a profile of one step, by
what the device does, and clips per second and core of the loaders (synthetic files, see ``media_input.py``): so many cores
are needed to feed the device. Without a GPU the debug recipes run on the CPU and are not compiled, to see that the script
works: the numbers say nothing about a GPU, and the table and the document say so. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json

import media_input
import torch
from shared.steps import Bench, alternate, device_of, machine, product_rate
from torch.profiler import ProfilerActivity, profile
from vit_base_step import operations

from bridle.data.medium import MEDIA
from bridle.recipes import recipe
from bridle.run import clip_grid

PHASES = ("cold", "encoder", "tokenizer")
PRODUCTS = {"cuda": (8192, 8192, 8192), "cpu": (1600, 384, 1536)}


def profiled(step: object, device: torch.device, rows: int) -> list[dict[str, object]]:
    """What took longest in a step: name, milliseconds, share, calls."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, field), reverse=True)
    total = max(1e-9, sum(getattr(event, field) for event in events))
    return [
        {
            "name": event.key,
            "milliseconds": getattr(event, field) / 1e3,
            "share": getattr(event, field) / total,
            "calls": event.count,
        }
        for event in events[:rows]
    ]


def measure(name: str, clips: int, compiled: bool, phases: list[str], repeats: int, rows: int) -> list[dict[str, object]]:
    device = device_of("auto")
    bench = Bench(recipe(name), clips, device)
    rate = product_rate(device, PRODUCTS[device.type])
    found = []
    for phase in phases:
        step = bench.step(phase, compiled=compiled)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = alternate({phase: step}, repeats)[phase].seconds
        work = clips * operations(bench.config, phase)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        row = {
            "recipe": name,
            "phase": phase,
            "compiled": compiled,
            "clips": clips,
            "patches": clip_grid(bench.config).num_patches,
            "seconds": seconds,
            "clips_per_second": clips / seconds,
            "matrix_rate": rate,
            "share_of_matrix_rate": work / seconds / rate,
            "peak_bytes": peak,
            "measured_on_gpu": device.type == "cuda",
            "profile": profiled(step, device, rows),
        }
        found.append(row)
        share, shown = row["share_of_matrix_rate"], "yes" if compiled else "no"
        memory = "-" if peak is None else f"{peak / 2**30:.1f}"
        print(
            f"{name:<14}{phase:<11}{shown:<10}{clips:>6}{seconds:>10.4f}{clips / seconds:>10.1f}{share:>8.1%}{memory:>10}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    is_gpu = torch.cuda.is_available()
    recipes = [f"{medium}-{'base' if is_gpu else 'debug'}" for medium in MEDIA]
    parser.add_argument("--recipes", nargs="+", default=recipes)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--clips", type=int, help="of a batch; else 64 on a GPU, 1 elsewhere")
    parser.add_argument("--compiled", nargs="+", default=["no", "yes"] if is_gpu else ["no"], choices=["no", "yes"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12, help="of each profile")
    parser.add_argument("--files", type=int, default=20, help="that the loaders read; 0 leaves them out")
    arguments = parser.parse_args()
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if not is_gpu:
        print("NOT MEASURED ON A GPU: there is none here; the numbers show that the script runs, and nothing else")
    clips = arguments.clips or (64 if is_gpu else 1)
    columns = f"{'clips':>6}{'seconds':>10}{'clips / s':>10}{'share':>8}{'peak GiB':>10}"
    print(f"{'recipe':<14}{'phase':<11}{'compiled':<10}{columns}")
    steps = []
    for name in arguments.recipes:
        for compiled in arguments.compiled:
            steps += measure(name, clips, compiled == "yes", arguments.phases, arguments.repeats, arguments.rows)
    for row in steps:
        print(f"\n{row['recipe']}, {row['phase']}{', compiled' if row['compiled'] else ''}")
        for event in row["profile"]:
            print(f"{event['name'][:70]:<72}{event['milliseconds']:>10.2f} ms{event['share']:>8.1%}{event['calls']:>7}")
    loaders, threads = [], torch.get_num_threads()
    if arguments.files:
        torch.set_num_threads(1)
        for medium in dict.fromkeys(recipe(name).medium.name for name in arguments.recipes):
            loaders += [row for row in media_input.measure(medium, arguments.files, 3, 5.0) if row["job"] == "loader"]
            print(f"\nloader, {medium}: {loaders[-1]['files_per_core_second']:.1f} clips per core-second", end="")
        torch.set_num_threads(threads)
    print()
    document = {"benchmark": "gpu", "measured_on_gpu": is_gpu, **vars(arguments), "machine": facts}
    print(json.dumps(document | {"steps": steps, "loaders": loaders}))


if __name__ == "__main__":
    main()
