"""A folder of parquet parts, written by one process or by many on many machines, each its share.

``OUT/part-00000.parquet`` holds the rows of the first ``files_per_part`` files of the manifest, and so on. A part is written
under another name and renamed, so one that is there is whole and is kept; a call that was cut short is continued by calling
again. Who writes a part holds a lock on it, so no part is written by two. Whoever finds all parts there lists the unreadable
files in ``OUT/_quarantine.jsonl``. Readers of parquet folders pass over names that begin with an underscore or a dot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError, RunError
from bridle.files import explain_write_error, write_atomically
from bridle.wording import count

QUARANTINE_NAME = "_quarantine.jsonl"
FILES_PER_PART = 1000

Progress = Callable[[int], None]
"""Called now and then with the number of files of the shard that are done."""

Rows = Callable[[Sequence[Entry], list[BadFile]], Iterator[tuple[int, Any]]]
"""(files of a part, list that takes the unreadable ones) -> (files done, pyarrow.RecordBatch), in their order."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A share of the parts: of all parts, every ``count``-th from ``index`` on.

    Attributes:
        index: from 0.
        count: how many shards there are.

    Raises:
        ConfigError: ``index`` is not below ``count``.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard index {self.index} must be 0 or more and below the number of shards, {self.count}")

    def __str__(self) -> str:
        return f"shard {self.index + 1}/{self.count}"

    def parts(self, num_files: int, files_per_part: int) -> dict[int, range]:
        """The files of each part of this shard, by the part's number.

        Raises:
            ConfigError: ``files_per_part`` is below 1.
        """
        if files_per_part < 1:
            raise ConfigError(f"files_per_part is {files_per_part}; it must be at least 1")
        starts = range(0, num_files, files_per_part)
        own = range(self.index, len(starts), self.count)
        return {number: range(starts[number], min(starts[number] + files_per_part, num_files)) for number in own}


WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the folder after a call.

    Attributes:
        num_rows: windows, over all parts that are there.
        num_parts: parts that are there, whoever wrote them.
        num_kept_parts: parts of this shard that an earlier call had written.
        num_missing_parts: parts that other shards, or another call that is at work, have yet to write.
        bad: files that cannot be read; one that breaks off in the middle has rows up to there.
    """

    num_rows: int
    num_parts: int
    num_kept_parts: int
    num_missing_parts: int
    bad: tuple[BadFile, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    num_rows: int
    bad: tuple[BadFile, ...]


class PartFolder:
    """The parts of a set of files in a folder.

    Args:
        out: the folder; made when something is written.
        manifest: the files.
        schema: of the rows; its metadata ``bridle`` is JSON and says what they are. Files and ``files_per_part`` are added.
        files_per_part: files in a part, at least 1.

    Raises:
        ConfigError: ``files_per_part`` is below 1.
    """

    def __init__(self, out: Path, manifest: Manifest, schema: Any, files_per_part: int) -> None:
        self.out, self.manifest, self.files_per_part = out, manifest, files_per_part
        self.files = WHOLE.parts(len(manifest), files_per_part)
        self.settings = json.loads(schema.metadata[b"bridle"])
        self.settings |= {"files_per_part": files_per_part, "num_files": len(manifest), "files": manifest.fingerprint}
        self.schema = schema.with_metadata({"bridle": json.dumps(self.settings)})

    def write(self, shard: Shard, rows: Rows, progress: Progress | None = None) -> Written:
        """Write the parts of a shard that are missing.

        Raises:
            RunError: the folder holds parts of something else, or cannot be written.
            DataError: all parts are there, and no file can be read.
        """
        parts = _read_parts(self.out, self.settings)
        own = shard.parts(len(self.manifest), self.files_per_part)
        num_kept = len(parts.keys() & own.keys())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            done = 0
            for number, files in own.items():
                tell = _shifted(progress, done)
                if number not in parts:
                    self._write_part(number, rows, tell)
                tell(len(files))
                done += len(files)
            parts |= _read_parts(self.out, self.settings, passed_over=parts)
            return self._closed(parts, num_kept)
        except OSError as error:
            raise RunError(explain_write_error(error, self.out, "parquet parts")) from error

    def _closed(self, parts: dict[int, _Part], num_kept: int) -> Written:
        """What is there now; if that is all, the list of unreadable files is written too."""
        bad = (*self.manifest.bad, *(file for number in sorted(parts) for file in parts[number].bad))
        num_rows, num_missing = sum(part.num_rows for part in parts.values()), len(self.files) - len(parts)
        if not num_missing:
            _write_quarantine(self.out / QUARANTINE_NAME, bad)
            if num_rows == 0:
                for number in parts:
                    _part_path(self.out, number).unlink(missing_ok=True)  # so that a call after the repair starts anew
                num_files = count(len(self.manifest), "file")
                raise DataError(f"none of {num_files} can be read; first: {bad[0].key} ({bad[0].reason}); check the files")
        return Written(num_rows, len(parts), num_kept, num_missing, bad)

    def _write_part(self, number: int, rows: Rows, tell: Progress) -> None:
        """Unless another process writes it or has written it."""
        path, files, bad = _part_path(self.out, number), self.files[number], list[BadFile]()

        def create(target: Path) -> None:
            settings = {"compression": "zstd", "write_page_checksum": True}
            # Opened here: a path that looks like a URI would be taken for one.
            with target.open("wb") as file, pq.ParquetWriter(file, self.schema, **settings) as writer:
                for done, batch in rows(self.manifest.entries[files.start : files.stop], bad):
                    writer.write_batch(batch)
                    tell(done)
                # With the rows in one file, so that they cannot disagree.
                writer.add_key_value_metadata({"bridle.bad": json.dumps([asdict(file) for file in bad])})

        with _claimed(path) as mine:
            if mine and _read_part(path, self.settings) is None:
                write_atomically(path, create)


def read_written(out: Path) -> Written:
    """What is in a folder now, whoever wrote it; nothing is kept of an earlier call.

    Raises:
        RunError: its parts are not of one set.
    """
    footers = (_footer(path).metadata for path in _part_paths(out).values())
    settings = next((json.loads(texts[b"bridle"]) for texts in footers if texts and b"bridle" in texts), None)
    if settings is None:
        return Written(0, 0, 0, 0, ())
    parts = _read_parts(out, settings)
    bad: list[BadFile] = []
    with contextlib.suppress(FileNotFoundError):
        lines = (out / QUARANTINE_NAME).read_text("utf-8", "surrogateescape").splitlines()
        bad = [BadFile(**json.loads(line)) for line in lines]
    num_missing = len(WHOLE.parts(settings["num_files"], settings["files_per_part"])) - len(parts)
    return Written(sum(part.num_rows for part in parts.values()), len(parts), 0, num_missing, tuple(bad))


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """True for one process at a time; it removes what a killed one left of the file. The lock ends with its holder.

    On a file system without locks it is true for all: they write the same content, each under a name of its own.
    """
    import fcntl

    lock = path.with_name(f".lock-{path.name}")
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        else:
            if not lock.exists() or lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                yield False  # another has finished the part, and removed the lock that this one waited for
                return
            for stale in path.parent.glob(f".tmp-{path.name}-*"):
                stale.unlink(missing_ok=True)
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


def _read_parts(out: Path, settings: dict[str, Any], passed_over: Collection[int] = ()) -> dict[int, _Part]:
    """The parts that are there by number; one that is damaged counts as missing.

    Raises:
        RunError: a part of another model, other files or other settings.
    """
    found: dict[int, _Part] = {}
    for number, path in _part_paths(out).items():
        if number not in passed_over and (part := _read_part(path, settings)):
            found[number] = part
    return found


def _read_part(path: Path, settings: dict[str, Any]) -> _Part | None:
    with contextlib.suppress(pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        footer = _footer(path)
        texts = footer.metadata or {}
        _check_same(path, json.loads(texts.get(b"bridle", b"{}")), settings)
        return _Part(footer.num_rows, tuple(BadFile(**file) for file in json.loads(texts[b"bridle.bad"])))
    return None


def _check_same(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    remedy = "choose another --out, or remove that folder"
    if there.get("fingerprint") != wanted["fingerprint"]:
        raise RunError(
            f"{path} was written by another model, {there.get('fingerprint')}, not {wanted['fingerprint']}; {remedy}"
        )
    if there["files"] != wanted["files"]:
        raise RunError(f"{path} was written from other files; {remedy}")
    for name, value in wanted.items():
        if name == "bridle_version" or there.get(name) == value:
            continue
        raise RunError(f"{path} was written with {name}={there.get(name)}, not {value}; {remedy}")


def _footer(path: Path) -> Any:
    with path.open("rb") as file:
        return pq.read_metadata(file)


def _part_paths(out: Path) -> dict[int, Path]:
    """The parts that are there, by number."""
    named = ((re.fullmatch(r"part-(\d{5,})\.parquet", path.name), path) for path in sorted(out.glob("part-*.parquet")))
    return {int(match[1]): path for match, path in named if match}


def _part_path(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _write_quarantine(path: Path, bad: Sequence[BadFile]) -> None:
    if not bad:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in bad)
    write_atomically(path, "".join(lines).encode("utf-8", "surrogateescape"))


def _shifted(progress: Progress | None, start: int) -> Progress:
    return lambda done: progress(start + done) if progress is not None else None
