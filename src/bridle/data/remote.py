"""Files that a URL names, read by fsspec: ranges of bytes, small objects, lists.

Credentials, endpoints and other options are those of fsspec (``FSSPEC_S3_ENDPOINT_URL``, ...) and of its libraries.
Every request is tried four times. A file system is asked for anew by every request: fsspec gives each process its own.
"""

from __future__ import annotations

import errno
import io
import re
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped, unused-ignore]

from bridle.data import shard_cache
from bridle.errors import ConfigError, DataError

T = TypeVar("T")
Fetch = Callable[[int, int], bytes]

AT_ONCE_BYTES = 8 << 20
"""Ranges up to this are fetched whole, larger ones as they are read."""
PAUSES_SECONDS = (0.5, 1.0, 2.0)
"""Between the tries of a request."""
REQUEST_SECONDS = 60.0
"""A try takes no longer, where the file system knows a limit."""
_AHEAD_BYTES = 2 << 20
_LISTING_SECONDS = 600.0
_SHOWN_CHARACTERS = 200
_PIN = re.compile(r"#size=(\d+)&sha256=([0-9a-f]{32})$")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_LATER = (408, 425, 429)  # of the answers that blame the caller, those that may differ in a moment
# File systems with connections are never let go. A forked worker would close those of its parent, and with the sockets,
# which are shared, take away the parent's notice of them: its next request would wait for an answer that has long come.
_KEPT: set[Any] = set()


