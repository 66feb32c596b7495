"""What a fine-tuned run says about an item."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from bridle.errors import ConfigError
from bridle.objectives.supervised import FinetuneConfig

THRESHOLD = 0.5
"""Probability from which on a tag counts as present."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities of one item.

    Attributes:
        classes: their names.
        probabilities: (C,) float32; they sum to 1 unless ``multi_label``.
        multi_label: each class is present or not on its own.
    """

    classes: tuple[str, ...]
    probabilities: Tensor
    multi_label: bool = False

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that are present: those of at least a half each when there may be several, else the most probable one."""
        if not self.multi_label:
            return (self.label,)
        return tuple(name for name, chance in self.top(len(self.classes)) if chance >= THRESHOLD)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, the first one first; all of them if there are fewer.

        Raises:
            ConfigError: ``count`` is less than 1.
        """
        if count < 1:
            raise ConfigError(f"count is {count}; ask for 1 class or more")
        found = self.probabilities.sort(descending=True, stable=True)  # of equal ones the first class comes first
        chances, indices = found.values[:count].tolist(), found.indices[:count].tolist()
        return [(self.classes[index], chance) for chance, index in zip(chances, indices, strict=True)]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {chance:.3f}" for name, chance in self.top(3))
        return f"<prediction: {shown}{', ...' if len(self.classes) > 3 else ''}>"


def to_probabilities(logits: Tensor, config: FinetuneConfig) -> Tensor:
    """Probabilities (B, C) of logits (B, C): softmax after cross-entropy, else sigmoids, with a sum of 1 for one class."""
    if config.exclusive:
        return logits.float().softmax(-1)
    if config.multi_label:
        return logits.float().sigmoid()
    return logsigmoid(logits.float()).softmax(-1)  # sigmoids over their sum, also where all of them are nearly 0
