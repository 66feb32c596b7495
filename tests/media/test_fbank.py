"""Log-mel: parity with kaldi_native_fbank, invariances, gradients, precision under autocast."""

from __future__ import annotations

import os
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from bridle.errors import ConfigError
from bridle.media import Fbank, FbankConfig, decode_audio, num_frames

FLOOR = float(np.log(np.finfo(np.float32).eps))


def kaldi(waveform: torch.Tensor, config: FbankConfig) -> torch.Tensor:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.dither = 0
    options.frame_opts.window_type = config.window
    options.frame_opts.frame_length_ms = config.frame_seconds * 1000
    options.frame_opts.frame_shift_ms = config.hop_seconds * 1000
    options.mel_opts.num_bins = config.num_mels
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    options.use_energy = False
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(config.sample_rate, (waveform * config.full_scale).tolist())
    fbank.input_finished()
    rows = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return torch.from_numpy(np.stack(rows))


def signals() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(48000, generator=generator)
    t = torch.arange(48000) / 16000
    melody = 0.3 * torch.sin(2 * torch.pi * (200 * t + 400 * t**2)) * (1 + torch.sin(9 * t)) / 2
    return {
        "noise": (0.3 * noise).clamp(-1, 1),
        "full-scale noise": noise.sign(),
        "quiet": 1e-3 * noise,
        "one 16-bit step": (noise / 2).round() / 32768,
        "below the floor": 1e-7 * noise,
        "silence": torch.zeros(48000),
        "direct current": torch.full((48000,), 0.5),
        "noise on direct current": 0.5 + 1e-3 * noise,
        "melody": melody + 1e-3 * noise,
        "stops": torch.where(t < 1.5, melody + 1e-3 * noise, torch.zeros(())),
        "clicks": (torch.rand(48000, generator=generator) < 1e-3).float(),
    }


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor, at_most: float = 1e-3) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < at_most


@pytest.mark.parametrize("name", signals())
def test_parity_with_kaldi(name):
    waveform = signals()[name]
    # Kaldi adds a frame's samples up one after the other in float32, so beside direct current its mean is imprecise.
    at_most = 2e-2 if name == "noise on direct current" else 1e-3
    assert_parity(Fbank()(waveform), kaldi(waveform, FbankConfig()), at_most)


@pytest.mark.parametrize("name", signals())
def test_closer_to_float64_than_kaldi_is(name):
    waveform = signals()[name]
    wanted = naive(waveform)
    ours, theirs = ((x - wanted).square().mean().sqrt() for x in (Fbank()(waveform), kaldi(waveform, FbankConfig())))
    assert float(ours) <= 1.2 * float(theirs) + 1e-6


