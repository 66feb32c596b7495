"""Columns of a manifest as arrow arrays, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bridle.data.entries import Names


def name_array(names: Names) -> Any:
    """A column of names: of text where all of them are UTF-8, for other readers, else of bytes."""
    ends, block = pa.py_buffer(names.ends), pa.py_buffer(names.block)
    array = pa.Array.from_buffers(pa.large_binary(), len(names), [None, ends, block])
    try:
        return array.cast(pa.large_string())
    except pa.ArrowInvalid:
        return array


def cell_array(cells: Sequence[str]) -> Any:
    """A column of any texts: of bytes where one has surrogates, as JSON beside a file may."""
    try:
        return pa.array(cells, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([cell.encode("utf-8", "surrogatepass") for cell in cells], pa.large_binary())


def whole(column: Any) -> Any:
    """A column in one piece. Raises ValueError when it has empty cells."""
    if column.null_count:
        raise ValueError(f"a column has {column.null_count} empty cells")
    return column.combine_chunks()


def _is_text(array: Any) -> bool:
    return bool(pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type))


def read_names(array: Any) -> Names:
    """Names from a column. Raises TypeError when it is of anything but text or bytes."""
    if not _is_text(array):
        raise TypeError(f"a column of {array.type} instead of text")
    _, ends, block = array.buffers()
    if len(array) == 0:
        return Names(b"", np.zeros(1, np.int64))
    offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    return Names(block.slice(offsets[0], offsets[-1] - offsets[0]).to_pybytes() if block else b"", offsets - offsets[0])


def read_cells(array: Any) -> list[str]:
    """Texts from a column, equal ones one object. Raises ValueError for bytes that :func:`cell_array` does not write."""
    coded = array.dictionary_encode()
    values = [bytes(value).decode("utf-8", "surrogatepass") for value in coded.dictionary.cast(pa.large_binary()).to_pylist()]
    return [values[code] for code in coded.indices.to_numpy().tolist()]


class Digest:
    """Of a header and the columns behind it: of what they hold, not of how parquet packs it."""

    def __init__(self, header: bytes) -> None:
        self._digest = hashlib.sha256(header)

    def add(self, column: Any) -> None:
        """Go on with a column."""
        self._digest.update(f"\0{column.type} {len(column)}\0".encode())
        if _is_text(column):
            names = read_names(column)
            self._digest.update(np.ascontiguousarray(names.ends).data)
            self._digest.update(names.block)
        else:
            self._digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).data)

    @property
    def text(self) -> str:
        """64 hexadecimal digits."""
        return self._digest.hexdigest()
