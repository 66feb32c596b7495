"""A run of audio as an encoder for X-ARES.

Its command line takes a file like this, with one name that ends with ``Encoder``::

    from functools import partial
    from bridle.adapters import xares

    MyEncoder = partial(xares.XaresEncoder.from_run, "runs/first")

Interface: ``xares.audio_encoder_checker`` of xares 0.1.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bridle.errors import ConfigError, DataError
from bridle.inference import Model, Window, load
from bridle.models.encoder import check_layers
from bridle.run import clip_grid
from bridle.train.loop import Precision

BandPooling = Literal["mean", "time"]
"""Of the patches of a time step: ``mean`` over the frequency bands; ``time``: all bands side by side."""


class XaresEncoder(nn.Module):
    """A model with X-ARES' interface of an encoder.

    The class of an instance is a subclass of this one, named after fingerprint, pooling and layer: X-ARES keeps encodings and
    scores by the name of the class, and another model must not find them.

    Attributes:
        sampling_rate: of the sound that it takes, Hz.
        output_dim: numbers of a time step.
        hop_size_in_ms: from one time step to the next, ms.

    Args:
        model: of audio. It stays on its device, and in eval mode.
        pooling: of the patches of a time step.
        layer: 1 to the model's depth; None for the last one.

    Raises:
        ConfigError: the model is of another medium, or there is no such pooling or layer.
    """

    def __init__(self, model: Model, *, pooling: BandPooling = "mean", layer: int | None = None) -> None:
        super().__init__()
        config, audio = model.config, model.config.audio
        if audio is None:
            raise ConfigError(f"this run encodes {config.medium.name}; X-ARES needs a run of audio")
        if pooling not in get_args(BandPooling):
            raise ConfigError(f"pooling is {pooling!r}; it must be one of {', '.join(get_args(BandPooling))}")
        self.model = model
        self.pooling = pooling
        self.layer = model.depth if layer is None else layer
        check_layers((self.layer,), model.depth)
        steps, frames, hop = clip_grid(config), config.encoder.patch[0], audio.fbank.hop_samples
        self.sampling_rate = audio.fbank.sample_rate
        self.output_dim = model.width * (steps.height if pooling == "time" else 1)
        self.hop_size_in_ms = 1000 * frames * hop / self.sampling_rate
        whole = max(1, model.loader.crop_frames // frames)  # steps that lie in a clip as a whole
        self._piece_samples = whole * frames * hop
        self._overlap_samples = audio.fbank.frame_samples - hop  # what the last frame of a piece needs of the next one
        self._shortest_samples = audio.fbank.frame_samples + (frames - frames // 2 - 1) * hop  # of half a step
        self.__class__ = type(f"Bridle_{model.fingerprint}_{pooling}_{self.layer}_Encoder", (XaresEncoder,), {})

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        pooling: BandPooling = "mean",
        layer: int | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
    ) -> XaresEncoder:
        """The encoder of a run folder.

        Args:
            run: the folder given to ``pretrain --out``.
            pooling: as for the class.
            layer: as for the class.
            device: as for :func:`bridle.load`, but None takes the current GPU: X-ARES sets it for each of its jobs.
            precision: as for :func:`bridle.load`.

        Raises:
            RunError: there is no run, no weights yet, or they were written by another version.
            ConfigError: as for the class; or there is no such device.
        """
        found = "cuda" if device is None and torch.cuda.is_available() else device
        return cls(load(run, found, precision), pooling=pooling, layer=layer)

    @torch.inference_mode()
    def forward(self, audio: Tensor) -> Tensor:
        """Features of every time step.

        Args:
            audio: (B, S), or (S,) for one sound: float waveforms of any length at ``sampling_rate``.

        Returns:
            (B, T, ``output_dim``) float32 on the device of ``audio``; step t is of the sound from ``t * hop_size_in_ms`` on.

        Raises:
            DataError: other axes, no samples, or samples that are not finite floats.
        """
        if audio.ndim not in (1, 2) or audio.numel() == 0:
            raise DataError(f"audio has the shape {tuple(audio.shape)}; it must be (clips, samples) or (samples,), not empty")
        waveforms = audio.reshape(-1, audio.shape[-1])
        rows: list[list[Tensor]] = [[] for _ in waveforms]
        for encoded in self.model.encode(self._windows(waveforms), layers=(self.layer,)):
            grid, features = encoded.grid, encoded.layers[0].float()
            steps = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
            steps = steps.flatten(2) if self.pooling == "time" else steps.mean(2)
            for window, row, count in zip(encoded.windows, steps, encoded.steps.tolist(), strict=True):
                rows[window.index].append(row[:count])
        return torch.stack([torch.cat(parts) for parts in rows]).to(audio.device)

    def _windows(self, waveforms: Tensor) -> Iterator[Window]:
        """Pieces of a whole number of steps, each with the samples that its last frame needs."""
        starts = range(0, max(1, waveforms.shape[1] - self._shortest_samples + 1), self._piece_samples)
        for row, waveform in enumerate(waveforms):
            for start in starts:
                piece = waveform[start : start + self._piece_samples + self._overlap_samples]
                for clip in self.model.loader.windows_of(piece):
                    yield Window(row, start / self.sampling_rate, clip.inputs)
