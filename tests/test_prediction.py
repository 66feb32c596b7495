"""Predictions: probabilities of logits against naive ones, the most probable classes, tags, and what they show."""

import math

import pytest
import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.objectives.supervised import FinetuneConfig
from bridle.prediction import Prediction, to_probabilities

NAMES = ("bee", "cat", "dog", "Möwe")


def logits() -> Tensor:
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_probabilities_of_each_loss() -> None:
    for row, soft, binary, tags in zip(
        logits().tolist(),
        *(
            to_probabilities(logits(), config).tolist()
            for config in (FinetuneConfig(), FinetuneConfig(loss="bce"), FinetuneConfig(multi_label=True))
        ),
        strict=True,
    ):
        total = sum(math.exp(value) for value in row)
        assert soft == pytest.approx([math.exp(value) / total for value in row], abs=1e-6)
        chances = [sigmoid(value) for value in row]
        assert tags == pytest.approx(chances, abs=1e-6)
        assert binary == pytest.approx([chance / sum(chances) for chance in chances], abs=1e-6)


@pytest.mark.parametrize("values", [[-60.0, -61.0, -90.0], [-200.0, -200.0, -200.0], [80.0, 90.0, -5.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_one_class_a_clip_sums_to_one_however_extreme(values: list[float], loss: str) -> None:
    found = to_probabilities(torch.tensor([values]), FinetuneConfig(loss=loss))[0]  # type: ignore[arg-type]
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
    assert to_probabilities(torch.tensor([values]).bfloat16(), FinetuneConfig(loss=loss)).dtype == torch.float32  # type: ignore[arg-type]


def test_the_most_probable_class_and_the_first_few() -> None:
    found = Prediction(NAMES, torch.tensor([0.1, 0.2, 0.05, 0.65]))
    assert (found.label, found.labels) == ("Möwe", ("Möwe",))
    assert [name for name, _ in found.top()] == ["Möwe", "cat", "bee", "dog"]
    assert found.top(2) == [("Möwe", pytest.approx(0.65)), ("cat", pytest.approx(0.2))]
    assert len(found.top(99)) == 4
    assert repr(found) == "<prediction: Möwe 0.650, cat 0.200, bee 0.100, ...>"
    assert repr(Prediction(NAMES[:2], torch.tensor([0.25, 0.75]))) == "<prediction: cat 0.750, bee 0.250>"
    with pytest.raises(ConfigError, match="count is 0; ask for 1 class or more"):
        found.top(0)


def test_of_equal_classes_the_first_one_counts() -> None:
    names = tuple(f"class {number}" for number in range(40))
    found = Prediction(names, torch.full((40,), 1 / 40))
    assert found.label == "class 0"
    assert [name for name, _ in found.top(40)] == list(names)


def test_tags_are_those_of_at_least_a_half_the_most_probable_first() -> None:
    found = Prediction(NAMES, torch.tensor([0.5, 0.9, 0.499, 0.7]), multi_label=True)
    assert found.labels == ("cat", "Möwe", "bee")
    assert found.label == "cat"
    nothing = Prediction(NAMES, torch.full((4,), 0.2), multi_label=True)
    assert (nothing.labels, nothing.label) == ((), "bee")
