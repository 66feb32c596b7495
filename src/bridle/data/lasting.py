"""Batches that go on when the processes that decode them die."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bridle.data.batch import Batch
from bridle.errors import WorkerDied

MAX_DEATHS = 3
"""Deaths of workers without a batch between them that end the data."""


def lasting(
    batches_from: Callable[[int], Iterable[Batch]], start: int, end: int, tell: Callable[[str], None]
) -> Iterator[Batch]:
    """The batches of steps ``start .. end``; when a worker dies, new ones go on at the batch that did not come.

    Args:
        batches_from: gives the batches from a step on, and the same ones whenever it is asked.
        start: first step.
        end: behind the last step.
        tell: told in one line when workers are started again.

    Raises:
        WorkerDied: for the :data:`MAX_DEATHS`-th time without a batch in between.
    """
    step, deaths = start, 0
    while step < end:
        try:
            for batch in batches_from(step):
                yield batch
                step, deaths = step + 1, 0
            return
        except WorkerDied as error:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise
            tell(f"{error} They are started again ({deaths} of {MAX_DEATHS - 1}).")
