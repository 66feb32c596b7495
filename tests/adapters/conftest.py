"""Models of each medium with the weights they begin with, and labelled files of two classes."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from reference.media_folders import write_folder

from bridle.data.loaders import with_normalisation
from bridle.inference import Model, random_model
from bridle.recipes import recipe

NUM_FILES = 24


def new_model(medium: str) -> Model:
    config = recipe(f"{medium}-debug")
    mean, std = ((-9.0,), (4.0,)) if medium == "audio" else ((0.5,) * 3, (0.25,) * 3)
    return random_model(config.with_clips(with_normalisation(config.clips, mean, std)), torch.device("cpu"))


def write_tone(file: Path, hz: float, generator: np.random.Generator) -> None:
    """A tone of about this pitch in noise, 0.5 to 3 seconds, at one of several rates, mono or stereo."""
    rate, channels = int(generator.choice([16000, 22050, 44100])), int(generator.integers(1, 3))
    time = np.arange(int(generator.uniform(0.5, 3.0) * rate)) / rate
    tone = 0.2 * np.sin(2 * np.pi * hz * generator.uniform(0.8, 1.25) * time)
    soundfile.write(file, tone[:, None] + 0.02 * generator.standard_normal((time.size, channels)), rate)


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    """By medium."""
    return {medium: new_model(medium) for medium in ("audio", "image", "video")}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[Path], list[int]]]:
    """By medium: files of two classes in turn, and their labels. An encoder need not be trained to tell the classes apart."""
    found: dict[str, tuple[list[Path], list[int]]] = {}

    def write(medium: str) -> tuple[list[Path], list[int]]:
        if medium in found:
            return found[medium]
        folder = tmp_path_factory.mktemp(medium)
        if medium == "audio":
            files = [folder / f"{i}.wav" for i in range(NUM_FILES)]
            for i, file in enumerate(files):
                write_tone(file, hz=(300, 3000)[i % 2], generator=np.random.default_rng(i))
        elif medium == "image":
            files = [folder / f"{i}.png" for i in range(NUM_FILES)]
            for i, file in enumerate(files):
                pixels = np.random.default_rng(i).normal((80, 170)[i % 2], 40, (30 + i, 50 - i, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
        else:
            write_folder(medium, folder, NUM_FILES)
            files = sorted(folder.rglob("*.*"), key=lambda path: int(path.stem))
        found[medium] = files, [i % 2 for i in range(NUM_FILES)]
        return found[medium]

    return write


@pytest.fixture(scope="session")
def model_of_patch() -> Callable[[int], Model]:
    """Of audio, by the frames of a patch. Its crops, 3 s or 298 frames, are no whole number of steps of 16 or 5 frames."""

    @cache
    def build(frames: int) -> Model:
        config = recipe("audio-debug")
        assert config.audio is not None
        audio = dataclasses.replace(config.audio, crop_seconds=3.0, mean=-9.0, std=4.0)
        encoder = dataclasses.replace(config.encoder, patch=(frames, 16, 1))
        return random_model(dataclasses.replace(config, audio=audio, encoder=encoder), torch.device("cpu"))

    return build
