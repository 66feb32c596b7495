"""What there is: the clips of a folder, a CSV or parquet table, tar shards, or several of them."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from bridle.data import huggingface
from bridle.data.layout import SIDECARS, by_key, place, read_sidecar
from bridle.data.medium import AUDIO, MEDIA, VIDEO, Info, Medium
from bridle.data.quarantine import BadFile
from bridle.data.shards import list_members, open_window
from bridle.data.table import choose_column, read_table
from bridle.errors import DataError, DecodeError
from bridle.media.image import ImageInfo
from bridle.media.video import VideoInfo

DURATION_COLUMN = "duration_seconds"
_PROBE_SLAB = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        key: readable name; need not be unique.
        path: the file, the tar that holds it, or the column of a Hugging Face set.
        offset: first byte in the tar, or row of the set.
        size: bytes in the tar; -1 for a plain file, 0 for the row of a set.
        duration_seconds: 0 when not known, or of a picture.
        rate_hz: frames per second of a film; 0 when not known.
        found: met while searching a folder or tar, not named by anybody.
    """

    key: str
    path: str
    offset: int = 0
    size: int = -1
    duration_seconds: float = 0.0
    rate_hz: float = 0.0
    found: bool = False

    def open(self) -> BinaryIO | str:
        """The path of a plain file, or an open seekable stream of the member of a tar or the row of a set.

        Raises:
            OSError: the tar or set cannot be opened.
        """
        if huggingface.is_set(self.path):
            return huggingface.open_row(self.path, self.offset)
        return self.path if self.size < 0 else open_window(self.path, self.offset, self.size)

    def opened(self) -> AbstractContextManager[BinaryIO | str]:
        """:meth:`open` for a ``with`` statement, which closes the window."""
        source = self.open()
        return nullcontext(source) if isinstance(source, str) else source

    def with_info(self, info: Info) -> Entry:
        """The entry with what its file's header says; a duration that is known stays."""
        if isinstance(info, ImageInfo):
            return self
        seconds = self.duration_seconds or info.duration_seconds
        return replace(self, duration_seconds=seconds, rate_hz=info.rate_hz if isinstance(info, VideoInfo) else 0.0)


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

    medium: Medium
    entries: list[Entry] = field(default_factory=list)
    cells: list[dict[str, str]] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    not_found: str = ""  # first relative path of a table that leads nowhere

    def add(self, entry: Entry, cells: dict[str, str] | None = None) -> None:
        self.entries.append(entry)
        self.cells.append({} if cells is None else cells)


