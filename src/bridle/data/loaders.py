"""The front end that belongs to settings, and the settings that depend on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from bridle import randomness
from bridle.config import told
from bridle.data.audio import AudioConfig, AudioLoader
from bridle.data.dataset import Loader, one_thread
from bridle.data.image import ImageConfig, ImageLoader
from bridle.data.manifest import Manifest
from bridle.data.video import VideoConfig, VideoLoader
from bridle.errors import ConfigError, DataError, DecodeError

ClipConfig = AudioConfig | ImageConfig | VideoConfig
"""Settings of a front end."""


def build_loader(config: ClipConfig) -> Loader:
    """The front end of the settings.

    Raises:
        ConfigError: they lack what the front end needs.
    """
    if isinstance(config, AudioConfig):
        return AudioLoader(config)
    return VideoLoader(config) if isinstance(config, VideoConfig) else ImageLoader(config)


PASSING = frozenset({"cache_gigabytes", "cache_folder", "max_decode_seconds", "max_pixels"})
"""Settings of clips that change no value: of memory and of time."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel's values over ``num_clips`` clips."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_clips: int


def with_normalisation(config: ClipConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> ClipConfig:
    """The settings with mean and deviation of each channel filled in; sound has one channel."""
    if isinstance(config, AudioConfig):
        return replace(config, mean=mean[0], std=std[0])
    return replace(config, mean=mean, std=std)


def content_settings(config: ClipConfig) -> dict[str, Any]:
    """The settings that change what a model makes of a file: not those of augmentation, of memory and of time."""
    augmenting = {"shift", "gain", "mask_frames", "mask_mels", "decode_size", "scale", "ratio", "flip", "rand_augment", "erase"}
    return {name: value for name, value in told(config).items() if name not in augmenting | PASSING}


def plain(config: ClipConfig) -> ClipConfig:
    """The settings of clips that are neither normalised, augmented nor cached: values as they are decoded."""
    whole: dict[str, Any]
    if isinstance(config, AudioConfig):  # divided by twice the deviation
        whole = {"shift": False, "gain": False, "mask_frames": 0, "mask_mels": 0}
        return replace(config, mean=0.0, std=0.5, cache_gigabytes=0.0, cache_folder="", **whole)
    zeros, ones = (0.0,) * config.channels, (1.0,) * config.channels
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False, "rand_augment": 0.0, "erase": 0.0}
    return replace(config, mean=zeros, std=ones, cache_gigabytes=0.0, cache_folder="", **whole)


@one_thread()
def estimate_normalisation(manifest: Manifest, config: ClipConfig, num_clips: int = 1000, seed: int = 0) -> Normalisation:
    """Mean and standard deviation of each channel's values in a random sample of clips, none of them augmented.

    Args:
        manifest: the files; those that cannot be read are passed over.
        config: of the clips; its ``mean`` and ``std`` play no part.
        num_clips: clips to use, or all there are.
        seed: chooses the clips and their crops.

    Returns:
        The values, summed in float64.

    Raises:
        DataError: no clip can be read, or all values are equal.
        ConfigError: ``num_clips`` is less than 1.
    """
    if num_clips < 1:
        raise ConfigError(f"num_clips is {num_clips}; it must be at least 1")
    loader = build_loader(plain(config))
    clips = values = 0
    total = squares = torch.zeros((), dtype=torch.float64)
    fault = ""
    for index in randomness.permutation(len(manifest), seed, "normalisation").tolist():
        try:
            clip = loader.load(manifest.entries[index], randomness.generator(seed, "normalisation", index))
        except (DecodeError, OSError) as error:
            fault = fault or f"; first: {error}"
            continue
        x = clip.inputs.double().flatten(1) / (255 if loader.dtype == torch.uint8 else 1)
        clips, values = clips + 1, values + x.shape[1]
        total, squares = total + x.sum(1), squares + x.square().sum(1)
        if clips == num_clips:
            break
    if clips == 0:
        raise DataError(f"none of {len(manifest)} files can be decoded{fault}; check the files")
    mean = (total / values).tolist()
    std = [math.sqrt(max(0.0, square / values - m**2)) for square, m in zip(squares.tolist(), mean, strict=True)]
    if max(std) < 1e-6:
        raise DataError(f"all values of {clips} clips are {mean[0]:.3f}; the files hold nothing: check them")
    return Normalisation(tuple(mean), tuple(max(value, 1e-6) for value in std), clips)
