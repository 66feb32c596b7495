"""An image encoder as the state dict and ``config.json`` of timm's ``VisionTransformer``. timm itself is not imported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridle.errors import ConfigError
from bridle.export.checks import TOLERANCE, Check, check_features, expected
from bridle.export.graph import positions_of
from bridle.files import write_atomically
from bridle.inference import Model
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.run import RunConfig, clip_grid

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TIMM_NORM_EPS = 1e-6
"""Of timm's own norms; its ``config.json`` has no place for another."""
_ARCHITECTURE = "vit_base_patch16_224"
"""The entry point whose every size ``model_args`` sets anew."""


def write_timm(model: Model, folder: Path, licence: str | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        model: of an image run.
        folder: exists.
        licence: named in the configuration.

    Raises:
        ConfigError: the encoder has a part that timm's has no place for.
    """
    require_timm(model.config)
    save_file(timm_weights(model.networks.encoder, model.config), folder / WEIGHTS, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(timm_config(model.config, licence), indent=2) + "\n")


def require_timm(config: RunConfig) -> None:
    """Raise :class:`~bridle.errors.ConfigError` for a run that timm's ``VisionTransformer`` cannot hold."""
    encoder = config.encoder
    reasons = (
        (config.image is None, f"this run is for {config.medium.name}, and timm's ViT is for images"),
        (encoder.block_norm != "pre", f"its norms are behind the sums (block_norm={encoder.block_norm})"),
        (encoder.relative_positions is not None, "its attention has biases by distance (relative_positions)"),
        (encoder.positions == "convolved", "its positions are made by a convolution (positions=convolved)"),
        (encoder.embed_width is not None, f"its patches are embedded in two steps (embed_width={encoder.embed_width})"),
    )
    for applies, reason in reasons:
        if applies:
            raise ConfigError(f"timm cannot hold this encoder: {reason}; take --to hf or --to onnx")


@torch.no_grad()
def timm_weights(encoder: Encoder, config: RunConfig) -> dict[str, Tensor]:
    """The encoder's weights under the names and in the shapes of timm's ``VisionTransformer``.

    Args:
        encoder: whose structure :func:`require_timm` lets pass.
        config: of its run, which gives the grid of the positions.
    """
    settings, own = encoder.config, encoder.state_dict()
    positions = positions_of(encoder, clip_grid(config))
    assert positions is not None
    positions = positions.clone()
    _, height, width = settings.patch
    found = {"patch_embed.proj.weight": own["embed.weight"].reshape(settings.width, settings.channels, height, width)}
    if settings.input_norm:  # then timm's patches have no bias
        positions += own["embed.bias"]
    else:
        found["patch_embed.proj.bias"] = own["embed.bias"]
    if encoder.class_token is not None:
        found["cls_token"] = own["class_token"].reshape(1, 1, -1)
        positions = F.pad(positions, (0, 0, 1, 0))
    found["pos_embed"] = positions[None]
    pairs = [("norm_pre", "input_norm")] if settings.input_norm else []
    pairs += [("norm", "norm")] if settings.final_norm else []
    for block in (f"blocks.{i}" for i in range(settings.depth)):
        pairs += [(f"{block}.{theirs}", f"{block}.{ours}") for theirs, ours in _BLOCK_PAIRS]
        for kind in ("weight", "bias"):
            parts = [own[f"{block}.attention.{name}.{kind}"] for name in ("query", "key_value")]
            found[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
        if settings.layer_scale is not None:
            found |= {f"{block}.ls{number}.gamma": own[f"{block}.scale{number}"] for number in (1, 2)}
    found |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for theirs, ours in pairs for kind in ("weight", "bias")}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


_BLOCK_PAIRS = (
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("attn.proj", "attention.out"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
)


def timm_config(config: RunConfig, licence: str | None = None) -> dict[str, Any]:
    """``config.json`` of timm's hub form.

    Args:
        config: of an image run.
        licence: None to leave it out.
    """
    assert config.image is not None
    encoder, image = config.encoder, config.image
    assert image.mean is not None
    assert image.std is not None
    pretrained = {
        "input_size": [image.channels, image.size, image.size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(image.mean),
        "std": list(image.std),
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **({} if licence is None else {"license": licence}),
    }
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": _pool(encoder),
        "model_args": _model_args(encoder, image.size),
        "pretrained_cfg": pretrained,
    }


def _model_args(encoder: EncoderConfig, size: int) -> dict[str, Any]:
    return {
        "img_size": size,
        "patch_size": list(encoder.patch[1:]) if encoder.patch[1] != encoder.patch[2] else encoder.patch[1],
        "in_chans": encoder.channels,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "mlp_ratio": _mlp_ratio(encoder),
        "qkv_bias": True,
        "class_token": encoder.class_token,
        "global_pool": _pool(encoder),
        "fc_norm": False,
        "pre_norm": encoder.input_norm,
        "final_norm": encoder.final_norm,
        "init_values": encoder.layer_scale,
    }


def _mlp_ratio(encoder: EncoderConfig) -> float:
    """Timm cuts the product with the width off, where this encoder rounds it."""
    hidden = round(encoder.width * encoder.mlp_ratio)
    ratio = hidden / encoder.width
    return ratio if int(encoder.width * ratio) == hidden else (hidden + 0.5) / encoder.width


def _pool(encoder: EncoderConfig) -> str:
    return "token" if encoder.class_token else "avg"


def check_timm(model: Model, folder: Path) -> list[Check]:
    """Compare the written files with the run by :func:`timm_forward`.

    Raises:
        RunError: numbers differ.
    """
    weights, arguments = _read(folder)
    checks = []
    for run in expected(model):
        patches, summary = timm_forward(weights, arguments, run.batch.inputs[:, :, 0], model.config.encoder.norm_eps)
        difference = check_features("timm encoder", run, patches, summary, TOLERANCE)
        checks.append(Check("features, forward pass of timm", difference, *run.name))
    return checks


def norm_note(model: Model, folder: Path) -> list[str]:
    """What happens without ``norm_layer``, where the encoder's norms are not timm's own."""
    eps = model.config.encoder.norm_eps
    if eps == TIMM_NORM_EPS:
        return []
    weights, arguments = _read(folder)
    run = next(expected(model))
    patches, _ = timm_forward(weights, arguments, run.batch.inputs[:, :, 0], TIMM_NORM_EPS)
    off = float((patches - run.patches).abs().max())
    return [
        f"norms: load it with norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g}); with timm's own eps of "
        f"{TIMM_NORM_EPS:g} features are off by up to {off:.1g}"
    ]


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and ``model_args``."""
    return load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_args"]


@torch.no_grad()
def timm_forward(weights: dict[str, Tensor], arguments: dict[str, Any], pictures: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What timm's ``VisionTransformer`` computes, from its published definition.

    Args:
        weights: its state dict.
        arguments: ``model_args`` of its ``config.json``.
        pictures: (B, C, H, W), normalised.
        eps: of the norms.

    Returns:
        Features of the patches (B, N, D) after the last norm, and the pooled ones (B, D).
    """
    size = arguments["patch_size"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def scaled(x: Tensor, name: str) -> Tensor:
        return x * weights[name] if arguments["init_values"] is not None else x

    def attention(x: Tensor, name: str) -> Tensor:
        joined = linear(x, f"{name}.qkv").reshape(*x.shape[:2], 3, arguments["num_heads"], -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), f"{name}.proj")

    projection = weights["patch_embed.proj.weight"], weights.get("patch_embed.proj.bias")
    x = F.conv2d(pictures, *projection, stride=tuple(size) if isinstance(size, list) else size).flatten(2).transpose(1, 2)
    if arguments["class_token"]:
        x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + weights["pos_embed"]
    if arguments["pre_norm"]:
        x = norm(x, "norm_pre")
    for block in (f"blocks.{i}" for i in range(arguments["depth"])):
        x = x + scaled(attention(norm(x, f"{block}.norm1"), f"{block}.attn"), f"{block}.ls1.gamma")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + scaled(linear(hidden, f"{block}.mlp.fc2"), f"{block}.ls2.gamma")
    if arguments["final_norm"]:
        x = norm(x, "norm")
    return (x[:, 1:], x[:, 0]) if arguments["class_token"] else (x, x.mean(1))
