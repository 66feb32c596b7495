"""Unreadable files: each is set aside with its reason, and too many of them stop the run with the list."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bridle.errors import ConfigError, DecodeError, RunError, TooManyBadFiles
from bridle.files import explain_write_error, write_atomically

SHOWN_FILES = 3
_LISTING, _DECODING = "listing", "decoding"


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be read. ``reason`` is a short phrase fit for a table."""

    key: str
    reason: str

    @classmethod
    def of(cls, entry: _Keyed, error: DecodeError | OSError) -> BadFile:
        """The file of a manifest's entry, with the error that reading it raised."""
        return cls(entry.key, error.reason if isinstance(error, DecodeError) else error.strerror or str(error))


class Quarantine:
    """The bad files of a run and the budget for them.

    The run may go on with up to ``max(1, floor(max_bad_fraction * num_files))`` bad files, so one bad file never
    stops a small set; a fraction of 0 allows none. Separately, ``max_bad_in_a_row`` bad files with no good one
    between them stop it (a disk that went away). A file counts once towards the fraction, however often it comes up.

    What broke while decoding in an older run of the folder goes on counting as long as its key is in ``keys``; what
    broke while listing is found anew at every start (``known``). So a file that was removed, or whose header is
    readable again, no longer counts; one that was broken behind its header and repaired under its old name counts until
    its line, or the list, is deleted. The list always holds the files that count, and no others.

    Ranks that get the same arguments (but for ``writes``) and the same calls hold equal state and stop together.

    Args:
        path: JSON lines file with one ``{"key": ..., "reason": ..., "found": "listing" or "decoding"}`` per bad file.
            None keeps the list in memory.
        num_files: files there are in all, good and bad (``Manifest.num_files``).
        max_bad_fraction: share of ``num_files`` that may be bad, in [0, 1].
        max_bad_in_a_row: consecutive bad files that stop the run, at least 1.
        known: files found bad while listing (``Manifest.bad``); they count towards the fraction only.
        keys: of the files of the data set (``Manifest.entries``); None for any.
        writes: False on the ranks that read the list at the start and leave the writing to another.

    Raises:
        TooManyBadFiles: the known files and those read back are above the budget.
        RunError: the list cannot be read or written.
        ConfigError: a limit is out of range.
    """

    def __init__(
        self,
        path: Path | None,
        num_files: int,
        max_bad_fraction: float = 0.01,
        max_bad_in_a_row: int = 100,
        known: Sequence[BadFile] = (),
        keys: Iterable[str] | None = None,
        writes: bool = True,
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {max_bad_fraction}; it must be between 0 and 1")
        if max_bad_in_a_row < 1:
            raise ConfigError(f"max_bad_in_a_row is {max_bad_in_a_row}; it must be at least 1")
        self._path = path
        self._writes = writes and path is not None
        self._num_files = num_files
        # The small term undoes binary rounding: 0.29 * 100 is 28.999999999999996.
        self._limit = max(1, math.floor(max_bad_fraction * num_files + 1e-9)) if max_bad_fraction else 0
        self._max_in_a_row = max_bad_in_a_row
        self._in_a_row = 0
        self._reasons: dict[str, str] = {}
        self._start(known, keys)
        self._check_fraction()

    @property
    def files(self) -> tuple[BadFile, ...]:
        """The bad files so far, each once, in the order they were found; those found while listing come first."""
        return tuple(BadFile(key, reason) for key, reason in self._reasons.items())

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, bad: Sequence[BadFile], num_good: int = 0) -> None:
        """Set the bad files of a step aside, with several ranks those of all of them, in the order of the ranks.

        Args:
            bad: files that could not be read.
            num_good: files of the same step that could. One or more ends the row of bad files, those of this step included.

        Raises:
            TooManyBadFiles: the budget is used up. The files are written down first.
            RunError: they cannot be written down.
        """
        text = _lines(self._record(bad), _DECODING)
        if self._writes and self._path is not None and text:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as stream:
                    stream.write(text)
            except OSError as error:
                raise RunError(explain_write_error(error, self._path.parent, self._path.name)) from error
        self._in_a_row = 0 if num_good else self._in_a_row + len(bad)
        self._check_fraction()
        if self._in_a_row >= self._max_in_a_row:
            raise TooManyBadFiles(
                f"{self._in_a_row} files in a row are unreadable (max_bad_in_a_row is {self._max_in_a_row}): "
                f"{self._summary(bad)}; check that the data is still there, or raise train.max_bad_in_a_row"
            )

    def _start(self, known: Sequence[BadFile], keys: Iterable[str] | None) -> None:
        """Count the known files and those of the list; leave the list with these alone."""
        text = _lines(self._record(known), _LISTING)
        if self._path is None:
            return
        try:
            old = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot read {self._path}: {reason}; make it readable, or delete it to count anew") from error
        decoded = _decoded(old)
        if decoded and keys is not None:
            wanted = {file.key for file in decoded}
            there = {key for key in keys if key in wanted}
            decoded = [file for file in decoded if file.key in there]
        text += _lines(self._record(decoded), _DECODING)
        if not self._writes or text == old:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, text)
        except OSError as error:
            raise RunError(explain_write_error(error, self._path.parent, self._path.name)) from error

    def _record(self, bad: Sequence[BadFile]) -> list[BadFile]:
        """Those of the files that are new, each once."""
        new = []
        for file in bad:
            if file.key not in self._reasons:
                self._reasons[file.key] = file.reason
                new.append(file)
        return new

    def _check_fraction(self) -> None:
        if len(self._reasons) > self._limit:
            raise TooManyBadFiles(
                f"{len(self._reasons)} of {self._num_files} files are unreadable (limit {self._limit}): "
                f"{self._summary(self.files)}; remove them, or repair them"
                + (" and delete the list" if self._path is not None else "")
                + ", or raise train.max_bad_fraction"
            )

    def _summary(self, bad: Sequence[BadFile]) -> str:
        shown = "; ".join(f"{file.key} ({file.reason})" for file in bad[:SHOWN_FILES])
        more = ", ..." if len(bad) > SHOWN_FILES else ""
        return f"{shown}{more}" + (f"; full list: {self._path}" if self._path is not None else "")


def _lines(files: Sequence[BadFile], found: str) -> bytes:
    rows = ({"key": file.key, "reason": file.reason, "found": found} for file in files)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "surrogateescape")


def _decoded(content: bytes) -> list[BadFile]:
    """The files of a list that broke while decoding."""
    files = []
    for line in content.split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
            if row.get("found") != _LISTING:
                files.append(BadFile(str(row["key"]), str(row["reason"])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # half a line of a killed run
            continue
    return files
