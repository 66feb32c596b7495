"""What is done on the device with a batch of pixels: RandAugment and erasing in training only, each clip by its seed."""

from dataclasses import replace

import pytest
import torch

from bridle.data.batch import Batch
from bridle.data.pixels import PixelConfig, finish_pixels
from bridle.errors import ConfigError
from bridle.media.pixels import crop_and_resize, draw_crops, draw_flips, normalise, to_unit
from bridle.media.rand_augment import erase, rand_augment

PLAIN = PixelConfig(size=16, decode_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
HARD = replace(PLAIN, rand_augment=9.0, erase=0.5)


def batch(num: int = 12, frames: int = 3) -> Batch:
    """Random films, two of them shorter than the batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, frames, 16, 16), generator=generator, dtype=torch.uint8)
    lengths = torch.full((num,), frames)
    for row in range(min(num, 2)):
        lengths[row] = 1 + row
        pixels[row, :, 1 + row :] = 0
    return Batch(pixels, lengths, torch.arange(num) * 7919, torch.arange(num), torch.ones(num))


def rows(of: Batch, index: list[int]) -> Batch:
    return Batch(of.inputs[index], of.lengths[index], of.seeds[index], of.indices[index], of.aspects[index])


def test_steps_come_in_their_order() -> None:
    data = batch()
    full = replace(data, lengths=torch.full((len(data),), 3))
    found = finish_pixels(full, HARD, augment=True)
    crops = draw_crops(full.aspects, full.seeds, HARD.scale, HARD.ratio)
    values = crop_and_resize(full.inputs, crops, draw_flips(full.seeds), 16)
    values = normalise(rand_augment(values, full.seeds, 9.0), PLAIN.mean, PLAIN.std)  # type: ignore[arg-type]
    assert torch.equal(found.inputs, erase(values, full.seeds, 0.5))
    assert found.inputs.dtype == torch.float32
    assert torch.equal(found.seeds, full.seeds)


def test_without_augmentation_nothing_is_random() -> None:
    data, before = batch(), torch.get_rng_state()
    found = finish_pixels(data, HARD, augment=False)
    assert torch.equal(found.inputs, finish_pixels(data, PLAIN, augment=False).inputs)
    expected = normalise(to_unit(data.inputs), PLAIN.mean, PLAIN.std)  # type: ignore[arg-type]
    assert torch.equal(found.inputs[2:], expected[2:])
    other = replace(data, seeds=data.seeds + 1)
    assert torch.equal(finish_pixels(other, HARD, augment=False).inputs, found.inputs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", [{"rand_augment": 9.0}, {"erase": 1.0}])
def test_each_setting_works_alone_and_in_training_only(change: dict[str, float]) -> None:
    data, config = batch(), replace(PLAIN, **change)  # type: ignore[arg-type]
    plain, hard = (finish_pixels(data, each, augment=True).inputs for each in (PLAIN, config))
    assert not torch.equal(plain, hard)
    if "erase" in change:  # a box of the mean, that is 0, and all else as it was
        assert torch.equal(hard[hard != 0], plain[hard != 0])
        assert bool((hard == 0).flatten(1).any(1).all())
    assert torch.equal(finish_pixels(data, config, augment=False).inputs, finish_pixels(data, PLAIN, augment=False).inputs)


def test_a_clip_is_finished_alike_in_every_batch() -> None:
    data = batch()
    together = finish_pixels(data, HARD, augment=True).inputs
    order = [7, 0, 11, 1, 3]
    for index in (order, *([row] for row in order)):
        torch.testing.assert_close(
            finish_pixels(rows(data, index), HARD, augment=True).inputs, together[index], atol=1e-5, rtol=0
        )


def test_frames_that_repeat_stay_alike() -> None:
    found = finish_pixels(batch(), HARD, augment=True).inputs
    assert torch.equal(found[0, :, 1], found[0, :, 0]) and torch.equal(found[0, :, 2], found[0, :, 0])
    assert torch.equal(found[1, :, 2], found[1, :, 1]) and not torch.equal(found[1, :, 1], found[1, :, 0])


@pytest.mark.parametrize("augment", [True, False])
def test_no_clip_stays_no_clip(augment: bool) -> None:
    assert finish_pixels(batch(0), HARD, augment=augment).inputs.shape == (0, 3, 3, 16, 16)


def test_settings_out_of_range() -> None:
    for change in ({"rand_augment": 10.5}, {"rand_augment": -1.0}, {"erase": 1.5}, {"erase": float("nan")}):
        with pytest.raises(ConfigError, match=r"rand_augment=.* must lie between 0 and 10, erase=.* between 0 and 1"):
            replace(PLAIN, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mean and std of the pixels are not set"):
        finish_pixels(batch(), replace(PLAIN, mean=None, std=None), augment=True)
