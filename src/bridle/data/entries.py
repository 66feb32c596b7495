"""The clips of a manifest: one :class:`Entry` each, held in columns."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from bridle.data import huggingface
from bridle.data.medium import Info
from bridle.data.quarantine import BadFile
from bridle.data.shards import open_window
from bridle.media.image import ImageInfo
from bridle.media.video import VideoInfo

_LINES_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        key: readable name; need not be unique.
        path: the file, the tar that holds it (a path or URL), or the column of a Hugging Face set.
        offset: first byte in the tar, or row of the set.
        size: bytes in the tar; -1 for a plain file, 0 for the row of a set.
        duration_seconds: 0 when not known, or of a picture.
        rate_hz: frames per second of a film; 0 when not known.
        found: met while searching a folder or tar, not named by anybody.
    """

    key: str
    path: str
    offset: int = 0
    size: int = -1
    duration_seconds: float = 0.0
    rate_hz: float = 0.0
    found: bool = False

    def open(self) -> BinaryIO | str:
        """The path of a plain file, or an open seekable stream of the member of a tar or the row of a set.

        Raises:
            OSError: the tar or set cannot be opened.
        """
        if huggingface.is_set(self.path):
            return huggingface.open_row(self.path, self.offset)
        return self.path if self.size < 0 else open_window(self.path, self.offset, self.size)

    def opened(self) -> AbstractContextManager[BinaryIO | str]:
        """:meth:`open` for a ``with`` statement, which closes the window."""
        source = self.open()
        return nullcontext(source) if isinstance(source, str) else source

    def with_info(self, info: Info) -> Entry:
        """The entry with what its file's header says; a duration that is known stays."""
        if isinstance(info, ImageInfo):
            return self
        seconds = self.duration_seconds or info.duration_seconds
        return replace(self, duration_seconds=seconds, rate_hz=info.rate_hz if isinstance(info, VideoInfo) else 0.0)


class Names(Sequence[str]):
    """File names, or what contains them, in one block of bytes as the disk has them (UTF-8 with ``surrogateescape``).

    A million Python strings take four times the memory, minutes to send to the data workers of a run, and are copied
    into every worker by counting who refers to them.

    Args:
        block: the bytes of all names, one behind the other.
        ends: (n + 1,) int64, non-decreasing from 0: name i is ``block[ends[i] : ends[i + 1]]``.
    """

    __slots__ = ("block", "ends")

    def __init__(self, block: bytes, ends: npt.NDArray[np.int64]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names that are given."""
        sizes, block = array("q", [0]), bytearray()
        for name in names:
            encoded = name.encode("utf-8", "surrogateescape")
            sizes.append(len(encoded))
            block += encoded
        return cls(bytes(block), np.cumsum(np.frombuffer(sizes, np.int64)))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self.block[self.ends[row] : self.ends[row + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        ends = self.ends.tolist()
        for first, last in pairwise(ends):
            yield self.block[first:last].decode("utf-8", "surrogateescape")


class Entries(Sequence[Entry]):
    """Entries in columns: each is made when it is asked for. Equal to any sequence of equal entries.

    Attributes:
        keys, paths: (n,) names.
        offsets, sizes: (n,) int64.
        durations: (n,) float64, seconds.
        rates: (n,) float64, Hz.
        found: (n,) bool.
    """

    __slots__ = ("durations", "found", "keys", "offsets", "paths", "rates", "sizes")

    def __init__(
        self,
        keys: Names,
        paths: Names,
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        durations: npt.NDArray[np.float64],
        rates: npt.NDArray[np.float64],
        found: npt.NDArray[np.bool_],
    ) -> None:
        self.keys, self.paths = keys, paths
        self.offsets, self.sizes = offsets, sizes
        self.durations, self.rates, self.found = durations, rates, found

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """The entries that are given."""
        if isinstance(entries, Entries):
            return entries
        rows = list(entries)

        def column(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
            return np.fromiter((getattr(entry, name) for entry in rows), dtype, len(rows))

        return cls(
            Names.of(entry.key for entry in rows),
            Names.of(entry.path for entry in rows),
            column("offset", np.int64),
            column("size", np.int64),
            column("duration_seconds", np.float64),
            column("rate_hz", np.float64),
            column("found", np.bool_),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(len(self))))
        row = range(len(self))[index]
        numbers = (column[row].item() for column in (self.offsets, self.sizes, self.durations, self.rates, self.found))
        return Entry(self.keys[row], self.paths[row], *numbers)

    def __iter__(self) -> Iterator[Entry]:
        columns = (self.offsets, self.sizes, self.durations, self.rates, self.found)
        return map(Entry, self.keys, self.paths, *(column.tolist() for column in columns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == others for mine, others in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entries({', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''}; {len(self)} in all)"


@dataclass(frozen=True)
class Manifest:
    """The readable files in a fixed order.

    Attributes:
        entries: one per clip.
        columns: further columns of a table as text, each with one cell per entry ("" where a source lacks the column).
        bad: files found to be unreadable, without entry.
    """

    entries: Sequence[Entry]
    columns: dict[str, list[str]] = field(default_factory=dict)
    bad: tuple[BadFile, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def num_files(self) -> int:
        """Good and bad files."""
        return len(self.entries) + len(self.bad)

    @property
    def keys(self) -> Sequence[str]:
        """Of all entries; no entry is made for it."""
        return self.entries.keys if isinstance(self.entries, Entries) else [entry.key for entry in self.entries]

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        """(n,) frames per second, of all entries; no entry is made for it."""
        if isinstance(self.entries, Entries):
            return self.entries.rates
        return np.fromiter((entry.rate_hz for entry in self.entries), np.float64, len(self.entries))

    @property
    def durations(self) -> npt.NDArray[np.float64]:
        """(n,) seconds, of all entries; no entry is made for it."""
        if isinstance(self.entries, Entries):
            return self.entries.durations
        return np.fromiter((entry.duration_seconds for entry in self.entries), np.float64, len(self.entries))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any entry's name or duration."""
        digest = hashlib.sha256()
        lines = (f"{key}\0{seconds}\n" for key, seconds in zip(self.keys, self.durations.tolist(), strict=True))
        while text := "".join(islice(lines, _LINES_AT_ONCE)):
            digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def with_whole_paths(manifest: Manifest) -> Manifest:
    """The manifest with the local paths of its entries made absolute, so that it can be used from any folder."""
    entries = Entries.of(manifest.entries)
    far = ("://", huggingface.PREFIX)
    if all(path.startswith("/") or far[0] in path or path.startswith(far[1]) for path in entries.paths):
        return manifest
    paths = (path if far[0] in path or path.startswith(far[1]) else os.path.abspath(path) for path in entries.paths)  # noqa: PTH100
    columns = (entries.offsets, entries.sizes, entries.durations, entries.rates, entries.found)
    return replace(manifest, entries=Entries(entries.keys, Names.of(paths), *columns))
