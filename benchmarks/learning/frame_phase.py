"""Which part of the sentence is a frame of? Linear probe on frame-wise features of grid_s1's mouth crops, suggested split.

Beside the run stand the same encoder before training, raw pixels, and the frame's number alone, which knows much because
all sentences have one form. Command: ``python benchmarks/learning/frame_phase.py --data DATA --runs RUN [RUN ...]``. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
from runs import machine
from torch import Tensor

from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import VIDEO
from bridle.eval.features import default_layers
from bridle.eval.protocol import FeatureSet, evaluate, linear_probe
from bridle.grid import PatchGrid
from bridle.inference import Model, load, random_model
from bridle.nn.pooling import pool

NUM_FRAMES = 75


def frame_features(model: Model, manifest: Manifest) -> dict[str, Tensor]:
    """Features of every frame by layer and pooling over space, (clips * 75, X): those of the step that covers it."""
    assert model.config.video is not None
    covered = model.config.video.stride * model.config.encoder.patch[0]
    layers, found = default_layers(model.depth), {}
    for encoded in model.encode(model.windows(manifest.entries, []), 32, layers):
        single = PatchGrid(1, encoded.grid.height, encoded.grid.width)
        for layer, pooling in product(range(len(layers)), ("mean", "grid")):
            clips = found.setdefault(f"{pooling} of layer {layers[layer]}", [[] for _ in manifest.entries])
            rows = encoded.layers[layer].unflatten(1, (encoded.grid.time, -1)).float().cpu()
            for window, row, steps in zip(encoded.windows, rows, encoded.steps.tolist(), strict=True):
                vectors = pool(row[:steps], single, torch.ones(steps, dtype=torch.int64), pooling)  # type: ignore[arg-type]
                clips[window.index].append(vectors.repeat_interleave(covered, dim=0))
    return {name: torch.cat([_to_length(torch.cat(parts)) for parts in clips]) for name, clips in found.items()}


def pixel_features(model: Model, manifest: Manifest) -> dict[str, Tensor]:
    """Pixels of every frame that the model sees, at most 32 x 32 of them."""
    assert model.config.video is not None
    clips: list[list[Tensor]] = [[] for _ in manifest.entries]
    for window in model.windows(manifest.entries, []):
        clips[window.index].append(model.loader.baseline(window.inputs).repeat_interleave(model.config.video.stride, dim=0))
    return {"clip": torch.cat([_to_length(torch.cat(parts)) for parts in clips])}


def _to_length(rows: Tensor) -> Tensor:
    """75 rows: cut, or the last one repeated."""
    return rows[torch.arange(NUM_FRAMES).clamp(max=len(rows) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    manifest = read_manifest(arguments.data / "grid_s1" / "meta.csv", VIDEO, path_column="mouth")
    phases = np.load(arguments.data / "grid_s1" / "frame_phase.npz")
    order = {str(name): row for row, name in enumerate(phases["names"])}
    labels = np.stack([phases["labels"][order[entry_id]] for entry_id in manifest.columns["id"]])
    flat = [str(label) for label in labels.flatten()]
    splits = [split for split in manifest.columns["suggested_split"] for _ in range(NUM_FRAMES)]
    index = torch.eye(NUM_FRAMES).repeat(len(manifest), 1)
    first = load(arguments.runs[0], precision="bf16")
    sets: dict[str, dict[str, Tensor]] = {
        "frame number": {"clip": index},
        "raw pixels": pixel_features(first, manifest),
        "random encoder": frame_features(random_model(first.config, first.device, "bf16"), manifest),
    }
    table = {}
    for name, features in sets.items():
        table[name] = 100 * evaluate(FeatureSet(features, flat, None, splits), linear_probe()).accuracy
        print(f"{name:<40} {table[name]:.1f}", flush=True)
    for run in arguments.runs:
        model = load(run, precision="bf16")
        table[run.name] = (
            100 * evaluate(FeatureSet(frame_features(model, manifest), flat, None, splits), linear_probe()).accuracy
        )
        print(f"{run.name:<40} {table[run.name]:.1f}", flush=True)
    print(json.dumps({"table": table, "machine": machine()}))


if __name__ == "__main__":
    main()
