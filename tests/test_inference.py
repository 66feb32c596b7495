"""Using a run from Python: shapes, files against waveforms, long sounds, no state."""

from pathlib import Path

import pytest
import soundfile
import torch

import bridle
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.inference import Model, random_model
from bridle.media.audio import decode_audio


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return bridle.load(tiny_run)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "short.wav"
    soundfile.write(path, torch.randn(20000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1, 16000)
    return path


def test_shapes(model: Model, short: Path) -> None:
    features, codes = model.features(short), model.tokenize(short)
    assert features.shape == (8, 4, model.width)  # 123 frames are 8 patches of 16; 64 bands are 4
    assert model.embed(short).shape == (model.width,)
    assert model.embed(short, pooling="time").shape == (4 * model.width,)
    assert codes.codes.shape == (32, 2)
    assert codes.grid.shape == (8, 4, 1)
    torch.testing.assert_close(model.embed(short), features.mean((0, 1)))
    torch.testing.assert_close(model.embed(short, pooling="time"), features.mean(0).flatten())


def test_layers_and_statistics(model: Model, short: Path) -> None:
    assert torch.equal(model.features(short, layer=2), model.features(short))
    lower = model.features(short, layer=1)
    assert not torch.allclose(lower, model.features(short))
    statistics = model.features(short, "statistics", layer=1)
    assert statistics.shape == (4, 2 * model.width)
    torch.testing.assert_close(statistics, torch.cat([lower.mean(0), lower.std(0, correction=0)], dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed(short, "statistics", layer=1), statistics.flatten())
    for layer in (0, 3):
        with pytest.raises(ConfigError, match=f"layer {layer} does not exist; the encoder has layers 1 to 2"):
            model.embed(short, layer=layer)


def test_a_waveform_gives_the_numbers_of_its_file(model: Model, short: Path) -> None:
    waveform = decode_audio(short).samples
    assert torch.equal(model.features(waveform), model.features(short))
    assert torch.equal(model.tokenize(waveform).codes, model.tokenize(short).codes)


def test_long_sounds_are_read_in_windows(model: Model) -> None:
    waveform = torch.randn(5 * 16000, generator=torch.Generator().manual_seed(1)) * 0.1
    features = model.features(waveform)
    windows = [model.features(waveform[start : start + 32000]) for start in (0, 32000, 64000)]
    torch.testing.assert_close(features, torch.cat(windows), atol=1e-5, rtol=1e-5)
    assert len(model.tokenize(waveform).codes) == features.shape[0] * features.shape[1]


def test_using_a_model_changes_no_state(model: Model, short: Path) -> None:
    before = {key: value.clone() for key, value in model.networks.state_dict().items()}
    model.embed(short)
    model.tokenize(short)
    assert all(torch.equal(value, before[key]) for key, value in model.networks.state_dict().items())
    assert not any(module.training for module in model.networks.modules())
    assert model.fingerprint == bridle.load.__globals__["model_fingerprint"](model.config, model.networks.state_dict())


def test_the_random_model_is_another_one(model: Model, short: Path) -> None:
    other = random_model(model.config)
    assert other.fingerprint != model.fingerprint
    assert not torch.allclose(other.embed(short), model.embed(short))


def test_bad_input_is_explained(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="missing"):
        model.embed(tmp_path / "nothing.wav")
    for bad in (torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16), torch.zeros(0)):
        with pytest.raises(DataError, match="waveform"):
            model.embed(bad)
    with pytest.raises(DataError, match="NaN"):
        model.embed(torch.full((16000,), float("nan")))
