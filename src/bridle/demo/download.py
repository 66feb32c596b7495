"""Downloading a zip archive and unpacking it, with limits on everything that a stranger's server could overdo."""

from __future__ import annotations

import hashlib
import http.client
import queue
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bridle.errors import DataError

_CHUNK = 1 << 20

OnBytes = Callable[[int, int], object]
"""``(bytes done, bytes in all or 0)``."""


@dataclass(frozen=True)
class Archive:
    """A zip archive on the web in the layout of ESC-50, and its md5 in hexadecimal."""

    url: str
    md5: str


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int = 1_000_000_000,
    answer_seconds: float = 3.0,
    max_seconds: float = 300.0,
    on_bytes: OnBytes = lambda done, total: None,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole.

    Args:
        url: http or https.
        target: file to write; its folder is created.
        md5: expected checksum, in hexadecimal.
        max_bytes: most bytes that are taken.
        answer_seconds: how long the host may take to begin its answer.
        max_seconds: how long the whole download may take.
        on_bytes: told about progress.

    Raises:
        DataError: no answer, too large, too slow, broken off, or another checksum than expected.
        OSError: the file cannot be written.
    """
    host = urllib.parse.urlsplit(url).hostname or url
    response = _answer(url, host, answer_seconds)
    length = int(response.headers.get("Content-Length") or 0)
    digest, done, end = hashlib.md5(usedforsecurity=False), 0, time.monotonic() + max_seconds
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with response, part.open("wb") as stream:
            while True:
                if max(done, length) > max_bytes:
                    raise DataError(f"{url} has {max(done, length)} bytes or more; the limit is {max_bytes}")
                if time.monotonic() > end:
                    raise DataError(f"{host} sent {done / 1e6:.0f} MB in {max_seconds:g} s, which is too slow")
                on_bytes(done, length)
                if not (chunk := _read(response, host)):
                    break
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
        if done < length:
            raise DataError(f"{host} broke off after {done} of {length} bytes; try again")
        if digest.hexdigest() != md5:
            raise DataError(f"md5 of {url} is {digest.hexdigest()}, not {md5}; it is not the file that was expected")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _answer(url: str, host: str, seconds: float) -> Any:
    """The response, asked for in a thread because the look-up of a host's name knows no time limit."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise ValueError(f"{url} is no http or https address")
            answers.put(urllib.request.urlopen(url, timeout=max(seconds, 10.0)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise DataError(f"{host} did not answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise DataError(f"{host} cannot be reached: {getattr(answer, 'reason', None) or answer}") from answer
    return answer


def _read(response: Any, host: str) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{host} broke off: {error}; try again") from error


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool], max_bytes: int = 2_000_000_000) -> None:
    """Extract the wanted files of a zip archive.

    Args:
        archive: the zip.
        folder: where to.
        wanted: tells by a file's name in the archive.
        max_bytes: limit on the unpacked size.

    Raises:
        DataError: not a whole zip, a path that leads out of the folder, a link, or more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                    raise DataError(
                        f"{archive.name} holds '{member.filename}', which leads out of its folder; nothing is extracted"
                    )
            chosen = [member for member in members.infolist() if not member.is_dir() and wanted(member.filename)]
            size = sum(member.file_size for member in chosen)
            if size > max_bytes:
                raise DataError(f"{archive.name} unpacks to {size} bytes; the limit is {max_bytes}")
            members.extractall(folder, chosen)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive.name} is not a whole zip archive: {error}") from error