def naive(waveform: torch.Tensor) -> torch.Tensor:
    """Kaldi's formulas in float64, frame by frame and triangle by triangle, at the default settings."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 130)
    bins = 1127 * np.log(1 + np.arange(256) * 31.25 / 700)
    triangles = np.stack([np.interp(bins, edges[i : i + 3], [0, 1, 0]) for i in range(128)])
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].double().numpy()
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * window
        rows.append(triangles @ np.abs(np.fft.rfft(frame, 512))[:256] ** 2)
    return torch.from_numpy(np.log(np.maximum(np.stack(rows), np.finfo(np.float32).eps)))


@pytest.mark.parametrize(
    "config",
    [
        FbankConfig(num_mels=80),
        FbankConfig(num_mels=40, low_hz=0.0, high_hz=-400.0),
        FbankConfig(sample_rate=8000, num_mels=64, high_hz=3800.0),
        FbankConfig(sample_rate=22050, num_mels=128),
        FbankConfig(sample_rate=48000, frame_seconds=0.032, hop_seconds=0.0125),
        FbankConfig(window="povey"),
        FbankConfig(window="povey", full_scale=32768.0),
    ],
)
def test_parity_with_kaldi_at_other_settings(config):
    waveform = 0.3 * torch.randn(20000, generator=torch.Generator().manual_seed(1))
    assert_parity(Fbank(config)(waveform), kaldi(waveform, config))


def test_pure_tones_agree_with_kaldi_in_energy():
    # Bands that a tone leaves empty hold the rounding of its samples alone, so there the energy is compared, not its logarithm.
    t = torch.arange(32000) / 16000
    for hz in (50.0, 997.0, 7000.0):
        waveform = 0.9 * torch.sin(2 * torch.pi * hz * t)
        ours, theirs = Fbank()(waveform).exp(), kaldi(waveform, FbankConfig()).exp()
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.max())


@pytest.mark.skipif("BRIDLE_TEST_DATA" not in os.environ, reason="BRIDLE_TEST_DATA names no folder of real recordings")
@pytest.mark.parametrize("folder", ["esc10", "fsdd", "grid_s1"])
def test_parity_with_kaldi_on_recordings(folder):
    paths = sorted((Path(os.environ["BRIDLE_TEST_DATA"]) / folder / "audio").iterdir())
    clips = [decode_audio(path).samples for path in paths[:: max(1, len(paths) // 100)]]
    assert_parity(torch.cat([Fbank()(clip) for clip in clips]), torch.cat([kaldi(clip, FbankConfig()) for clip in clips]))


def test_silence_is_the_floor():
    torch.testing.assert_close(Fbank()(torch.zeros(16000)), torch.full((98, 128), FLOOR))


def test_gain_adds_its_logarithm():
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(2))
    louder, plain = Fbank()(3 * waveform), Fbank()(waveform)
    heard = plain > FLOOR + 2  # below, the floor takes part
    torch.testing.assert_close(louder[heard], (plain + 2 * np.log(3))[heard], atol=1e-3, rtol=0)


def test_full_scale_adds_its_logarithm_and_lowers_the_floor():
    plain, kaldis = (Fbank(FbankConfig(num_mels=80, full_scale=scale)) for scale in (1.0, 32768.0))
    noise, quiet = signals()["noise"], signals()["below the floor"]
    torch.testing.assert_close(kaldis(noise), plain(noise) + 2 * np.log(32768), atol=1e-4, rtol=0)
    assert bool((plain(quiet) == FLOOR).all())
    assert float((kaldis(quiet) > FLOOR).float().mean()) > 0.99


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 401, 559, 560, 561, 16000])
def test_number_of_frames(samples):
    config = FbankConfig()
    wanted = 0 if samples < 400 else 1 + (samples - 400) // 160
    assert num_frames(samples, config) == wanted
    assert Fbank(config)(torch.zeros(2, samples)).shape == (2, wanted, 128)


def test_batch_equals_clip_by_clip():
    waveforms = 0.3 * torch.randn(2, 3, 20000, generator=torch.Generator().manual_seed(3))
    fbank = Fbank()
    together = fbank(waveforms)
    assert together.shape == (2, 3, 123, 128)
    for i in range(2):
        for j in range(3):
            assert_same(together[i, j], fbank(waveforms[i, j]))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 15, 16, 17, 64, 100, 250])
def test_crop_at_a_hop_equals_the_crop_of_the_whole(frames):
    waveform = 0.3 * torch.randn(48000, generator=torch.Generator().manual_seed(4))
    fbank = Fbank()
    whole = fbank(waveform)
    for start in (0, 1, 7, 32, 48):
        crop = fbank(waveform[start * 160 : (start + frames - 1) * 160 + 400])
        assert_same(crop, whole[start : start + frames])


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)  # bit-equal where BLAS keeps its order of sums, as on x86


def test_float32_under_autocast_and_for_other_dtypes():
    waveform = 0.3 * torch.randn(16000, generator=torch.Generator().manual_seed(5))
    fbank = Fbank()
    wanted = fbank(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fbank(waveform), wanted)
    assert fbank(waveform.double()).dtype == torch.float32
    assert fbank(waveform.bfloat16()).dtype == torch.float32


def test_gradients_flow_and_are_right():
    waveform = 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(6))
    fbank = Fbank(FbankConfig(num_mels=10))
    variable = waveform.clone().requires_grad_()
    fbank(variable).sum().backward()
    direction = torch.randn(1000, generator=torch.Generator().manual_seed(7))
    step = 1e-3
    with torch.no_grad():
        change = (fbank(waveform + step * direction) - fbank(waveform - step * direction)).double().sum() / (2 * step)
    assert float((variable.grad * direction).sum()) == pytest.approx(float(change), rel=1e-2)


def test_gradient_of_silence_is_finite():
    variable = torch.zeros(2000, requires_grad=True)
    Fbank()(variable).sum().backward()
    assert bool(torch.isfinite(variable.grad).all())


def test_dither_comes_from_the_generator_alone():
    fbank = Fbank(FbankConfig(dither=1e-3))
    waveform = torch.zeros(16000)
    state = torch.get_rng_state()
    first = fbank(waveform, torch.Generator().manual_seed(1))
    assert torch.equal(first, fbank(waveform, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, fbank(waveform, torch.Generator().manual_seed(2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert float(first.mean()) > FLOOR + 1
    with pytest.raises(ConfigError, match="generator"):
        fbank(waveform)


def test_no_state_is_saved():
    assert list(Fbank().state_dict()) == []
    assert list(Fbank().parameters()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_rate": 0},
        {"num_mels": 0},
        {"frame_seconds": 0.00001},
        {"hop_seconds": 0.0},
        {"low_hz": -1.0},
        {"low_hz": 9000.0},
        {"high_hz": 9000.0},
        {"high_hz": -9000.0},
        {"dither": -1.0},
        {"dither": float("nan")},
        {"window": "hamming"},
        {"full_scale": 0.0},
    ],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FbankConfig(**settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_equals_cpu():
    waveforms = 0.3 * torch.randn(4, 16000, generator=torch.Generator().manual_seed(8))
    on_device = Fbank().to("cuda")(waveforms.to("cuda")).cpu()
    torch.testing.assert_close(on_device, Fbank()(waveforms), atol=2e-3, rtol=0)
