"""Fixtures shared by all tests. No global seeds: a test that draws random numbers seeds its own generator."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import settings

# No test depends on wall time, and the examples are the same in every run.
settings.register_profile("bridle", deadline=None, derandomize=True)
settings.load_profile("bridle")


@pytest.fixture(autouse=True)
def own_console() -> None:
    """The console of the commands keeps the width it was made with: every test has one of its own."""
    if (display := sys.modules.get("bridle.commands.display")) is not None:
        display._CONSOLE.clear()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets (``esc10``, ``fsdd``, ...) named by the variable BRIDLE_TEST_DATA."""
    folder = os.environ.get("BRIDLE_TEST_DATA")
    if not folder:
        pytest.skip("BRIDLE_TEST_DATA is not set: point it to a folder of real data sets to run this test")
    path = Path(folder)
    assert path.is_dir(), f"BRIDLE_TEST_DATA is {folder}, which is no folder"
    return path


@pytest.fixture(scope="session")
def tone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight mono 16 kHz wav files ``tone-0.wav`` ... of 0.5 to 2.25 seconds: a tone of its own pitch each, in noise.

    Shared by the whole session: copy it before changing it.
    """
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    for i in range(8):
        time = np.arange(8000 + 4000 * i) / 16000
        tone = 0.3 * np.sin(2 * np.pi * 200 * 1.5**i * time) + 0.01 * generator.standard_normal(time.size)
        soundfile.write(folder / f"tone-{i}.wav", tone.astype(np.float32), 16000)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten readable sound files, 0.3 to 5 seconds, in two folders: wav and flac, mono and stereo, 8, 16 and 44.1 kHz.

    ``b/long.wav`` has three windows of the audio-debug recipe (2 s crops). Shared by the whole session: copy it before
    changing it.
    """
    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(1)
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    seconds_rates = [(0.3 + 0.2 * i, (16000, 44100, 8000)[i % 3]) for i in range(9)] + [(5.0, 16000)]
    for i, (seconds, rate) in enumerate(seconds_rates):
        time = np.arange(round(seconds * rate)) / rate
        sound = 0.2 * np.sin(2 * np.pi * (150 + 90 * i) * time * (1 + time)) + 0.02 * generator.standard_normal(time.size)
        if i % 4 == 1:
            sound = np.stack([sound, 0.5 * sound], axis=1)
        name = "b/long.wav" if i == 9 else f"{'ab'[i % 2]}/sound-{i}.{'flac' if i % 5 == 2 else 'wav'}"
        soundfile.write(folder / name, sound.astype(np.float32), rate)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the audio-debug recipe on ``tiny_folder``: 2 steps each of cold, tokenizer and encoder.

    Shared by the whole session: copy it before changing it.
    """
    from dataclasses import replace

    import torch

    from bridle.pretraining import pretrain
    from bridle.recipes import recipe

    run = tmp_path_factory.mktemp("runs") / "tiny"
    config = replace(recipe("audio-debug"), phases="cold:2steps, tokenizer:2steps, encoder:2steps")
    outcome = pretrain(config, [tiny_folder], run, device=torch.device("cpu"))
    assert outcome.finished
    return run
