"""RandAugment against Pillow on 8-bit pictures, erasing against a box searched for, and purity per clip."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from bridle.media.rand_augment import NUM_OPERATIONS, OPERATIONS, _Strength, erase, rand_augment
from bridle.randomness import counter_uniform

HEIGHT, WIDTH = 24, 32
GREY = (128, 128, 128)
LEVELS = (0.0, 0.35, 0.9, 1.0)
BINARY = ("auto contrast", "equalise", "invert", "posterise", "solarise", "solarise add")
MOVES = ("rotate", "shear x", "shear y", "translate x", "translate y")


def picture(seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: noise on a ramp, black and white among it."""
    draws = np.random.default_rng(seed)
    values = draws.normal(120, 45, (HEIGHT, WIDTH, 3)) + np.linspace(-40, 40, WIDTH)[None, :, None]
    return np.clip(values, 0, 255).astype(np.uint8)


def dark() -> np.ndarray:
    """Levels from 40 to 180 only, other ones in each channel, so that contrast can be stretched."""
    return (40 + picture(1) * np.array([0.3, 0.4, 0.5])).astype(np.uint8)


def film(pixels: np.ndarray, frames: int = 1) -> Tensor:
    """(1, 3, T, H, W) in [0, 1]."""
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None].float() / 255).repeat(1, 1, frames, 1, 1)


def applied(name: str, clips: Tensor, level: float, sign: int = 1) -> Tensor:
    many = len(clips)
    return OPERATIONS[name](clips, _Strength(torch.full((many,), level), torch.full((many,), float(sign)))).clamp(0, 1)


def by_pillow(name: str, pixels: np.ndarray, level: float, sign: int) -> np.ndarray:
    """What Pillow makes of it, by the ranges of the increasing set: each is larger for a larger level."""
    image, signed = Image.fromarray(pixels), sign * level
    middle_x, middle_y = WIDTH / 2, HEIGHT / 2

    def affine(*coefficients: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=GREY)

    def table(function: Callable[[int], int]) -> Image.Image:
        return image.point([function(value) for value in range(256)] * 3)

    factor, lean = 1 + 0.9 * signed, 0.3 * signed
    bits, threshold, added = 4 - int(4 * level), 256 - int(256 * level), int(110 * level)
    made: dict[str, Callable[[], Image.Image]] = {
        "auto contrast": lambda: ImageOps.autocontrast(image),
        "equalise": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterise": lambda: ImageOps.posterize(image, bits) if bits else table(lambda value: 0),
        "solarise": lambda: ImageOps.solarize(image, threshold),
        "solarise add": lambda: table(lambda value: min(255, value + added) if value < 128 else value),
        "colour": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda: image.rotate(30 * signed, Image.Resampling.BILINEAR, fillcolor=GREY),
        "shear x": lambda: affine(1, -lean, lean * middle_y, 0, 1, 0),
        "shear y": lambda: affine(1, 0, 0, -lean, 1, lean * middle_x),
        "translate x": lambda: affine(1, 0, -0.45 * signed * WIDTH, 0, 1, 0),
        "translate y": lambda: affine(1, 0, 0, 0, 1, -0.45 * signed * HEIGHT),
    }
    return np.asarray(made[name]()).astype(np.float64)


def test_every_operation_has_its_counterpart() -> None:
    assert len(OPERATIONS) == 15
    assert {*BINARY, *MOVES, "colour", "contrast", "brightness", "sharpness"} == set(OPERATIONS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in MOVES])
def test_colours_are_those_of_pillow(name: str, level: float, sign: int) -> None:
    for pixels in (picture(), dark()):
        ours = applied(name, film(pixels), level, sign)[0, :, 0].permute(1, 2, 0).numpy() * 255
        gap = np.abs(ours - by_pillow(name, pixels, level, sign))
        # Pillow rounds to whole levels, its grey too; what is counted in whole levels by us as well is equal.
        tolerance = 1e-3 if name in ("equalise", "invert", "posterise", "solarise") else 1.0 if name in BINARY else 2.0
        assert gap.max() <= tolerance + 1e-3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_those_of_pillow_inside_the_picture_and_grey_far_outside(name: str, level: float, sign: int) -> None:
    pixels = picture()
    ours = applied(name, film(pixels), level, sign)[0, :, 0].permute(1, 2, 0).numpy() * 255
    # What comes from outside or from its border is decided otherwise: Pillow takes a pixel whole or not at all.
    inside = by_pillow_mask(name, level, sign)
    gap = np.abs(ours - by_pillow(name, pixels, level, sign))
    assert inside.mean() > 0.3
    assert gap[inside].max() < 1.01 + 1e-3
    if level == 0:
        assert np.array_equal(ours.round(), pixels)
    if name.startswith("translate") and level == 0.9:  # whole columns or rows come in from the side
        axis, size = (1, WIDTH) if name.endswith("x") else (0, HEIGHT)
        empty = int(0.45 * 0.9 * size) - 1
        side = np.take(ours, range(empty) if sign > 0 else range(size - empty, size), axis)
        assert np.abs(side - 127.5).max() < 1e-3


def by_pillow_mask(name: str, level: float, sign: int) -> np.ndarray:
    """(H, W) bool: pixels all of whose sources lie inside the picture, by moving a picture that tells inside from outside."""
    inner = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    inner[2:-2, 2:-2] = 255
    moved = by_pillow(name, inner, level, sign)
    return (moved == 255).all(-1) if level else np.ones((HEIGHT, WIDTH), dtype=bool)


