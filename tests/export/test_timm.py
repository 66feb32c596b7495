"""timm: names and shapes of every tensor, and numbers beside a forward pass in numpy that reads ``config.json`` alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.untrained_runs import small_config, write_run
from safetensors.numpy import load_file

import bridle
from bridle.errors import ConfigError, RunError
from bridle.export import export_run
from bridle.export.timm_files import require_timm
from bridle.recipes import recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"norm_eps": 1e-6},
    "mean, layer scale, oblong patches": {"class_token": False, "layer_scale": 0.5, "patch": (1, 8, 4)},
    "learned for another grid, input norm": {"positions": "learned", "position_grid": (1, 3, 5), "input_norm": True},
    "numbered, no last norm, odd mlp": {"positions": "sequence", "final_norm": False, "mlp_ratio": 37.0 / 32},
}


def numpy_vit(weights: dict[str, np.ndarray], settings: dict[str, Any], picture: np.ndarray, eps: float) -> np.ndarray:
    """Tokens (1 + N, D) of one picture (C, H, W): a ViT as timm publishes it, one head and one patch at a time."""
    width, heads = settings["embed_dim"], settings["num_heads"]
    size = settings["patch_size"]
    rows, columns = (size, size) if isinstance(size, int) else size
    kernel = weights["patch_embed.proj.weight"].reshape(width, -1).astype(np.float64)
    bias = 0.0 if settings["pre_norm"] else weights["patch_embed.proj.bias"]
    tokens = [
        kernel @ picture[:, top : top + rows, left : left + columns].reshape(-1) + bias
        for top in range(0, picture.shape[1], rows)
        for left in range(0, picture.shape[2], columns)
    ]
    if settings["class_token"]:
        tokens.insert(0, weights["cls_token"][0, 0])
    x = np.stack(tokens) + weights["pos_embed"][0]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        joined, out, part = linear(x, f"{name}.qkv"), np.zeros_like(x), width // heads
        for head in range(heads):
            query, key, value = (joined[:, i * width + head * part : i * width + (head + 1) * part] for i in range(3))
            scores = np.exp(query @ key.T / math.sqrt(part))
            out[:, head * part : (head + 1) * part] = scores / scores.sum(1, keepdims=True) @ value
        return linear(out, f"{name}.proj")

    gelu = np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))
    x = norm(x, "norm_pre") if settings["pre_norm"] else x
    for block in (f"blocks.{i}" for i in range(settings["depth"])):
        first, second = (weights[f"{block}.ls{i}.gamma"] if settings["init_values"] is not None else 1.0 for i in (1, 2))
        x = x + first * attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        x = x + second * linear(gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm") if settings["final_norm"] else x


def timm_shapes(settings: dict[str, Any], grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of timm's ``VisionTransformer`` with these arguments."""
    width, size = settings["embed_dim"], settings["patch_size"]
    hidden = int(width * settings["mlp_ratio"])
    patch = (size, size) if isinstance(size, int) else tuple(size)
    prefix = int(settings["class_token"])
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, settings["in_chans"], *patch),
        "pos_embed": (1, prefix + grid[0] * grid[1], width),
    }
    if prefix:
        shapes["cls_token"] = (1, 1, width)
    if not settings["pre_norm"]:
        shapes["patch_embed.proj.bias"] = (width,)
    norms = ["norm_pre"] * settings["pre_norm"] + ["norm"] * settings["final_norm"]
    for i in range(settings["depth"]):
        block = f"blocks.{i}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        linears = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        shapes |= {f"{block}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in linears.items()}
        if settings["init_values"] is not None:
            shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return shapes | {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_numbers(name: str, tmp_path: Path) -> None:
    config = small_config("image", "cold:1", **VARIANTS[name])
    run = write_run(tmp_path / "run", config)
    made = export_run(run, tmp_path / "out", to="timm", licence="mit")
    assert made.files == ("README.md", "config.json", "model.safetensors")
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    settings, weights = described["model_args"], load_file(tmp_path / "out" / "model.safetensors")
    _, height, width = config.encoder.patch
    assert {name: value.shape for name, value in weights.items()} == timm_shapes(settings, (32 // height, 32 // width))
    if settings["class_token"]:
        assert not weights["pos_embed"][0, 0].any()
    model = bridle.load(run, "cpu")
    pixels = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    data = described["pretrained_cfg"]
    mean, std = (np.array(data[key])[:, None, None] for key in ("mean", "std"))
    tokens = numpy_vit(weights, settings, (pixels.numpy() / 255 - mean) / std, config.encoder.norm_eps)
    features = model.features(pixels).flatten(0, 1).numpy()
    np.testing.assert_allclose(tokens[int(settings["class_token"]) :], features, atol=1e-4, rtol=1e-4)
    assert data["input_size"] == [3, 32, 32]
    assert data["license"] == "mit"
    assert (data["num_classes"], described["num_classes"]) == (0, 0)
    assert settings["global_pool"] == ("token" if settings["class_token"] else "avg")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("norm_layer" in card) == (config.encoder.norm_eps != 1e-6)
    assert any(note.startswith("norms: load it with norm_layer") for note in made.notes) == ("norm_layer" in card)
    assert len(made.checks) == 3
    assert 0 < max(check.difference for check in made.checks) < 1e-4


@pytest.mark.parametrize(
    ("medium", "settings", "reason"),
    [
        ("audio", {}, "this run is for audio"),
        ("video", {}, "this run is for video"),
        ("image", {"block_norm": "deep"}, "block_norm=deep"),
        ("image", {"class_token": False, "relative_positions": (16, 20)}, "relative_positions"),
        ("image", {"class_token": False, "positions": "convolved", "position_kernel": (5, 4)}, "positions=convolved"),
        ("image", {"embed_width": 16}, "embed_width=16"),
    ],
)
def test_what_timm_has_no_place_for_is_refused(medium: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match="timm cannot hold this encoder: ") as caught:
        require_timm(small_config(medium, **settings))
    assert reason in str(caught.value)
    assert str(caught.value).endswith("take --to hf or --to onnx")


def test_weights_that_were_spoiled_on_the_way_are_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridle.export import timm_files

    def spoiled(*arguments: Any) -> Any:
        weights = original(*arguments)
        weights["blocks.1.attn.qkv.weight"] = weights["blocks.1.attn.qkv.weight"].roll(32, 0)  # keys for queries
        return weights

    original = timm_files.timm_weights
    monkeypatch.setattr(timm_files, "timm_weights", spoiled)
    run = write_run(tmp_path / "run", small_config("image", "cold:1"))
    with pytest.raises(RunError, match="features of the timm encoder differ by up to"):
        export_run(run, tmp_path / "out", to="timm")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_way_back_reads_what_was_written(tmp_path: Path) -> None:
    """``bridle import`` knows timm's names, so an exported encoder comes back as it was."""
    run = write_run(tmp_path / "run", small_config("image", "cold:1", norm_eps=1e-6))
    export_run(run, tmp_path / "out", to="timm")
    weights = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / "out" / "model.safetensors").items()}
    bridle.import_weights(weights, tmp_path / "back", config=recipe("image-debug"), heads=2, medium="image")
    first, second = (bridle.load(tmp_path / name, "cpu").networks.encoder for name in ("run", "back"))
    pixels = torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(0))
    from bridle.grid import PatchGrid, Subset
    from bridle.nn.patches import Patches

    patches = Patches(pixels, PatchGrid(1, 4, 4))
    found = [encoder(patches, Subset(None, None)).patches for encoder in (first, second)]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
