"""Probes of the encoder's frozen features while it is pretrained."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridle import distributed
from bridle.data.columns import Columns, subset, with_cells
from bridle.data.manifest import read_manifest
from bridle.errors import ConfigError
from bridle.eval.features import collect_features
from bridle.eval.protocol import FeatureSet, choose_splits, evaluate, knn_probe, linear_probe
from bridle.inference import Model
from bridle.networks import Networks
from bridle.randomness import permutation
from bridle.run import RunConfig

_NAME = "run"


@dataclass(frozen=True)
class ProbeConfig:
    """What is probed, and how often.

    Attributes:
        manifest: labelled clips.
        columns: which of its columns say what.
        every_steps: steps from one probe to the next; there is also one at the end.
        max_clips: of a larger set a sample of so many is taken, drawn once.
        path_column: column with the paths; None for the first usual one.

    Raises:
        ConfigError: a number below 1.
    """

    manifest: str | Path
    columns: Columns
    every_steps: int = 1000
    max_clips: int = 2000
    path_column: str | None = None

    def __post_init__(self) -> None:
        if min(self.every_steps, self.max_clips) < 1:
            raise ConfigError(f"every_steps={self.every_steps} and max_clips={self.max_clips} must be 1 or more")


class FrozenProbe:
    """kNN and linear probe of the encoder as it is, by the nested choice of :func:`bridle.eval.protocol.evaluate`.

    It works on a copy of the networks in eval mode, so training goes on as it would without it.

    Args:
        config: of the run.
        probe: what is probed.
        device: where to compute.

    Raises:
        DataError: there is no such manifest or column, or its splits cannot be made.
    """

    name = "probe"
    needed = False

    def __init__(self, config: RunConfig, probe: ProbeConfig, device: torch.device) -> None:
        self.every_steps = probe.every_steps
        self._config, self._columns, self._device = config, probe.columns, device
        manifest, _ = with_cells(read_manifest(probe.manifest, config.medium, path_column=probe.path_column), probe.columns)
        if len(manifest) > probe.max_clips:
            manifest = subset(manifest, sorted(permutation(len(manifest), config.seed, "probe")[: probe.max_clips].tolist()))
        self._manifest = manifest
        self._feature_set({"none": torch.zeros(len(manifest), 1)})  # a wrong column must not show only after hours

    def __call__(self, step: int, networks: Networks) -> dict[str, float]:
        """Accuracy of both probes in [0, 1], on rank 0; the other ranks wait for it where they next talk to it."""
        if distributed.rank() != 0:
            return {}
        model = Model(self._config, deepcopy(networks), self._device, self._config.train.precision)
        collected = collect_features({_NAME: model}, self._manifest)
        manifest = subset(self._manifest, collected.rows)
        features = self._feature_set(collected.features[_NAME], manifest.columns)
        return {f"probe/{probe.name}": evaluate(features, probe).accuracy for probe in (knn_probe(), linear_probe())}

    def _feature_set(self, pooled: dict[str, torch.Tensor], columns: dict[str, list[str]] | None = None) -> FeatureSet:
        cells = self._manifest.columns if columns is None else columns
        named = {role: cells[column] for role, column in self._columns.named.items()}
        features = FeatureSet(pooled, named["label"], named.get("fold"), named.get("split"), named.get("group"))
        choose_splits(features)
        return features

    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""
