"""Unreadable files: each is set aside with its reason, and too many of them stop the run with the list."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bridle.errors import ConfigError, TooManyBadFiles

SHOWN_FILES = 3


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be read. ``reason`` is a short phrase fit for a table."""

    key: str
    reason: str


class Quarantine:
    """The bad files of a run and the budget for them.

    The run may go on with up to ``max(1, floor(max_bad_fraction * num_files))`` bad files, so one bad file never
    stops a small set; a fraction of 0 allows none. Separately, ``max_bad_in_a_row`` bad files with no good one
    between them stop it (a disk that went away). A file counts once towards the fraction, however often it comes up.

    Args:
        path: JSON lines file with one ``{"key": ..., "reason": ...}`` per bad file; what it holds already is read
            back, so a resumed run goes on counting. None keeps the list in memory.
        num_files: files there are in all, good and bad (``Manifest.num_files``).
        max_bad_fraction: share of ``num_files`` that may be bad, in [0, 1].
        max_bad_in_a_row: consecutive bad files that stop the run, at least 1.
        known: files found bad before training (``Manifest.bad``); they count towards the fraction only.

    Raises:
        TooManyBadFiles: the known files and those read back are above the budget.
        ConfigError: a limit is out of range.
    """

    def __init__(
        self,
        path: Path | None,
        num_files: int,
        max_bad_fraction: float = 0.01,
        max_bad_in_a_row: int = 100,
        known: Sequence[BadFile] = (),
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {max_bad_fraction}; it must be between 0 and 1")
        if max_bad_in_a_row < 1:
            raise ConfigError(f"max_bad_in_a_row is {max_bad_in_a_row}; it must be at least 1")
        self._path = path
        self._num_files = num_files
        # The small term undoes binary rounding: 0.29 * 100 is 28.999999999999996.
        self._limit = max(1, math.floor(max_bad_fraction * num_files + 1e-9)) if max_bad_fraction else 0
        self._max_in_a_row = max_bad_in_a_row
        self._in_a_row = 0
        self._reasons: dict[str, str] = _read_lines(path) if path is not None else {}
        self._record(known)
        self._check_fraction()

    @property
    def files(self) -> tuple[BadFile, ...]:
        """The bad files so far, each once, in the order they were found."""
        return tuple(BadFile(key, reason) for key, reason in self._reasons.items())

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, bad: Sequence[BadFile]) -> None:
        """Set bad files aside.

        Raises:
            TooManyBadFiles: the budget is used up. The files are written down first.
        """
        self._record(bad)
        self._in_a_row += len(bad)
        self._check_fraction()
        if self._in_a_row >= self._max_in_a_row:
            raise TooManyBadFiles(
                f"{self._in_a_row} files in a row are unreadable (max_bad_in_a_row is {self._max_in_a_row}): "
                f"{self._summary(bad)}; check that the data is still there, or raise max_bad_in_a_row"
            )

    def ok(self, num_good: int) -> None:
        """Report good files; more than none of them ends a row of bad ones."""
        if num_good > 0:
            self._in_a_row = 0

    def _record(self, bad: Sequence[BadFile]) -> None:
        new = list({file.key: file for file in bad if file.key not in self._reasons}.values())
        self._reasons.update((file.key, file.reason) for file in new)
        if self._path is None or not new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in new)
        with self._path.open("a+b") as stream:
            if stream.tell() > 0:  # a killed run may have left half a line
                stream.seek(-1, 2)
                text = text if stream.read(1) == b"\n" else "\n" + text
            stream.write(text.encode("utf-8", "surrogateescape"))

    def _check_fraction(self) -> None:
        if len(self._reasons) > self._limit:
            raise TooManyBadFiles(
                f"{len(self._reasons)} of {self._num_files} files are unreadable (limit {self._limit}): "
                f"{self._summary(self.files)}; repair or remove them, or raise max_bad_fraction"
            )

    def _summary(self, bad: Sequence[BadFile]) -> str:
        shown = "; ".join(f"{file.key} ({file.reason})" for file in bad[:SHOWN_FILES])
        more = ", ..." if len(bad) > SHOWN_FILES else ""
        return f"{shown}{more}" + (f"; full list: {self._path}" if self._path is not None else "")


def _read_lines(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    reasons: dict[str, str] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
            reasons.setdefault(str(row["key"]), str(row["reason"]))
        except (ValueError, KeyError, TypeError):  # an empty line, or half a line of a killed run
            continue
    return reasons
