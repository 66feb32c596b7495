"""Any files as tar shards in the format of WebDataset, with an index.

``OUT/shard-00000.tar`` and so on hold, for each clip, ``KEY.SUFFIX``, its file as it is, and ``KEY.json``, its cells of the
manifest's columns, where there are any. The same files give the same bytes. ``OUT/index.parquet`` comes last
(:mod:`bridle.data.index`). Until then ``OUT/.shard-00000.parquet``, the index of one shard, stands for a shard that is whole:
it is written first, then the shard gets its name, so that a call that was cut short is continued by calling again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from bridle.data.entries import Entries, Entry, Manifest, Names
from bridle.data.index import Index, Shard, read_shard_index, save_shard_index
from bridle.data.medium import Info, Medium
from bridle.data.packed import Digest, cell_array, name_array
from bridle.data.quarantine import BadFile
from bridle.data.shards import INDEX_NAME
from bridle.data.tar_writer import BLOCK_BYTES, NotWritten, TarWriter, member_stems
from bridle.errors import ConfigError, DataError, DecodeError, RunError
from bridle.files import explain_write_error, write_atomically
from bridle.media.source import opened
from bridle.wording import count

SHARD_BYTES = 500_000_000
QUARANTINE_NAME = "_quarantine.jsonl"
_CHUNK_BYTES = 1 << 20
_SHARD = re.compile(r"shard-\d{5,}\.tar")
_REMEDY = "choose another --out, or remove that folder"

Progress = Callable[[int], None]
"""Called now and then with the number of files that are done."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """What is in the folder after a call.

    Attributes:
        num_clips: in all shards.
        num_bytes: of all shards.
        num_shards: tars.
        num_kept_shards: tars of an earlier call that were kept.
        bad: files that cannot be read.
    """

    num_clips: int
    num_bytes: int
    num_shards: int
    num_kept_shards: int
    bad: tuple[BadFile, ...]


def write_shards(
    manifest: Manifest,
    medium: Medium,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    clips_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Sharded:
    """Write the files of a manifest as shards. One file is read at a time, and never held as a whole.

    Args:
        manifest: the files, which need not be probed: the header of each is read before it is copied.
        medium: of the files.
        out: folder, created if missing; whole shards of an earlier call with the same files and settings are kept.
        shard_bytes: a shard is closed before the clip that would make it larger; a larger clip has one of its own.
        clips_per_shard: and before it would have more clips than this; None for any number.
        progress: told about files that are done.

    Raises:
        RunError: ``out`` holds something else, another call writes to it, or it cannot be written.
        DataError: no file can be read; or ``out`` has an index that does not fit its shards.
        ConfigError: a limit is below 1.
    """
    if min(shard_bytes, 1 if clips_per_shard is None else clips_per_shard) < 1:
        raise ConfigError(f"shards of {shard_bytes} bytes and {clips_per_shard} clips; both must be at least 1")
    about = {"medium": medium.name, "shard_bytes": shard_bytes, "clips_per_shard": clips_per_shard}
    job = _Job(manifest, medium, out, about | {"input": _input_digest(manifest)}, progress or (lambda done: None))
    try:
        done = job.finished()
        if done is not None:
            return _summary(done, len(done.shards))
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            return job.execute()
    except OSError as error:
        raise RunError(explain_write_error(error, out, "shards")) from error
    except NotWritten as failure:
        raise RunError(explain_write_error(failure.error, out, "shards")) from failure


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """For one process at a time, where the file system has locks."""
    import fcntl

    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process writes shards to {out}; wait for it, or choose another --out") from error
        except OSError:
            pass
        yield
    finally:
        os.close(folder)


def _input_digest(manifest: Manifest) -> str:
    digest = Digest(json.dumps(list(manifest.columns)).encode())
    digest.add(name_array(Names.of(manifest.keys)))
    for cells in manifest.columns.values():
        digest.add(cell_array(cells))
    return digest.text


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _summary(index: Index, num_kept: int) -> Sharded:
    num_bytes = sum(shard.size for shard in index.shards)
    return Sharded(len(index.manifest), num_bytes, len(index.shards), num_kept, index.manifest.bad)


class _Empty(Exception):
    """No clip was left for a shard."""


@dataclass
class _Job:
    manifest: Manifest
    medium: Medium
    out: Path
    about: dict[str, Any]
    progress: Progress

    def finished(self) -> Index | None:
        """What an earlier call has finished. Raises RunError for a folder that holds something else."""
        if not self.out.is_dir():
            return None
        names = sorted(path.name for path in self.out.iterdir() if not path.name.startswith("."))
        for name in names:
            if name not in (INDEX_NAME, QUARANTINE_NAME) and not _SHARD.fullmatch(name):
                raise RunError(f"{self.out} holds {name}, which is not of this call; {_REMEDY}")
        if INDEX_NAME in names:
            index = read_shard_index(str(self.out))
            self.check_same(INDEX_NAME, index)
            self.clear(".shard-*.parquet")
            return index
        for name in names:
            if name != QUARANTINE_NAME:
                with contextlib.suppress(DataError):  # which says that the shard is of another size
                    self.check_same(name, read_shard_index(str(self.record_path(name))))
        return None

    def check_same(self, name: str, index: Index | None) -> None:
        there = {} if index is None else {key: index.about.get(key) for key in self.about}
        if there != self.about:
            other = [key for key in self.about if key != "input" and there.get(key) != self.about[key]]
            what = "from other files"
            if there and other:
                what = f"with {other[0]}={there[other[0]]}, not {self.about[other[0]]}"
            raise RunError(f"{self.out / name} was written {what}; {_REMEDY}")

    def execute(self) -> Sharded:
        self.clear(".tmp-*")
        self.stems = Names.of(member_stems(self.manifest.keys))
        records: list[Index] = []
        trailing: list[BadFile] = []
        row = num_kept = 0
        while row < len(self.manifest):
            name = f"shard-{len(records):05d}.tar"
            record = self.kept(name, row)
            num_kept += record is not None
            try:
                record = record or self.write(name, row, trailing)
            except _Empty:
                break
            records.append(record)
            row = int(record.about["next_row"])
            self.progress(row)
        self.progress(len(self.manifest))
        return _summary(self.finish(records, trailing), num_kept)

    def clear(self, pattern: str) -> None:
        for stale in self.out.glob(pattern):
            stale.unlink()

    def record_path(self, name: str) -> Path:
        return self.out / f".{name.removesuffix('.tar')}.parquet"

    def kept(self, name: str, row: int) -> Index | None:
        """The record of a whole shard of an earlier call that begins at a row, if its files still have their sizes."""
        try:
            record = read_shard_index(str(self.record_path(name)))
        except DataError:
            return None
        if record is None or record.about != self.about | {"row": row, "next_row": record.about.get("next_row")}:
            return None
        written = iter(record.manifest.entries)
        clip = next(written, None)
        for entry in self.manifest.entries[row : int(record.about["next_row"])]:
            if clip is None or clip.key != entry.key:
                continue  # was unreadable
            if entry.size < 0 and _size(entry.path) != clip.size:
                return None
            clip = next(written, None)
        return record if clip is None else None

    def write(self, name: str, row: int, trailing: list[BadFile]) -> Index:
        """Write the shard that begins at a row, and its record. Raises _Empty, with ``trailing`` filled, for one of no clip."""
        record: list[Index] = []

        def create(target: Path) -> None:
            with target.open("wb") as file:
                shard = _OpenShard(file, self, name)
                next_row = shard.fill(row)
                size, sha256 = shard.tar.finish()
            if not shard.clips:
                trailing.extend(shard.bad)
                raise _Empty
            rows = [number for number, _ in shard.clips]
            columns = {label: [cells[number] for number in rows] for label, cells in self.manifest.columns.items()}
            clips = Manifest(Entries.of(clip for _, clip in shard.clips), columns, tuple(shard.bad))
            made = Index(clips, (Shard(name, size, sha256),), self.about | {"row": row, "next_row": next_row})
            save_shard_index(made, self.record_path(name))
            record.append(made)

        write_atomically(self.out / name, create)
        return record[0]

    def finish(self, records: Sequence[Index], trailing: Sequence[BadFile]) -> Index:
        """Join the records to the index of all shards."""
        bad = (*self.manifest.bad, *chain.from_iterable(record.manifest.bad for record in records), *trailing)
        if not records:
            first = f"; first: {bad[0].key} ({bad[0].reason})" if bad else ""
            raise DataError(f"none of {count(len(self.manifest), 'file')} can be read{first}; check the files")
        shards = tuple(record.shards[0] for record in records)
        for path in self.out.glob("shard-*.tar"):
            if path.name not in {shard.name for shard in shards}:
                path.unlink()  # of a call before files changed
        entries = Entries.of(
            replace(entry, path=shard.name)
            for record, shard in zip(records, shards, strict=True)
            for entry in record.manifest.entries
        )
        parts = [record.manifest.columns for record in records]
        columns = {name: list(chain.from_iterable(part[name] for part in parts)) for name in self.manifest.columns}
        index = Index(Manifest(entries, columns, bad), shards, self.about)
        lines = "".join(json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in bad)
        (self.out / QUARANTINE_NAME).unlink(missing_ok=True)
        if bad:
            write_atomically(self.out / QUARANTINE_NAME, lines.encode("utf-8", "surrogateescape"))
        save_shard_index(index, self.out / INDEX_NAME)
        self.clear(".shard-*.parquet")
        return index


class _OpenShard:
    """A tar that is being written."""

    def __init__(self, file: BinaryIO, job: _Job, name: str) -> None:
        self.tar, self.job, self.name = TarWriter(file), job, name
        self.clips: list[tuple[int, Entry]] = []
        self.bad: list[BadFile] = []

    def fill(self, row: int) -> int:
        """Add clips from a row on until the shard is full; returns the row behind the last one."""
        entries = self.job.manifest.entries
        for number in range(row, len(entries)):
            if len(self.clips) == self.job.about["clips_per_shard"]:
                return number
            entry = entries[number]
            try:
                fits = self.add(number, entry)
            except (DecodeError, OSError) as error:
                bad = BadFile.of(entry, error)
                if not (entry.found and self.job.medium.passes_over(bad)):
                    self.bad.append(bad)
            else:
                if not fits:
                    return number
            self.job.progress(number + 1)
        return len(entries)

    def add(self, row: int, entry: Entry) -> bool:
        """Add a clip; False if there is no room for it. DecodeError or OSError when it cannot be read."""
        job = self.job
        with entry.opened() as source, opened(source, entry.key) as stream:
            info = job.medium.probe(stream, entry.key)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            cells = {name: column[row] for name, column in job.manifest.columns.items()}
            sidecar = json.dumps(cells).encode() if cells else b""
            if self.clips and self.tar.size + size + len(sidecar) + 3 * BLOCK_BYTES > job.about["shard_bytes"]:
                return False
            suffix = _suffix(entry.key, info, job.medium)
            offset = self.tar.add(job.stems[row] + suffix, size, _read(stream, size, entry.key))
            if cells:
                self.tar.add(f"{job.stems[row]}.json", len(sidecar), [sidecar])
        known = entry.with_info(info)
        self.clips.append((row, replace(known, path=self.name, offset=offset, size=size, found=True)))
        return True


def _read(stream: BinaryIO, size: int, key: str) -> Iterator[bytes]:
    while size:
        chunk = stream.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise DecodeError(key, "became shorter while it was read")
        size -= len(chunk)
        yield chunk


def _suffix(key: str, info: Info, medium: Medium) -> str:
    """Of the key, or, where that has none, of the format."""
    named = Path(key).suffix.lower()
    known = (f".{word}" for word in re.split(r"[/,]", getattr(info, "format", "").lower()))
    return named if named in medium.suffixes else next((suffix for suffix in known if suffix in medium.suffixes), ".bin")
