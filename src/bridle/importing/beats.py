"""What BEATs (arXiv 2212.09058) has that a ViT has not: a norm of patches, a convolution, biases by distance, deep norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridle.errors import RunError
from bridle.nn.block import BlockNorm

_GELU = "gelu"
_NEEDED = {
    "patch_norm.weight": "layer_norm.weight",
    "patch_norm.bias": "layer_norm.bias",
    "patch_out.weight": "post_extract_proj.weight",
    "convolution.bias": "encoder.pos_conv.0.bias",
    "blocks.0.distances": "encoder.layers.0.self_attn.relative_attention_bias.weight",
}


@dataclass(frozen=True)
class Beats:
    """Its settings for an encoder's configuration, and its further weights under the names of an encoder."""

    block_norm: BlockNorm
    position_kernel: tuple[int, int]
    relative_positions: tuple[int, int]
    embed_width: int
    weights: dict[str, Tensor]
    notes: tuple[str, ...]


def read_beats(parts: dict[str, Tensor], cfg: dict[str, Any], depth: int, source: str) -> Beats:
    """The parts under the names of ``keymaps`` that only BEATs has.

    Args:
        parts: of the state dict, on any device.
        cfg: what the checkpoint holds under this name; empty where it holds none.
        depth: number of blocks.
        source: for messages.

    Raises:
        RunError: a part is missing, or settings ask for what this encoder cannot be.
    """
    missing = [theirs for own, theirs in _NEEDED.items() if own not in parts]
    if not any(name in parts for name in ("convolution.weight", "convolution.direction")):
        missing.append("encoder.pos_conv.0.weight_v")
    elif "convolution.direction" in parts and "convolution.size" not in parts:
        missing.append("encoder.pos_conv.0.weight_g")
    if missing:
        raise RunError(f"{source} does not make a whole BEATs: '{missing[0]}' is missing; take the whole model's weights")
    if cfg.get("layer_norm_first") or cfg.get("activation_fn", _GELU) != _GELU:
        raise RunError(
            f"{source} has norms before its sums or another activation than {_GELU}, which no published BEATs has and this "
            "encoder has no place for"
        )
    notes = []
    if cfg:  # what it does not name has the value that the published code gives it
        deep, distance = bool(cfg.get("deep_norm", False)), int(cfg.get("max_distance", 1280))
    else:
        deep, distance = True, 800
        notes.append("deep norm, distances up to 800: as the published models have; weights do not tell")
    distances = parts["blocks.0.distances"]
    if any(not torch.equal(parts.get(f"blocks.{i}.distances", distances), distances) for i in range(depth)):
        raise RunError(f"{source}: blocks have different biases by distance, where BEATs has one table")
    if "convolution.direction" in parts:
        direction, size = parts["convolution.direction"].float(), parts["convolution.size"].float()
        kernel = direction * (size / direction.norm(dim=(0, 1), keepdim=True))
        notes.append("weight norm of the convolution: folded into its weights; training goes on without it")
    else:
        kernel = parts["convolution.weight"]
    weights = {
        "convolved.convolution.weight": kernel,
        "convolved.convolution.bias": parts["convolution.bias"],
        "relative.bias": distances,
        **{f"embed.1.{kind}": parts[f"patch_norm.{kind}"] for kind in ("weight", "bias")},
        **{f"embed.2.{kind}": parts[f"patch_out.{kind}"] for kind in ("weight", "bias") if f"patch_out.{kind}" in parts},
    }
    for i in range(depth):
        gate, own = f"blocks.{i}.gate", f"blocks.{i}.attention.gate"
        if not {f"{gate}.weight", f"{gate}.bias", f"{gate}.scale"} <= parts.keys():
            raise RunError(f"{source}: block {i} has no gate on its biases by distance, which every published BEATs has")
        weights |= {f"{own}.linear.{kind}": parts[f"{gate}.{kind}"] for kind in ("weight", "bias")}
        weights[f"{own}.scale"] = parts[f"{gate}.scale"].reshape(-1)
    return Beats(
        "deep" if deep else "post",
        (kernel.shape[2], kernel.shape[0] // kernel.shape[1]),
        (distances.shape[0], distance),
        parts["patch_norm.weight"].shape[0],
        weights,
        tuple(notes),
    )
