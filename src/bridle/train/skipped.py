"""Steps that were skipped because their gradient was not finite: remembered on the device, looked at now and then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a look found.

    Attributes:
        steps: skipped since the look before.
        first: of them, those that begin a row.
        in_a_row: how many steps up to the newest were skipped without one in between that was not.
    """

    steps: tuple[int, ...]
    first: tuple[int, ...]
    in_a_row: int


class SkippedSteps:
    """Flags of steps, kept where they were computed until somebody looks.

    Args:
        in_a_row: steps skipped in a row before the first one that is added, as of a checkpoint.
    """

    def __init__(self, in_a_row: int = 0) -> None:
        self._in_a_row = in_a_row
        self._flags: list[tuple[int, Tensor]] = []

    def add(self, step: int, flag: Tensor) -> None:
        """Remember a step; waits for nothing.

        Args:
            step: number of the step.
            flag: () float32, not 0 when it was skipped.
        """
        self._flags.append((step, flag))

    def look(self) -> Skipped:
        """What was skipped since the last look; waits for the device, once."""
        if not self._flags:
            return Skipped((), (), self._in_a_row)
        values = torch.stack([flag for _, flag in self._flags]).tolist()
        steps, first = [], []
        for (step, _), value in zip(self._flags, values, strict=True):
            if value:
                steps.append(step)
                if self._in_a_row == 0:
                    first.append(step)
            self._in_a_row = self._in_a_row + 1 if value else 0
        self._flags.clear()
        return Skipped(tuple(steps), tuple(first), self._in_a_row)
