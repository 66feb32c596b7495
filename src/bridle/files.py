"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_DEVICES = Path("/dev")
_REMEDIES = {
    errno.ENOSPC: "free disk space or keep fewer checkpoints",
    errno.EDQUOT: "raise the quota or keep fewer checkpoints",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "mount it writable or choose another folder",
    errno.EACCES: "make it writable for this user or choose another folder",
    errno.EPERM: "make it writable for this user or choose another folder",
}


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    Raises:
        OSError: the disk reports an error. A file system that cannot sync folders is not an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Replace the file ``path`` as a whole: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: the file; its folder must exist.
        content: bytes, text (UTF-8), or a function that creates the file at the path it is given.

    Raises:
        OSError: the file cannot be written; no temporary file is left, and ``path`` has its old content, or its new one
            if all that failed is the last sync of the folder. Or ``path`` is a device, a pipe or a socket.
    """
    if path.absolute().parent == _DEVICES or (path.exists() and not path.is_file() and not path.is_dir()):
        # The superuser could replace even /dev/null, for everybody.
        raise OSError(f"{path} is a device, a pipe or a socket, which a file would replace")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        # A killed process of the same id may have left one, perhaps a hard link that must not be written through.
        temporary.unlink(missing_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(temporary)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target``, which must not exist, a hard link to ``source``, or a copy where there are no links."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system of ``path`` or of its nearest parent that exists."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def explain_write_error(error: Exception, folder: Path, what: str) -> str:
    """One line that says what could not be written where, why, with how much space left, and the remedy.

    Args:
        error: an OSError, or another library's error whose text has ``os error <number>``, as safetensors writes it.
        folder: where it was to be written.
        what: what it was.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"os error (\d+)", str(error))):
        code = int(match[1])
    reason = os.strerror(code) if code else str(error)
    remedy = _REMEDIES.get(code or 0, "check the disk")
    return f"cannot write {what} to {folder}: {reason} ({free_bytes(folder) / 1e6:.1f} MB free); {remedy}"


def as_utf8(name: str) -> str:
    """A file name as text that can be written anywhere: bytes of it that are not UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
