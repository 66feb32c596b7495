"""Unpacking zip and tar archives of strangers: nothing is written outside the folder, and no more than was agreed."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from bridle.errors import ConfigError, DataError


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool], max_bytes: int = 2_000_000_000) -> None:
    """Extract the wanted files of a zip archive.

    Args:
        archive: the zip.
        folder: where to.
        wanted: tells by a file's name in the archive.
        max_bytes: limit on the unpacked size.

    Raises:
        DataError: not a whole zip, a path that leads out of the folder, a link, a file without a name, or more than
            ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if not path.parts:
                    if member.filename.endswith("/"):
                        continue  # the folder itself
                    raise DataError(f"{archive.name} holds a file without a name, '{member.filename}'; nothing is extracted")
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                    raise DataError(f"{_leads_out(archive, member.filename)}; nothing is extracted")
            chosen = [member for member in members.infolist() if not member.is_dir() and wanted(member.filename)]
            size = sum(member.file_size for member in chosen)
            if size > max_bytes:
                raise DataError(f"{archive.name} unpacks to {size} bytes; the limit is {max_bytes}")
            members.extractall(folder, chosen)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive.name} is not a whole zip archive: {error}") from error


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
    """
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError("this Python cannot unpack tar archives safely; update to 3.11.4 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                size += member.size
                if size > max_bytes:
                    raise DataError(f"{archive.name} unpacks to {size} bytes or more; the limit is {max_bytes}")
                if not (member.isreg() or member.isdir()):
                    raise DataError(_leads_out(archive, member.name))
                members.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise DataError(_leads_out(archive, error.tarinfo.name)) from error
    except (tarfile.TarError, zlib.error, LZMAError, EOFError) as error:
        raise DataError(f"{archive.name} is not a whole tar archive: {error}") from error


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
