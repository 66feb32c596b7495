"""Whole shards of URLs on the local disk, shared by all processes of a machine and bounded.

The environment variable ``BRIDLE_CACHE_GIGABYTES`` turns it on, ``BRIDLE_CACHE`` names the folder. A shard is
``NAME.shard``; while it is downloaded it is ``NAME.part``, and who downloads it holds the lock of that very file, so a
killed process leaves a file without a lock, which the next one overwrites or removes. The time of change of a whole shard
is a number that follows from its name: whatever writes to it later gives it another, and it is fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bridle.errors import ConfigError
from bridle.files import free_bytes, fsync

_BLOCK_BYTES = 8 << 20
_WHOLE, _PART, _LOCK = ".shard", ".part", "lock"
_TRIES = 2  # of a download whose bytes have another checksum than expected
_TROUBLES: set[str] = set()  # folders that could not be written to, and shards that do not fit
_STRANGERS: dict[str, str] = {}  # shards that are not what the index says, and why


@dataclass(frozen=True)
class _Shard:
    url: str
    size: int
    sha256: str
    fetch: Callable[[int, int], bytes]


class _Unusable(Exception):
    """The cache, not the shard, is what fails."""


def limit_bytes() -> int:
    """How much may be kept; 0 when the cache is off.

    Raises:
        ConfigError: the environment variable is no number of gigabytes.
    """
    text = os.environ.get("BRIDLE_CACHE_GIGABYTES", "").strip() or "0"
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ConfigError(f"BRIDLE_CACHE_GIGABYTES is {text!r}; it must be a number of gigabytes, 0 for no cache")
    return int(gigabytes * 1e9)


def folder() -> Path:
    """Where shards are kept."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BRIDLE_CACHE") or Path(user) / "bridle" / "shards")


def open_whole(
    url: str, size: int | None, sha256: str, fetch: Callable[[int, int], bytes], size_of: Callable[[str], int]
) -> BinaryIO | None:
    """A shard's local copy, downloaded if it is not there; it stays readable when it is removed.

    None when the cache is off, the shard does not fit, or the disk is full or fails (warned of once).

    Args:
        url: of the shard.
        size: its bytes; None when not known.
        sha256: of its bytes, the first digits or more; "" when not known.
        fetch: gives a range of its bytes.
        size_of: tells the bytes of a URL.

    Raises:
        OSError: the shard cannot be read, or is not the one expected.
        ConfigError: the limit is no number.
    """
    limit = limit_bytes()
    if not limit:
        return None
    name = hashlib.sha256(f"{url}\0{size}\0{sha256}".encode()).hexdigest()[:32]
    place = folder()
    try:
        file = _opened(place / f"{name}{_WHOLE}")
        if file is not None or {name, str(place)} & _TROUBLES:
            return file
        if name in _STRANGERS:
            raise OSError(errno.EIO, _STRANGERS[name], url)
        size = size_of(url) if size is None else size
        if size > limit:
            _warn(name, f"{url} has {size / 1e9:.3g} GB, more than BRIDLE_CACHE_GIGABYTES; it is read without the cache")
            return None
        with _locked(place / f"{name}{_PART}") as part:
            return _obtained(place / f"{name}{_WHOLE}", part, limit, _Shard(url, size, sha256, fetch))
    except _Unusable as error:
        _warn(str(place), f"shards are read without the cache in {place}: {error}; free disk space or choose another folder")
        return None


def read_at(file: BinaryIO, start: int, stop: int) -> bytes:
    """Bytes ``start .. stop`` of a local copy.

    Raises:
        OSError: it cannot be read or is shorter.
    """
    file.seek(start)
    content = file.read(stop - start)
    if len(content) != stop - start:
        raise OSError(errno.EIO, f"{len(content)} bytes instead of {stop - start}", file.name)
    return content


def _mark(path: Path) -> int:
    """Time of change of a whole shard, nanoseconds."""
    return int(path.name[:7], 16) * 10**9