def read_manifest(
    source: str | Path | Sequence[str | Path],
    medium: Medium = AUDIO,
    *,
    path_column: str | None = None,
    probe: bool = True,
    num_threads: int = 8,
) -> Manifest:
    """List the files of a medium in one or more sources.

    * A folder, searched recursively for the medium's suffixes and ``.tar`` shards, sorted by path. Other files, those that
      turn out to be of another medium, hidden files and hidden folders are passed over; a folder reached twice through
      symbolic links is read once.
    * A ``.csv`` or ``.parquet`` table. Relative paths are looked for in the table's folder, its ``audio`` (``images``,
      ``videos``) folder, the parent folder and the parent's folder of that name. A ``duration_seconds`` column is trusted;
      rows without a duration are probed, and all films, for their rate.
    * A set of the ``datasets`` library, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIGURATION:SPLIT``; NAME may be a folder; classes
      become columns by their names.
    * An uncompressed ``.tar``, a single file, or a glob pattern of any of these. Members of the same key (WebDataset) that
      end in ``.cls``, ``.txt`` or ``.json`` become columns of the member they lie beside.

    What is found in a folder or tar has the columns ``class``, the folder it lies in, and ``split`` (train, validation,
    test), where a folder above that one, or the tar, is called so. Folders count below the source only.

    Args:
        source: one source or a sequence of them. With several, keys begin with the source as given.
        medium: what is looked for.
        path_column: column of a table with the paths; by default the first of the medium's usual ones it has.
        probe: read the headers of files of unknown duration or rate. Without it, and for pictures, they stay 0
            (unknown), and unreadable files are found when they are decoded.
        num_threads: for probing.

    Raises:
        DataError: a source does not exist or is of no known kind, a table is malformed or has no such column, or no
            readable file is left.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    expanded = [path for item in sources for path in _expand(Path(item))]
    rows = _Rows(medium)
    for path in expanded:
        _read_source(path, f"{path}/" if len(expanded) > 1 else "", path_column, rows)
    if probe and medium.timed:
        rows = _probe(rows, num_threads)
    elif not medium.timed and rows.entries and not any(_looks_like(entry, medium) for entry in rows.entries):
        # Nobody looks into them before they are decoded, when a run would find one bad file after another.
        others = _others(expanded, medium, path_column)
        if others:
            raise DataError(f"no file in {', '.join(map(str, sources))} is called like a {medium.noun}{others}")
    if not rows.entries:
        found = f"; {len(rows.bad)} unreadable, first {rows.bad[0].key} ({rows.bad[0].reason})" if rows.bad else ""
        if rows.not_found:
            found += f"; a table's paths are relative to its folder or the one above, which hold no {rows.not_found}"
        raise DataError(
            f"no readable {medium.noun} in {', '.join(map(str, sources)) or 'an empty list of sources'}{found}; "
            f"looked for .tar shards and {' '.join(sorted(medium.suffixes))}{_others(expanded, medium, path_column)}"
        )
    names = dict.fromkeys(name for cells in rows.cells for name in cells)
    columns = {name: [cells.get(name, "") for cells in rows.cells] for name in names}
    return Manifest(tuple(rows.entries), columns, tuple(rows.bad))


def _others(sources: Sequence[Path], medium: Medium, path_column: str | None) -> str:
    """What of other media there seems to be instead, and which recipes are for it."""
    hints = []
    for other in MEDIA.values():
        count = len(files_like(other, sources, path_column)) if other.name != medium.name else 0
        if count:
            hints.append(f"{count} {other.noun if count == 1 else other.nouns} (recipes {other.name}-...)")
    return f"; what is there looks like {' and '.join(hints)}" if hints else ""


def likely_medium(sources: Sequence[str | Path], path_column: str | None = None) -> Medium:
    """What most files of the sources look like by their names; sound where there is none."""
    return max(MEDIA.values(), key=lambda medium: len(files_like(medium, sources, path_column)))


def files_like(medium: Medium, sources: Sequence[str | Path], path_column: str | None = None) -> list[Entry]:
    """The files of the sources that look like those of a medium by their names, unopened; none where a source is malformed."""
    rows = _Rows(medium)
    with suppress(DataError):
        expanded = [path for item in sources for path in _expand(Path(item))]
        for path in expanded:
            _read_source(path, f"{path}/" if len(expanded) > 1 else "", path_column, rows)
    return [entry for entry in rows.entries if _looks_like(entry, medium)]


def _looks_like(entry: Entry, medium: Medium) -> bool:
    """Whether a file that was looked for as one of a medium is called like one; a film need not have a sound track."""
    suffix = Path(entry.key).suffix.lower()
    if huggingface.is_set(entry.path):
        return True
    return suffix in medium.suffixes and (medium is VIDEO or suffix not in VIDEO.suffixes)


def _expand(path: Path) -> list[Path]:
    if path.exists() or not glob.has_magic(str(path)) or huggingface.is_set(str(path)):
        return [path]
    # Path.glob wants a relative pattern below a known folder; this one takes patterns as the user wrote them.
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _read_source(path: Path, prefix: str, path_column: str | None, rows: _Rows) -> None:
    suffix = path.suffix.lower()
    if huggingface.is_set(str(path)):
        for row in huggingface.list_rows(str(path), rows.medium.name):
            rows.add(Entry(row.name, row.path, row.number, 0), row.cells)
    elif path.is_dir():
        _read_folder(path, prefix, rows)
    elif not path.exists():
        raise DataError(f"{path} does not exist; give a folder, a .csv or .parquet table, a .tar or a {rows.medium.noun}")
    elif suffix in (".csv", ".parquet"):
        # Keys of a table's rows are its paths, so with several sources the folder of the table comes before them.
        _read_table(path, f"{path.parent}/" if prefix else "", path_column, rows)
    elif suffix == ".tar":
        _read_tar(path, str(path) if prefix else path.name, path.name, rows)
    elif suffix in rows.medium.suffixes:
        rows.add(Entry(str(path) if prefix else path.name, str(path)))
    else:
        raise DataError(
            f"{path} is no known kind of source; give a folder, a .csv or .parquet table, a .tar or a {rows.medium.noun}"
        )


def _read_folder(folder: Path, prefix: str, rows: _Rows) -> None:
    files: list[str] = []
    _walk(folder, "", set(), files, rows)
    for name in sorted(files):
        path = folder / name
        if path.suffix.lower() == ".tar":
            _read_tar(path, prefix + name, name, rows)
        else:
            rows.add(Entry(prefix + name, str(path), found=True), place(Path(name).parts))


def _walk(folder: Path, prefix: str, seen: set[str], files: list[str], rows: _Rows) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        rows.bad.append(BadFile(prefix or str(folder), f"folder cannot be listed: {error.strerror}"))
        return
    for child in children:
        if child.name.startswith("."):
            continue
        if child.is_dir():
            _walk(Path(child.path), f"{prefix}{child.name}/", seen, files, rows)
        elif Path(child.name).suffix.lower() in rows.medium.suffixes | {".tar"} and (child.is_file() or child.is_symlink()):
            files.append(prefix + child.name)


def _read_tar(path: Path, key: str, name: str, rows: _Rows) -> None:
    """Add the members of a tar; ``name`` is its path below the source, which alone says what it is of."""
    try:
        for members in by_key(list_members(path)):
            cells: dict[str, str] = {}
            for member in members:
                if Path(member.name).suffix.lower() in SIDECARS and not member.fault:
                    cells |= read_sidecar(path, member)
            for member in members:
                if Path(member.name).suffix.lower() not in rows.medium.suffixes:
                    continue
                if member.fault:
                    rows.bad.append(BadFile(f"{key}/{member.name}", member.fault))
                else:
                    entry = Entry(f"{key}/{member.name}", str(path), member.offset, member.size, found=True)
                    rows.add(entry, place((*Path(name).parts, *Path(member.name).parts)) | cells)
    except (tarfile.TarError, OSError) as error:
        rows.bad.append(BadFile(key, f"not a whole uncompressed tar: {error}"))


def _read_table(path: Path, prefix: str, path_column: str | None, rows: _Rows) -> None:
    names, table = read_table(path)
    column = choose_column(path, names, path_column, rows.medium.columns)
    folders = [folder / sub for folder in (path.parent, path.parent.parent) for sub in ("", rows.medium.folder)]
    for where, cells in table:
        name = cells.pop(column)
        duration = _duration(cells.get(DURATION_COLUMN, ""), where)
        candidates = [str(folder / name) for folder in folders]  # an absolute name stays itself
        found = next((file for file in candidates if name and os.path.isfile(file)), None)  # noqa: PTH113 - for millions of rows
        if found is None:
            rows.not_found = rows.not_found or ("" if Path(name).is_absolute() else name)
            rows.bad.append(BadFile(prefix + name if name else where, "missing" if name else "empty path"))
        else:
            rows.add(Entry(prefix + name, found, duration_seconds=duration), cells)


def _duration(text: str, where: str) -> float:
    try:
        seconds = float(text) if text.strip() else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{where}: {DURATION_COLUMN} is {text!r}; it must be seconds, or empty to read the file's header")
    return seconds


def _probe(rows: _Rows, num_threads: int) -> _Rows:
    """The rows with every duration, and of films every rate, known; unreadable files move to ``bad``."""
    probed = _Rows(rows.medium, bad=rows.bad, not_found=rows.not_found)

    def probe_entry(entry: Entry) -> Entry | BadFile:
        if entry.duration_seconds > 0 and (entry.rate_hz > 0 or not rows.medium.rated):
            return entry
        try:
            with entry.opened() as source:
                return entry.with_info(rows.medium.probe(source, entry.key))
        except (DecodeError, OSError) as error:
            return BadFile.of(entry, error)

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(rows.entries), _PROBE_SLAB):  # bounds the number of pending futures
            slab = slice(start, start + _PROBE_SLAB)
            for entry, result, cells in zip(
                rows.entries[slab], pool.map(probe_entry, rows.entries[slab]), rows.cells[slab], strict=True
            ):
                if isinstance(result, BadFile) and entry.found and rows.medium.passes_over(result):
                    continue
                if isinstance(result, BadFile):
                    probed.bad.append(result)
                else:
                    probed.add(result, cells)
    return probed
