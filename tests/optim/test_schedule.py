"""Schedule values against values worked out by hand."""

import math

import pytest

from bridle.errors import ConfigError
from bridle.optim.schedule import warmup_cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.5),  # warm-up: (step + 1) / 4 of 2
        (1, 1.0),
        (3, 2.0),
        (4, 2.0),  # the cosine begins at its peak
        (6, 1.0 + math.cos(math.pi / 4)),  # a quarter of the way
        (8, 1.0),  # half-way
        (12, 0.0),
        (13, 0.0),
        (10**9, 0.0),
    ],
)
def test_hand_computed(step, expected):
    value = warmup_cosine(step, total_steps=12, warmup_steps=4, peak=2.0)
    assert value == pytest.approx(expected, abs=1e-12)


def test_final_value_is_exact():
    assert warmup_cosine(10, total_steps=10, warmup_steps=0, peak=3.0, final=0.3) == 0.3
    assert warmup_cosine(5, total_steps=10, warmup_steps=0, peak=3.0, final=1.0) == pytest.approx(2.0)


def test_no_warmup_begins_at_the_peak():
    assert warmup_cosine(0, total_steps=10, warmup_steps=0, peak=3.0) == 3.0


def test_warmup_only():
    values = [warmup_cosine(s, total_steps=2, warmup_steps=2, peak=1.0) for s in range(3)]
    assert values == [0.5, 1.0, 0.0]


def test_rises_then_falls():
    values = [warmup_cosine(s, total_steps=100, warmup_steps=20, peak=1.0, final=0.1) for s in range(101)]
    assert values[:20] == sorted(values[:20])
    assert values[20:] == sorted(values[20:], reverse=True)
    assert min(values) > 0.0
    assert max(values) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step is -1"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 11}, "warmup_steps is 11"),
        ({"peak": math.nan}, "peak is nan"),
        ({"peak": math.inf}, "peak is inf"),
        ({"final": 2.0}, "final 2.0"),
        ({"final": -0.1}, "final -0.1"),
    ],
)
def test_out_of_range(change, message):
    arguments = {"step": 0, "total_steps": 10, "warmup_steps": 2, "peak": 1.0, **change}
    with pytest.raises(ConfigError, match=message):
        warmup_cosine(arguments.pop("step"), **arguments)
