"""Probes of the encoder's frozen features while it is pretrained, cheap enough to be run often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle import distributed
from bridle.data.columns import Columns, subset, with_cells
from bridle.data.loaders import build_loader
from bridle.data.manifest import Entry, read_manifest
from bridle.data.quarantine import BadFile
from bridle.errors import BridleError, ConfigError, DataError
from bridle.eval.protocol import FeatureSet, choose_splits, evaluate, knn_probe, linear_probe
from bridle.inference import Model, Window
from bridle.networks import Networks
from bridle.nn.pooling import pool
from bridle.randomness import permutation
from bridle.run import RunConfig
from bridle.windows import WindowMeans

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C that the linear probe chooses from."""


@dataclass(frozen=True)
class ProbeConfig:
    """What is probed, and how often.

    Attributes:
        manifest: labelled clips.
        columns: which of its columns say what.
        every_steps: steps from one probe to the next; there is also one at the end.
        max_clips: of a larger set a sample of so many is taken, drawn once.
        path_column: column with the paths; None for the first usual one.
        cache_gigabytes: memory for decoded clips, over all processes of a run; the others are decoded at every probe.

    Raises:
        ConfigError: a number below 1, or a cache below 0.
    """

    manifest: str | Path
    columns: Columns
    every_steps: int = 1000
    max_clips: int = 2000
    path_column: str | None = None
    cache_gigabytes: float = 1.0

    def __post_init__(self) -> None:
        if min(self.every_steps, self.max_clips) < 1:
            raise ConfigError(f"every_steps={self.every_steps} and max_clips={self.max_clips} must be 1 or more")
        if self.cache_gigabytes < 0:
            raise ConfigError(f"cache_gigabytes={self.cache_gigabytes} must be 0 or more")


class FrozenProbe:
    """kNN and linear probe of the encoder as it is, by the nested choice of :func:`bridle.eval.protocol.evaluate`.

    Features are the mean over the patches of the last layer: as many numbers as the encoder is wide, so that fits take seconds
    where those of all poolings of an evaluation take minutes. Ranks share the encoding, rank 0 fits, and the others wait for
    it without a limit of time. Networks are in eval mode only while they encode: they are copies, so training goes on as
    it would without it.

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
        self._feature_set(torch.zeros(len(manifest), 1), range(len(manifest)))  # a wrong column must not show only after hours
        self._loader = build_loader(config.clips)
        self._kept = _Kept(probe.cache_gigabytes / distributed.world_size())
        self._group: Any = None

    def __call__(self, step: int, networks: Networks) -> dict[str, float]:
        """Accuracy of both probes in [0, 1], on rank 0. A collective: the other ranks wait until it is done.

        Raises:
            DataError: no clip can be read, or those that can leave a split without training classes.
        """
        if self._group is None:
            self._group = distributed.patient_group()
        found: dict[int, Tensor] = {}
        failure: str | None = None
        try:
            found = self._encode(networks)
        except BridleError as error:  # told to all ranks, none of which may wait for one that gave up
            failure = str(error)
        shares = distributed.gather_objects((found, failure), self._group)
        try:
            return self._fit(shares) if distributed.rank() == 0 else {}
        finally:
            distributed.gather_objects(None, self._group)

    def _encode(self, networks: Networks) -> dict[int, Tensor]:
        """Features (D,) of this rank's share of the clips by row; every so many-th, so that long ones are dealt evenly."""
        model = Model(self._config, deepcopy(networks), self._device, self._config.train.precision)
        model.loader = self._loader
        means = WindowMeans()
        bad: set[int] = set()
        mine = range(distributed.rank(), len(self._manifest), distributed.world_size())
        windows = (window for row in mine for window in self._kept.windows(row, model, self._manifest.entries[row], bad))
        for encoded in model.encode(windows):
            means.add(encoded.windows, pool(encoded.layers[0], encoded.grid, encoded.steps, "mean"), encoded.steps.tolist())
        return {row: vector for row, vector in means.finish().items() if row not in bad}

    def _fit(self, shares: Sequence[tuple[dict[int, Tensor], str | None]]) -> dict[str, float]:
        for _, failure in shares:
            if failure is not None:
                raise DataError(failure)
        found = {row: vector for share, _ in shares for row, vector in share.items()}
        if not found:
            raise DataError(f"none of {len(self._manifest)} clips to be probed can be read; check their paths")
        rows = sorted(found)
        features = self._feature_set(torch.stack([found[row] for row in rows]), rows)
        return {f"probe/{probe.name}": evaluate(features, probe).accuracy for probe in (knn_probe(), linear_probe(STRENGTHS))}

    def _feature_set(self, vectors: Tensor, rows: Sequence[int]) -> FeatureSet:
        columns = subset(self._manifest, rows).columns
        named = {role: columns[column] for role, column in self._columns.named.items()}
        features = FeatureSet({"mean": vectors}, named["label"], named.get("fold"), named.get("split"), named.get("group"))
        choose_splits(features)
        return features

    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""


class _Kept:
    """Decoded clips, as many as there is room for: which come first is as good as any other choice."""

    def __init__(self, gigabytes: float) -> None:
        self._room = gigabytes * 1e9
        self._windows: dict[int, list[Window]] = {}

    def windows(self, row: int, model: Model, entry: Entry, bad: set[int]) -> Iterator[Window]:
        """The windows of a file, which is read if they are not kept; it joins ``bad`` if that fails."""
        if row in self._windows:
            yield from self._windows[row]
            return
        faults: list[BadFile] = []
        found, size = [], 0
        for window in model.windows([entry], faults):
            size += window.inputs.numel() * window.inputs.element_size()
            own = replace(window, index=row)
            if size <= self._room:
                found.append(own)
            yield own
        if faults:
            bad.add(row)
        elif size <= self._room:
            self._room -= size
            self._windows[row] = found
