"""Statistics of codes against closed forms and scikit-learn."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from bridle.config import to_dict
from bridle.errors import DataError
from bridle.eval.codes import (
    bag_of_codes,
    code_report,
    entropy_bits,
    label_churn,
    mutual_information_bits,
    perplexity,
    shared_fraction,
    shuffled_information_bits,
    used_share,
)

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


def draw(high, size, seed):
    return torch.randint(high, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 7, 256])
def test_uniform_codes_have_full_perplexity_and_use(size):
    codes = torch.arange(size).repeat(3)
    assert perplexity(codes, size) == pytest.approx(1.0)
    assert used_share(codes, size) == 1.0
    assert entropy_bits(codes) == pytest.approx(math.log2(size))


def test_one_code_has_the_least_perplexity():
    codes = torch.full((4, 5), 3)
    assert (perplexity(codes, 8), used_share(codes, 8), entropy_bits(codes)) == (1 / 8, 1 / 8, 0.0)


def test_entropy_of_known_frequencies():
    assert entropy_bits(torch.tensor([0, 0, 1, 2])) == pytest.approx(1.5)


@settings(max_examples=60)
@given(PAIRS)
def test_information_equals_scikit_learn_and_is_symmetric(pairs):
    a, b = torch.tensor(pairs).T
    bits = mutual_information_bits(a, b)
    assert bits == pytest.approx(mutual_info_score(a.numpy(), b.numpy()) / math.log(2), abs=1e-9)
    assert bits == pytest.approx(mutual_information_bits(b, a), abs=1e-12)
    nmi = normalized_mutual_info_score(a.numpy(), b.numpy())
    if entropy_bits(a) + entropy_bits(b) > 0:
        assert label_churn(a, b) == pytest.approx(1 - nmi, abs=1e-9)
    assert 0 <= shared_fraction(a, b) <= 1


def test_information_of_a_noisy_channel_is_the_closed_form():
    # 8 equal pairs of every (i, i), 1 of every (i, j): H(b|a) from shares 8/11 and three times 1/11
    a = torch.arange(4).repeat_interleave(11)
    b = torch.tensor([j for i in range(4) for j in [i] * 8 + [j for j in range(4) if j != i]])
    conditional = -(8 / 11 * math.log2(8 / 11) + 3 / 11 * math.log2(1 / 11))
    assert mutual_information_bits(a, b) == pytest.approx(2 - conditional)


def test_large_values_do_not_overflow():
    a = draw(5, (100,), 0)
    assert mutual_information_bits(a * 2**61 - 2**62, a * 2**60) == pytest.approx(entropy_bits(a))


def test_shuffled_floor_is_the_bias_and_a_function_of_the_seed():
    a, b = draw(32, (4000,), 0), draw(16, (4000,), 1)
    expected = 31 * 15 / (2 * 4000 * math.log(2))
    assert mutual_information_bits(a, b) == pytest.approx(expected, rel=0.2)
    assert shuffled_information_bits(a, a, seed=3) == pytest.approx(31 * 31 / (2 * 4000 * math.log(2)), rel=0.2)
    assert shuffled_information_bits(a, b, seed=3) == shuffled_information_bits(a, b, seed=3)
    assert shuffled_information_bits(a, b, seed=3) != shuffled_information_bits(a, b, seed=4)


def test_churn_ignores_names_and_grows_with_change():
    old = draw(16, (5000,), 0)
    renamed = torch.randperm(16, generator=torch.Generator().manual_seed(1))[old]
    fresh = draw(16, (5000,), 2)
    half = torch.where(draw(2, (5000,), 3) == 0, renamed, fresh)
    assert label_churn(old, renamed) == pytest.approx(0.0, abs=1e-9)
    assert 0.3 < label_churn(old, half) < 0.9
    assert label_churn(old, fresh) > 0.98
    assert label_churn(torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)) == 0.0
    assert label_churn(torch.zeros(4, dtype=torch.int64), torch.arange(4)) == 1.0


def test_report_tells_content_from_position_and_repeated_levels():
    positions = torch.arange(32).repeat(200)
    content = draw(16, (6400,), 0)
    codes = torch.stack([positions % 8, content, content, torch.zeros(6400, dtype=torch.int64)], dim=1)
    report = code_report(codes, positions, codebook_size=16)
    assert report.num_patches == 6400
    assert report.position_bits[0] == pytest.approx(3.0)
    assert report.position_floor_bits[0] < 0.1
    assert report.position_bits[1] == pytest.approx(report.position_floor_bits[1], abs=0.02)
    assert report.used == (0.5, 1.0, 1.0, 1 / 16)
    assert report.shared[0] == 0.0
    assert report.shared[1] < 0.05
    assert report.shared[2] == pytest.approx(1.0)
    assert report.shared_floor[2] < 0.02
    assert report.shared[3] == 0.0
    assert code_report(codes, positions, 16) == report


def test_report_does_not_depend_on_the_order_of_patches_except_for_the_floors():
    codes, positions = draw(8, (500, 2), 0), draw(10, (500,), 1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    first, second = code_report(codes, positions, 8), code_report(codes[order], positions[order], 8)
    for field in dataclasses.fields(first):
        if "floor" not in field.name:
            assert getattr(first, field.name) == pytest.approx(getattr(second, field.name))


def test_report_is_plain_data():
    report = code_report(draw(8, (50, 2), 0), torch.arange(50), 8)
    assert json.loads(json.dumps(to_dict(report)))["num_patches"] == 50


def test_bag_of_codes_equals_a_loop_and_has_unit_levels():
    codes = draw(6, (30, 3), 0)
    bag = bag_of_codes(codes, 6)
    expected = np.zeros((3, 6))
    for patch in codes.tolist():
        for level, code in enumerate(patch):
            expected[level, code] += 1 / 30
    np.testing.assert_allclose(bag.numpy(), np.sqrt(expected).reshape(-1), rtol=1e-6)
    torch.testing.assert_close(bag.reshape(3, 6).norm(dim=1), torch.ones(3))
    assert torch.equal(bag, bag_of_codes(codes.flip(0), 6))
    assert bag.dtype == torch.float32


@pytest.mark.parametrize("function", [bag_of_codes, lambda codes, size: code_report(codes, torch.zeros(len(codes)), size)])
@pytest.mark.parametrize(
    ("codes", "match"),
    [
        (torch.tensor([[0, 4]]), "from 0 to 4"),
        (torch.tensor([[0, -1]]), "from -1 to 0"),
        (torch.zeros(0, 2, dtype=torch.int64), "0 codes"),
        (torch.zeros(3, dtype=torch.int64), "patches, levels"),
    ],
)
def test_wrong_codes_are_errors(function, codes, match):
    with pytest.raises(DataError, match=match):
        function(codes, 4)


def test_arrays_that_do_not_fit_are_errors():
    with pytest.raises(DataError, match="3 and 2 values"):
        mutual_information_bits(torch.arange(3), torch.arange(2))
    with pytest.raises(DataError, match="one per patch"):
        code_report(torch.zeros(3, 1, dtype=torch.int64), torch.arange(2), 4)
