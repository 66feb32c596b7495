"""Fine-tuned models with random weights, and sounds for them, without the time that training takes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from reference.untrained_runs import random_networks, small_config

from bridle.data.manifest import Entry
from bridle.inference import Model
from bridle.objectives.supervised import FinetuneConfig

CLASSES = ("bee", "cat", "dog")


def finetuned_model(classes: tuple[str, ...] = CLASSES, **settings: Any) -> Model:
    """Of sounds, in windows of 2 s."""
    plain = small_config("audio")
    finetune = FinetuneConfig(classes=classes, **settings)
    config = dataclasses.replace(plain, phases="supervised:1", finetune=finetune)
    return Model(config, random_networks(config), torch.device("cpu"))


def write_sounds(folder: Path, *seconds: float, rate: int = 16000) -> list[Entry]:
    """``0.wav`` and so on, of noise; one of 0 seconds is no sound at all."""
    draws = np.random.default_rng(0)
    entries = []
    for i, length in enumerate(seconds):
        path = folder / f"{i}.wav"
        if length:
            sound = (0.02 * (1 + i) * draws.standard_normal(round(rate * length))).cumsum() * 0.05
            soundfile.write(path, np.clip(sound, -1, 1).astype(np.float32), rate, subtype="PCM_16")
        else:
            path.write_bytes(b"RIFF nothing")
        entries.append(Entry(path.name, str(path), duration_seconds=length or 1.0, found=True))
    return entries


def write_breaking(path: Path, seconds: float = 7.0, rate: int = 16000) -> Entry:
    """A sound whose first windows can be read, and not the one at 5 s: it holds NaN."""
    sound = (0.1 * np.random.default_rng(1).standard_normal(round(rate * seconds))).astype(np.float32)
    sound[5 * rate] = np.nan
    soundfile.write(path, sound, rate, subtype="FLOAT")
    return Entry(path.name, str(path), duration_seconds=seconds, found=True)