def is_url(path: str) -> bool:
    """True for anything of the form ``scheme://...``; a scheme has two letters or more, so a Windows drive is none."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def pinned(url: str, size: int, sha256: str) -> str:
    """The URL with what is known of its content behind it, for :func:`open_range`; unchanged while nothing is cached.

    Args:
        url: of a shard.
        size: its bytes.
        sha256: of them, hexadecimal digits.

    Raises:
        ConfigError: the limit of the cache is no number.
    """
    return f"{url}#size={size}&sha256={sha256[:32]}" if shard_cache.limit_bytes() else url


def join(base_url: str, name: str) -> str:
    """The URL of ``name`` below ``base_url``.

    Raises:
        DataError: the name is not a plain relative one, so it could lead elsewhere.
    """
    if not _is_plain(name):
        raise DataError(f"{name!r} is no plain relative name below {base_url}; it must not lead outside")
    return f"{base_url.rstrip('/')}/{name}"


def _is_plain(name: str) -> bool:
    parts = [*name.split("/"), *unquote(name).split("/")]
    return not ({"", ".", ".."} & {*parts} or "::" in name or any(sign in "?#:\\" or sign < " " for sign in unquote(name)))


def open_range(url: str, offset: int, size: int) -> BinaryIO:
    """Bytes ``offset .. offset + size`` of an object as a seekable, read-only file of its own.

    A range of at most ``AT_ONCE_BYTES`` is fetched by one request; a larger one as it is read, and its beginning at once,
    so that an object that cannot be read is found out here. With the cache on, the whole object is downloaded first, and
    compared with what :func:`pinned` says of it.

    Raises:
        OSError: it cannot be read; FileNotFoundError, PermissionError where that is why.
        ConfigError: the library for the scheme is not installed.
        DataError: there is no such scheme.
    """
    url, known_size, sha256 = _unpinned(url)
    fetch = partial(_fetch, url)
    file = shard_cache.open_whole(url, known_size, sha256, fetch, file_size)
    if file is not None:
        fetch = partial(shard_cache.read_at, file)
    if size <= AT_ONCE_BYTES:
        with closing(file or io.BytesIO()):
            return io.BufferedReader(io.BytesIO(fetch(offset, offset + size)))  # type: ignore[arg-type, unused-ignore]
    window = _Window(url, offset, size, fetch, file)
    try:
        window.read(1)
    except BaseException:
        window.close()
        raise
    window.seek(0)
    return io.BufferedReader(window)


def read_bytes(url: str) -> bytes:
    """A whole object that fits in memory.

    Raises:
        OSError, ConfigError, DataError: as :func:`open_range`.
    """
    size = file_size(url)
    return b"".join(_fetch(url, start, min(start + AT_ONCE_BYTES, size)) for start in range(0, size, AT_ONCE_BYTES))


def file_size(url: str) -> int:
    """Bytes of an object.

    Raises:
        OSError: there is none, or its size cannot be told.
        ConfigError, DataError: as :func:`open_range`.
    """

    def ask(system: Any, path: str) -> int:
        system.invalidate_cache(path)
        size = system.size(path, **_limited(system, REQUEST_SECONDS))
        if size is None:
            raise _Refusal(errno.EIO, "the server does not tell its size", url)
        return int(size)

    return _insist(_unpinned(url)[0], ask)


def list_files(url: str) -> list[str]:
    """The URLs of all files below a folder, sorted. Of http, what its page of the folder links to.

    Raises:
        FileNotFoundError: there are none; object stores know no empty folders.
        OSError, ConfigError, DataError: as :func:`open_range`.
    """

    def ask(system: Any, path: str) -> list[str]:
        base = f"{path.rstrip('/')}/"
        system.invalidate_cache(path)
        found = system.find(base, **_limited(system, _LISTING_SECONDS))
        names = [str(name).removeprefix(base) for name in found if str(name).startswith(base)]
        return sorted(join(url, name) for name in names if _is_plain(name))

    files = _insist(url, ask)
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no files in it", url)
    return files


class _Window(AbstractBufferedFile):  # type: ignore[misc, unused-ignore]
    """Bytes ``offset .. offset + size`` as a file that fetches what is read and a little more."""

    def __init__(self, url: str, offset: int, size: int, fetch: Fetch, file: BinaryIO | None) -> None:
        super().__init__(None, url, block_size=_AHEAD_BYTES, cache_type="bytes", size=size)
        self._offset, self._fetch, self._file = offset, fetch, file or io.BytesIO()

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._fetch(self._offset + start, self._offset + end)

    def close(self) -> None:
        super().close()
        self._file.close()


class _Refusal(OSError):
    """What does not go better the next time."""


def _unpinned(url: str) -> tuple[str, int | None, str]:
    """The URL, and what is known of its content: size or None, the first digits of the sha256 or ""."""
    match = _PIN.search(url)
    return (url, None, "") if match is None else (url[: match.start()], int(match[1]), match[2])


def _fetch(url: str, start: int, stop: int) -> bytes:
    """Bytes ``start .. stop`` of an object by one request."""
    if start == stop:
        return b""

    def ask(system: Any, path: str) -> bytes:
        options = _limited(system, REQUEST_SECONDS)
        if system.async_impl and url.lower().startswith("http"):
            options["raise_for_status"] = partial(_refuse_whole, start, stop)
        content = bytes(system.cat_file(path, start=start, end=stop, **options))
        if len(content) != stop - start:
            raise OSError(errno.EIO, f"{len(content)} bytes instead of {stop - start}", url)
        return content

    return _insist(url, ask)


async def _refuse_whole(start: int, stop: int, response: Any) -> None:
    """Refuse an answer that is the whole file, before it fills the memory."""
    if response.status == 200 and (start, stop) != (0, response.content_length):
        raise _Refusal(errno.EIO, "the server ignores range requests; serve the files by one that answers them")


def _limited(system: Any, seconds: float) -> dict[str, Any]:
    return {"timeout": seconds} if system.async_impl else {}


def _insist(url: str, ask: Callable[[Any, str], T]) -> T:
    """What ``ask(file system, path)`` gives, tried again after what may pass."""
    for pause in (*PAUSES_SECONDS, None):
        system, path = _filesystem(url)
        try:
            return ask(system, path)
        except Exception as error:  # the libraries raise errors of a dozen others, for a dozen reasons
            if (refusal := _refusal(error, url)) is not None:
                raise refusal from error
            if pause is None:
                tries = len(PAUSES_SECONDS) + 1
                raise OSError(errno.EIO, f"cannot be read after {tries} tries: {_shown(error)}", url) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0].lower()
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        remedy = f"pip install 'bridle[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
        raise ConfigError(f"{url} needs a library that is not installed: {remedy}") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be opened: {_shown(error)}") from error
    if system.async_impl:
        _KEPT.add(system)
    return system, str(path)


def _refusal(error: Exception, url: str) -> OSError | None:
    """The error to raise at once, or None for one that may pass."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and (hasattr(cause, "status") or isinstance(cause, OSError)):
        error = cause  # type: ignore[assignment]  # fsspec's http tells of any trouble with a size in this way
    status = next((code for name in ("status", "status_code", "code") if isinstance(code := getattr(error, name, 0), int)), 0)
    has_no_credentials = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "missing", url)
    if isinstance(error, PermissionError) or status in (401, 403) or has_no_credentials:
        return PermissionError(errno.EACCES, f"no permission: {_shown(error)}", url)
    if isinstance(error, IsADirectoryError | _Refusal):
        return OSError(error.errno or errno.EIO, _shown(error), url)
    if 400 <= status < 500 and status not in _LATER:
        return OSError(errno.EIO, f"the server answers {status}", url)
    return None


def _shown(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:_SHOWN_CHARACTERS]
    return text or type(error).__name__
