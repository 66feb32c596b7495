"""Mixup and cutmix against loops, their weights' distribution, and what they must not touch."""

import math

import pytest
import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.media.fbank import Fbank
from bridle.mixing import MixConfig, draw_beta, draw_partners, mix, mix_powers

SEEDS = torch.arange(5) * 7919 + 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clips(frames: int, *lengths: int, height: int = 3, width: int = 1) -> tuple[Tensor, Tensor]:
    """A padded batch (B, 2, T, H, W) and its lengths."""
    inputs = noise(len(lengths), 2, frames, height, width)
    for clip, length in zip(inputs, lengths, strict=True):
        clip[:, length:] = 0
    return inputs, torch.tensor(lengths)


def powers(first: float, second: float, weight: float, scale: float) -> float:
    """Logarithm of summed exponentials, in float64."""
    x, y = first * scale, second * scale
    top = max(x, y)
    return (top + math.log(weight * math.exp(x - top) + (1 - weight) * math.exp(y - top))) / scale


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_powers_are_the_log_of_weighted_exponentials(scale: float) -> None:
    first, second = 3 * noise(4, 50, seed=1), 3 * noise(4, 50, seed=2)
    weights = torch.tensor([0.02, 0.3, 0.5, 0.97])[:, None]
    found = mix_powers(first, second, weights, scale)
    expected = [
        [powers(x, y, w, scale) for x, y in zip(xs, ys, strict=True)]
        for xs, ys, w in zip(first.tolist(), second.tolist(), weights[:, 0].tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(found, mix_powers(second, first, 1 - weights, scale), atol=2e-6, rtol=1e-6)


def test_powers_know_no_constant_and_keep_equal_sounds() -> None:
    first, second = noise(30, seed=1), noise(30, seed=2)
    torch.testing.assert_close(mix_powers(first + 5, second + 5, 0.3), mix_powers(first, second, 0.3) + 5, atol=5e-6, rtol=0)
    torch.testing.assert_close(mix_powers(first, first, 0.3), first, atol=1e-6, rtol=0)


def test_powers_of_extremes_are_finite_and_their_ends_are_the_sounds() -> None:
    loud, quiet = torch.tensor([40.0, -40.0, 20.0]), torch.tensor([-40.0, 40.0, 20.0])
    for weight in (1e-6, 0.5, 1 - 1e-6):
        found = mix_powers(loud, quiet, weight)
        expected = torch.tensor([powers(x, y, weight, 1.0) for x, y in zip(loud.tolist(), quiet.tolist(), strict=True)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    first, second = 5 * noise(40, seed=3), 5 * noise(40, seed=4)
    torch.testing.assert_close(mix_powers(first, second, 1.0), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(mix_powers(first, second, 0.0), second, atol=1e-5, rtol=0)


def test_powers_of_log_mel_are_those_of_added_sounds() -> None:
    # Powers of noises that know nothing of each other add up, in the mean over frames and bands.
    fbank = Fbank()
    first, second = 0.1 * noise(64000, seed=5), 0.05 * noise(64000, seed=6)
    together = fbank(math.sqrt(0.3) * first + math.sqrt(0.7) * second)
    ratio = mix_powers(fbank(first), fbank(second), 0.3).exp().mean(0) / together.exp().mean(0)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.03)


def naive_mixup(inputs: Tensor, lengths: Tensor, weights: Tensor, blend: str, scale: float) -> Tensor:
    mixed, last = inputs.clone(), len(inputs) - 1
    for clip in range(len(inputs)):
        weight = float(weights[clip])
        for frame in range(min(int(lengths[clip]), int(lengths[last - clip]))):
            own, other = inputs[clip, :, frame], inputs[last - clip, :, frame]
            if weight == 1.0:
                continue
            if blend == "values":
                mixed[clip, :, frame] = weight * own + (1 - weight) * other
            else:
                pairs = zip(own.flatten().tolist(), other.flatten().tolist(), strict=True)
                mixed[clip, :, frame] = torch.tensor([powers(x, y, weight, scale) for x, y in pairs]).reshape(own.shape)
    return mixed


@pytest.mark.parametrize(("blend", "scale"), [("values", 1.0), ("powers", 8.0)])
@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (6, 2, 5, 3, 4)])
def test_mixup_equals_a_loop_over_clips_and_frames(blend: str, scale: float, lengths: tuple[int, ...]) -> None:
    inputs, frames = clips(6, *lengths)
    before, seeds = inputs.clone(), SEEDS[: len(lengths)]
    found = mix(inputs, frames, seeds, MixConfig(mixup=0.8), blend, scale)  # type: ignore[arg-type]
    drawn = draw_beta(seeds, 0.8)
    own = torch.arange(len(lengths)) == torch.arange(len(lengths)).flip(0)
    assert torch.equal(found.weights, torch.where(own, 1.0, drawn))
    torch.testing.assert_close(found.inputs, naive_mixup(inputs, frames, found.weights, blend, scale), atol=1e-5, rtol=1e-5)
    assert torch.equal(inputs, before)


def test_nothing_behind_the_end_of_either_clip_is_touched() -> None:
    inputs, lengths = clips(8, 8, 3, 5, 8, height=8, width=8)
    for config in (MixConfig(mixup=0.5), MixConfig(cutmix=1.0), MixConfig(mixup=0.5, cutmix=1.0)):
        found = mix(inputs, lengths, SEEDS[:4], config).inputs
        for clip in range(4):
            end = min(int(lengths[clip]), int(lengths[3 - clip]))
            assert torch.equal(found[clip, :, end:], inputs[clip, :, end:])
            assert not torch.equal(found[clip, :, :end], inputs[clip, :, :end])


def test_cutmix_pastes_one_box_for_all_frames_and_weighs_its_area() -> None:
    inputs, lengths = clips(3, 3, 3, 3, 3, height=10, width=12)
    for start in range(0, 200, 4):
        found = mix(inputs, lengths, torch.arange(start, start + 4), MixConfig(cutmix=1.0))
        for clip in range(4):
            pasted = found.inputs[clip] == inputs[3 - clip]
            kept = found.inputs[clip] == inputs[clip]
            assert bool((pasted ^ kept).all())
            places = pasted[0, 0]
            assert bool((pasted == places).all())
            rows, columns = places.any(1).nonzero()[:, 0].tolist(), places.any(0).nonzero()[:, 0].tolist()
            if rows:  # a box, without holes
                assert rows == list(range(rows[0], rows[-1] + 1))
                assert columns == list(range(columns[0], columns[-1] + 1))
            assert int(places.sum()) == len(rows) * len(columns)
            assert float(found.weights[clip]) == pytest.approx(1 - len(rows) * len(columns) / 120, abs=1e-6)


def test_boxes_have_the_drawn_area_where_they_lie_inside() -> None:
    num, size = 400, 64
    inputs = noise(num, 1, 1, size, size)
    seeds = torch.arange(num)
    weights = mix(inputs, torch.ones(num, dtype=torch.int64), seeds, MixConfig(cutmix=1.0)).weights
    drawn = draw_beta(seeds, 1.0)
    assert float((weights - drawn).min()) > -0.05  # what leaves the picture is cut off: never more than drawn
    assert float(((weights - drawn).abs() < 0.05).float().mean()) > 0.3
    assert 0.5 < float(weights.mean()) < 0.85


def test_weights_are_of_the_beta_distribution() -> None:
    for alpha in (0.3, 1.0, 10.0):
        drawn = draw_beta(torch.arange(4000), alpha).double()
        assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert drawn.min() > 0 and drawn.max() < 1
    extreme = draw_beta(torch.arange(50), 1e-4)
    assert bool(torch.isfinite(extreme).all())


def test_a_share_is_mixed_and_half_of_it_by_each() -> None:
    num = 1000
    inputs, lengths = noise(num, 1, 1, 4, 4), torch.ones(num, dtype=torch.int64)
    config = MixConfig(mixup=5.0, cutmix=5.0, ratio=0.6)
    found = mix(inputs, lengths, torch.arange(num), config)
    other = inputs.flip(0)
    plain = (found.inputs == inputs).flatten(1).all(1)
    boxed = ((found.inputs == inputs) | (found.inputs == other)).flatten(1).all(1) & ~plain
    blended = ~plain & ~boxed
    assert float(plain.float().mean()) == pytest.approx(0.4, abs=0.06)
    assert float(boxed.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(blended.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(found.weights == 1, plain)
    weight = found.weights[:, None, None, None, None]
    torch.testing.assert_close(found.inputs[blended], (weight * inputs + (1 - weight) * other)[blended])


def test_a_clips_weight_does_not_depend_on_its_batch() -> None:
    inputs, lengths = noise(6, 1, 2, 9, 9), torch.full((6,), 2)
    seeds = torch.arange(6) + 11
    config = MixConfig(mixup=0.4, cutmix=1.0, ratio=0.8)
    together = mix(inputs, lengths, seeds, config)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 4, 5, 3], [1, 3]):
        found = mix(inputs[order], lengths[order], seeds[order], config)
        assert torch.equal(found.weights, together.weights[order])
    # Its partner does: it is the one at the same place counted from the end.
    turned = mix(inputs.flip(0), lengths, seeds.flip(0), config)
    assert torch.equal(turned.inputs.flip(0), together.inputs)


def test_one_clip_and_none_stay_alone() -> None:
    config = MixConfig(mixup=0.4, cutmix=1.0)
    for num in (0, 1):
        inputs = noise(num, 3, 2, 8, 8)
        found = mix(inputs, torch.full((num,), 2), SEEDS[:num], config)
        assert torch.equal(found.inputs, inputs)
        assert torch.equal(found.weights, torch.ones(num))


def test_partners_are_any_clip_and_follow_from_the_seed() -> None:
    config = MixConfig(mixup=10.0, ratio=0.5)
    seeds = torch.arange(6000)
    partners, weights = draw_partners(seeds, 6, config)
    assert partners.dtype == torch.int64
    expected = 1000.0
    assert float(((torch.bincount(partners, minlength=6) - expected) ** 2 / expected).sum()) < 20.5  # chi-square, 5: 0.999
    mixed = weights < 1
    assert float(mixed.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(weights[mixed], draw_beta(seeds[mixed], 10.0))
    for row in (0, 17, 5999):
        alone = draw_partners(seeds[row : row + 1], 6, config)
        assert (int(alone[0]), float(alone[1])) == (int(partners[row]), float(weights[row]))
    assert bool((draw_partners(seeds, 6, MixConfig(mixup=1.0, ratio=0.0))[1] == 1).all())
    assert draw_partners(seeds[:0], 6, config)[0].shape == (0,)


def test_global_random_state_plays_no_part() -> None:
    inputs, lengths = clips(4, 4, 4, 4, 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = mix(inputs, lengths, SEEDS[:4], MixConfig(mixup=1.0, cutmix=1.0))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(mix(inputs, lengths, SEEDS[:4], MixConfig(mixup=1.0, cutmix=1.0)).inputs, first.inputs)


def test_settings() -> None:
    assert not MixConfig().on and not MixConfig(mixup=1.0, ratio=0.0).on
    assert MixConfig(mixup=0.1).on and MixConfig(cutmix=0.1).on
    for bad in ({"mixup": -0.1}, {"cutmix": math.nan}, {"mixup": math.inf}):
        with pytest.raises(ConfigError, match="must be finite and at least 0"):
            MixConfig(**bad)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"mix_ratio=.* must lie between 0 and 1"):
            MixConfig(ratio=ratio)
