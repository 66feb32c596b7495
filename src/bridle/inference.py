"""Using a run: features, embeddings and codes of files. ``bridle.load`` gives a :class:`Model`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bridle import distributed
from bridle.data.batch import Batch, Sample, collate
from bridle.data.dataset import LoadedClip
from bridle.data.loaders import build_loader
from bridle.data.manifest import Entry
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, DecodeError, RunError
from bridle.grid import PatchGrid
from bridle.models.classifier import Classifier
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.networks import Networks, model_fingerprint, read_networks
from bridle.nn.pooling import MOTIONS, TIME_PARTS, Pooling, check_pooling, num_cells, pool
from bridle.nn.positions import AXES
from bridle.objectives.view import whole_view
from bridle.prediction import Prediction, to_probabilities
from bridle.run import RunConfig, RunFolder
from bridle.train.loop import Precision, resolve_precision
from bridle.windows import Codes, Encoded, Window, WindowMeans

__all__ = ["Codes", "Encoded", "Item", "Model", "Prediction", "Window", "load", "random_model"]

Item = Any
"""A file (path), or what the model's medium has in memory: a waveform (S,) mono at its sample rate, in [-1, 1]; a PIL image or
pixels (C, H, W); frames (T, C, H, W) one step of the model's clips apart. Pixels are uint8, or floats in [0, 1]."""


