import math
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridle.data.batch import valid_steps
from bridle.data.sampler import EpochOrder, WeightedOrder
from bridle.errors import ConfigError, DataError
from bridle.randomness import counter_uniform

CROP, PATCH = 498, 16


def mixed_lengths(count, low=8, high=998):
    """Frames of clips of 0.1 to 10 s."""
    return (low + counter_uniform(torch.tensor([1]), count)[0] * (high - low)).long()


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    crop=st.integers(1, 600),
    patch=st.integers(1, 32),
    seed=st.integers(0, 2**40),
    max_clips=st.none() | st.integers(1, 100),
)
def test_every_clip_once_within_the_budget_in_equal_steps(lengths, batch_size, crop, patch, seed, max_clips):
    order = EpochOrder(lengths, batch_size, crop, patch, seed, max_clips)
    steps = valid_steps(torch.tensor(lengths).clamp(max=crop), patch)
    budget = batch_size * int(valid_steps(torch.tensor([crop]), patch))
    for epoch in (0, 1, 7):
        batches = order.batches(epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert len(batches) == order.steps_per_epoch
        for batch in batches:
            assert 1 <= len(batch) <= (16 * batch_size if max_clips is None else max_clips)
            assert len(batch) * int(steps[batch].max()) <= budget


@given(st.integers(0, 2**40), st.integers(0, 100), st.integers(0, 20))
@settings(max_examples=30)
def test_pure_function_of_seed_and_epoch(seed, epoch, start):
    lengths = mixed_lengths(300)
    order = EpochOrder(lengths, 4, CROP, PATCH, seed)
    order.batches(epoch + 1)
    expected = EpochOrder(lengths.tolist(), 4, CROP, PATCH, seed).batches(epoch)
    assert order.batches(epoch) == expected
    assert list(order.iterate(epoch, start)) == expected[start:]


def test_global_random_state_plays_no_part():
    order = EpochOrder(mixed_lengths(100), 4, CROP, PATCH, 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order.batches(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert order.batches(0) == first


def test_epochs_and_seeds_differ():
    lengths = mixed_lengths(500)
    order = EpochOrder(lengths, 8, CROP, PATCH, 0)
    assert order.batches(0) != order.batches(1)
    assert order.batches(0) != EpochOrder(lengths, 8, CROP, PATCH, 1).batches(0)
    together = [{frozenset(batch) for batch in order.batches(epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1], "batches hold other clips each epoch"


@pytest.mark.parametrize("batch_size", [8, 32])
def test_padding_is_below_ten_per_cent_on_mixed_lengths(batch_size):
    lengths = mixed_lengths(4000)
    order = EpochOrder(lengths, batch_size, CROP, PATCH, 0)
    steps = valid_steps(lengths.clamp(max=CROP), PATCH)
    for epoch in (0, 1):
        padded = sum(len(batch) * int(steps[batch].max()) for batch in order.batches(epoch))
        ratio = 1 - int(steps.sum()) / padded
        assert ratio < 0.1
        assert order.padding_ratio(epoch) == pytest.approx(ratio)
    naive = torch.randperm(4000, generator=torch.Generator().manual_seed(0)).split(batch_size)
    assert 1 - int(steps.sum()) / sum(len(b) * int(steps[b].max()) for b in naive) > 0.2, "so the classes do something"


def test_most_batches_are_of_one_length_class():
    lengths = mixed_lengths(4000)
    order = EpochOrder(lengths, 16, CROP, PATCH, 0)
    steps = valid_steps(lengths.clamp(max=CROP), PATCH)
    narrow = [int(steps[b].min()) > 0.9 * int(steps[b].max()) for b in order.batches(0)]
    assert sum(narrow) > 0.8 * len(narrow)


def test_batches_of_short_clips_hold_more_of_them():
    order = EpochOrder([CROP] * 64 + [160] * 640, 16, CROP, PATCH, 0)
    sizes = sorted(len(batch) for batch in order.batches(0))
    assert sizes[:4] == [16, 16, 16, 16]
    assert sizes[-1] == 16 * 31 // 10
    capped = EpochOrder([160] * 640, 16, CROP, PATCH, 0, max_clips=20)
    assert {len(batch) for batch in capped.batches(0)} == {20}


def test_a_small_last_batch_shares_with_the_one_before():
    order = EpochOrder([CROP] * 33, 16, CROP, PATCH, 0)
    assert sorted(len(batch) for batch in order.batches(0)) == [8, 9, 16]
    assert [len(batch) for batch in EpochOrder([CROP] * 3, 16, CROP, PATCH, 0).batches(0)] == [3]


def test_two_million_clips_take_modest_memory():
    lengths = mixed_lengths(2_000_000)
    tracemalloc.start()
    order = EpochOrder(lengths, 256, CROP, PATCH, 0)
    late = next(order.iterate(3, order.steps_per_epoch - 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(late) > 0
    assert order.padding_ratio(0) < 0.06
    assert peak < 50e6, "Python objects do not grow with the number of clips"


def test_wrong_sizes():
    with pytest.raises(DataError, match="no clip"):
        EpochOrder([], 4, CROP, PATCH, 0)
    for arguments in ((0, CROP, PATCH), (4, 0, PATCH), (4, CROP, 0)):
        with pytest.raises(ConfigError, match="is 0; it must be at least 1"):
            EpochOrder([10], *arguments, 0)
    with pytest.raises(ConfigError, match="max_clips is 0"):
        EpochOrder([10], 4, CROP, PATCH, 0, max_clips=0)


def weighted(lengths, weights, num_draws=0, seed=0, batch_size=4):
    return WeightedOrder(EpochOrder(lengths, batch_size, CROP, PATCH, seed), torch.as_tensor(weights), num_draws)


def drawn(order, *epochs):
    return [number for epoch in epochs for batch in order.batches(epoch) for number in batch]


def test_clips_are_drawn_as_often_as_their_weights_say():
    weights = torch.tensor([1.0, 2.0, 0.0, 5.0, 0.5, 1.5, 3.0, 0.25])
    order = weighted([CROP] * 8, weights, num_draws=2000)
    found = torch.bincount(torch.tensor(drawn(order, 0, 1, 2)) % 8, minlength=8)
    assert int(found.sum()) == 6000
    assert int(found[2]) == 0
    expected = 6000 * weights / weights.sum()
    some = expected > 0
    assert float(((found - expected) ** 2 / expected)[some].sum()) < 22.5  # chi-square of 6 degrees of freedom: 0.999


def test_each_length_class_gets_its_share_in_every_epoch():
    lengths = [CROP] * 10 + [100] * 30 + [300] * 10
    weights = torch.tensor([1.0] * 10 + [2.0] * 30 + [3.0] * 10)
    order = weighted(lengths, weights, num_draws=1000)
    counts = [Counter(lengths[number % 50] for number in drawn(order, epoch)) for epoch in range(3)]
    assert counts == [{CROP: 100, 100: 600, 300: 300}] * 3
    budget = 4 * int(valid_steps(torch.tensor([CROP]), PATCH))
    for epoch in range(2):
        batches = order.batches(epoch)
        assert len(batches) == order.steps_per_epoch
        for batch in batches:
            steps = valid_steps(torch.tensor([lengths[number % 50] for number in batch]), PATCH)
            assert len(batch) * int(steps.max()) <= budget


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=60),
    num_draws=st.integers(0, 80),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
@settings(max_examples=60)
def test_draws_have_numbers_of_their_own_and_no_clip_is_left_out_for_good(lengths, num_draws, seed, epoch):
    weights = counter_uniform(torch.tensor([seed]), len(lengths))[0] + 0.01
    order = weighted(lengths, weights, num_draws, seed)
    numbers = drawn(order, epoch)
    assert len(set(numbers)) == len(numbers)
    seen = Counter(number % len(lengths) for number in numbers)
    for clip, times in seen.items():
        assert {clip + k * len(lengths) for k in range(times)} <= set(numbers)
    classes = len(set(order._class.tolist()))
    wanted = num_draws or len(lengths)
    assert wanted <= len(numbers) <= wanted + classes
    assert {int(order._class[clip]) for clip in seen} == set(order._class.tolist())
    assert len(order.batches(epoch)) == order.steps_per_epoch >= 1
    assert order.batches(epoch) == weighted(lengths, weights, num_draws, seed).batches(epoch)
    assert list(order.iterate(epoch, 1)) == order.batches(epoch)[1:]
    assert 0 <= order.padding_ratio(epoch) < 1


def test_epochs_and_seeds_draw_other_clips():
    weights = torch.ones(200)
    order = weighted([CROP] * 200, weights)
    assert sorted(drawn(order, 0)) != sorted(drawn(order, 1))
    assert sorted(drawn(order, 0)) != sorted(drawn(weighted([CROP] * 200, weights, seed=1), 0))
    assert order.num_clips == 200
    plain = EpochOrder([CROP] * 200, 4, CROP, PATCH, 0)
    assert order.steps_per_epoch == plain.steps_per_epoch
    WeightedOrder(plain, weights, 8)
    assert sorted(drawn(plain, 0)) == list(range(200))  # the order it was made of stays as it is


def test_padding_of_weighted_epochs_equals_its_definition():
    lengths = mixed_lengths(300)
    order = weighted(lengths, torch.ones(300), num_draws=900, batch_size=8)
    steps = valid_steps(lengths.clamp(max=CROP), PATCH)
    batches = [[number % 300 for number in batch] for batch in order.batches(2)]
    padded = sum(len(batch) * int(steps[batch].max()) for batch in batches)
    content = sum(int(steps[batch].sum()) for batch in batches)
    assert order.padding_ratio(2) == pytest.approx(1 - content / padded)


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, math.nan]),
                torch.tensor([1.0, math.inf])]
)  # fmt: skip
def test_weights_that_are_none(weights):
    with pytest.raises(ConfigError, match="weights for 2 clips: give one each, at least 0, finite and not all 0"):
        weighted([CROP, CROP], weights)
