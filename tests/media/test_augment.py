"""Augmentation: ranges, distributions, determinism, and that the global random state is left alone."""

from __future__ import annotations

import math

import pytest
import torch

from bridle.media import Fbank, circular_shift, crop_start, gain


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(frames: int = 50) -> torch.Tensor:
    return torch.arange(frames * 4, dtype=torch.float32).reshape(frames, 4)


def test_crop_start_is_uniform_over_all_places():
    generator = seeded()
    starts = torch.tensor([crop_start(14, 10, generator) for _ in range(5000)])
    counts = torch.bincount(starts, minlength=5)
    assert len(counts) == 5  # 0 to 4, both ends included
    assert float((counts / 5000 - 0.2).abs().max()) < 0.03


@pytest.mark.parametrize(("frames", "crop"), [(10, 10), (3, 10), (1, 1)])
def test_crop_start_of_a_clip_that_fits_is_zero(frames, crop):
    assert crop_start(frames, crop, seeded()) == 0


def test_circular_shift_keeps_the_order_of_frames():
    generator, shifts = seeded(), set()
    for _ in range(300):
        shifted = circular_shift(clip(7), generator)
        shift = int((shifted[:, 0] == 0).nonzero())
        assert torch.equal(torch.roll(shifted, -shift, 0), clip(7))
        shifts.add(shift)
    assert shifts == set(range(7))


def test_gain_has_the_moments_of_its_beta_distribution():
    generator = seeded()
    change = torch.stack([gain(torch.zeros(1, 1, dtype=torch.float64), generator)[0, 0] for _ in range(4000)])
    factor = (change / 2).exp()
    assert 0.5 < float(factor.min()) < 0.75
    assert 1.25 < float(factor.max()) < 1.5
    assert float(factor.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(factor.var()) == pytest.approx(10 * 10 / (20**2 * 21), rel=0.1)
    assert float(((factor - 1) ** 4).mean() / factor.var() ** 2) == pytest.approx(3 - 6 / 23, abs=0.25)  # kurtosis


def test_gain_is_the_log_mel_of_a_louder_waveform():
    waveform = 0.2 * torch.randn(8000, generator=seeded(1))
    fbank = Fbank()
    plain = fbank(waveform)
    changed = gain(plain, seeded(2))
    factor = math.exp(float((changed - plain).mean()) / 2)
    heard = plain > -10
    torch.testing.assert_close(changed[heard], fbank(factor * waveform)[heard], atol=1e-3, rtol=0)


@pytest.mark.parametrize("augment", [circular_shift, gain])
def test_pure_function_of_clip_and_generator(augment):
    original, state = clip(), torch.get_rng_state()
    first, again, other = (augment(original, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == original.dtype
    assert first.shape == original.shape
    assert torch.equal(original, clip())
    crop_start(100, 10, seeded(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_shape_of_a_clip_of_one_frame_is_kept():
    assert torch.equal(circular_shift(clip(1), seeded()), clip(1))
