"""Unpacking zip and tar archives of strangers: nothing is written outside the folder, and no more than was agreed."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bridle.errors import BridleError, ConfigError, DataError

_COMPRESSED: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_HEADERS_ALLOWANCE = 1 << 20
"""Bytes that a tar of few small files may take for names and padding, besides as much as its files."""


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool], max_bytes: int = 2_000_000_000) -> None:
    """Extract the wanted files of a zip archive.

    Args:
        archive: the zip.
        folder: where to.
        wanted: tells by a file's name in the archive.
        max_bytes: limit on the unpacked size.

    Raises:
        DataError: not a whole zip, encrypted, compressed in an unusual way, a path that leads out of the folder, a link, a
            file without a name, or more than ``max_bytes``.
        OSError: it cannot be read or written.
    """
    with _damage_told(archive, "zip"), zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if not path.parts:
                if member.filename.endswith("/"):
                    continue  # the folder itself
                raise DataError(f"{archive.name} holds a file without a name, '{member.filename}'; nothing is extracted")
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                raise DataError(f"{_leads_out(archive, member.filename)}; nothing is extracted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Python unpacks what it reads of the others at once, however much that is.
                kind = member.compress_type
                raise DataError(f"{archive.name} holds '{member.filename}' compressed by method {kind}; repack it by deflate")
        chosen = [member for member in members.infolist() if not member.is_dir() and wanted(member.filename)]
        size = sum(member.file_size for member in chosen)
        if size > max_bytes:
            raise DataError(f"{archive.name} unpacks to {size} bytes; the limit is {max_bytes}")
        members.extractall(folder, chosen)


def extract_tar(archive: Path, folder: Path, max_bytes: int = 2_000_000_000) -> None:
    """Extract a tar archive, compressed or not, in a single pass.

    Only files and folders are written, with plain permissions (PEP 706, ``data``). When an error comes, files before it have
    been written.

    Args:
        archive: the tar.
        folder: where to; created if missing.
        max_bytes: limit on the unpacked size.

    Raises:
        DataError: not a whole tar, a path that leads out of the folder, a link, a device, or more than ``max_bytes``.
        ConfigError: this Python cannot do it safely.
        OSError: it cannot be read or written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError("this Python cannot unpack tar archives safely; update to 3.11.4 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    with _damage_told(archive, "tar"), _opened_tar(archive, 2 * max_bytes + _HEADERS_ALLOWANCE) as members:
        for member in members:
            size += member.size
            if size > max_bytes:
                raise DataError(f"{archive.name} unpacks to {size} bytes or more; the limit is {max_bytes}")
            if not (member.isreg() or member.isdir()):
                raise DataError(_leads_out(archive, member.name))
            members.extract(member, folder, filter="data")


@contextmanager
def _opened_tar(archive: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    """The members of a tar; reading more than ``max_bytes`` of it, unpacked, is a DataError.

    tarfile itself unpacks what it reads of a compressed one at once: 10 kB of bzip2 may be 10 GB. These readers do not.
    """
    with archive.open("rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSED if head.startswith(magic)), open)
    with opener(archive, "rb") as stream, tarfile.open(fileobj=_Bounded(stream, archive.name, max_bytes), mode="r|") as members:  # type: ignore[call-overload]
        yield members


class _Bounded:
    """A stream to be read once and not for ever: names and comments, too, may unpack to more than there is memory."""

    def __init__(self, stream: IO[bytes], name: str, max_bytes: int) -> None:
        self._stream, self._name, self._limit, self._left = stream, name, max_bytes, max_bytes

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._name} unpacks to more than {self._limit} bytes with its headers; that is the limit")
        return content


@contextmanager
def _damage_told(archive: Path, kind: str) -> Iterator[None]:
    """Whatever reading a damaged archive raises becomes a DataError; OSErrors of the disk pass."""
    try:
        yield
    except BridleError:
        raise
    except tarfile.FilterError as error:
        raise DataError(_leads_out(archive, error.tarinfo.name)) from error
    except Exception as error:  # a damaged archive can break the reader anywhere
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{archive.name} is not a whole {kind} archive: {reason}") from error


def _leads_out(archive: Path, name: str) -> str:
    return f"{archive.name} holds '{name}', which leads out of its folder"


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a zip or tar into ``folder``, which must not exist and appears only when all of it is there.

    An archive whose files all lie in a single folder gives what is in that folder.

    Raises:
        DataError: as :func:`extract` and :func:`extract_tar`.
        OSError: it cannot be written.
    """
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if archive.suffix == ".zip":
            extract(archive, part, lambda name: True, max_bytes)
        else:
            extract_tar(archive, part, max_bytes)
        children = list(part.iterdir()) if part.is_dir() else []
        if not children:
            raise DataError(f"{archive.name} holds no files")
        top = children[0] if len(children) == 1 and children[0].is_dir() else part
        top.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
