"""Where media come from: a path or an open stream, and what can be wrong with it before a decoder has a look."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from bridle.errors import DecodeError

__all__ = ["Source", "opened", "source_name"]

Source = str | Path | BinaryIO
"""A path, or a seekable binary stream such as a member of a tar shard, read from its first byte wherever it stands."""


def source_name(source: Source) -> str:
    """The name of a source in errors: the path, or what the stream calls itself."""
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "<stream>"))


@contextmanager
def opened(source: Source, key: str) -> Iterator[BinaryIO]:
    """The source as an unbuffered binary stream; a path is closed on leaving, a stream is left open.

    An OSError of the body is taken for a failing disk and becomes a DecodeError too.

    Raises:
        DecodeError: the file is missing, a directory, no regular file, or cannot be read.
    """
    try:
        if not isinstance(source, str | Path):
            yield source
            return
        mode = _mode(source)
        if stat.S_ISDIR(mode):
            raise DecodeError(key, "is a directory")
        if not stat.S_ISREG(mode):  # a pipe would block for ever
            raise DecodeError(key, "not a regular file")
        with Path(source).open("rb", buffering=0) as file:
            yield cast("BinaryIO", file)
    except FileNotFoundError as error:
        raise DecodeError(key, "missing") from error
    except OSError as error:
        raise DecodeError(key, f"cannot be read: {error.strerror or error}") from error


def _mode(path: str | Path) -> int:
    try:
        return Path(path).stat().st_mode
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(path) from error
