"""Members of tar files by byte offset: random access without extracting anything. A tar is a local file or a URL."""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bridle.data import huggingface

INDEX_NAME = "index.parquet"
"""Of the file in a folder of shards that says which clip lies where, see :mod:`bridle.data.index`."""


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file inside a tar: bytes ``offset .. offset + size`` of it. ``fault`` is "" for a usable one."""

    name: str
    offset: int
    size: int
    fault: str = ""


def is_remote(path: str) -> bool:
    """True for a URL; what reads those is not even imported for local paths."""
    if "://" not in path or huggingface.is_set(path):
        return False
    from bridle.data import remote

    return remote.is_url(path)


def list_members(path: str | Path) -> Iterator[Member]:
    """Plain files of an uncompressed tar in the order they lie in it.

    Links, devices, folders, sparse members and hidden names are passed over. Members with an absolute path or ``..``
    in it, and one cut off by the end of the file, come with a ``fault``. Nothing is ever written to disk, so no name
    can reach outside the tar.

    Raises:
        tarfile.TarError: the file is not an uncompressed tar, or breaks off; the members before the fault were given.
        OSError: the file cannot be opened or read.
    """
    if not is_remote(str(path)) and not Path(path).is_file():  # a pipe would block for ever
        raise OSError(errno.EINVAL, "not a regular file")
    with _opened(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        total = file.seek(0, io.SEEK_END)
        for member in tar:
            tar.members.clear()  # type: ignore[attr-defined, unused-ignore]  # else those of a large tar fill the memory
            name = PurePosixPath(member.name)
            if not member.isreg() or member.issparse() or any(part.startswith(".") and part != ".." for part in name.parts):
                continue
            fault = ""
            if name.is_absolute() or ".." in name.parts:
                fault = "unsafe path in shard"
            elif member.offset_data + member.size > total:
                fault = "truncated"
            yield Member(str(name), member.offset_data, member.size, fault)


def open_window(path: str, offset: int, size: int) -> BinaryIO:
    """Bytes ``offset .. offset + size`` of a file as a seekable, read-only file of its own. Closing it closes the file.

    Args:
        path: a local path or a URL.
        offset: first byte.
        size: number of bytes.

    Raises:
        OSError: the file cannot be opened; of a URL, it cannot be read.
    """
    if is_remote(path):
        from bridle.data import remote

        return remote.open_range(path, offset, size)
    return io.BufferedReader(_Window(path, offset, size))


def read_member(path: str | Path, member: Member) -> bytes:
    """All bytes of a member.

    Raises:
        OSError: the file cannot be read.
    """
    with open_window(str(path), member.offset, member.size) as window:
        return window.read()


def _opened(path: str | Path) -> BinaryIO:
    """A whole tar."""
    if is_remote(str(path)):
        from bridle.data import remote

        return remote.open_range(str(path), 0, remote.file_size(str(path)))
    return Path(path).open("rb")


class _Window(io.RawIOBase):
    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view[: max(0, min(len(view), self._size - self._position))])
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
