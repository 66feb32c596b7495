"""What the training loop asks of an objective, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from bridle.data.batch import Batch


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One micro-batch's result; everything is a tensor on the device, nothing has been waited for.

    Attributes:
        losses: sums over items, by name. The loop divides each by its count on all ranks and adds them up with the
            objective's weights.
        metrics: sums over items to be logged, by name; divided like the losses.
        statistics: by name, what :meth:`Objective.update` needs.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A method, as the loop sees it. Parameters that must not be trained have ``requires_grad=False``.

    Attributes:
        varying: True when some steps leave trainable parameters without gradient.
    """

    varying: bool = False

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses of one micro-batch; ``step`` counts within the phase. Changes no state."""

    @abstractmethod
    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Items that each loss and metric of ``forward(batch, step)`` sums over on this rank; known without running it."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Weight of each loss in the total."""

    def unprepared(self) -> bool:
        """True when :meth:`prepare` must run before the first step."""
        return False

    def prepare(self, batches: Iterable[Batch], seed: int) -> None:
        """Start what needs data to start (codebooks, by k-means). All ranks call it with their share of the batches."""

    def update(self, statistics: dict[str, Tensor]) -> None:
        """After the optimiser's step: codebooks. All ranks call it together."""

    def health(self) -> dict[str, Tensor]:
        """State worth logging: codebook metrics."""
        return {}
