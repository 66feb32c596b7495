"""A manifest as one parquet file: of a folder of shards, for any reader, or of a run, for the run alone.

A row for each clip: ``key``, ``shard`` (the tar's name, relative to the folder; of a run ``path``), ``offset``, ``size``,
``duration_seconds``, ``rate_hz`` (of a run also ``found``), and the columns of the manifest, as text. Text that is not
UTF-8 makes its column one of bytes. The file's metadata holds, under ``bridle.index``, one JSON document: format, version,
kind, names of the columns, sizes and sha256 of the shards, unreadable files; and, under ``bridle.digest``, the sha256 of
that document and all columns, so that a damaged file is told from a whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bridle.data.entries import Entries, Manifest, Names
from bridle.data.packed import Digest, cell_array, name_array, read_cells, read_names, whole
from bridle.data.quarantine import BadFile
from bridle.data.shards import INDEX_NAME, is_remote
from bridle.errors import BridleError, DataError, RunError
from bridle.files import explain_write_error, write_atomically

FORMAT, VERSION = "bridle-index", 1
_HEADER, _DIGEST = b"bridle.index", b"bridle.digest"
_REMEDY = "write it anew (bridle shard), or copy it again"
_NUMBERS = {"offset": pa.int64(), "size": pa.int64(), "duration_seconds": pa.float64(), "rate_hz": pa.float64()}
_FIELDS = {"shards": ("key", "shard", *_NUMBERS), "files": ("key", "path", *_NUMBERS, "found")}
_KINDS = {"shards": "a folder of shards", "files": "the files of a run"}
_FAULTS = (pa.ArrowException, OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError)

Kind = Literal["shards", "files"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of a folder of shards: its name there, its bytes, their sha256 in hexadecimal digits."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The clips of a folder of shards, or of a run.

    Attributes:
        manifest: the clips. Paths of its entries are those of the shards: names when written, whole when read.
        shards: in the order of the clips; a run has none.
        about: what the manifest was made of and how, plain data.
    """

    manifest: Manifest
    shards: tuple[Shard, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


def save_index(index: Index, path: Path) -> None:
    """Write the manifest of a run, and what it was made of, to be read back by :func:`read_index`, equal in everything.

    Raises:
        RunError: it cannot be written.
    """
    _save(index, path, "files")


def read_index(path: Path) -> Index:
    """What :func:`save_index` wrote. No file of it is looked at.

    Raises:
        DataError: there is no such file, it is damaged, or of another kind or version.
    """
    try:
        return _Reader(str(path), "files").index()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; it is written when a run begins") from error


def save_shard_index(index: Index, path: Path) -> None:
    """Write the index of a folder of shards.

    Raises:
        RunError: it cannot be written.
    """
    _save(index, path, "shards")


def read_shard_index(source: str) -> Index | None:
    """The index of a folder or URL, or of the file itself; None where there is none, or the file is another table.

    No tar is opened. Of a local folder, it is checked that the shards are there and have their size.

    Raises:
        DataError: the index cannot be read, is damaged or of another version; it names something outside its folder, or
            bytes outside a shard; a shard is missing or has another size.
    """
    named = source.lower().endswith(".parquet")
    place = source if named else f"{source.rstrip('/')}/{INDEX_NAME}"
    if not is_remote(place) and not Path(place).is_file():
        return None
    try:
        reader = _Reader(place, "shards")
    except FileNotFoundError:
        return None
    return reader.index() if reader.is_index else None


def _save(index: Index, path: Path, kind: Kind) -> None:
    manifest, entries = index.manifest, Entries.of(index.manifest.entries)
    numbers = (entries.offsets, entries.sizes, entries.durations, entries.rates)
    arrays = [name_array(entries.keys), name_array(entries.paths), *map(pa.array, numbers)]
    if kind == "files":
        arrays.append(pa.array(entries.found))
    names = list(_FIELDS[kind])
    for number, (name, cells) in enumerate(manifest.columns.items()):
        names.append(_stored(name, names, number))
        arrays.append(cell_array(cells))
    header = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "columns": list(manifest.columns),
            "shards": [[shard.name, shard.size, shard.sha256] for shard in index.shards],
            "bad": [[file.key, file.reason] for file in manifest.bad],
            "about": index.about,
        }
    )
    table = pa.table(arrays, names=names)
    digest = Digest(header.encode())
    for array in arrays:
        digest.add(array)

    def create(target: Path) -> None:
        with pq.ParquetWriter(target, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_HEADER: header, _DIGEST: digest.text})

    try:
        write_atomically(path, create)
    except OSError as error:
        raise RunError(explain_write_error(error, path.parent, path.name)) from error


