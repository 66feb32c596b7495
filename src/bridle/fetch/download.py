"""Downloading one file: limits on everything that a stranger's server could overdo, and going on where it broke off."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.errors import DataError
from bridle.files import free_bytes

_CHUNK = 1 << 20
_LATER = (408, 425, 429)  # of the answers that blame the caller, those that may differ in a moment
_LONGEST_WAIT_SECONDS = 60.0

OnBytes = Callable[[int, int], object]
"""``(bytes done, bytes in all or 0)``."""


@dataclass(frozen=True)
class Limits:
    """What a server may do.

    Attributes:
        answer_seconds: how long it may take to begin its answer.
        silent_seconds: how long it may send nothing.
        max_seconds: how long the whole download may take.
        max_bytes: most bytes that are taken.
        tries: how often it is asked; counted anew when something new came before it broke off, but 1 asks once.
        wait_seconds: before the second try, doubled before each further one.
    """

    answer_seconds: float = 30.0
    silent_seconds: float = 60.0
    max_seconds: float = math.inf
    max_bytes: int = 1 << 40
    tries: int = 4
    wait_seconds: float = 1.0


PATIENT = Limits()


@dataclass(frozen=True)
class Received:
    """A file that was downloaded: bytes and sha256 in hexadecimal."""

    size: int
    sha256: str


class _BrokenOff(Exception):
    """What may go better the next time."""


def download(
    url: str,
    target: Path,
    checksum: str = "",
    *,
    limits: Limits = PATIENT,
    resume: bool = True,
    on_bytes: OnBytes = lambda done, total: None,
) -> Received:
    """Download ``url`` to ``target``, which appears only when it is whole.

    A download that breaks off is asked for again, and so it is by the next call. It goes on from where it stopped
    (RFC 9110, Range) if the server gave a strong ETag or a date by which it can tell that the file is the same (If-Range),
    or if there is a checksum; else it starts anew. What is there lies in ``target`` + ``.part``.

    Args:
        url: http or https.
        target: file to write; its folder is created.
        checksum: ``md5:`` or ``sha256:`` and hexadecimal digits; "" for none.
        limits: of the server.
        resume: keep what is there for the next call when the download fails. A wrong checksum always removes it.
        on_bytes: told about progress.

    Raises:
        DataError: no answer, no such file, too large, too slow, broken off too often, no room for it, or another checksum
            than expected.
        OSError: the file cannot be written.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target.with_name(f"{target.name}.part"), url, bool(checksum))
    try:
        _insist(part, limits, on_bytes)
        received, found = _digests(part.path, checksum)
        if found != checksum:
            part.remove()
            kind, _, expected = checksum.partition(":")
            raise DataError(
                f"{kind} of {url} is {found.partition(':')[2]}, not {expected}; it is not the file that was expected"
            )
        part.path.replace(target)
        part.remove()
    except (DataError, OSError):
        if not resume:
            part.remove()
        raise
    return received


