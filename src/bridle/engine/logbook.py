"""What is written and told about a run while it goes on: metrics, unreadable files, alarms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from bridle import distributed
from bridle.data.batch import Batch
from bridle.data.quarantine import BadFile, Quarantine
from bridle.engine.parts import Parts
from bridle.errors import RunError, TooManyBadFiles
from bridle.quantize import COLLAPSED_BELOW
from bridle.train.metrics import MetricsWriter, to_numbers


class Logbook:
    """Of a run; rank 0 writes, all ranks count.

    Args:
        parts: of the run.

    Attributes:
        quarantine: the unreadable files.
        fault: an error that ends the run when the next line is logged, where a checkpoint is written first.
    """

    def __init__(self, parts: Parts) -> None:
        manifest, train = parts.manifest, parts.config.train
        self.quarantine = Quarantine(
            parts.folder.quarantine,
            manifest.num_files,
            train.max_bad_fraction,
            train.max_bad_in_a_row,
            known=manifest.bad,
            keys=manifest.keys,
            writes=distributed.rank() == 0,
        )
        self.fault: str | None = None
        self._parts = parts
        self._writer: MetricsWriter | None = None
        self._read: list[tuple[tuple[BadFile, ...], int]] = []
        self._phase, self._before, self._alarmed = "", 0, False

    def open(self, resume_step: int | None) -> None:
        """Begin to write behind a step of the run; None at its beginning.

        Raises:
            RunError: the metrics there are damaged, or the folder cannot be written.
        """
        if distributed.rank() == 0:
            self._writer = MetricsWriter(self._parts.folder.path, resume_step)

    def close(self) -> None:
        """Release the files."""
        if self._writer is not None:
            self._writer.close()

    def phase(self, name: str, steps_before: int) -> None:
        """A phase begins after so many steps of the run."""
        self._phase, self._before, self._alarmed = name, steps_before, False

    def seen(self, batch: Batch) -> None:
        """Count a batch's files."""
        self._read.append((batch.bad, len(batch)))

    def log(self, step: int, values: dict[str, Tensor]) -> None:
        """Write one line of metrics; count the bad files of all ranks, so that all of them stop together. A collective.

        Raises:
            RunError: something cannot be written, or a :attr:`fault` was left.
            TooManyBadFiles: as the quarantine says.
        """
        numbers = {} if self._writer is None else to_numbers([{**values}])[0]  # waits for the device, where it is told
        failure = self.write(step, numbers) or self.fault
        self._report(numbers)
        gathered = distributed.gather_objects((self._read, failure))
        self._read = []
        _raise_first(reason for _, reason in gathered)
        unwritten, too_many = None, None
        try:
            for ranks in zip(*(read for read, _ in gathered), strict=True):
                self.quarantine.add([file for bad, _ in ranks for file in bad], sum(good for _, good in ranks))
        except RunError as error:  # on the rank that writes
            unwritten = str(error)
        except TooManyBadFiles as error:
            too_many = error
        raise_on_all(unwritten)
        if too_many is not None:
            raise too_many

    def write(self, step: int, values: dict[str, float]) -> str | None:
        """A line of metrics, on the rank that writes; the reason if that failed."""
        if self._writer is None:
            return None
        self._writer.write(self._before + step, self._phase, values)
        try:
            self._writer.flush()
        except RunError as error:
            return str(error)
        return None

    def _report(self, numbers: dict[str, float]) -> None:
        reporter = self._parts.reporter
        reporter.values(numbers)
        low = [name for name, value in numbers.items() if name.startswith("perplexity/") and value < COLLAPSED_BELOW]
        if low and not self._alarmed:
            self._alarmed = True
            reporter.message(f"ALARM: {', '.join(low)} below {COLLAPSED_BELOW} of K: few codes; if that stays, lower K")


def raise_on_all(failure: str | None) -> None:
    """RunError on every rank when one of them failed, so that none waits for the others. A collective."""
    _raise_first(distributed.gather_objects(failure))


def _raise_first(reasons: Iterable[str | None]) -> None:
    for reason in reasons:
        if reason is not None:
            raise RunError(reason)