def _stored(name: str, taken: Sequence[str], number: int) -> str:
    """What a column of the manifest is called in the file: its name, where that can be."""
    stored = name.replace(".", "_") if name and name.isprintable() else f"column_{number}"  # pyarrow takes dots for nesting
    while stored in taken:
        stored += "_"
    return stored


class _Reader:
    """Reads an index and refuses what it must not hold.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, or is no parquet file.
    """

    def __init__(self, place: str, kind: Kind) -> None:
        self.place, self.kind = place, kind
        content = _read_bytes(place)
        try:
            self.file = pq.ParquetFile(pa.BufferReader(content))
            self.texts = self.file.metadata.metadata or {}
            self.names = self.file.schema_arrow.names
        except _FAULTS as error:
            raise DataError(f"{place} is not a readable parquet table: {_first_line(error)}; {_REMEDY}") from error

    @property
    def is_index(self) -> bool:
        """Whether it is one, perhaps a damaged one, and not just another table of that name."""
        return _HEADER in self.texts or _DIGEST in self.texts or {*_FIELDS["shards"]} <= {*self.names}

    def index(self) -> Index:
        """All of it. Raises DataError."""
        try:
            header = json.loads(self.texts[_HEADER])
            self.check_header(header)
            digest, columns = Digest(self.texts[_HEADER]), []
            for name in self.names:  # one at a time: the packed form of all would double the memory
                column = whole(self.file.read(columns=[name], use_threads=False).column(0))
                digest.add(column)
                columns.append(self.unpacked(name, column))
            if digest.text != self.texts[_DIGEST].decode():
                raise self.fault("is damaged: what it holds is not what was written")
            return self.build(header, columns)
        except BridleError:
            raise
        except (*_FAULTS, RecursionError) as error:
            raise self.fault(f"is damaged: {_first_line(error)}") from error

    def unpacked(self, name: str, column: Any) -> Any:
        """Names, numbers (n,), for shards a pair of distinct names and their numbers (n,), or cells."""
        if name not in _FIELDS[self.kind]:
            return read_cells(column)
        if name == "shard":
            coded = column.dictionary_encode()
            return read_names(coded.dictionary), coded.indices
        if name in ("key", "path"):
            return read_names(column)
        if column.type != _NUMBERS.get(name, pa.bool_()):
            raise TypeError(f"a column {name} of {column.type} instead of {_NUMBERS.get(name, pa.bool_())}")
        return np.array(column.to_numpy(zero_copy_only=False))

    def check_header(self, header: Any) -> None:
        if (header["format"], header["kind"]) != (FORMAT, self.kind):
            raise self.fault(f"is no index of {_KINDS[self.kind]} but {_KINDS.get(header['kind'], 'something else')}")
        if header["version"] != VERSION:
            raise DataError(
                f"{self.place} has version {header['version']} of its format, this bridle reads {VERSION}; "
                "install the bridle that wrote it, or write it anew (bridle shard)"
            )
        fields = [*_FIELDS[self.kind]]
        if self.names[: len(fields)] != fields or len(self.names) != len(fields) + len(header["columns"]):
            raise self.fault(f"has the columns {', '.join(self.names)}; they must begin with {', '.join(fields)}")

    def build(self, header: Any, columns: list[Any]) -> Index:
        fields = dict(zip(_FIELDS[self.kind], columns, strict=False))
        for name in ("duration_seconds", "rate_hz"):
            self.check(name, fields[name], np.isfinite(fields[name]) & (fields[name] >= 0), "0 or more")
        lowest = 0 if self.kind == "shards" else -1  # -1 stands for a whole file
        self.check("offset", fields["offset"], fields["offset"] >= 0, "0 or more")
        self.check("size", fields["size"], fields["size"] >= lowest, f"{lowest} or more")
        shards = tuple(Shard(str(name), int(size), str(sha256)) for name, size, sha256 in header["shards"])
        if self.kind == "shards":
            fields["found"] = np.ones(len(fields["key"]), np.bool_)  # as what is found in a tar
            fields["path"] = self.paths(fields, shards)
        entries = Entries(*(fields[name] for name in ("key", *_FIELDS["files"][1:])))
        names = map(str, header["columns"])
        bad = tuple(BadFile(str(key), str(reason)) for key, reason in header["bad"])
        cells = dict(zip(names, columns[len(_FIELDS[self.kind]) :], strict=True))
        return Index(Manifest(entries, cells, bad), shards, dict(header["about"]))

    def paths(self, fields: dict[str, Any], shards: Sequence[Shard]) -> Names:
        """Whole paths of the shards of all clips."""
        names, codes = list(fields["shard"][0]), fields["shard"][1]
        there = {shard.name: shard.size for shard in shards}
        if strangers := [name for name in names if name not in there]:
            raise self.fault(f"has clips in {strangers[0]!r}, which is none of its {len(there)} shards")
        folder = self.place.rpartition("/")[0] if is_remote(self.place) else str(Path(self.place).parent)
        paths = {shard.name: self.shard_path(folder, shard) for shard in shards}
        if names:
            room = np.array([there[name] for name in names], np.int64)[codes.to_numpy()] - fields["size"]
            self.check("offset", fields["offset"], fields["offset"] <= room, "so that the clip ends within its shard")
        encoded = [paths[name].encode("utf-8", "surrogateescape") for name in names]
        return read_names(pa.array(encoded, pa.large_binary()).take(codes))

    def shard_path(self, folder: str, shard: Shard) -> str:
        """The path of a shard, which must lie in the folder."""
        name, size = shard.name, shard.size
        outside = name.startswith("/") or {"", ".", ".."} & {*name.split("/")}
        if outside or any(sign in name for sign in "\\\0") or "::" in name:
            raise self.fault(f"names the shard {name!r}; it must be the name of a file in its folder")
        if size < 0:
            raise self.fault(f"says that {name!r} has {size} bytes; it must be 0 or more")
        if is_remote(folder):
            from bridle.data import remote

            return remote.pinned(remote.join(folder, name), size, shard.sha256)
        path = str(Path(folder, name))
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))  # noqa: PTH118
        if not inside:
            raise self.fault(f"names the shard {name!r}, which is a link to {os.path.realpath(path)}, outside of its folder")
        found = Path(path).stat().st_size if Path(path).is_file() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise DataError(f"{path} {there}; copy it again, or write the shards anew (bridle shard)")
        return path

    def check(self, name: str, values: npt.NDArray[Any], good: npt.NDArray[np.bool_], limit: str) -> None:
        if not good.all():
            row = int(np.argmin(good))
            raise self.fault(f"has {name} {values[row]} in row {row}; it must be {limit}")

    def fault(self, what: str) -> DataError:
        return DataError(f"{self.place} {what}; {_REMEDY}")


def _read_bytes(place: str) -> bytes:
    """Raises FileNotFoundError, and DataError for other troubles."""
    try:
        if is_remote(place):
            from bridle.data import remote

            return remote.read_bytes(place)
        return Path(place).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or error}; make it readable, or copy it again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