class _Part:
    """The bytes so far, and beside them what the server said the file was when they were sent."""

    def __init__(self, path: Path, url: str, is_checked: bool) -> None:
        self.path, self.url, self._is_checked = path, url, is_checked
        self._notes = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def headers(self) -> dict[str, str]:
        """Of a request for what is lacking; of the whole file if it could not be told to be the same."""
        validator = self._validator()
        if self.size == 0 or (validator is None) or (not validator and not self._is_checked):
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": validator} if validator else {})}

    def begin(self, response: Any) -> None:
        """Start anew with the file that the response is of."""
        tag = response.headers.get("ETag") or ""
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified") or ""
        self.path.write_bytes(b"")  # first: bytes of an old file must never stand beside notes of a new one
        self._notes.write_text(json.dumps({"url": self.url, "validator": validator}), encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _validator(self) -> str | None:
        """What the server can tell the file by; "" where it gave nothing, None where the bytes are of unknown origin."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            return str(notes.get("validator", "")) if notes.get("url") == self.url else None
        return None


def _insist(part: _Part, limits: Limits, on_bytes: OnBytes) -> None:
    """Transfer until the file is whole, with longer and longer waits while nothing new comes."""
    end = time.monotonic() + limits.max_seconds
    left, wait = limits.tries, limits.wait_seconds
    most = part.size
    while True:
        try:
            _transfer(part, limits, end, on_bytes)
            return
        except _BrokenOff as error:
            has_gained = part.size > most
            most = max(most, part.size)
            left, wait = (limits.tries - 1, limits.wait_seconds) if has_gained else (left - 1, wait)
            if left < 1 or time.monotonic() + wait > end:
                raise DataError(f"{error}; try again later") from error
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _transfer(part: _Part, limits: Limits, end: float, on_bytes: OnBytes) -> None:
    host = urllib.parse.urlsplit(part.url).hostname or part.url
    headers = part.headers()
    response = _answer(part, headers, host, limits)
    if response is None:
        return
    with response:
        done = part.size
        if response.status != 206 or not headers or _first_byte(response) != done:
            if response.status == 206:
                part.remove()
                raise _BrokenOff(f"{host} sent another part of {part.url} than it was asked for")
            part.begin(response)
            done = 0
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        _check_room(part, total - done)
        with part.path.open("ab") as stream:
            while True:
                if max(done, total) > limits.max_bytes:
                    raise DataError(f"{part.url} has {max(done, total)} bytes or more; the limit is {limits.max_bytes}")
                if time.monotonic() > end:
                    raise DataError(f"{host} sent {done / 1e6:.0f} MB in {limits.max_seconds:g} s, which is too slow")
                on_bytes(done, total)
                if not (chunk := _read(response, host)):
                    break
                stream.write(chunk)
                done += len(chunk)
    if done < total:
        raise _BrokenOff(f"{host} broke off after {done} of {total} bytes")


def _check_room(part: _Part, lacking: int) -> None:
    free = free_bytes(part.path)
    if lacking > free:
        raise DataError(
            f"{part.url} needs {lacking / 1e6:.0f} MB in {part.path.parent}, where {free / 1e6:.0f} MB are free; "
            "free disk space or choose another folder"
        )


def _answer(part: _Part, headers: dict[str, str], host: str, limits: Limits) -> Any | None:
    """The response, or None when the server says that all bytes are there.

    It is asked for in a thread, because the look-up of a host's name knows no time limit.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given = {"User-Agent": "bridle", "Accept-Encoding": "identity", **headers}

    def ask() -> None:
        try:
            request = urllib.request.Request(part.url, headers=given)
            answers.put(urllib.request.urlopen(request, timeout=max(limits.answer_seconds, limits.silent_seconds)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=limits.answer_seconds)
    except queue.Empty:
        raise _BrokenOff(f"{host} did not answer within {limits.answer_seconds:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        _refused(part, answer, host)
        return None
    if isinstance(answer, ValueError):
        raise DataError(f"{part.url} is no address that can be asked: {answer}") from answer
    if isinstance(answer, Exception):
        raise _BrokenOff(f"{host} cannot be reached: {getattr(answer, 'reason', None) or answer}") from answer
    return answer


def _refused(part: _Part, error: urllib.error.HTTPError, host: str) -> None:
    """Returns if the answer means that all bytes are there."""
    with error:
        if error.code == 416:  # asked for bytes behind the end
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
            if whole is not None and int(whole[1]) == part.size:
                return
            part.remove()
            raise _BrokenOff(f"{host} has a shorter file at {part.url} now") from error
        message = f"{host} answers {error.code} ({error.reason}) for {part.url}"
        if 400 <= error.code < 500 and error.code not in _LATER:
            raise DataError(message) from error
        raise _BrokenOff(message) from error


def _first_byte(response: Any) -> int:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(match[1]) if match else -1


def _read(response: Any, host: str) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"{host} broke off: {error}") from error


def _digests(path: Path, checksum: str) -> tuple[Received, str]:
    """Size and sha256 of a file, and its checksum of the same kind as the given one ("" of none)."""
    kind = checksum.partition(":")[0]
    size, sha256 = 0, hashlib.sha256()
    other = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            sha256.update(chunk)
            other.update(chunk)
    found = {"": "", "sha256": f"sha256:{sha256.hexdigest()}", "md5": f"md5:{other.hexdigest()}"}
    return Received(size, sha256.hexdigest()), found[kind]
