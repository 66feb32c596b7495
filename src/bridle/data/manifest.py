"""What there is: the clips of a folder, a CSV or parquet table, tar shards, or several of them."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bridle.data import huggingface
from bridle.data.entries import Entries, Entry, Manifest
from bridle.data.layout import SIDECARS, by_key, place, read_sidecar
from bridle.data.medium import AUDIO, MEDIA, VIDEO, Medium
from bridle.data.patterns import expand
from bridle.data.quarantine import BadFile
from bridle.data.shards import INDEX_NAME, is_remote, list_members
from bridle.data.table import DURATION_COLUMN, choose_column, read_duration, read_table
from bridle.errors import DataError, DecodeError

if TYPE_CHECKING:
    from bridle.data.index import Index

__all__ = ["DURATION_COLUMN", "Entry", "Manifest", "files_like", "likely_medium", "read_manifest"]

T = TypeVar("T")

_PROBE_SLAB, _PROBE_TASK = 4096, 64


@dataclass
class _Rows:
    """Entries with their cells, while a manifest is being put together."""

    medium: Medium
    entries: list[Entry] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)  # a short one has no cells for the last entries
    bad: list[BadFile] = field(default_factory=list)
    not_found: str = ""  # first relative path of a table that leads nowhere

    def add(self, entry: Entry, cells: dict[str, str] | None = None) -> None:
        for name, cell in ({} if cells is None else cells).items():
            self._column(name).append(cell)
        self.entries.append(entry)

    def complete(self) -> None:
        for name in self.columns:
            self._column(name)

    def _column(self, name: str) -> list[str]:
        column = self.columns.setdefault(name, [])
        column.extend([""] * (len(self.entries) - len(column)))
        return column


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
    * An uncompressed ``.tar``, a single file, or a pattern of any of these: ``*``, ``?``, ``[ab]``, or ``{000..123}`` as
      WebDataset has it. Members of the same key (WebDataset) that end in ``.cls``, ``.txt`` or ``.json`` become columns of
      the member they lie beside.
    * A folder with the ``index.parquet`` of ``bridle shard``, or that file: the clips are what it says, and no tar is opened.
    * The URL of such a folder or file, of a folder of tars, or of a tar.

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
    expanded = [path for item in sources for path in expand(str(item))]
    index = _read_index(expanded[0], medium) if len(expanded) == 1 else None
    if index is not None and len(index.manifest):
        return index.manifest
    rows = _Rows(medium)
    for path in expanded:
        _read_source(path, f"{path}/" if len(expanded) > 1 else "", path_column, rows)
    if probe and medium.timed:
        _probe(rows, num_threads)
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
    rows.complete()
    return Manifest(Entries.of(rows.entries), rows.columns, tuple(rows.bad))


def _others(sources: Sequence[str], medium: Medium, path_column: str | None) -> str:
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
        expanded = [path for item in sources for path in expand(str(item))]
        for path in expanded:
            _read_source(path, f"{path}/" if len(expanded) > 1 else "", path_column, rows)
    return [entry for entry in rows.entries if _looks_like(entry, medium)]


def _looks_like(entry: Entry, medium: Medium) -> bool:
    """Whether a file that was looked for as one of a medium is called like one; a film need not have a sound track."""
    suffix = Path(entry.key).suffix.lower()
    if huggingface.is_set(entry.path):
        return True
    return suffix in medium.suffixes and (medium is VIDEO or suffix not in VIDEO.suffixes)


def _read_source(source: str, prefix: str, path_column: str | None, rows: _Rows) -> None:
    path, suffix = Path(source), Path(source).suffix.lower()
    if huggingface.is_set(source):
        for row in huggingface.list_rows(source, rows.medium.name):
            rows.add(Entry(row.name, row.path, row.number, 0), row.cells)
    elif index := _read_index(source, rows.medium):
        _add_manifest(index.manifest, prefix.removesuffix(f"{INDEX_NAME}/"), rows)
    elif is_remote(source):
        _read_url(source, prefix, rows)
    elif path.is_dir():
        _read_folder(path, prefix, rows)
    elif not path.exists():
        raise DataError(f"{path} does not exist; give a folder, a .csv or .parquet table, a .tar or a {rows.medium.noun}")
    elif not path.is_file():  # a pipe would block for ever
        raise DataError(f"{path} is no regular file; give a folder, a .csv or .parquet table, a .tar or a {rows.medium.noun}")
    elif suffix in (".csv", ".parquet"):
        # Keys of a table's rows are its paths, so with several sources the folder of the table comes before them.
        _read_table(path, f"{path.parent}/" if prefix else "", path_column, rows)
    elif suffix == ".tar":
        _read_tar(source, source if prefix else path.name, path.name, rows)
    elif suffix in rows.medium.suffixes:
        rows.add(Entry(source if prefix else path.name, source))
    else:
        raise DataError(
            f"{path} is no known kind of source; give a folder, a .csv or .parquet table, a .tar or a {rows.medium.noun}"
        )


def _read_index(source: str, medium: Medium) -> Index | None:
    """The index of a folder or URL, or the one that a file is; None for other sources."""
    suffix = Path(source).suffix.lower()
    if suffix == ".parquet" and not is_remote(source) and not Path(source).is_file():
        return None
    if suffix == ".tar" or not (is_remote(source) or suffix == ".parquet" or Path(source, INDEX_NAME).exists()):
        return None
    from bridle.data.index import read_shard_index

    index = read_shard_index(source)
    held = medium.name if index is None else str(index.about.get("medium"))
    if held != medium.name:
        nouns = next((other.nouns for other in MEDIA.values() if other.name == held), held)
        raise DataError(f"{source} holds {nouns}, not {medium.nouns}; take a recipe {held}-..., or shard them as {medium.name}")
    return index


def _add_manifest(manifest: Manifest, prefix: str, rows: _Rows) -> None:
    for row, entry in enumerate(manifest.entries):
        cells = {name: column[row] for name, column in manifest.columns.items()}
        rows.add(replace(entry, key=prefix + entry.key), cells)
    rows.bad += [BadFile(prefix + file.key, file.reason) for file in manifest.bad]


def _read_url(url: str, prefix: str, rows: _Rows) -> None:
    from bridle.data import remote

    try:
        names = [url] if url.lower().endswith(".tar") else remote.list_files(url)
        found = [name for name in names if name.lower().endswith(".tar")]
    except OSError as error:
        raise DataError(f"{url} cannot be listed: {error}; check the address, or name its .tar files") from error
    if not found:
        raise DataError(f"{url} holds no {INDEX_NAME} and no .tar; write shards (bridle shard), or copy it to a local folder")
    for tar in found:
        name = tar.removeprefix(f"{url}/").removeprefix(f"{url.rpartition('/')[0]}/")
        _read_tar(tar, prefix.removesuffix(f"{name}/") + name, name, rows)


def _read_folder(folder: Path, prefix: str, rows: _Rows) -> None:
    files: list[str] = []
    _walk(str(folder), "", set(), files, rows)
    told: dict[str, dict[str, str]] = {}  # what a folder says of its files
    root = os.path.join(folder, "")  # noqa: PTH118 - for millions of files
    for name in sorted(files):
        if name.lower().endswith(".tar"):
            _read_tar(root + name, prefix + name, name, rows)
            continue
        above = name.rpartition("/")[0]
        if above not in told:
            told[above] = place(name.split("/"))
        rows.add(Entry(prefix + name, root + name, found=True), told[above])


def _walk(folder: str, prefix: str, seen: set[str], files: list[str], rows: _Rows) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        rows.bad.append(BadFile(prefix or folder, f"folder cannot be listed: {error.strerror}"))
        return
    for child in children:
        name = child.name
        if name.startswith("."):
            continue
        try:
            is_folder = child.is_dir()
        except OSError:  # a link that leads back to itself
            is_folder = False
        if is_folder:
            _walk(child.path, f"{prefix}{name}/", seen, files, rows)
        else:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - for millions of files
            if suffix in rows.medium.suffixes or suffix == ".tar":
                files.append(prefix + name)


def _read_tar(path: str, key: str, name: str, rows: _Rows) -> None:
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
                    entry = Entry(f"{key}/{member.name}", path, member.offset, member.size, found=True)
                    rows.add(entry, place((*Path(name).parts, *Path(member.name).parts)) | cells)
    except (tarfile.TarError, OSError) as error:
        rows.bad.append(BadFile(key, f"not a whole uncompressed tar: {error}"))


def _read_table(path: Path, prefix: str, path_column: str | None, rows: _Rows) -> None:
    names, table = read_table(path)
    column = choose_column(path, names, path_column, rows.medium.columns)
    folders = [folder / sub for folder in (path.parent, path.parent.parent) for sub in ("", rows.medium.folder)]
    for where, cells in table:
        name = cells.pop(column)
        duration = read_duration(cells.get(DURATION_COLUMN, ""), where)
        candidates = [str(folder / name) for folder in folders]  # an absolute name stays itself
        found = next((file for file in candidates if name and os.path.isfile(file)), None)  # noqa: PTH113 - for millions of rows
        if found is None:
            rows.not_found = rows.not_found or ("" if Path(name).is_absolute() else name)
            rows.bad.append(BadFile(prefix + name if name else where, "missing" if name else "empty path"))
        else:
            rows.add(Entry(prefix + name, found, duration_seconds=duration), cells)


def _probe(rows: _Rows, num_threads: int) -> None:
    """Make every duration, and of films every rate, known; unreadable files move to ``bad``."""

    def probed(entry: Entry) -> Entry | BadFile | None:
        if entry.duration_seconds > 0 and (entry.rate_hz > 0 or not rows.medium.rated):
            return entry
        try:
            with entry.opened() as source:
                return entry.with_info(rows.medium.probe(source, entry.key))
        except (DecodeError, OSError) as error:
            bad = BadFile.of(entry, error)
            return None if entry.found and rows.medium.passes_over(bad) else bad

    rows.complete()
    results: list[Any] = rows.entries  # replaced one by one: two lists of a million entries would be too much
    for row, result in enumerate(_mapped(probed, results, num_threads)):
        results[row] = result
    rows.bad += [result for result in results if isinstance(result, BadFile)]
    kept = [row for row, result in enumerate(results) if isinstance(result, Entry)]
    if len(kept) < len(results):
        rows.columns = {name: [column[row] for row in kept] for name, column in rows.columns.items()}
        rows.entries = [results[row] for row in kept]


def _mapped(function: Callable[[Entry], T], entries: Sequence[Entry], num_threads: int) -> Iterator[T]:
    """The result for each entry, in order. Threads are used where there is something to wait for, as on a remote disk.

    Elsewhere they make reading slower: they wait for Python's lock, and a header is read in 60 microseconds.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(entries), _PROBE_SLAB):
            slab = entries[start : start + _PROBE_SLAB]
            first, rest = slab[:_PROBE_TASK], slab[_PROBE_TASK:]
            began, worked = time.perf_counter(), time.thread_time()
            results = [function(entry) for entry in first]
            waits = time.perf_counter() - began > 2 * (time.thread_time() - worked)
            yield from results
            if not waits:
                yield from map(function, rest)
            else:
                size = max(1, min(_PROBE_TASK, len(rest) // num_threads))
                tasks = [rest[begin : begin + size] for begin in range(0, len(rest), size)]
                yield from chain.from_iterable(pool.map(lambda task: [function(entry) for entry in task], tasks))
