"""Augmentation: ranges, distributions, determinism, and that the global random state is left alone."""

from __future__ import annotations

import math

import pytest
import torch

from bridle.media import Fbank, circular_shift, crop_start, gain
from bridle.media.augment import mask_bands


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


def masked(lengths: list[int], seeds: torch.Tensor, max_frames: int, max_mels: int, mels: int = 12) -> torch.Tensor:
    """(B, T, F) bool: what is masked of clips of ones."""
    inputs = torch.ones(len(lengths), 1, max(lengths, default=4), mels, 1)
    found = mask_bands(inputs, torch.tensor(lengths, dtype=torch.int64), seeds, max_frames, max_mels)
    assert bool(((found == 0) | (found == 1)).all())
    return found[:, 0, :, :, 0] == 0


def test_one_band_of_frames_and_one_of_mels_are_set_to_the_mean():
    num, frames, mels = 3000, 20, 12
    hidden = masked([frames] * num, torch.arange(num), 5, 4, mels)
    for axis, limit, size in ((1, 5, frames), (2, 4, mels)):
        lines = hidden.all(3 - axis)  # whole frames, or whole mel bands
        widths = lines.sum(1)
        counts = torch.bincount(widths, minlength=limit + 1)
        assert len(counts) == limit + 1
        assert float((counts / num - 1 / (limit + 1)).abs().max()) < 0.035  # uniform from 0 to the limit
        assert int((lines.int().diff(dim=1) == 1).sum(1).max()) <= 1  # in one piece
        first = lines.int().argmax(1)[widths == limit]
        starts = torch.bincount(first, minlength=size - limit + 1) / len(first)
        assert len(starts) == size - limit + 1
        assert float((starts - 1 / (size - limit + 1)).abs().max()) < 0.06
    union = hidden.all(2)[:, :, None] | hidden.all(1)[:, None, :]
    assert torch.equal(hidden, union)


def test_bands_lie_in_the_clip_and_may_be_as_long_as_it():
    lengths = [3, 1, 30, 7] * 200
    hidden = masked(lengths, torch.arange(800), 10, 0)
    assert not any(bool(clip[length:].any()) for clip, length in zip(hidden, lengths, strict=True))
    longest = [max(int(hidden[row, :, 0].sum()) for row in range(kind, 800, 4)) for kind in range(4)]
    assert longest == [3, 1, 10, 7]
    assert bool(masked([9] * 50, torch.arange(50), 0, 99, mels=12).all((1, 2)).any())


def test_a_clips_bands_depend_on_its_seed_and_length_alone():
    seeds, lengths = torch.arange(20) * 7919, [10 + i for i in range(20)]
    together = masked(lengths, seeds, 6, 6)
    for row in (0, 7, 19):
        alone = masked([lengths[row]], seeds[row : row + 1], 6, 6)[0]
        assert torch.equal(together[row, : lengths[row]], alone)
    order = list(reversed(range(20)))
    assert torch.equal(masked([lengths[row] for row in order], seeds[order], 6, 6), together[order])


def test_masking_bands_changes_nothing_else():
    inputs, state = torch.randn(5, 1, 9, 8, 1, generator=seeded()), torch.get_rng_state()
    copy = inputs.clone()
    found = mask_bands(inputs, torch.full((5,), 9), torch.arange(5), 4, 3)
    assert torch.equal(inputs, copy)
    assert torch.equal(found[found != 0], inputs[found != 0])
    assert torch.equal(mask_bands(inputs, torch.full((5,), 9), torch.arange(5), 0, 0), inputs)
    assert masked([], torch.zeros(0, dtype=torch.int64), 4, 3).shape == (0, 4, 12)
    assert torch.equal(torch.get_rng_state(), state)
