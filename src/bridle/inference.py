"""Using a run: features, embeddings and codes of sounds. ``bridle.load`` gives a :class:`Model`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bridle import distributed
from bridle.data.audio import AudioLoader
from bridle.data.batch import Batch, Sample, collate
from bridle.data.dataset import LoadedClip
from bridle.data.manifest import Entry
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, DecodeError, RunError
from bridle.grid import PatchGrid
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.networks import Networks, model_fingerprint, read_networks
from bridle.nn.pooling import Pooling, pool
from bridle.objectives.view import whole_view
from bridle.run import RunConfig, RunFolder

Sound = str | Path | Tensor
"""A file, or a waveform (S,) mono at the model's sample rate, in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of one clip: ``codes`` (N, R) int64 in the order of ``grid``, which has N patches."""

    codes: Tensor
    grid: PatchGrid


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a file and where it starts.

    Attributes:
        index: row of the entry it belongs to.
        start_seconds: where it starts in the file.
        inputs: (C, T, H, W) normalised.
    """

    index: int
    start_seconds: float
    inputs: Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder makes of a batch of windows.

    Attributes:
        windows: B of them.
        layers: (B, N, D) features of each layer that was asked for.
        grid: N patches; those past a window's end mean nothing.
        steps: (B,) valid time steps of each window, on the CPU.
    """

    windows: list[Window]
    layers: tuple[Tensor, ...]
    grid: PatchGrid
    steps: Tensor


class Model:
    """A pretrained encoder with its front end and, where it has one, its tokenizer; in eval mode.

    Args:
        config: of the run.
        networks: with their weights.
        device: where to compute.
    """

    def __init__(self, config: RunConfig, networks: Networks, device: torch.device) -> None:
        self.config = config
        self.networks = networks.to(device).eval().requires_grad_(False)
        self.device = device
        self.loader = AudioLoader(config.audio)
        self.fingerprint = model_fingerprint(config, networks.state_dict())

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
            raise RunError("this run has no fitted tokenizer; pretrain with a cold or tokenizer phase to get codes")
        return tokenizer

    @property
    def depth(self) -> int:
        """Number of layers; the last one's output is what the encoder gives."""
        return self.config.encoder.depth

    def features(self, sound: Sound, pooling: Pooling | Literal["none"] = "none", layer: int | None = None) -> Tensor:
        """Features of a sound.

        Args:
            sound: a file or a waveform; longer ones than the model's crop are read in consecutive windows, joined in time.
            pooling: ``"mean"`` over all patches, ``"time"`` over time only, ``"statistics"`` mean and deviation over time,
                or ``"none"``.
            layer: 1 to ``depth``; None for the last one.

        Returns:
            float32 on the CPU: (time, frequency, D) for ``"none"``, (D,) for ``"mean"``, (frequency, D) for ``"time"``,
            (frequency, 2D) for ``"statistics"``: mean, then deviation.

        Raises:
            DecodeError: the file cannot be read.
            DataError: the waveform is empty, not mono or not finite.
            ConfigError: there is no such layer.
        """
        parts = []
        for encoded in self.encode(self._windows(sound), layers=(self.depth if layer is None else layer,)):
            cut = encoded.layers[0].reshape(len(encoded.windows), encoded.grid.time, encoded.grid.patches_per_step, -1).cpu()
            parts += [row[:steps] for row, steps in zip(cut, encoded.steps.tolist(), strict=True)]
        features = torch.cat(parts)
        if pooling == "none":
            return features
        steps, bands, _ = features.shape
        pooled = pool(features.flatten(0, 1)[None], PatchGrid(steps, bands), torch.tensor([steps]), pooling)[0]
        return pooled if pooling == "mean" else pooled.reshape(bands, -1)

    def embed(self, sound: Sound, pooling: Pooling = "mean", layer: int | None = None) -> Tensor:
        """One vector for the whole sound: its pooled features.

        Args:
            sound: a file or a waveform.
            pooling: as for :meth:`features`.
            layer: 1 to ``depth``; None for the last one.

        Returns:
            (D,) for ``"mean"``, (frequency * D,) for ``"time"``, (frequency * 2D,) for ``"statistics"``; float32 on the CPU.

        Raises:
            DecodeError: the file cannot be read.
            DataError: the waveform is empty, not mono or not finite.
            ConfigError: there is no such layer.
        """
        return self.features(sound, pooling, layer).flatten()

    def tokenize(self, sound: Sound) -> Codes:
        """Codes of every patch; windows as for :meth:`features`.

        Returns:
            Codes (N, R) with their grid.

        Raises:
            DecodeError: the file cannot be read.
            DataError: the waveform is empty, not mono or not finite.
            RunError: the run has no tokenizer.
        """
        parts = [codes for _, codes in self.encode_codes(self._windows(sound))]
        bands = parts[0].grid.height
        codes = torch.cat([part.codes for part in parts])
        return Codes(codes, PatchGrid(len(codes) // bands, bands))

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
            codes = tokenizer.quantizer.encode(tokenizer.vectors(view.patches, view.every)).cpu()
            grid = view.patches.grid
            for window, row, count in zip(group, codes, view.steps.tolist(), strict=True):
                yield window, Codes(row[: count * grid.patches_per_step], PatchGrid(count, grid.height, grid.width))

    def windows(self, entries: Iterable[Entry], bad: list[BadFile]) -> Iterator[Window]:
        """Windows of every entry in order; files that cannot be read are appended to ``bad`` and passed over."""
        for index, entry in enumerate(entries):
            try:
                for clip in self.loader.windows(entry):
                    yield Window(index, clip.start_seconds, clip.inputs)
            except (DecodeError, OSError) as error:
                bad.append(BadFile.of(entry, error))

    def _windows(self, sound: Sound) -> Iterator[Window]:
        """The windows one after the other, so that a long file is never in memory as a whole."""
        if isinstance(sound, Tensor):
            clips: Iterable[LoadedClip] = self.loader.waveform_windows(_checked_waveform(sound))
        else:
            clips = self.loader.windows(Entry(key=str(sound), path=str(sound)))
        for clip in clips:
            yield Window(0, clip.start_seconds, clip.inputs)

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
        """The windows padded to one length, on the model's device."""
        samples = [Sample(window.inputs, window.inputs.shape[1], 0, window.index) for window in windows]
        return collate(samples, self.config.encoder.patch).to(self.device)


def _checked_waveform(waveform: Tensor) -> Tensor:
    if waveform.ndim != 1 or not waveform.is_floating_point() or waveform.numel() == 0:
        raise DataError(
            f"a waveform must be a non-empty float tensor (samples,), not {tuple(waveform.shape)} {waveform.dtype}; "
            "average the channels and scale to [-1, 1]"
        )
    if not bool(torch.isfinite(waveform).all()):
        raise DataError("the waveform holds NaN or infinite samples; clean it first")
    return waveform.detach().to("cpu", torch.float32)


def load(run: str | Path, device: str | torch.device | None = None) -> Model:
    """The model of a run folder, from its newest weights. Nothing is unpickled.

    Args:
        run: the folder given to ``pretrain --out``.
        device: such as ``"cpu"`` or ``"cuda:1"``; defaults to the GPU, else the CPU.

    Raises:
        RunError: there is no run, no weights yet, or they were written by another version.
        ConfigError: its configuration is damaged, or there is no such device.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    found = distributed.default_device() if device is None else distributed.usable_device(device)
    return Model(config, read_networks(folder, config), found)


def random_model(config: RunConfig, device: torch.device | None = None) -> Model:
    """The same model before any training: the baseline of every evaluation."""
    return Model(config, Networks(config), device or distributed.default_device())
