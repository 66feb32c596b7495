"""How a training step grows: with batch, clip length, levels, codebook size, network, processes; and AudioSet-2M, calculated.

    python benchmarks/growth.py [--recipe audio-small] [--phases cold encoder tokenizer] [--processes 1 2] [--threads 1]

One setting moves at a time; all settings of an axis run in turns and are compared with the recipe's own: "of base" is the
median of the ratios of neighbours. Processes run by torchrun over gloo on this machine, one thread each, the recipe's batch
shared out; more processes than idle cores say little. The second table is calculated: an epoch of AudioSet-2M (1,912,134
clips) with audio-base on 8 and 64 GPUs, from counted operations and bytes, and from three numbers that can be given: a GPU's
matrix rate, the share of it that steps reach, and the bandwidth of a ring between processes. Every number says which of
the two it is. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from shared.steps import Bench, alternate, device_of, machine
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vit_base_step import operations

from bridle import distributed
from bridle.networks import Networks
from bridle.quantize.codebook import statistics_length
from bridle.recipes import recipe
from bridle.run import RunConfig

CLIPS_OF_AUDIOSET = 1_912_134
AXES = {
    "batch": (0.25, 0.5, 2.0),
    "seconds": (0.5, 2.0),
    "levels": (1, 2, 8),
    "codes": (64, 1024),
    "width": (64, 256),
    "depth": (2, 8),
}
GPUS = (8, 64)


def changed(config: RunConfig, axis: str, value: float) -> tuple[RunConfig, str]:
    """The recipe with one setting moved, and its name; batch and seconds by a factor, the others to a value."""
    encoder, quantizer = config.encoder, config.quantizer
    if axis == "batch":
        size = max(1, round(config.train.batch_size * value))
        return replace(config, train=replace(config.train, batch_size=size)), str(size)
    if axis == "seconds":
        seconds = config.audio.crop_seconds * value
        return replace(config, audio=replace(config.audio, crop_seconds=seconds)), f"{seconds:g}"
    if axis == "levels":
        return replace(config, quantizer=replace(quantizer, num_codebooks=int(value))), str(value)
    if axis == "codes":
        sample = max(quantizer.init_sample, 2 * int(value))
        return replace(config, quantizer=replace(quantizer, codebook_size=int(value), init_sample=sample)), str(value)
    if axis == "width":
        heads = max(1, int(value) * encoder.heads // encoder.width)
        return replace(config, encoder=replace(encoder, width=int(value), heads=heads)), str(value)
    return replace(config, encoder=replace(encoder, depth=int(value))), str(value)


def grow(config: RunConfig, axis: str, values: list[float], phases: list[str], repeats: int) -> list[dict]:
    """Steps of one axis, measured."""
    device = device_of("auto")
    settings = {"recipe": config} | {name: other for other, name in (changed(config, axis, value) for value in values)}
    jobs = {}
    for name, other in settings.items():
        bench = Bench(other, other.train.batch_size, device)
        jobs |= {(name, phase): bench.step(phase) for phase in phases}
    times = alternate(jobs, repeats)
    rows = []
    for (name, phase), spent in times.items():
        ratio = spent.over(times["recipe", phase])
        rows.append(
            {"axis": axis, "value": name, "phase": phase, "seconds": spent.seconds, "of_base": ratio, "source": "measured"}
        )
        print(f"{axis:<12}{name:<10}{phase:<12}{1e3 * spent.seconds:>10.1f}{ratio:>9.2f}  measured", flush=True)
    return rows


def worker(name: str, phases: list[str], repeats: int, out: str) -> None:
    """One of the processes: its share of the recipe's batch, gradients and codebooks summed over all."""
    with distributed.process_group():
        config = recipe(name)
        share = max(1, config.train.batch_size // distributed.world_size())
        # Each phase has networks of its own: parameters cannot be shared out twice.
        jobs = {phase: Bench(config, share, torch.device("cpu")).step(phase, wrap=shared_out) for phase in phases}
        times = alternate(jobs, repeats)
        if distributed.rank() == 0:
            found = {phase: sorted(spent.wall)[len(spent.wall) // 2] for phase, spent in times.items()}
            Path(out).write_text(json.dumps(found))


def shared_out(objective: nn.Module) -> nn.Module:
    """The objective with its gradients summed over all processes."""
    if not distributed.is_active():
        return objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name; its successor synchronises buffers at the start
        return DistributedDataParallel(objective, broadcast_buffers=False)


def processes(name: str, counts: list[int], phases: list[str], repeats: int) -> list[dict]:
    """Steps of one batch shared by so many processes, measured by the clock."""
    rows, first = [], {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "times.json")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            command += [__file__, "--worker", out, "--recipe", name, "--repeats", str(repeats), "--phases", *phases]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            found = json.loads(Path(out).read_text())
        for phase, seconds in found.items():
            ratio = seconds / first.setdefault(phase, seconds)
            rows.append(
                {
                    "axis": "processes",
                    "value": str(count),
                    "phase": phase,
                    "seconds": seconds,
                    "of_base": ratio,
                    "source": "measured",
                }
            )
            print(f"{'processes':<12}{count:<10}{phase:<12}{1e3 * seconds:>10.1f}{ratio:>9.2f}  measured", flush=True)
    return rows


def audioset(matrix_rate: float, share: float, bandwidth: float) -> list[dict]:
    """An epoch of AudioSet-2M, computed: operations, bytes of each step's collectives, hours if they do not overlap."""
    config = replace(recipe("audio-base"), phases="cold:1steps, tokenizer:1steps, encoder:1steps")
    with torch.device("meta"):
        codebooks = torch.empty(config.quantizer.num_codebooks, config.quantizer.codebook_size, config.quantizer.code_dim)
    networks = Networks(config)
    size = {name: 4 * sum(p.numel() for p in part.parameters()) for name, part in networks.named_children()}
    trained = {
        "cold": ("encoder", "predictor", "head"),
        "encoder": ("encoder", "predictor", "head"),
        "tokenizer": ("tokenizer", "estimator"),
    }
    rows = []
    print(f"\nAudioSet-2M, audio-base, global batch {config.train.batch_size}: all computed, none measured")
    print(f"assumed: {matrix_rate / 1e12:g} TFLOP/s of a GPU, {share:.0%} of it reached, ring of {bandwidth / 1e9:g} GB/s")
    columns = ("clips", "PFLOP", "s compute", "grad MB", "codes MB", "counts B", "s comm", "h / epoch")
    print(f"{'phase':<12}{'GPUs':>6}" + "".join(f"{column:>11}" for column in columns))
    for phase, parts in trained.items():
        for gpus in GPUS:
            clips = config.train.batch_size // gpus
            work = clips * operations(config, phase)
            gradient = sum(size[part] for part in parts)
            # Statistics of the codebooks, and sums of the encoder's features for the scale of the targets.
            codes = 4 * (statistics_length(codebooks) + 2 * config.encoder.width + 1) if phase == "tokenizer" else 0
            levels = config.quantizer.num_codebooks
            counts = 4 * (2 if phase == "tokenizer" else 2 * levels) * 2  # items, then sums of losses and metrics
            compute = work / (matrix_rate * share)
            sent = 2 * (gpus - 1) / gpus * (gradient + codes + counts)  # a ring sends each byte so often
            steps = CLIPS_OF_AUDIOSET / config.train.batch_size
            row = {
                "phase": phase,
                "gpus": gpus,
                "clips_per_gpu": clips,
                "operations_per_gpu": work,
                "compute_seconds": compute,
                "gradient_bytes": gradient,
                "codebook_bytes": codes,
                "count_bytes": counts,
                "communication_seconds": sent / bandwidth,
                "hours_per_epoch": steps * (compute + sent / bandwidth) / 3600,
                "source": "computed",
            }
            rows.append(row)
            figures = (clips, work / 1e15, compute, gradient / 1e6, codes / 1e6, counts, sent / bandwidth)
            shown = "".join(f"{figure:>11.4g}" for figure in (*figures, row["hours_per_epoch"]))
            print(f"{phase:<12}{gpus:>6}{shown}  computed", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="audio-small", help="of sound")
    parser.add_argument("--phases", nargs="+", default=["cold", "encoder", "tokenizer"])
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matrix-rate", type=float, default=989e12, help="of a GPU in bf16, dense; H100 SXM by its data sheet")
    parser.add_argument("--share", type=float, default=0.35, help="of that rate that a step reaches; a guess until measured")
    parser.add_argument("--bandwidth", type=float, default=50e9, help="bytes per second of the slowest link of the ring")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        worker(arguments.recipe, arguments.phases, arguments.repeats, arguments.worker)
        return
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    config, rows = recipe(arguments.recipe), []
    print(f"\n{arguments.recipe}\n{'axis':<12}{'value':<10}{'phase':<12}{'ms':>10}{'of base':>9}")
    for axis in arguments.axes:
        rows += grow(config, axis, list(AXES[axis]), arguments.phases, arguments.repeats)
    rows += processes(arguments.recipe, arguments.processes, arguments.phases, arguments.repeats)
    computed = audioset(arguments.matrix_rate, arguments.share, arguments.bandwidth)
    print(json.dumps({"benchmark": "growth", **vars(arguments), "machine": facts, "rows": rows, "audioset": computed}))


if __name__ == "__main__":
    main()
