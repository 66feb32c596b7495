"""Proof that all ranks hold the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bridle import distributed
from bridle.errors import TrainingError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_hash(tensor: Tensor) -> Tensor:
    """Hash of every bit of a tensor and its place, () int64 on its device: equal tensors, equal hash, on any device."""
    flat = tensor.detach().reshape(-1).contiguous()
    bits = flat.view(_INTEGERS[flat.element_size()]).long() if flat.numel() else flat.new_zeros(1, dtype=torch.int64)
    mixed = (bits + 0x9E3779B9 * torch.arange(1, len(bits) + 1, device=bits.device)) * 0x2545F4914F6CDD1D
    return ((mixed ^ (mixed >> 29)) * 0x27D4EB2F165667C5).sum()


def assert_ranks_agree(tensors: Mapping[str, Tensor]) -> None:
    """One small all-gather; waits for the device. Nothing to do without a process group.

    Args:
        tensors: by name, each whole on every rank.

    Raises:
        TrainingError: a tensor differs, on all ranks alike; names the first that does.
    """
    if not distributed.is_active() or not tensors:
        return
    hashes = torch.stack([bit_hash(tensor) for tensor in tensors.values()])
    found = distributed.all_gather_rows(hashes[None])
    differs = (found != found[0]).cpu()
    if not bool(differs.any()):
        return
    first = int(differs.any(0).int().argmax())
    ranks = differs[:, first].nonzero()[:, 0].tolist()
    others = int(differs.any(0).sum()) - 1
    raise TrainingError(
        f"{list(tensors)[first]} of ranks {ranks} differs from rank 0's, and so do {others} more; all must be bit-equal: "
        "resume from a checkpoint, and look for a faulty device when it comes again"
    )
