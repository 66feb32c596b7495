"""Tars as WebDataset reads them, written so that equal files give equal bytes."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from bridle.files import as_utf8

BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f.\\:*?"<>|\ufffd]')


class NotWritten(Exception):
    """A failure of the disk that is written to, told from one of the disk that is read."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def member_stems(keys: Iterable[str]) -> Iterator[str]:
    """Names for the members of a tar without their suffix: as the keys, but each once, plain UTF-8, and inside any folder.

    Dots become ``_``, because WebDataset takes what stands before the first dot for the key; so do signs that some system
    does not allow in a name. One that was there, be it in capitals, gets a number: ``dog/a``, ``dog/a-2``.
    """
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # of the names that came more than once
    for key in keys:
        folder, slash, file = as_utf8(key).rpartition("/")
        path = folder + slash + (file.rpartition(".")[0] or file)
        stem = name = "/".join(_UNSAFE.sub("_", part) for part in path.split("/") if part) or "clip"
        number = numbers.get(stem, 1)
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        if number > 1:
            numbers[stem] = number
        taken.add(name.casefold())
        yield name


class TarWriter:
    """Writes members of nobody, made at the beginning of time.

    Attributes:
        size: bytes written.

    Raises:
        NotWritten: by all methods, when the disk does not take it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file, self._digest = file, hashlib.sha256()

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> int:
        """Write a member; returns the offset of its first byte. What ``chunks`` raises leaves the tar as it was."""
        size_before, digest_before = self.size, self._digest.copy()
        header = tarfile.TarInfo(name)
        header.size = size
        try:
            self._write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
            offset = self.size
            for chunk in chunks:
                self._write(chunk)
            self._write(bytes(-size % BLOCK_BYTES))
        except Exception:
            self.size, self._digest = size_before, digest_before
            self._file.seek(self.size)
            self._file.truncate()
            raise
        return offset

    def finish(self) -> tuple[int, str]:
        """End the tar; returns its size and its sha256 in hexadecimal digits."""
        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self.size % _RECORD_BYTES))
        return self.size, self._digest.hexdigest()

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise NotWritten(error) from error
        self.size += len(content)
        self._digest.update(content)
