"""Fixtures shared by all tests. No global seeds: a test that draws random numbers seeds its own generator."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile


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
