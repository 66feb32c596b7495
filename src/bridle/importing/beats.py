"""What BEATs (arXiv 2212.09058) has that a ViT has not: a norm of patches, a convolution, biases by distance, deep norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridle.errors import RunError
from bridle.nn.block import BlockNorm

_MAX_DISTANCE = 800
_GELU = "gelu"


@dataclass(frozen=True)
class Beats:
    """Its settings for an encoder's configuration, and its further weights under the names of an encoder."""

    block_norm: BlockNorm
    position_kernel: tuple[int, int]
    relative_positions: tuple[int, int]
    embed_width: int
    weights: dict[str, Tensor]
    notes: tuple[str, ...]


def read_beats(parts: dict[str, Tensor], settings: dict[str, Any], depth: int, source: str) -> Beats:
    """The parts under the names of ``keymaps`` that only BEATs has.

    Args:
        parts: of the state dict, on any device.
        settings: what the checkpoint holds under ``cfg``; empty where it holds none.
        depth: number of blocks.
        source: for messages.

    Raises:
        RunError: a part is missing, or settings ask for what this encoder cannot be.
    """
    needed = ("patch_norm.weight", "patch_norm.bias", "patch_out.weight", "convolution.size", "convolution.direction")
    missing = [name for name in (*needed, "convolution.bias", "blocks.0.distances") if name not in parts]
    if missing:
        raise RunError(f"{source} does not make a whole BEATs: '{missing[0]}' is missing; take the whole model's weights")
    if settings.get("layer_norm_first") or settings.get("activation_fn", _GELU) != _GELU:
        raise RunError(
            f"{source} has norms before its sums or another activation than {_GELU}, which no published BEATs has and this "
            "encoder has no place for"
        )
    notes = ["weight norm of the convolution: folded into its weights; training goes on without it"]
    deep, distance = settings.get("deep_norm"), settings.get("max_distance")
    if deep is None:
        notes.append("deep norm: taken for granted, as in the published models; weights do not tell")
    if distance is None:
        notes.append(f"largest distance: {_MAX_DISTANCE}, as in the published models; weights do not tell")
    distances = parts["blocks.0.distances"]
    if any(not torch.equal(parts.get(f"blocks.{i}.distances", distances), distances) for i in range(depth)):
        raise RunError(f"{source}: blocks have different biases by distance, where BEATs has one table")
    direction, size = parts["convolution.direction"], parts["convolution.size"]
    weights = {
        "convolved.convolution.weight": direction * (size / direction.norm(dim=(0, 1), keepdim=True)),
        "convolved.convolution.bias": parts["convolution.bias"],
        "relative.bias": distances,
        **{f"embed.1.{kind}": parts[f"patch_norm.{kind}"] for kind in ("weight", "bias")},
        **{f"embed.2.{kind}": parts[f"patch_out.{kind}"] for kind in ("weight", "bias") if f"patch_out.{kind}" in parts},
    }
    for i in range(depth):
        gate = {name: parts.get(f"blocks.{i}.gate.{name}") for name in ("weight", "bias", "scale")}
        if any(part is None for part in gate.values()):
            raise RunError(f"{source}: block {i} has no gate on its biases by distance, which every published BEATs has")
        own = f"blocks.{i}.attention.gate"
        weights |= {f"{own}.linear.{kind}": part for kind in ("weight", "bias") if (part := gate[kind]) is not None}
        weights[f"{own}.scale"] = parts[f"blocks.{i}.gate.scale"].reshape(-1)
    return Beats(
        "post" if deep is False else "deep",
        (direction.shape[2], direction.shape[0] // direction.shape[1]),
        (distances.shape[0], _MAX_DISTANCE if distance is None else int(distance)),
        parts["patch_norm.weight"].shape[0],
        weights,
        tuple(notes),
    )
