"""Which attention is faster: plain softmax or torch's fused kernel? By precision and length, with and without a mask.

    python benchmarks/attention.py [--tokens 4096] [--repeats 7] [--threads 1]

Every row attends with the same number of tokens in all, cut into rows of the given length: forward and backward, the same
with a mask for each row (a window), and forward alone. The answer is built into ``bridle.nn.attention.attend``. Time is CPU
time with one thread, else the clock's; ratios above 1 mean that plain softmax is faster. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from shared.steps import alternate, device_of, machine
from torch import Tensor

from bridle.nn.attention import _plain

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
KINDS = ("both ways", "both ways, masked", "forward")


def plain(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    return _plain(query, key, value, allowed, None)


def fused(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def run(attend: Attend, parts: list[Tensor], allowed: Tensor | None, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        attended = attend(*parts, allowed)
        if backward:
            attended.sum().backward()


def measure(dtype: torch.dtype, length: int, tokens: int, repeats: int, device: torch.device) -> dict[str, object]:
    rows = max(1, tokens // length)
    # Heads lie beside each other in memory, as a linear layer leaves them.
    parts = [torch.randn(rows, length, 3, 64, device=device).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    window = (torch.rand(rows, 1, length, length, device=device) < 0.3) | torch.eye(length, dtype=torch.bool, device=device)
    found: dict[str, object] = {"precision": str(dtype).removeprefix("torch."), "length": length}
    for kind in KINDS:
        allowed, backward = window if kind.endswith("masked") else None, kind != "forward"
        jobs = {attend.__name__: partial(run, attend, parts, allowed, backward) for attend in (plain, fused)}
        times = alternate(jobs, repeats)
        found[kind] = times["fused"].over(times["plain"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts, device, rows = machine(), device_of("auto"), []
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"fused / plain\n{'precision':<10}{'length':>7}" + "".join(f"{kind:>20}" for kind in KINDS))
    for dtype in (torch.float32, torch.bfloat16):
        for length in (16, 51, 128, 249, 513, 1025):
            row = measure(dtype, length, arguments.tokens, arguments.repeats, device)
            rows.append(row)
            print(f"{row['precision']:<10}{length:>7}" + "".join(f"{row[kind]:>20.2f}" for kind in KINDS), flush=True)
    print(json.dumps({"benchmark": "attention", **vars(arguments), "machine": facts, "rows": rows}))


if __name__ == "__main__":
    main()
