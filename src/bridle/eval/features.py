"""Frozen features of every clip of a manifest, from one pass over its files that feeds several encoders at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from bridle.data.manifest import Manifest
from bridle.data.medium import MediumName
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError
from bridle.eval.code_features import CodeFeatures, CodeStatistics
from bridle.eval.patches import PATCH_BYTES, PatchBudget, PatchCollector, PatchFeatures
from bridle.eval.vectors import Vectors
from bridle.grid import PatchGrid
from bridle.inference import Encoded, Model, Window
from bridle.models.encoder import check_layers
from bridle.nn.pooling import Pooling, pooled_width
from bridle.run import clip_grid

__all__ = [
    "BAG_OF_CODES",
    "POOLINGS",
    "Choice",
    "CodeStatistics",
    "Collected",
    "collect_features",
    "default_layers",
]

BAG_OF_CODES = "bag of codes"
POOLINGS: dict[MediumName, tuple[Pooling, ...]] = {
    "audio": ("mean", "time", "statistics"),
    "image": ("mean", "grid"),
    "video": ("mean", "grid", "grid statistics", "grid motion", "grid motion parts", "grid trajectory"),
}
"""What is offered to probes. The longest, of films, holds 64 x D numbers: 33 KB for a film at width 128, 197 KB at 768."""
FEATURE_GIGABYTES = 16.0
"""Memory that pooled features may take; 50,000 sounds take 15 at width 768, of two layers of two encoders."""


@dataclass(frozen=True)
class Collected:
    """What :func:`collect_features` gives.

    Attributes:
        rows: row in the manifest of each of the n clips that could be read, ascending.
        features: by name of the features, then of the pooling: (n, D) float32 on the CPU.
        codes: of the first model; None when it has no fitted tokenizer.
        bad: the other files.
        patches: patch features by the name of the encoder; none unless they are asked for.
    """

    rows: tuple[int, ...]
    features: dict[str, dict[str, Tensor]]
    codes: CodeStatistics | None
    bad: tuple[BadFile, ...]
    patches: dict[str, PatchFeatures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What :func:`collect_features` keeps of the encoders.

    Attributes:
        layers: 1 to their depth; None for :func:`default_layers`.
        concatenate: one vector of all the layers for each pooling, instead of one of each layer.
        patch_gigabytes: also keep every patch of the highest of the layers, in at most so much memory; None for no patches.
        feature_gigabytes: memory that pooled features may take, those of all encoders and bags of codes together.
    """

    layers: tuple[int, ...] | None = None
    concatenate: bool = False
    patch_gigabytes: float | None = None
    feature_gigabytes: float = FEATURE_GIGABYTES

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Of an encoder of this depth.

        Raises:
            ConfigError: there is no such layer, none is asked for, one is twice, or a single one is to be concatenated.
        """
        layers = default_layers(depth) if self.layers is None else self.layers
        check_layers(layers, depth)
        if len(set(layers)) < len(layers):
            raise ConfigError(f"layers are {' '.join(map(str, layers))}; name each once (--layers)")
        if self.concatenate and len(layers) < 2:
            raise ConfigError(f"layer {layers[0]} alone cannot be concatenated; name two or more layers (--layers)")
        return layers


def default_layers(depth: int) -> tuple[int, ...]:
    """The layers an evaluation looks at: the one three quarters up, and the last."""
    return tuple(sorted({-(-3 * depth // 4), depth}))


@torch.no_grad()
def collect_features(
    models: Mapping[str, Model],
    manifest: Manifest,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
    on_file: Callable[[], object] | None = None,
    seed: int = 0,
    choice: Choice | None = None,
) -> Collected:
    """Pooled features of every clip by every model, the medium's baseline and, with a tokenizer, bags of codes.

    Each file is decoded once; held in memory are one batch of windows, the course of one film, and the pooled rows. A long
    file's rows are those of all its windows together. Encoders give every one of ``POOLINGS`` of every layer, named
    ``statistics`` for the last layer and ``statistics of layer 3`` for others; the other two give ``clip``. The baseline is the
    mean over time of what the loader calls it, and the deviation where the medium has a time.

    Args:
        models: by name; all have one front end and one size of patch. The first one's tokenizer gives the codes.
        manifest: the files.
        layers: of the encoders, 1 to their depth; None for :func:`default_layers`.
        batch_size: windows per forward pass; changes no number beyond rounding.
        on_file: called after each file.
        seed: of the sample of windows for the statistics of the codes.
        choice: more than layers, instead of ``layers``.

    Raises:
        DataError: no model, models of different front ends or patches, no file can be read, or no room for the features.
        ConfigError: there is no such layer, or none is asked for.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    first = _first_of_one_front_end(models)
    wanted = choice or Choice(None if layers is None else tuple(layers))
    medium = first.config.medium
    _check_room(models, wanted, len(manifest))
    budget = None if wanted.patch_gigabytes is None else PatchBudget(wanted.patch_gigabytes, len(manifest))
    found = {name: _LayerFeatures(model, wanted, len(manifest), budget) for name, model in models.items()}
    baseline = Vectors(len(manifest), ("statistics" if medium.timed else "mean",))
    codes = CodeFeatures.of(first, len(manifest), seed)
    bad: dict[int, BadFile] = {}
    windows = _windows(first, manifest, bad, on_file or (lambda: None))
    while group := list(islice(windows, batch_size)):
        for name, model in models.items():
            for encoded in model.encode(group, batch_size, found[name].layers):
                found[name].add(group, encoded)
        for window in group:
            rows = first.loader.baseline(window.inputs)
            baseline.add([window], rows[None], PatchGrid(len(rows), 1, 1), torch.tensor([len(rows)]))
        if codes is not None:
            codes.add(group)
    good = [index for index in range(len(manifest)) if index not in bad]
    if not good:
        first_bad = f"; first: {bad[0].key} ({bad[0].reason})" if bad else ""
        raise DataError(f"none of {len(manifest)} files can be read{first_bad}; check the paths")
    pooled = {first.loader.baseline_name: {"clip": next(iter(baseline.finish(good).values()))}}
    pooled |= {name: features.pooled(good) for name, features in found.items()}
    if codes is not None:
        pooled[BAG_OF_CODES] = {"clip": codes.bags.finish(good).sqrt()}
    return Collected(
        rows=tuple(good),
        features=pooled,
        codes=codes.statistics() if codes is not None else None,
        bad=(*manifest.bad, *bad.values()),
        patches={name: features.patches.finish(good) for name, features in found.items() if features.patches is not None},
    )


