"""A set from the web to a folder: room, download, checksum, unpacking; once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.errors import DataError
from bridle.fetch.archives import unpack
from bridle.fetch.download import PATIENT, Limits, Received, download
from bridle.fetch.sources import Remote, Source
from bridle.files import explain_write_error, free_bytes, write_atomically

WORK, LOCK = ".fetch", "lock.json"
_ROOM = 3
"""Times the size of an archive that it takes: itself and what is in it, sounds or pictures, which hardly shrink."""
_MOST_UNPACKED = 20
"""Times the size of an archive that may be in it; more is a trap."""

OnProgress = Callable[[str, int, int], object]
"""``(what is done, bytes done, bytes in all or 0)``."""


@dataclass(frozen=True)
class Fetched:
    """What a call of :func:`fetch` did.

    Attributes:
        folder: with the set.
        new: files and folders that are there now, by their names.
        kept: those that were there before.
        notes: checksums: which were right, and which are not published.
    """

    folder: Path
    new: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def fetch(
    source: Source,
    folder: Path,
    *,
    mirror: str = "",
    keep_archives: bool = False,
    limits: Limits = PATIENT,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Fetched:
    """Download what of a set can be downloaded, and unpack it. What is there already is left alone.

    Args:
        source: the set.
        folder: where to; created if missing. Unfinished downloads and the record of finished ones are in ``.fetch`` in it.
        mirror: address of a folder on the web that has files of the same names; "" for the set's own.
        keep_archives: keep archives in ``.fetch`` when they have been unpacked.
        limits: of the servers.
        on_progress: told about progress.

    Raises:
        DataError: no room, or as ``download`` and ``unpack``; or a file without published checksum is not the one that was
            downloaded before.
    """
    wanted = {(remote.folder or remote.file_name): remote for remote in source.remotes}
    kept = tuple(name for name in wanted if (folder / name).exists())
    lacking = {name: remote for name, remote in wanted.items() if name not in kept}
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        _check_room(folder, list(lacking.values()))
        notes = []
        for name, remote in lacking.items():
            archive = folder / WORK / remote.file_name
            if not (archive.is_file() and remote.file_name in _read_lock(folder / WORK / LOCK)):
                url = f"{mirror.rstrip('/')}/{remote.file_name}" if mirror else remote.url
                _get(remote, url, archive, limits, on_progress)
            notes.append(_describe(remote, archive))
            if remote.folder:
                stage, size = f"unpacking {remote.file_name}", archive.stat().st_size
                on_progress(stage, 0, size)
                unpack(archive, folder / name, max(_MOST_UNPACKED * size, 1 << 20))
                on_progress(stage, size, size)
            else:
                archive.replace(folder / name)
            if not keep_archives:
                archive.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(explain_write_error(error, folder, f"the files of {source.name}")) from error
    return Fetched(folder, tuple(lacking), kept, tuple(notes))


def _get(remote: Remote, url: str, archive: Path, limits: Limits, on_progress: OnProgress) -> None:
    """Download a file and record it."""
    name = remote.file_name
    received = download(url, archive, remote.checksum, limits=limits, on_bytes=lambda done, all_: on_progress(name, done, all_))
    try:
        _record(archive.with_name(LOCK), remote, received)
    except DataError:
        archive.unlink()
        raise


def _describe(remote: Remote, archive: Path) -> str:
    kind = remote.checksum.partition(":")[0]
    known = f"{kind} as expected" if kind else f"no checksum is published, its sha256 is recorded in {archive.with_name(LOCK)}"
    return f"{remote.file_name}: {archive.stat().st_size:,} bytes, {known}"


def _check_room(folder: Path, remotes: Sequence[Remote]) -> None:
    there = sum(path.stat().st_size for path in (folder / WORK).iterdir() if path.is_file())
    needed = sum(remote.size * (_ROOM if remote.folder else 1) for remote in remotes) - there
    free = free_bytes(folder)
    if needed > free:
        raise DataError(
            f"about {needed / 1e9:.1f} GB are needed in {folder}, for archives and what is in them, and "
            f"{free / 1e9:.1f} GB are free; free disk space or choose another folder"
        )


def _record(lock: Path, remote: Remote, received: Received) -> None:
    """Write down what was received; without a published checksum it must be what was received before.

    Raises:
        DataError: it is not.
    """
    known = _read_lock(lock)
    before = known.get(remote.file_name)
    now = {"size": received.size, "sha256": received.sha256, "checksum": remote.checksum or "not published"}
    if not remote.checksum and before is not None and before != now:
        raise DataError(
            f"{remote.file_name} has {received.size} bytes and sha256 {received.sha256}; when it was downloaded first it had "
            f"{before.get('size')} and {before.get('sha256')}: if its publisher changed it, remove {lock}"
        )
    write_atomically(lock, json.dumps(known | {remote.file_name: now}, indent=1) + "\n")


def _read_lock(lock: Path) -> dict[str, Any]:
    if not lock.is_file():
        return {}
    try:
        known = json.loads(lock.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{lock} is not readable JSON: {error}; remove it") from error
    return known if isinstance(known, dict) else {}
