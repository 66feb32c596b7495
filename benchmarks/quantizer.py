"""One training step of the quantizer (forward, backward, EMA) against vector-quantize-pytorch's ResidualVQ.

    python benchmarks/quantizer.py [--threads 1 2] [--repeats 5] [--device auto] [--size 16384 4 1024 256 ...]

Both hold the same codebooks, take the same vectors with gradient, pass it straight through and do not revive: ours
gathers what revival needs all the same. Runs alternate, and the speed-up is the median of the ratios of neighbours, so
that other work on the machine weighs on both; with one thread on a CPU it is CPU time. Memory is what torch's allocator held at
most in the step beyond what it held before and besides the results that stay. Wanted: at least 4 x, and 3 x with K = 256; at
most 1/8 of the memory. The last line is one JSON document. Needs ``pip install 'bridle[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bridle.quantize import QuantizerConfig, ResidualQuantizer

SIZES = [(16384, 4, 256, 256), (16384, 4, 1024, 256), (65536, 8, 1024, 64)]
Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def ours(config: QuantizerConfig, z: Tensor) -> tuple[ResidualQuantizer, Step]:
    quantizer = ResidualQuantizer(config).train().to(z.device)
    quantizer.fit(z, seed=0)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        out = quantizer(x)
        (out.vectors.sum() + config.commitment_weight * out.commitment).backward()
        quantizer.update(out.statistics)
        return out.vectors, out.codes

    return quantizer, step


def theirs(config: QuantizerConfig, codebooks: Tensor) -> Step:
    from vector_quantize_pytorch import ResidualVQ

    module = (
        ResidualVQ(
            dim=config.code_dim,
            num_quantizers=config.num_codebooks,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment_weight,
            rotation_trick=False,
            threshold_ema_dead_code=0,
        )
        .train()
        .to(codebooks.device)
    )
    for layer, entries in zip(module.layers, codebooks, strict=True):
        layer._codebook.embed.data.copy_(entries[None])
        layer._codebook.embed_avg.data.copy_(entries[None])

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        vectors, codes, losses = module(x[None])
        (vectors.sum() + losses.sum()).backward()
        return vectors[0], codes[0]

    return step


def seconds(step: Step, z: Tensor) -> float:
    x, clock = z.detach().requires_grad_(), time.perf_counter
    if z.is_cuda:
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        clock = time.process_time
    start = clock()
    step(x)
    if z.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def temporary_mebibytes(step: Step, z: Tensor) -> float:
    x = z.detach().requires_grad_()
    if z.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        kept = step(x)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = step(x)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert len(kept) == 2
    return (peak - held) / 2**20


def measure(size: tuple[int, int, int, int], threads: int, repeats: int, device: str) -> dict[str, object]:
    count, levels, entries, dim = size
    torch.set_num_threads(threads)
    config = QuantizerConfig(
        num_codebooks=levels, codebook_size=entries, code_dim=dim, kmeans_steps=1, init_sample=16 * entries, revive_below=0.0
    )
    z = (torch.randn(count, dim, generator=torch.Generator().manual_seed(0)) * 0.9 ** torch.arange(dim)).to(device)
    quantizer, our_step = ours(config, z)
    their_step = theirs(config, quantizer.codebooks)
    equal_codes = float((our_step(z.clone().requires_grad_())[1] == their_step(z.clone().requires_grad_())[1]).float().mean())
    pairs = [(seconds(our_step, z), seconds(their_step, z)) for _ in range(repeats)]
    memory, their_memory = temporary_mebibytes(our_step, z), temporary_mebibytes(their_step, z)
    return {
        "size": size,
        "threads": threads,
        "seconds": statistics.median(a for a, _ in pairs),
        "their_seconds": statistics.median(b for _, b in pairs),
        "speed_up": statistics.median(b / a for a, b in pairs),
        "mebibytes": memory,
        "their_mebibytes": their_memory,
        "memory_ratio": their_memory / memory,
        "equal_codes": equal_codes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or the GPU where there is one")
    parser.add_argument("--size", type=int, nargs=4, action="append", metavar=("N", "R", "K", "C"))
    arguments = parser.parse_args()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    sizes = [tuple(size) for size in arguments.size or SIZES]
    results = [measure(size, threads, arguments.repeats, device) for threads in arguments.threads for size in sizes]
    columns = ("threads", "seconds", "their_seconds", "speed_up", "mebibytes", "their_mebibytes", "memory_ratio", "equal_codes")
    print(f"{'N, R, K, C':>22}" + "".join(f"{name:>16}" for name in columns))
    for result in results:
        print(f"{result['size']!s:>22}" + "".join(f"{result[name]:>16.4g}" for name in columns))
    print(json.dumps({"benchmark": "quantizer", "torch": torch.__version__, "device": device, "results": results}))


if __name__ == "__main__":
    main()