class _LayerFeatures:
    """What is kept of one encoder."""

    def __init__(self, model: Model, choice: Choice, num_files: int, budget: PatchBudget | None) -> None:
        self.layers = choice.layers_of(model.depth)
        self.patches = None if budget is None else PatchCollector(num_files, budget)
        self._depth, self._concatenate = model.depth, choice.concatenate
        self._vectors = [Vectors(num_files, POOLINGS[model.config.medium.name]) for _ in self.layers]

    def add(self, group: list[Window], encoded: Encoded) -> None:
        """Features of windows."""
        for vectors, features in zip(self._vectors, encoded.layers, strict=True):
            vectors.add(group, features, encoded.grid, encoded.steps)
        if self.patches is not None:
            highest = self.layers.index(max(self.layers))
            self.patches.add(group, encoded.layers[highest], encoded.grid, encoded.steps)

    def pooled(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Vectors of the files ``rows`` by name of the pooling and the layer."""
        found = [vectors.finish(rows) for vectors in self._vectors]
        if self._concatenate:
            joined = " + ".join(map(str, self.layers))
            return {
                f"{pooling} of layers {joined}": torch.cat([each[pooling] for each in found], dim=1) for pooling in found[0]
            }
        return {
            pooling if layer == self._depth else f"{pooling} of layer {layer}": values
            for layer, each in zip(self.layers, found, strict=True)
            for pooling, values in each.items()
        }


def _first_of_one_front_end(models: Mapping[str, Model]) -> Model:
    if not models:
        raise DataError("0 models given; features need at least 1")
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        if (model.config.clips, model.config.encoder.patch) != (first.config.clips, first.config.encoder.patch):
            raise DataError(f"'{name}' and '{first_name}' differ in their front end or patch; collect them one by one")
    return first


def _check_room(models: Mapping[str, Model], choice: Choice, num_clips: int) -> None:
    """Refuse, before any file is read, what is too much to be held in memory."""
    columns, patches = 0, 0
    for model in models.values():
        medium, grid = model.config.medium, clip_grid(model.config)
        widths = [pooled_width(model.width, grid, pooling) for pooling in POOLINGS[medium.name]]
        columns += len(choice.layers_of(model.depth)) * sum(widths)
        patches += 0 if medium.timed else grid.num_patches * model.width  # how long sounds and films are shows in time
    tokenizer = next(iter(models.values())).networks.best_tokenizer
    if tokenizer is not None:
        columns += tokenizer.quantizer.codebooks[..., 0].numel()
    needed = 4e-9 * num_clips * columns
    if needed > choice.feature_gigabytes:
        raise DataError(
            f"pooled features of {num_clips} clips need {needed:.3g} GB, and the limit is {choice.feature_gigabytes:g} GB; "
            "give fewer clips, name a single layer (--layers), or raise the limit (--feature-gigabytes)"
        )
    if choice.patch_gigabytes is not None:
        PatchBudget(choice.patch_gigabytes, num_clips).check(patches * num_clips * PATCH_BYTES / 1e9)


def _windows(model: Model, manifest: Manifest, bad: dict[int, BadFile], on_file: Callable[[], object]) -> Iterator[Window]:
    """Windows of every file; one that breaks off after some of its windows is bad as a whole."""
    for index, entry in enumerate(manifest.entries):
        faults: list[BadFile] = []
        for window in model.windows([entry], faults):
            yield replace(window, index=index)
        if faults:
            bad[index] = faults[0]
        on_file()
