"""What there is: the clips of a folder, a CSV or parquet table, tar shards, or several of them."""

from __future__ import annotations

import csv
import difflib
import glob
import hashlib
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from bridle.data.quarantine import BadFile
from bridle.data.shards import list_members, open_window
from bridle.errors import DataError, DecodeError
from bridle.media.audio import probe_audio
from bridle.media.decoders import NO_SOUND_TRACK

_LOSSLESS = ".wav .wave .w64 .rf64 .flac .aif .aiff .aifc .au .caf"
_LOSSY = ".ogg .oga .opus .mp3 .m4a .aac .wma .webm .mka"
VIDEO_SUFFIXES = frozenset([".mp4", ".m4v", ".mov", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"])
AUDIO_SUFFIXES = frozenset(f"{_LOSSLESS} {_LOSSY}".split()) | VIDEO_SUFFIXES
PATH_COLUMNS = ("path", "file", "filename", "audio", "filepath")
DURATION_COLUMN = "duration_seconds"
_PROBE_SLAB = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One sound file.

    Attributes:
        key: readable name; need not be unique.
        path: the file, or the tar that holds it.
        offset: first byte in the tar.
        size: bytes in the tar; -1 for a plain file.
        duration_seconds: 0 when not known.
    """

    key: str
    path: str
    offset: int = 0
    size: int = -1
    duration_seconds: float = 0.0

    def open(self) -> BinaryIO | str:
        """The path of a plain file, or an open seekable window on the member of a tar.

        Raises:
            OSError: the tar cannot be opened.
        """
        return self.path if self.size < 0 else open_window(self.path, self.offset, self.size)

    def opened(self) -> AbstractContextManager[BinaryIO | str]:
        """:meth:`open` for a ``with`` statement, which closes the window."""
        source = self.open()
        return nullcontext(source) if isinstance(source, str) else source


@dataclass(frozen=True)
class Manifest:
    """The readable files in a fixed order.

    Attributes:
        entries: one per clip.
        columns: further columns of a table as text, each with one cell per entry ("" where a source lacks the column).
        bad: files found to be unreadable, without entry.
    """

    entries: tuple[Entry, ...]
    columns: dict[str, list[str]] = field(default_factory=dict)
    bad: tuple[BadFile, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def num_files(self) -> int:
        """Good and bad files."""
        return len(self.entries) + len(self.bad)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any entry's name or duration."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(f"{entry.key}\0{entry.duration_seconds}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


@dataclass
class _Rows:
    """Entries with their cells, while a manifest is being put together."""

    entries: list[Entry] = field(default_factory=list)
    cells: list[dict[str, str]] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)

    def add(self, entry: Entry, cells: dict[str, str] | None = None) -> None:
        self.entries.append(entry)
        self.cells.append({} if cells is None else cells)


def read_manifest(
    source: str | Path | Sequence[str | Path],
    *,
    path_column: str | None = None,
    probe: bool = True,
    num_threads: int = 8,
) -> Manifest:
    """List the sound files of one or more sources.

    * A folder, searched recursively for ``AUDIO_SUFFIXES`` and ``.tar`` shards, sorted by path. Other files, films
      without a sound track, hidden files and hidden folders are passed over; a folder reached twice through symbolic
      links is read once.
    * A ``.csv`` or ``.parquet`` table. Relative paths are looked for in the table's folder, its ``audio`` folder, the
      parent folder and the parent's ``audio`` folder. A ``duration_seconds`` column is trusted; rows without a
      duration are probed.
    * An uncompressed ``.tar``, a single sound file, or a glob pattern of any of these.

    Args:
        source: one source or a sequence of them. With several, keys begin with the source as given.
        path_column: column of a table with the paths; by default the first of ``PATH_COLUMNS`` it has.
        probe: read the headers of files of unknown duration. Without it their duration stays 0 (unknown), and
            unreadable files are found when they are decoded.
        num_threads: for probing.

    Raises:
        DataError: a source does not exist or is of no known kind, a table is malformed or has no such column, or no
            readable file is left.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    expanded = [path for item in sources for path in _expand(Path(item))]
    rows = _Rows()
    for path in expanded:
        _read_source(path, f"{path}/" if len(expanded) > 1 else "", path_column, rows)
    if probe:
        rows = _probe(rows, num_threads)
    if not rows.entries:
        found = f"; {len(rows.bad)} unreadable, first {rows.bad[0].key} ({rows.bad[0].reason})" if rows.bad else ""
        raise DataError(
            f"no readable sound file in {', '.join(map(str, sources)) or 'an empty list of sources'}{found}; "
            f"looked for .tar shards and {' '.join(sorted(AUDIO_SUFFIXES))}"
        )
    names = dict.fromkeys(name for cells in rows.cells for name in cells)
    columns = {name: [cells.get(name, "") for cells in rows.cells] for name in names}
    return Manifest(tuple(rows.entries), columns, tuple(rows.bad))


def _expand(path: Path) -> list[Path]:
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    # Path.glob wants a relative pattern below a known folder; this one takes patterns as the user wrote them.
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _read_source(path: Path, prefix: str, path_column: str | None, rows: _Rows) -> None:
    suffix = path.suffix.lower()
    if path.is_dir():
        _read_folder(path, prefix, rows)
    elif not path.exists():
        raise DataError(f"{path} does not exist; give a folder, a .csv or .parquet table, a .tar or a sound file")
    elif suffix in (".csv", ".parquet"):
        # Keys of a table's rows are its paths, so with several sources the folder of the table comes before them.
        _read_table(path, f"{path.parent}/" if prefix else "", path_column, rows)
    elif suffix == ".tar":
        _read_tar(path, str(path) if prefix else path.name, rows)
    elif suffix in AUDIO_SUFFIXES:
        rows.add(Entry(str(path) if prefix else path.name, str(path)))
    else:
        raise DataError(f"{path} is no known kind of source; give a folder, a .csv or .parquet table, a .tar or a sound file")


def _read_folder(folder: Path, prefix: str, rows: _Rows) -> None:
    files: list[str] = []
    _walk(folder, "", set(), files, rows.bad)
    for name in sorted(files):
        path = folder / name
        if path.suffix.lower() == ".tar":
            _read_tar(path, prefix + name, rows)
        else:
            rows.add(Entry(prefix + name, str(path)))


def _walk(folder: Path, prefix: str, seen: set[str], files: list[str], bad: list[BadFile]) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        bad.append(BadFile(prefix or str(folder), f"folder cannot be listed: {error.strerror}"))
        return
    for child in children:
        if child.name.startswith("."):
            continue
        if child.is_dir():
            _walk(Path(child.path), f"{prefix}{child.name}/", seen, files, bad)
        elif Path(child.name).suffix.lower() in AUDIO_SUFFIXES | {".tar"} and (child.is_file() or child.is_symlink()):
            files.append(prefix + child.name)


def _read_tar(path: Path, key: str, rows: _Rows) -> None:
    try:
        for member in list_members(path):
            if Path(member.name).suffix.lower() not in AUDIO_SUFFIXES:
                continue
            if member.fault:
                rows.bad.append(BadFile(f"{key}/{member.name}", member.fault))
            else:
                rows.add(Entry(f"{key}/{member.name}", str(path), member.offset, member.size))
    except (tarfile.TarError, OSError) as error:
        rows.bad.append(BadFile(key, f"not a whole uncompressed tar: {error}"))


def _read_table(path: Path, prefix: str, path_column: str | None, rows: _Rows) -> None:
    names, table = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    column = _choose_column(path, names, path_column)
    folders = [path.parent, path.parent / "audio", path.parent.parent, path.parent.parent / "audio"]
    for where, cells in table:
        name = cells.pop(column)
        duration = _duration(cells.get(DURATION_COLUMN, ""), where)
        candidates = [str(folder / name) for folder in folders]  # an absolute name stays itself
        found = next((file for file in candidates if name and os.path.isfile(file)), None)  # noqa: PTH113 - for millions of rows
        if found is None:
            rows.bad.append(BadFile(prefix + name if name else where, "missing" if name else "empty path"))
        else:
            rows.add(Entry(prefix + name, found, duration_seconds=duration), cells)


def _csv_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a UTF-8 comma-separated table: {error}; save it as CSV in UTF-8") from error
    if not lines:
        raise DataError(f"{path} is empty; its first line must name the columns")
    names = lines[0][1]
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise DataError(f"{path} line {number} has {len(cells)} cells for {len(names)} columns; quote cells with commas")
    padded = ((f"{path} line {number}", cells + [""] * (len(names) - len(cells))) for number, cells in lines[1:])
    return names, ((where, dict(zip(names, cells, strict=True))) for where, cells in padded)


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    # Heavy, and only parquet tables need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        # Nested and binary columns (sound inside the table, vectors) have no place in a table of text.
        skipped = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
        names = [column.name for column in file.schema_arrow if not any(test(column.type) for test in skipped)]
        values = file.read(columns=names).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet table: {str(error).splitlines()[0]}") from error
    texts = [["" if value is None else str(value) for value in values[name]] for name in names]
    rows = zip(*texts, strict=True)
    return names, ((f"{path} row {i}", dict(zip(names, cells, strict=True))) for i, cells in enumerate(rows))


def _choose_column(path: Path, names: list[str], path_column: str | None) -> str:
    wanted = PATH_COLUMNS if path_column is None else (path_column,)
    for name in wanted:
        if name in names:
            return name
    there = f"its columns are {', '.join(names)}" if names else "it has no columns of text"
    if path_column is None:
        raise DataError(f"{path} has none of the path columns {', '.join(wanted)}; {there}: name one by path_column")
    near = difflib.get_close_matches(path_column, names, n=1, cutoff=0.0)
    raise DataError(f"{path} has no column '{path_column}'; {there}" + (f"; did you mean '{near[0]}'?" if near else ""))


def _duration(text: str, where: str) -> float:
    try:
        seconds = float(text) if text.strip() else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{where}: {DURATION_COLUMN} is {text!r}; it must be seconds, or empty to read the file's header")
    return seconds


def is_silent_film(bad: BadFile) -> bool:
    """True for a video without a sound track: found in a folder it is no bad file, only none of the sounds asked for."""
    return bad.reason == NO_SOUND_TRACK and Path(bad.key).suffix.lower() in VIDEO_SUFFIXES


def _probe(rows: _Rows, num_threads: int) -> _Rows:
    """The rows with every duration known; unreadable files move to ``bad``."""
    probed = _Rows(bad=rows.bad)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(rows.entries), _PROBE_SLAB):  # bounds the number of pending futures
            slab = slice(start, start + _PROBE_SLAB)
            for result, cells in zip(pool.map(_probe_entry, rows.entries[slab]), rows.cells[slab], strict=True):
                if isinstance(result, BadFile) and is_silent_film(result) and not cells:
                    continue
                if isinstance(result, BadFile):
                    probed.bad.append(result)
                else:
                    probed.add(result, cells)
    return probed


def _probe_entry(entry: Entry) -> Entry | BadFile:
    if entry.duration_seconds > 0:
        return entry
    try:
        with entry.opened() as source:
            return replace(entry, duration_seconds=probe_audio(source, entry.key).duration_seconds)
    except (DecodeError, OSError) as error:
        return BadFile.of(entry, error)