class Model:
    """A pretrained encoder with its front end and, where it has one, its tokenizer; in eval mode.

    Args:
        config: of the run.
        networks: with their weights.
        device: where to compute.
        precision: of the encoder's products: ``fp32``, ``bf16``, or ``auto`` for bf16 where the device computes in it.
    """

    def __init__(self, config: RunConfig, networks: Networks, device: torch.device, precision: Precision = "fp32") -> None:
        self.config = config
        self.precision = resolve_precision(precision, device)
        self.networks = networks.to(device).eval().requires_grad_(False)
        self.device = device
        self.loader = build_loader(config.clips)

    def __repr__(self) -> str:
        kind, encoder = self.config.medium.name, self.config.encoder
        return f"<{kind} model {self.fingerprint}: width {encoder.width}, depth {encoder.depth}, on {self.device}>"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight or setting that changes what the model gives."""
        return model_fingerprint(self.config, self.networks.state_dict())

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.config.encoder.width

    @property
    def tokenizer(self) -> Tokenizer | RandomTokenizer:
        """The trained tokenizer, or the random one of the cold start while there is no other.

        Raises:
            RunError: the run has neither.
        """
        tokenizer = self.networks.best_tokenizer
        if tokenizer is None:
            if self.config.finetune is not None:
                raise RunError("a fine-tuned run has no fitted tokenizer; take the pretrained run that it began from")
            raise RunError("this run has no fitted tokenizer; pretrain with a cold or tokenizer phase to get codes")
        return tokenizer

    @property
    def depth(self) -> int:
        """Number of layers; the last one's output is what the encoder gives."""
        return self.config.encoder.depth

    def features(self, item: Item, pooling: Pooling | Literal["none"] = "none", layer: int | None = None) -> Tensor:
        """Features of a sound, picture or film.

        Args:
            item: a file, or a tensor or picture in memory; what is longer than the model's clips is read in consecutive
                windows, joined in time.
            pooling: see :mod:`bridle.nn.pooling`; ``"none"`` keeps every patch.
            layer: 1 to ``depth``; None for the last one.

        Returns:
            float32 on the CPU. For ``"none"`` the axes of the medium and D: (time, frequency, D), (height, width, D) or
            (time, height, width, D). For ``"time"`` and ``"statistics"`` those without time, the latter of 2D: mean, then
            deviation. For ``"mean"`` (D,), for ``"grid"`` and ``"grid motion"`` (cells, D), for
            ``"grid statistics"`` (cells, 2D), for ``"grid motion parts"`` (8, cells, D), for ``"grid trajectory"``
            (8, cells, 2D): change, then position.

        Raises:
            DecodeError: the file cannot be read.
            DataError: what is in memory is nothing that the model's medium knows, empty or not finite.
            ConfigError: there is no such layer or pooling.
        """
        if pooling != "none":
            check_pooling(pooling, self.config.medium.timed)
        parts = []
        grid = None
        for encoded in self.encode(self._windows(item), layers=(self.depth if layer is None else layer,)):
            grid = encoded.grid
            cut = encoded.layers[0].reshape(len(encoded.windows), grid.time, grid.patches_per_step, -1).cpu()
            parts += [row[:steps] for row, steps in zip(cut, encoded.steps.tolist(), strict=True)]
        assert grid is not None  # every item has a window
        features = torch.cat(parts)
        grid = PatchGrid(len(features), grid.height, grid.width)
        kept = [size for axis, size in zip(AXES, grid.shape, strict=True) if axis in self.config.encoder.axes]
        if pooling == "none":
            return features.reshape(*kept, -1)
        pooled = pool(features.flatten(0, 1)[None], grid, torch.tensor([grid.time]), pooling)[0]
        if pooling in ("time", "statistics"):
            space = kept[1:] if "time" in self.config.encoder.axes else kept
            return pooled.reshape(*space, -1)
        if pooling in ("grid motion parts", "grid trajectory"):
            return pooled.reshape(TIME_PARTS, num_cells(grid), -1)
        return pooled if pooling == "mean" else pooled.reshape(num_cells(grid), -1)

    def embed(self, item: Item, pooling: Pooling = "mean", layer: int | None = None) -> Tensor:
        """One vector for the whole item: its pooled features, by default the mean over the patches of all its windows.

        That is not the summary of an encoder with a class token, the ``pooler_output`` of an export (docs/export.md).

        Args:
            item: as for :meth:`features`.
            pooling: as for :meth:`features`.
            layer: 1 to ``depth``; None for the last one.

        Returns:
            (X,) float32 on the CPU; X is D for ``"mean"``, and :func:`bridle.nn.pooling.pooled_width` for others.

        Raises:
            DecodeError: the file cannot be read.
            DataError: what is in memory is nothing that the model's medium knows, empty or not finite.
            ConfigError: there is no such layer or pooling.
        """
        check_pooling(pooling, self.config.medium.timed)
        return self.features(item, pooling, layer).flatten()

    def embed_all(self, items: Iterable[Item], pooling: Pooling = "mean", layer: int | None = None) -> Tensor:
        """Vectors of many items, computed in batches; an item of several windows has their mean.

        Args:
            items: files, or a batch of tensors, such as pixels (B, C, H, W).
            pooling: as for :meth:`features`; of an item of several windows the windows' vectors are averaged by their length.
                So ``grid motion parts`` and ``grid trajectory`` are those of a window; :meth:`embed` has those of the whole.
            layer: 1 to ``depth``; None for the last one.

        Returns:
            (number of items, X) float32 on the CPU.

        Raises:
            DecodeError: a file cannot be read.
            DataError: as for :meth:`embed`; or there is no item.
            ConfigError: there is no such layer or pooling.
        """
        check_pooling(pooling, self.config.medium.timed)
        windows = self._windows_of(items)
        means = WindowMeans()
        for encoded in self.encode(windows, layers=(self.depth if layer is None else layer,)):
            vectors = pool(encoded.layers[0], encoded.grid, encoded.steps, pooling)
            counted = encoded.steps - 1 if pooling in MOTIONS else encoded.steps  # by their changes, or by their steps
            means.add(encoded.windows, vectors, counted.tolist())
        return means.stacked()

    @property
    def classifier(self) -> Classifier:
        """The classifier of a fine-tuned run.

        Raises:
            RunError: the run is not fine-tuned.
        """
        if self.networks.classifier is None:
            raise RunError("this run has no classifier; bridle finetune makes a run that predicts classes")
        return self.networks.classifier

    def predict(self, item: Item) -> Prediction:
        """The classes of a sound, picture or film; a long one's are the mean over its windows.

        Args:
            item: as for :meth:`features`.

        Raises:
            RunError: the run is not fine-tuned.
            DecodeError: the file cannot be read.
            DataError: what is in memory is nothing that the model's medium knows, empty or not finite.
        """
        return self.predict_all([item])[0]

    def predict_all(self, items: Iterable[Item]) -> list[Prediction]:
        """Like :meth:`predict`, for many items, computed in batches.

        Raises:
            DataError: as for :meth:`predict`; or there is no item.
        """
        chances = self.probabilities(self._windows_of(items)).stacked()
        finetune = self.config.finetune
        assert finetune is not None
        return [Prediction(finetune.classes, row, finetune.multi_label) for row in chances]

    @torch.inference_mode()
    def probabilities(self, windows: Iterable[Window], batch_size: int = 16) -> WindowMeans:
        """Probabilities (C,) of each file, averaged over its windows by their length.

        Raises:
            RunError: the run is not fine-tuned.
        """
        classifier, finetune, means = self.classifier, self.config.finetune, WindowMeans()
        assert finetune is not None
        for encoded in self.encode(windows, batch_size):
            with self.autocast():
                logits = classifier(encoded.layers[0], encoded.grid, encoded.steps)
            means.add(encoded.windows, to_probabilities(logits, finetune), encoded.steps.tolist())
        return means

    def tokenize(self, item: Item) -> Codes:
        """Codes of every patch; windows as for :meth:`features`.

        Returns:
            Codes (N, R) with their grid.

        Raises:
            DecodeError: the file cannot be read.
            DataError: what is in memory is nothing that the model's medium knows, empty or not finite.
            RunError: the run has no tokenizer.
        """
        parts = [codes for _, codes in self.encode_codes(self._windows(item))]
        grid = parts[0].grid
        codes = torch.cat([part.codes for part in parts])
        return Codes(codes, PatchGrid(len(codes) // grid.patches_per_step, grid.height, grid.width))

    @torch.inference_mode()
    def encode(self, windows: Iterable[Window], batch_size: int = 16, layers: Sequence[int] | None = None) -> Iterator[Encoded]:
        """Encode windows in batches, in their order. Padding inside a batch changes no number beyond rounding.

        Args:
            windows: of any length up to a crop.
            batch_size: windows per forward pass.
            layers: which layers to give, 1 to ``depth``; None for the last one.

        Raises:
            ConfigError: there is no such layer.
        """
        wanted = (self.depth,) if layers is None else tuple(layers)
        for group, batch in self._batches(windows, batch_size):
            view = whole_view(batch, self.config.encoder.patch)
            with self.autocast():
                found = self.networks.encoder.at_layers(view.patches, view.every, wanted)
            yield Encoded(group, tuple(features.patches for features in found), view.patches.grid, view.steps)

    @torch.inference_mode()
    def encode_codes(self, windows: Iterable[Window], batch_size: int = 16) -> Iterator[tuple[Window, Codes]]:
        """Codes of each window, its valid patches only.

        Raises:
            RunError: the run has no tokenizer.
        """
        tokenizer = self.tokenizer
        for group, batch in self._batches(windows, batch_size):
            view = whole_view(batch, self.config.encoder.patch)
            with self.autocast():
                codes = tokenizer.quantizer.encode(tokenizer.vectors(view.patches, view.every)).cpu()
            grid = view.patches.grid
            for window, row, count in zip(group, codes, view.steps.tolist(), strict=True):
                yield window, Codes(row[: count * grid.patches_per_step], PatchGrid(count, grid.height, grid.width))

    def autocast(self) -> torch.autocast:
        """The context in which its networks compute in its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def windows(self, entries: Iterable[Entry], bad: list[BadFile]) -> Iterator[Window]:
        """Windows of every entry in order; files that cannot be read are appended to ``bad`` and passed over."""
        for index, entry in enumerate(entries):
            try:
                for clip in self.loader.windows(entry):
                    yield Window(index, clip.start_seconds, clip.inputs, clip.aspect)
            except (DecodeError, OSError) as error:
                bad.append(BadFile.of(entry, error))

    def _windows(self, item: Item) -> Iterator[Window]:
        """The windows one after the other, so that a long file is never in memory as a whole."""
        for clip in self._clips(item):
            yield Window(0, clip.start_seconds, clip.inputs, clip.aspect)

    def _windows_of(self, items: Iterable[Item]) -> Iterator[Window]:
        if isinstance(items, str | Path):
            raise DataError(f"the items are one path, {str(items)!r}; give a list of them")
        for index, item in enumerate(items):
            for clip in self._clips(item):
                yield Window(index, clip.start_seconds, clip.inputs, clip.aspect)

    def _clips(self, item: Item) -> Iterator[LoadedClip]:
        if isinstance(item, str | Path):
            return self.loader.windows(Entry(key=str(item), path=str(item)))
        return self.loader.windows_of(item)

    def _batches(self, windows: Iterable[Window], batch_size: int) -> Iterator[tuple[list[Window], Batch]]:
        group: list[Window] = []
        for window in windows:
            group.append(window)
            if len(group) == batch_size:
                yield group, self.batch(group)
                group = []
        if group:
            yield group, self.batch(group)

    def batch(self, windows: Sequence[Window]) -> Batch:
        """The windows padded to one length, finished, on the model's device."""
        samples = [Sample(w.inputs, w.inputs.shape[1], 0, w.index, w.aspect) for w in windows]
        return self.loader.finish(collate(samples, self.config.encoder.patch).to(self.device), augment=False)


def load(run: str | Path, device: str | torch.device | None = None, precision: Precision = "fp32") -> Model:
    """The model of a run folder, from its newest weights. Nothing is unpickled.

    Args:
        run: the folder given to ``pretrain --out``.
        device: such as ``"cpu"`` or ``"cuda:1"``; defaults to the GPU, else the CPU.
        precision: see :class:`Model`.

    Raises:
        RunError: there is no run, no weights yet, or they were written by another version.
        ConfigError: its configuration is damaged, or there is no such device.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    found = distributed.default_device() if device is None else distributed.usable_device(device)
    return Model(config, read_networks(folder, config), found, precision)


def random_model(config: RunConfig, device: torch.device | None = None, precision: Precision = "fp32") -> Model:
    """The same model before any training: the baseline of every evaluation."""
    return Model(config, Networks(config), device or distributed.default_device(), precision)
