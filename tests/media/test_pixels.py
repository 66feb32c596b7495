"""Crops, flips and normalisation of batches: geometry, distributions, purity per clip, gradients of nothing global."""

import math

import pytest
import torch
from torch import Tensor

from bridle.media.pixels import crop_and_resize, draw_crops, draw_flips, normalise, to_unit

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def ramp(height: int, width: int) -> Tensor:
    """(1, 1, 1, H, W) that rises along both axes, so that bicubic resampling inside is exact."""
    rows, columns = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    return (rows[:, None] + columns)[None, None, None]


def no_flip(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize("aspect", [0.3, 0.8, 1.0, 2.5])
def test_crops_lie_in_the_picture_and_keep_to_area_and_ratio(aspect: float) -> None:
    crops = draw_crops(torch.full((4000,), aspect), torch.arange(4000), SCALE, RATIO)
    top, left, height, width = crops.unbind(1)
    assert float(crops.min()) >= 0
    assert float((top + height).max()) <= 1 + 1e-9
    assert float((left + width).max()) <= 1 + 1e-9
    shape = width * aspect / height
    assert float(shape.min()) >= RATIO[0] - 1e-6
    assert float(shape.max()) <= RATIO[1] + 1e-6
    if aspect == 1.0:
        area = height * width
        assert float(area.min()) >= 0.2
        # Areas are uniform but for the attempts that do not fit, which are the large ones.
        assert float(area.mean()) == pytest.approx(0.57, abs=0.03)
        assert float(shape.log().mean()) == pytest.approx(0, abs=0.02)
        assert float((top / (1 - height))[height < 1].mean()) == pytest.approx(0.5, abs=0.03)


def test_a_picture_that_no_attempt_fits_gives_its_largest_central_crop() -> None:
    crops = draw_crops(torch.tensor([10.0, 0.1]), torch.tensor([1, 2]), (0.9, 1.0), RATIO)
    wide, tall = crops.tolist()
    assert wide == pytest.approx([0, (1 - RATIO[1] / 10) / 2, 1, RATIO[1] / 10])
    assert tall == pytest.approx([(1 - 0.1 / RATIO[0]) / 2, 0, 0.1 / RATIO[0], 1])


def test_no_crop_is_the_whole_picture() -> None:
    crops = draw_crops(torch.ones(50), torch.arange(50), (1.0, 1.0), (1.0, 1.0))
    torch.testing.assert_close(crops, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double().expand(50, 4))


def test_a_clips_crop_and_flip_depend_on_its_seed_alone() -> None:
    seeds = torch.arange(100) * 7919
    together = draw_crops(torch.ones(100), seeds, SCALE, RATIO)
    for i in (0, 13, 99):
        assert torch.equal(draw_crops(torch.ones(1), seeds[i : i + 1], SCALE, RATIO)[0], together[i])
        assert torch.equal(draw_flips(seeds[i : i + 1]), draw_flips(seeds)[i : i + 1])
    assert 0.3 < float(draw_flips(torch.arange(2000)).float().mean()) < 0.7
    assert float(draw_flips(torch.arange(2000)).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_the_whole_picture_at_its_own_size_is_itself() -> None:
    pixels = torch.randint(0, 256, (3, 3, 2, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double().expand(3, 4)
    torch.testing.assert_close(crop_and_resize(pixels, whole, no_flip(3), 9), to_unit(pixels), atol=1e-5, rtol=0)
    flipped = crop_and_resize(pixels, whole, ~no_flip(3), 9)
    torch.testing.assert_close(flipped, to_unit(pixels).flip(-1), atol=1e-5, rtol=0)


def test_pixel_centres_are_matched() -> None:
    # Inside a ramp the resampled value is that of the ramp at the place of the new pixel's centre.
    crop = torch.tensor([[0.25, 0.125, 0.5, 0.75]]).double()
    found = crop_and_resize(ramp(32, 64), crop, no_flip(1), 8)[0, 0, 0]
    rows = (8 + (torch.arange(8) + 0.5) * 16 / 8 - 0.5) / 64
    columns = (8 + (torch.arange(8) + 0.5) * 48 / 8 - 0.5) / 128
    torch.testing.assert_close(found, rows[:, None] + columns, atol=1e-4, rtol=0)


def test_crops_equal_torch_interpolation() -> None:
    pixels = torch.rand(1, 3, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    crop = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).double()
    found = crop_and_resize(pixels, crop, no_flip(1), 24)
    # The same enlargement of the whole picture, its middle cut out: crops see what lies around them, so borders agree, too.
    whole = torch.nn.functional.interpolate(pixels[:, :, 0], scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(found[:, :, 0], whole[..., 12:36, 12:36].clamp(0, 1), atol=1e-4, rtol=0)


def test_all_frames_of_a_film_are_cut_alike() -> None:
    frame = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    crops = draw_crops(torch.ones(2), torch.tensor([5, 6]), SCALE, RATIO)
    film = crop_and_resize(frame.expand(-1, -1, 4, -1, -1), crops, draw_flips(torch.tensor([5, 6])), 8)
    for t in range(1, 4):
        assert torch.equal(film[:, :, t], film[:, :, 0])
    assert not torch.allclose(film[0], film[1])


def test_a_clip_is_cut_alike_in_every_batch() -> None:
    pixels = torch.randint(0, 256, (6, 1, 1, 20, 20), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    crops, flips = draw_crops(torch.ones(6), torch.arange(6), SCALE, RATIO), draw_flips(torch.arange(6))
    together = crop_and_resize(pixels, crops, flips, 20)
    for i in range(6):
        alone = crop_and_resize(pixels[i : i + 1], crops[i : i + 1], flips[i : i + 1], 20)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


def test_overshoot_is_cut_off_and_an_empty_batch_stays_empty() -> None:
    step = torch.zeros(1, 1, 1, 8, 8)
    step[..., 4:] = 1
    found = crop_and_resize(step, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double(), no_flip(1), 32)
    assert float(found.min()) == 0
    assert float(found.max()) == 1
    none = torch.zeros(0, 3, 2, 8, 8, dtype=torch.uint8)
    assert crop_and_resize(none, torch.zeros(0, 4), no_flip(0), 6).shape == (0, 3, 2, 6, 6)


def test_normalise_each_channel() -> None:
    values = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    found = normalise(values, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(found[:, channel], (values[:, channel] - mean) / std)


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    crops = draw_crops(torch.ones(3), torch.arange(3), SCALE, RATIO)
    crop_and_resize(
        torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), crops, draw_flips(torch.arange(3)), 8
    )
    assert torch.equal(before, torch.get_rng_state())
    assert math.isfinite(float(crops.sum()))
