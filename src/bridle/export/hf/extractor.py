"""The front end of a run as a feature extractor of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor

from bridle.config import from_dict, to_dict
from bridle.data.audio import AudioConfig
from bridle.data.batch import Sample, collate
from bridle.data.dataset import LoadedClip, Loader
from bridle.data.image import ImageConfig
from bridle.data.loaders import ClipConfig, build_loader
from bridle.data.manifest import Entry
from bridle.data.video import VideoConfig
from bridle.errors import ConfigError, DataError
from bridle.export.hf.configuration import INPUT_NAMES
from bridle.nn.patches import PatchSize

_CONFIGS: dict[str, type[ClipConfig]] = {"audio": AudioConfig, "image": ImageConfig, "video": VideoConfig}
_NAMES = {"audio": ("raw_speech", "audio"), "image": ("images",), "video": ("videos", "images")}
_GREY_OR_COLOUR = (1, 3)
_MOST_CHANNELS = 16  # an array of fewer columns holds channels, and no waveform


class BridleFeatureExtractor(FeatureExtractionMixin):
    """Sounds, pictures or films to the clips that :class:`~bridle.export.hf.model.BridleModel` takes.

    The same code as in the run makes them, so the numbers are the same.

    Args:
        medium: ``audio``, ``image`` or ``video``.
        clips: settings of the run's front end, as plain data.
        patch: (time, height, width) of a patch.
        kwargs: what else ``preprocessor_config.json`` holds.

    Raises:
        ConfigError: a setting is damaged.
    """

    padding_value, padding_side = 0.0, "right"  # what pipelines pad batches of clips with

    def __init__(self, medium: str, clips: dict[str, Any], patch: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call, unused-ignore]
        if medium not in _CONFIGS:
            raise ConfigError(f"medium is {medium!r}; it must be one of {', '.join(_CONFIGS)}")
        self.medium, self.clips, self.patch = medium, clips, list(patch)
        self.model_input_names = [INPUT_NAMES[medium], *(["lengths"] if medium != "image" else [])]
        config = self._config
        if isinstance(config, AudioConfig):
            self.sampling_rate = config.fbank.sample_rate

    @classmethod
    def of_run(cls, config: ClipConfig, medium: str, patch: PatchSize) -> BridleFeatureExtractor:
        """The feature extractor of a run's settings."""
        return cls(medium, to_dict(config), list(patch))

    def __call__(
        self,
        items: Any = None,
        sampling_rate: int | None = None,
        *,
        windows: bool = False,
        return_tensors: str | None = "pt",
        padding: bool | str | None = True,
        **named: Any,
    ) -> BatchFeature:
        """A batch of clips, normalised and padded.

        Args:
            items: one or a list: paths; waveforms (S,), floats, mono in [-1, 1], or a batch (B, S) of them; PIL images, arrays
                (H, W, C) or tensors (C, H, W); films as lists of PIL images, arrays (T, H, W, C) or tensors (T, C, H, W),
                frames one step of the run's clips apart. Pixels are uint8, or floats in [0, 1].
            sampling_rate: of waveforms, in Hz; they are resampled where it is not the run's.
            windows: one item, and each row is a window of it; else each row is an item, which may not be longer than a clip.
            return_tensors: ``pt`` or ``np``.
            padding: True or ``longest``: sounds and films are always padded to the longest of the batch.
            named: the items by the name that other extractors have for them: ``raw_speech`` or ``audio``, ``images``,
                ``videos``.

        Returns:
            ``input_values`` (B, T, F) for sounds, ``pixel_values`` (B, C, H, W) for pictures and (B, T, C, H, W) for films;
            ``lengths`` (B,) valid frames of sounds and films.

        Raises:
            DataError: an item is nothing that the medium knows, such as integers for sound, or longer than a clip; or there
                is none.
            DecodeError: a file cannot be read.
            ConfigError: waveforms without ``sampling_rate``, another ``return_tensors`` or ``padding``, or a name that is none.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ConfigError(f"return_tensors is {return_tensors!r}; it must be 'pt' or 'np'")
        if padding not in (None, True, "longest"):
            raise ConfigError(f"padding is {padding!r}; a batch is padded to its longest item, so leave it out")
        listed = self._listed(self._given(items, named))
        if not listed or (windows and len(listed) > 1):
            raise DataError(f"there are {len(listed)} items; give 1 with windows=True, else 1 or more")
        loader = build_loader(self._config)
        rows: list[LoadedClip] = []
        for index, item in enumerate(listed):
            found = self._windows(loader, item, sampling_rate)
            if not windows and len(found) > 1:
                raise DataError(
                    f"item {index} is longer than a clip of {self._full}; cut it, or give it alone with windows=True for a "
                    "row for each window"
                )
            rows += found
        return self._batch(loader, rows, return_tensors or "pt")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for ``preprocessor_config.json``."""
        data = super().to_dict()
        for name in ("model_input_names", "sampling_rate"):
            data.pop(name, None)
        return data | {"feature_extractor_type": BridleFeatureExtractor.__name__}

    @property
    def _config(self) -> ClipConfig:
        return from_dict(_CONFIGS[self.medium], self.clips)

    @property
    def _full(self) -> str:
        config = self._config
        if isinstance(config, AudioConfig):
            return f"{config.crop_seconds:g} s"
        return f"{config.num_frames} frames" if isinstance(config, VideoConfig) else "one picture"

    def _given(self, items: Any, named: dict[str, Any]) -> Any:
        """The items, by whatever name they came."""
        names = _NAMES[self.medium]
        for name in named:
            if name not in names:
                raise ConfigError(f"this extractor of {self.medium} has no {name}; give the items first, or as {names[0]}")
        found = [value for value in (items, *named.values()) if value is not None]
        if len(found) != 1:
            raise ConfigError(f"the items are given {len(found)} times; give them once, first or as {names[0]}")
        return found[0]

    def _listed(self, items: Any) -> list[Any]:
        """The items, where one of them may have come alone."""
        if isinstance(items, str | Path) or (self.medium == "image" and _is_picture(items)):
            return [items]
        if isinstance(items, Tensor | np.ndarray):
            if self.medium == "audio" and items.ndim == 2 and items.shape[1] <= _MOST_CHANNELS:
                raise DataError(_not_mono(items.shape))
            alone = {"audio": 1, "image": 3, "video": 4}[self.medium]
            return [items] if items.ndim <= alone else list(items)
        if not isinstance(items, list | tuple):
            return [items]
        numbers = self.medium == "audio" and bool(items) and isinstance(items[0], int | float)
        one_film = self.medium == "video" and bool(items) and _is_frame(items[0])
        return [items] if numbers or one_film else list(items)

    def _windows(self, loader: Loader, item: Any, sampling_rate: int | None) -> list[LoadedClip]:
        if isinstance(item, str | Path):
            return list(loader.windows(Entry(key=str(item), path=str(item))))
        if self.medium == "audio":
            item = _waveform(item, sampling_rate, self.sampling_rate)
        elif self.medium == "image":
            item = item if _is_picture(item) else _channels_first(item)
        elif isinstance(item, list | tuple):
            item = torch.stack([_channels_first(np.array(frame) if _is_picture(frame) else frame) for frame in item])
        else:
            item = _channels_first(item)
        return list(loader.windows_of(item))

    def _batch(self, loader: Loader, rows: list[LoadedClip], kind: str) -> BatchFeature:
        time, height, width = self.patch
        samples = [Sample(row.inputs, row.inputs.shape[1], 0, index, row.aspect) for index, row in enumerate(rows)]
        batch = loader.finish(collate(samples, (time, height, width)), augment=False)
        given = (as_transformers(self.medium, batch.inputs).contiguous(), batch.lengths)
        data = dict(zip(self.model_input_names, given, strict=False))  # pictures have no lengths
        return BatchFeature(data if kind == "pt" else {name: value.numpy() for name, value in data.items()})


