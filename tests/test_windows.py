"""Means over windows against sums written out."""

import pytest
import torch

from bridle.errors import DataError
from bridle.windows import Window, WindowMeans


def window(index: int) -> Window:
    return Window(index, 0.0, torch.zeros(1, 1, 1, 1))


def test_means_are_weighted_by_file_over_any_number_of_batches() -> None:
    files, weights = [0, 0, 0, 3, 3, 1], [4, 4, 1, 2, 3, 7]
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whole = WindowMeans()
    whole.add([window(file) for file in files], vectors, weights)
    for size in (1, 2, 4):
        means = WindowMeans()
        for start in range(0, 6, size):
            part = slice(start, start + size)
            means.add([window(file) for file in files[part]], vectors[part], weights[part])
        assert list(means.finish()) == [0, 3, 1]  # in the order in which they came
        for file, mean in means.finish().items():
            rows = [row for row in range(6) if files[row] == file]
            total = sum(weights[row] for row in rows)
            expected = sum(vectors[row].double() * weights[row] for row in rows) / total  # type: ignore[union-attr]
            torch.testing.assert_close(mean.double(), expected, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(mean, whole.finish()[file])
        assert torch.equal(means.stacked(), torch.stack(list(means.finish().values())))


def test_means_of_probabilities_are_probabilities() -> None:
    chances = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).softmax(1)
    means = WindowMeans()
    means.add([window(0)] * 50, chances, list(range(1, 51)))
    assert float(means.finish()[0].sum()) == pytest.approx(1.0, abs=1e-5)


def test_adding_keeps_no_hold_of_its_input_and_raises_precision() -> None:
    vectors, means = torch.ones(2, 3, dtype=torch.bfloat16), WindowMeans()
    means.add([window(0), window(1)], vectors, [1, 0])
    vectors.zero_()
    found = means.finish()
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], torch.ones(3))
    assert torch.equal(found[1], torch.zeros(3))  # of weight 0, as a film that has no change


def test_nothing_added() -> None:
    means = WindowMeans()
    means.add([], torch.zeros(0, 3), [])
    assert means.finish() == {}
    with pytest.raises(DataError, match="there is no item; give at least 1"):
        means.stacked()
    with pytest.raises(ValueError, match="shorter"):
        means.add([window(0)], torch.zeros(1, 3), [])
