"""Which attention is faster: plain softmax or torch's fused kernel? Forward and backward, by precision and length.

    python benchmarks/attention.py [--tokens 4096] [--repeats 7]

Every row attends with the same number of tokens in all, cut into rows of the given length. The answer is built into
``bridle.nn.attention.attend``. Ratios above 1 mean that plain softmax is faster. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.nn.attention import _plain

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def seconds(attend: Attend, parts: list[Tensor]) -> float:
    start = time.perf_counter()
    attend(*parts).sum().backward()
    if parts[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    print(f"{device}, {torch.get_num_threads()} threads\n{'precision':<10} {'length':>6} {'fused / plain':>14}")
    for dtype in (torch.float32, torch.bfloat16):
        for length in (16, 51, 128, 249, 513, 1025):
            shape = (max(1, arguments.tokens // length), 3, length, 64)
            parts = [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3)]
            ratios = []
            for _ in range(arguments.repeats + 1):
                plain = seconds(lambda q, k, v: _plain(q, k, v, None), parts)
                fused = seconds(F.scaled_dot_product_attention, parts)
                ratios.append(fused / plain)
            ratio = statistics.median(ratios[1:])
            rows.append({"precision": str(dtype).removeprefix("torch."), "length": length, "fused / plain": round(ratio, 2)})
            print(f"{rows[-1]['precision']:<10} {length:>6} {ratio:>14.2f}")
    print(json.dumps({"benchmark": "attention", "device": device, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
