"""From the tensors of a ViT to an encoder's configuration and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bridle.errors import ConfigError, RunError
from bridle.grid import PatchGrid
from bridle.importing.beats import Beats, read_beats
from bridle.importing.keymaps import BEATS, EAT, TIMM, Family
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.nn.patches import PatchSize
from bridle.nn.positions import Axis, sequence, sine_cosine

Medium = Literal["audio", "image", "video"]
Parts = dict[str, Tensor]

AXES: dict[Medium, tuple[Axis, ...]] = {
    "audio": ("height", "time"),
    "image": ("width", "height"),
    "video": ("time", "height", "width"),
}
"""Axes in MAE's order: the columns of a picture come first; those of audio are mel bands."""
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_MEL_BANDS, _VIDEO_SIZE = 128, (16, 224, 224)
_FRAMES = 1024
"""Of ten seconds of sound, where positions do not tell."""


@dataclass(frozen=True)
class Shape:
    """What weights alone do not tell.

    Attributes:
        medium: of the clips.
        heads: attention heads.
        norm_eps: of the norms.
        patch: (time, height, width) of a patch in input units.
        grid: of the clips it was trained on.
    """

    medium: Medium
    heads: int
    norm_eps: float
    patch: PatchSize
    grid: PatchGrid


def find_shape(
    parts: Parts, family: Family, settings: dict[str, Any], heads: int | None, medium: Medium | None
) -> tuple[Shape, list[str]]:
    """:class:`Shape` from settings, from tensors, or from what the published models have, which a note then says.

    Raises:
        ConfigError: the number of heads is not known, or the patches are not those of the medium.
        RunError: patches are not cut by a convolution, or the tensors do not tell the grid.
    """
    weight = parts["patch.weight"]
    width, kernel = _width(parts), tuple(weight.shape[2:])
    if len(kernel) not in (2, 3):
        raise RunError(f"the patch embedding is {tuple(weight.shape)}, not a convolution's over two or three axes")
    notes: list[str] = []
    if heads is None:
        heads = settings.get("num_attention_heads", settings.get("num_heads"))
    if heads is None and "blocks.0.gate.scale" in parts:
        heads = parts["blocks.0.gate.scale"].numel()
    if heads is None:
        if width not in _HEADS:
            raise ConfigError(f"weights of width {width} do not tell the number of attention heads; give it (heads=, --heads)")
        heads = _HEADS[width]
        notes.append(f"heads: {heads}, as published models of width {width} have; weights do not tell (heads=, --heads)")
    if medium is None:
        hears = family in (EAT, BEATS) or (family is TIMM and weight.shape[1] == 1)
        medium = "video" if len(kernel) == 3 else "audio" if hears else "image"
        if medium == "audio" and family is TIMM:
            notes.append("medium: audio, since patches have one channel; give medium='image' if these are pictures")
    if (medium == "video") != (len(kernel) == 3):
        raise ConfigError(f"patches of {kernel} are not those of {medium}; leave medium out to have it told from the patches")
    norm_eps = settings.get("layer_norm_eps", settings.get("norm_eps"))
    if norm_eps is None:
        norm_eps = family.norm_eps if "blocks.0.scale1" not in parts else 1e-6
        notes.append(f"norm_eps: {norm_eps:g}, as the published code has; weights do not tell")
    patch: PatchSize = (*kernel, 1) if medium == "audio" else (1, *kernel) if len(kernel) == 2 else kernel  # type: ignore[assignment]
    note: list[str] = []
    if family is BEATS:
        grid = PatchGrid(_FRAMES // patch[0], max(1, _MEL_BANDS // patch[1]))
    else:
        grid, note = _grid(parts, medium, patch, settings, _patches(parts, family))
    return Shape(medium, heads, norm_eps, patch, grid), notes + note


def _width(parts: Parts) -> int:
    """Of the blocks."""
    return parts["patch_out.weight" if "patch_out.weight" in parts else "patch.weight"].shape[0]


def _patches(parts: Parts, family: Family) -> int | None:
    """Number of patches that have a position in the table."""
    if "positions" not in parts:
        return None
    return parts["positions"].shape[-2] - int("class_token" in parts and family.class_position)


def _grid(
    parts: Parts, medium: Medium, patch: PatchSize, settings: dict[str, Any], patches: int | None
) -> tuple[PatchGrid, list[str]]:
    note: list[str] = []
    if medium == "audio":
        bands = _MEL_BANDS // patch[1]
        if patches is None or not bands or patches % bands:
            raise RunError(f"{patches} positions do not fit {_MEL_BANDS} mel bands in patches of {patch[:2]} side by side")
        return PatchGrid(patches // bands, bands), note
    if "image_size" in settings:
        height, width = _pair(settings["image_size"])
        frames = settings.get("num_frames", 1)
    elif medium == "image":
        side = math.isqrt(patches or 0)
        if not patches or side**2 != patches:
            raise RunError(f"{patches} positions are no square, so the weights do not tell the size of the images")
        frames, height, width = 1, side * patch[1], side * patch[2]
    else:
        frames, height, width = _VIDEO_SIZE
        note.append(f"clips: {frames} frames of {height} x {width}, as published models have; weights do not tell")
    return PatchGrid(frames // patch[0], height // patch[1], width // patch[2]), note


def _pair(size: Any) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def translate(
    parts: Parts, family: Family, shape: Shape, cfg: dict[str, Any], source: str
) -> tuple[EncoderConfig, Parts, list[str]]:
    """Configuration, weights and notes.

    Raises:
        RunError: a tensor is missing, has a shape that does not fit the others, or is not finite.
    """
    weight, first = parts["patch.weight"], "blocks.0.scale1"
    for name in ("class_token", "positions"):
        held = parts.get(name)
        if held is not None and (held.shape[-1] != len(weight) or (name == "class_token" and held.numel() != len(weight))):
            raise RunError(f"{source}: the {name.replace('_', ' ')} {tuple(held.shape)} should be of width {len(weight)}")
    depth = 1 + max((int(name.split(".")[1]) for name in parts if name.startswith("blocks.")), default=-1)
    if not depth or "blocks.0.fc1.weight" not in parts:
        raise RunError(f"{source} has no transformer blocks; take the whole model's weights")
    if depth > len(parts):
        raise RunError(f"{source} has a block {depth - 1} and {len(parts)} tensors in all; blocks before it are missing")
    beats = read_beats(parts, cfg, depth, source) if family is BEATS else None
    kind, table, notes = ("convolved", None, []) if beats is not None else _positions(parts, family, shape)
    config = EncoderConfig(
        width=_width(parts),
        depth=depth,
        heads=shape.heads,
        mlp_ratio=parts["blocks.0.fc1.weight"].shape[0] / _width(parts),
        patch=shape.patch,
        channels=weight.shape[1],
        axes=AXES[shape.medium],
        positions=kind,
        position_grid=None if shape.medium == "audio" and kind in ("sine_cosine", "convolved") else shape.grid.shape,
        class_token="class_token" in parts,
        block_norm=family.block_norm,
        input_norm="input_norm.weight" in parts,
        final_norm="final_norm.weight" in parts,
        norm_eps=shape.norm_eps,
        layer_scale=float(parts[first].float().mean()) if first in parts else None,
    )
    if beats is not None:
        config = _as_beats(config, beats)
        notes = [*beats.notes]
    weights, note = _weights(parts, config, family)
    if table is not None:
        weights["position_table"] = table
    if beats is not None:
        weights |= {name: tensor.detach().to("cpu", torch.float32) for name, tensor in beats.weights.items()}
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    _check(weights, config, source)
    if weight.dtype != torch.float32:
        note.append(f"stored as {str(weight.dtype).removeprefix('torch.')}; float32 here")
    return config, weights, notes + note


def _as_beats(config: EncoderConfig, beats: Beats) -> EncoderConfig:
    return replace(
        config,
        block_norm=beats.block_norm,
        position_kernel=beats.position_kernel,
        relative_positions=beats.relative_positions,
        embed_width=beats.embed_width,
    )


def _positions(
    parts: Parts, family: Family, shape: Shape
) -> tuple[Literal["sine_cosine", "sequence", "learned"], Tensor | None, list[str]]:
    """How positions are made, and their table where they are learned, which is whatever no formula gives."""
    if "positions" not in parts:
        if shape.medium != "video":
            raise RunError(
                f"the weights hold no positions; only VideoMAE's are known without them, not those for {shape.medium}"
            )
        return "sequence", None, []
    stored, width = parts["positions"], parts["patch.weight"].shape[0]
    # A table stored in half precision is off by its rounding.
    near = 1e-4 if stored.dtype in (torch.float32, torch.float64) else 5e-3
    table = stored.detach().float().cpu().reshape(-1, width)
    table = table[1:] if "class_token" in parts and family.class_position else table
    axes = AXES[shape.medium]

    if len(table) != shape.grid.num_patches:
        grid = " x ".join(map(str, shape.grid.shape))
        raise RunError(f"the table has {len(table)} positions, not {shape.grid.num_patches} for a grid of {grid} patches")

    def equals(expected: Tensor) -> bool:
        return bool((expected - table).abs().max() < near)

    if width >= 2 * len(axes) and shape.medium != "video" and equals(sine_cosine(shape.grid, width, axes)):
        return "sine_cosine", None, []
    if shape.medium == "video" and equals(sequence(shape.grid, width)):
        return "sequence", None, []
    notes = []
    if shape.medium == "audio":
        turned = PatchGrid(shape.grid.height, shape.grid.time)
        if width >= 4 and equals(sine_cosine(turned, width, axes)):
            notes.append(
                f"positions: made for {turned.time} rows of {turned.height} patches, though the patches lie in "
                f"{shape.grid.time} rows, as in AudioMAE's code; the table is kept as it was in training"
            )
        notes.append(
            f"positions: a table, which ends after {shape.grid.time * shape.patch[0]} frames; longer clips are refused"
        )
    return "learned", table, notes


def _weights(parts: Parts, config: EncoderConfig, family: Family) -> tuple[Parts, list[str]]:
    """The weights of an encoder but for its positions; a missing part is left out."""
    parts = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in parts.items()}
    width, unbiased = config.width, set[str]()
    embed = "embed" if config.embed_width is None else "embed.0"
    found: dict[str, Tensor | None] = {f"{embed}.bias": parts.get("patch.bias")}
    found[f"{embed}.weight"] = parts["patch.weight"].flatten(1)
    if config.embed_width is not None and "patch.bias" not in parts:
        found[f"{embed}.bias"] = torch.zeros(config.embed_width)
        unbiased.add("patches")
    if "class_token" in parts:
        token = parts["class_token"].reshape(-1)
        has_position = "positions" in parts and family.class_position
        found["class_token"] = token + parts["positions"].reshape(-1, width)[0] if has_position else token
    pairs = [("input_norm", "input_norm"), ("norm", "final_norm")]
    for block in (f"blocks.{i}" for i in range(config.depth)):
        projections, missing = _projections(parts, block, width)
        unbiased |= missing
        for kind in ("weight", "bias"):
            query, key, value = (projections.get(f"{name}.{kind}") for name in ("query", "key", "value"))
            found[f"{block}.attention.query.{kind}"] = query
            found[f"{block}.attention.key_value.{kind}"] = None if key is None or value is None else torch.cat([key, value])
        pairs += [(f"{block}.{own}", f"{block}.{theirs}") for own, theirs in _BLOCK_PAIRS]
        found |= {f"{block}.{scale}": parts.get(f"{block}.{scale}") for scale in ("scale1", "scale2")}
    found |= {f"{own}.{kind}": parts.get(f"{theirs}.{kind}") for own, theirs in pairs for kind in ("weight", "bias")}
    notes = [f"biases of {', '.join(sorted(unbiased))}: there are none, so they begin at 0"] if unbiased else []
    return {name: tensor for name, tensor in found.items() if tensor is not None}, notes


_BLOCK_PAIRS = (("norm1", "norm1"), ("norm2", "norm2"), ("attention.out", "out"), ("mlp.0", "fc1"), ("mlp.2", "fc2"))


def _projections(parts: Parts, block: str, width: int) -> tuple[Parts, set[str]]:
    """Query, key and value of a block, taken apart where they are one; a bias that is not there is 0, and named."""
    names = ("query", "key", "value")
    found = {}
    for kind in ("weight", "bias"):
        joined = parts.get(f"{block}.qkv.{kind}")
        split = (
            dict(zip(names, torch.split(joined, width), strict=True)) if joined is not None and len(joined) == 3 * width else {}
        )
        for name in names:
            part = parts.get(f"{block}.{name}.{kind}", split.get(name))
            if part is not None:
                found[f"{name}.{kind}"] = part
    missing = {name for name in names if f"{name}.bias" not in found}
    return found | {f"{name}.bias": torch.zeros(width) for name in missing}, missing


def _check(weights: Parts, config: EncoderConfig, source: str) -> None:
    with torch.device("meta"):
        own = {name: tensor.shape for name, tensor in Encoder(config).state_dict().items()}
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            raise RunError(f"{source} does not make a whole encoder: '{name}' is {'missing' if name in own else 'too many'}")
        if weights[name].shape != own[name]:
            raise RunError(
                f"{source}: '{name}' is {tuple(weights[name].shape)}, not {tuple(own[name])} as the other shapes ask for"
            )
        if not weights[name].isfinite().all():
            raise RunError(f"{source}: '{name}' has values that are not finite; download or train the weights again")