def _opened(path: Path) -> BinaryIO | None:
    """A whole shard, used just now; None when it is not there or was changed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unusable(error.strerror) from error
    if os.fstat(file.fileno()).st_mtime_ns != _mark(path):
        file.close()
        return None
    with suppress(OSError):  # another user's
        os.utime(file.fileno(), ns=(time.time_ns(), _mark(path)))
    return file


@contextmanager
def _local() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unusable(error.strerror or str(error)) from error


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A file that this process alone may write; removed in the end unless it was renamed."""
    with _local():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    try:
        yield file
    finally:
        with suppress(OSError):
            if _is_at(file, path):
                path.unlink()
        _unlock(file)


def _lock(path: Path, wait: bool = True) -> BinaryIO:
    """The file, made if need be, open and locked. Raises BlockingIOError when another has the lock."""
    import fcntl

    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):  # else it was renamed or removed while this process waited
            return file
        _unlock(file)


def _unlock(file: BinaryIO) -> None:
    import fcntl

    # Not left to closing: a process forked meanwhile holds the same lock.
    fcntl.flock(file, fcntl.LOCK_UN)
    with suppress(OSError):  # a full disk again
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make_room(place: Path, part: BinaryIO, size: int, limit: int) -> bool:
    """Remove the least recently used shards until one more fits, and claim its place; False if others are being made."""
    taken, whole = size, []
    with _counting(place):
        for path in place.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _WHOLE:
                    whole.append((status.st_atime_ns, status.st_size, path))
                elif path.suffix == _PART and not os.path.samestat(os.fstat(part.fileno()), status) and not _removed(path):
                    taken += status.st_size
        if taken > limit:
            return False
        taken += sum(shard[1] for shard in whole)
        for _, shard_size, path in sorted(whole):
            if taken > limit:
                path.unlink(missing_ok=True)
                taken -= shard_size
        if free_bytes(place) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part.truncate(size)
    return True


@contextmanager
def _counting(place: Path) -> Iterator[None]:
    """While nobody else removes shards, claims a place or renames what another counts."""
    lock = _lock(place / _LOCK)
    try:
        yield
    finally:
        _unlock(lock)


def _removed(path: Path) -> bool:
    """Remove what a killed process left; False if somebody is at it."""
    try:
        file = _lock(path, wait=False)
    except BlockingIOError:
        return False
    path.unlink(missing_ok=True)
    _unlock(file)
    return True


def _obtained(path: Path, part: BinaryIO, limit: int, shard: _Shard) -> BinaryIO | None:
    """The shard, downloaded by way of ``part``, which is locked; None when there is no room for it now."""
    with _local():
        file = _opened(path)  # perhaps another process was faster
        if file is not None or not _make_room(path.parent, part, shard.size, limit):
            return file
    if not any(_download(part, shard) for _ in range(_TRIES)):
        _STRANGERS[path.stem] = f"has not the sha256 {shard.sha256[:8]}... of its index; write the index anew (bridle shard)"
        raise OSError(errno.EIO, _STRANGERS[path.stem], shard.url)
    with _local():
        part.flush()
        os.fsync(part.fileno())
        os.utime(part.fileno(), ns=(time.time_ns(), _mark(path)))
        with _counting(path.parent):
            path.with_suffix(_PART).replace(path)
        fsync(path.parent)
        return _opened(path)


def _download(part: BinaryIO, shard: _Shard) -> bool:
    """Whether the bytes that were fetched have the checksum."""
    part.seek(0)
    digest = hashlib.sha256()
    for start in range(0, shard.size, _BLOCK_BYTES):
        content = shard.fetch(start, min(start + _BLOCK_BYTES, shard.size))
        digest.update(content)
        with _local():
            part.write(content)
    return digest.hexdigest().startswith(shard.sha256)


def _warn(key: str, text: str) -> None:
    if key not in _TROUBLES:
        _TROUBLES.add(key)
        warnings.warn(text, RuntimeWarning, stacklevel=3)
