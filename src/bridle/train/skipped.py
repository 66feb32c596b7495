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


@dataclass(frozen=True, slots=True)
class SkippedState:
    """What a checkpoint must remember.

    Attributes:
        in_a_row: steps skipped in a row up to it.
        unlogged: steps skipped since the last line was logged.
    """

    in_a_row: int = 0
    unlogged: int = 0


NOTHING_SKIPPED = SkippedState()


class SkippedSteps:
    """Flags of steps, kept where they were computed until somebody looks.

    Args:
        state: as of a checkpoint.
    """

    def __init__(self, state: SkippedState) -> None:
        self._in_a_row, self._unlogged = state.in_a_row, state.unlogged
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
        self._unlogged += len(steps)
        return Skipped(tuple(steps), tuple(first), self._in_a_row)

    def logged(self) -> int:
        """Steps skipped since this was last asked, as far as they were looked at."""
        count, self._unlogged = self._unlogged, 0
        return count

    @property
    def state(self) -> SkippedState:
        """As of the last look."""
        return SkippedState(self._in_a_row, self._unlogged)