@pytest.mark.parametrize("name", OPERATIONS)
def test_frames_of_a_film_and_clips_of_a_batch_are_treated_on_their_own_seed(name: str) -> None:
    one, other = film(picture(2), frames=3), film(picture(3), frames=3)
    both = applied(name, torch.cat([one, other]), 0.7)
    assert both.shape == (2, 3, 3, HEIGHT, WIDTH)
    for clip, alone in zip(both, (one, other), strict=True):
        torch.testing.assert_close(clip, applied(name, alone, 0.7)[0], atol=1e-6, rtol=0)
        assert torch.equal(clip[:, 0], clip[:, 1]) and torch.equal(clip[:, 0], clip[:, 2])
    assert float(both.min()) >= 0 and float(both.max()) <= 1


def test_a_whole_film_has_one_histogram_and_one_mean() -> None:
    parts = (dark(), picture(1))
    frames = torch.cat([film(each) for each in parts], dim=2)
    tall = np.concatenate(parts)  # the frames as one picture, one below the other
    for name in ("auto contrast", "equalise", "contrast"):
        ours = applied(name, frames, 0.9)[0].flatten(1, 2).permute(1, 2, 0).numpy() * 255
        assert np.abs(ours - by_pillow(name, tall, 0.9, 1)).max() <= 2.0


@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_and_flat_pictures_are_no_trouble(name: str) -> None:
    grey = torch.rand(2, 1, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([torch.zeros(1, 1, 1, 8, 9), torch.full((1, 1, 1, 8, 9), 0.5), torch.ones(1, 1, 1, 8, 9)])
    for clips in (grey, flat):
        found = applied(name, clips, 0.9)
        assert found.shape == clips.shape and bool(torch.isfinite(found).all())
    if name in ("auto contrast", "equalise", "colour"):
        torch.testing.assert_close(applied(name, flat, 0.9), flat)


def noise(num: int, *, size: int = 8) -> Tensor:
    return torch.rand(num, 3, 2, size, size, generator=torch.Generator().manual_seed(0))


def test_two_operations_are_drawn_each_with_a_half() -> None:
    clips, seeds = noise(400), torch.arange(400)
    found = rand_augment(clips, seeds, 9.0)
    assert found.shape == clips.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    untouched = (found == clips).flatten(1).all(1)
    # A quarter have none; of the others, a few operations change nothing of such noise.
    assert 0.2 < float(untouched.float().mean()) < 0.35


def test_a_clip_gets_the_operations_of_its_seed() -> None:
    """The batch against each clip's operations in turn, from the same numbers."""
    clips, seeds = noise(60), torch.arange(60) * 7919
    found = rand_augment(clips, seeds, 7.0)
    names = list(OPERATIONS)
    for clip in range(60):
        expected = clips[clip : clip + 1]
        draws = counter_uniform(seeds[clip : clip + 1], 5 * NUM_OPERATIONS, -21)[0].tolist()
        for turn in range(NUM_OPERATIONS):
            choice, first, second, sign, chance = draws[5 * turn : 5 * turn + 5]
            normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            level = min(max((7.0 + 0.5 * normal) / 10, 0.0), 1.0)
            if chance < 0.5:
                expected = applied(names[int(choice * 15)], expected, level, -1 if sign < 0.5 else 1)
        torch.testing.assert_close(found[clip : clip + 1], expected, atol=1e-5, rtol=0)


def test_a_clip_is_treated_alike_in_every_batch() -> None:
    clips, seeds = noise(40), torch.arange(40)
    together, erased = rand_augment(clips, seeds, 9.0), erase(clips, seeds, 0.5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rand_augment(clips[order], seeds[order], 9.0), together[order], atol=1e-6, rtol=0)
    assert torch.equal(erase(clips[order], seeds[order], 0.5), erased[order])
    for clip in (0, 7, 39):
        row = slice(clip, clip + 1)
        torch.testing.assert_close(rand_augment(clips[row], seeds[row], 9.0), together[row], atol=1e-6, rtol=0)
        assert torch.equal(erase(clips[row], seeds[row], 0.5), erased[row])


def test_no_clip_stays_no_clip_and_nothing_global_is_used() -> None:
    none, no_seeds = noise(0), torch.zeros(0, dtype=torch.int64)
    assert rand_augment(none, no_seeds, 9.0).shape == none.shape
    assert erase(none, no_seeds, 0.5).shape == none.shape
    clips, seeds = noise(8), torch.arange(8)
    copy, before = clips.clone(), torch.get_rng_state()
    rand_augment(clips, seeds, 9.0)
    erase(clips, seeds, 1.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(clips, copy)


def test_erasing_sets_one_box_in_all_frames_to_the_mean() -> None:
    size, num = 40, 600
    clips = torch.ones(num, 2, 2, size, size)
    found = erase(clips, torch.arange(num), 0.25)
    gone = found == 0
    assert bool((gone == gone[:, :1, :1]).all())
    boxes = gone[:, 0, 0]
    hit = boxes.flatten(1).any(1)
    assert float(hit.float().mean()) == pytest.approx(0.25, abs=0.06)
    areas, shapes, middles = [], [], []
    for box in boxes[hit]:
        rows, columns = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(box.sum()) == height * width
        areas.append(height * width / size**2)
        shapes.append(width / height)
        middles.append(float(rows.float().mean() + columns.float().mean()) / 2)
    assert 0.01 < min(areas) < 0.06 and 0.28 < max(areas) < 0.36  # to half a pixel on every side
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert 0.25 < min(shapes) < 0.45 and 2.2 < max(shapes) < 4
    assert np.mean(np.log(shapes)) == pytest.approx(0, abs=0.15)
    assert np.mean(middles) == pytest.approx((size - 1) / 2, abs=1.5)
    assert torch.equal(found[~gone], clips[~gone])
    assert torch.equal(erase(clips, torch.arange(num), 0.0), clips)
    assert bool((erase(clips, torch.arange(num), 1.0) == 0).flatten(1).any(1).all())