class BridleImageProcessor(BridleFeatureExtractor, BaseImageProcessor):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """The same extractor, as the kind that transformers' pipelines of pictures load."""


def as_transformers(medium: str, inputs: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) with the axes that transformers gives a medium: (B, T, F), (B, C, H, W) or (B, T, C, H, W)."""
    if medium == "audio":
        return inputs[:, 0, :, :, 0]
    return inputs[:, :, 0] if medium == "image" else inputs.transpose(1, 2)


def _is_picture(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _is_frame(item: Any) -> bool:
    return _is_picture(item) or (isinstance(item, np.ndarray | Tensor) and item.ndim == 3)


def _waveform(item: Any, rate: int | None, wanted: int) -> Any:
    """(S,) float32 at the wanted rate; what is no array is left to the front end, which refuses it."""
    if rate is None:
        raise ConfigError(f"the sample rate of the waveform is not given; say sampling_rate={wanted}, or what it is")
    if not isinstance(item, np.ndarray | Tensor | list | tuple):
        return item
    samples = torch.as_tensor(item)
    if not samples.is_floating_point():
        dtype = str(samples.dtype).removeprefix("torch.")
        raise DataError(f"the waveform is {dtype}; give floats in [-1, 1]: divide samples of 16 bits by 32768")
    if samples.ndim != 1:
        raise DataError(_not_mono(samples.shape))
    if rate == wanted:
        return samples.float()
    import soxr

    return torch.from_numpy(soxr.resample(samples.detach().cpu().float().numpy(), rate, wanted, quality="HQ"))


def _not_mono(shape: Sequence[int]) -> str:
    return f"the waveform is {tuple(shape)}; give (S,) of one channel, such as the mean over the channels"


def _channels_first(item: Any) -> Any:
    """A tensor (..., C, H, W) of arrays that have channels last, or none."""
    if not isinstance(item, np.ndarray):
        return item
    pixels = torch.from_numpy(np.ascontiguousarray(item))
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim > 2 and pixels.shape[-1] in _GREY_OR_COLOUR:
        return pixels.movedim(-1, -3)
    return pixels
