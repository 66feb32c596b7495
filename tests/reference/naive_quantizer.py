"""Residual quantization written the obvious way, in float64 with full tables, only to compare against."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_codes(z: Tensor, codebooks: Tensor) -> Tensor:
    """(N, R): per level the entry of least squared distance to what is left, from a full (N, K, C) difference."""
    residual, codes = z.double(), []
    for entries in codebooks.double():
        code = (residual[:, None] - entries[None]).square().sum(2).argmin(1)
        residual = residual - entries[code]
        codes.append(code)
    return torch.stack(codes, dim=1)


def naive_vectors(codes: Tensor, codebooks: Tensor) -> Tensor:
    """(N, C): the sum of the entries."""
    return torch.stack([codebooks[r].double()[codes[:, r]] for r in range(codes.shape[1])]).sum(0)


class NaiveEma:
    """EMA of counts and of sums by dense one-hot matrices, entry = sum / count."""

    def __init__(self, codebooks: Tensor, usage: Tensor, decay: float) -> None:
        self.codebooks, self.usage, self.decay = codebooks.double(), usage.double(), decay
        self.sums = self.codebooks * self.usage[..., None]

    def update(self, z: Tensor) -> None:
        codes = naive_codes(z, self.codebooks)
        residual = z.double()
        old = self.codebooks.clone()
        for r in range(len(old)):
            one_hot = torch.nn.functional.one_hot(codes[:, r], old.shape[1]).double()
            self.usage[r] = self.decay * self.usage[r] + (1 - self.decay) * one_hot.mean(0)
            self.sums[r] = self.decay * self.sums[r] + (1 - self.decay) * one_hot.T @ residual / len(z)
            self.codebooks[r] = self.sums[r] / self.usage[r][:, None]
            residual = residual - old[r][codes[:, r]]


def naive_revive(
    entries: Tensor, usage: Tensor, residual: Tensor, codes: Tensor, plane: Tensor, chosen_from: Tensor, below: float
) -> tuple[Tensor, Tensor, int]:
    """Revival of one level, code by code. ``chosen_from``: the entries, before the EMA step, that gave ``codes``."""
    entries, usage, size = entries.double().clone(), usage.double().clone(), len(entries)
    after = residual.double() - chosen_from.double()[codes]
    spread = after.square().sum(1).mean()
    splits = []
    for k in range(size):
        mine = after[codes == k]
        right = mine @ plane.double() > 0
        if not 0 < int(right.sum()) < len(mine):
            continue
        apart = mine[right].mean(0) - mine[~right].mean(0)
        fraction = right.double().mean()
        between = len(mine) * fraction * (1 - fraction) * apart.square().sum()
        if between > spread and min(fraction, 1 - fraction) * usage[k] * size >= below:
            splits.append((float(between - spread), k, fraction, apart * (between - spread) / between))
    splits.sort(key=lambda split: -split[0])
    expired = sorted((float(usage[k]), k) for k in range(size) if usage[k] * size < below)
    for (_, child), (_, parent, fraction, apart) in zip(expired, splits, strict=False):
        entries[child] = entries[parent] + (1 - fraction) * apart
        entries[parent] = entries[parent] - fraction * apart
        usage[child], usage[parent] = fraction * usage[parent], (1 - fraction) * usage[parent]
    return entries, usage / usage.sum(), min(len(expired), len(splits))


def mixed_scale_codes(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and sum of a wrong scheme: unit entries chosen on the normalised residual, subtracted from the raw one."""
    residual, codes = z, []
    for entries in codebooks:
        unit = torch.nn.functional.normalize(entries, dim=1)
        code = (torch.nn.functional.normalize(residual, dim=1) @ unit.T).argmax(1)
        residual = residual - unit[code]
        codes.append(code)
    return torch.stack(codes, dim=1), z - residual


def mutual_information_bits(a: Tensor, b: Tensor, size: int) -> float:
    """Plug-in estimate between two columns of codes in [0, size)."""
    joint = torch.bincount(a * size + b, minlength=size * size).double().view(size, size) / len(a)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / independent[seen]).log2()).sum())
