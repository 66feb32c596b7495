"""Pickles of plain values and arrays of bytes, read without running anything they name.

A pickle is a program that may call any function of any library. Here the only names that it may use are the three of numpy by
which an array is pickled, and what stands behind them are classes of this file that hold data; nothing of numpy is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.errors import DataError

MAX_BYTES = 1 << 30
_BYTES = ("u1", "|u1", b"u1", b"|u1")


class _Type:
    """Stands for ``numpy.dtype(name, align, copy)``."""

    def __init__(self, name: Any = None, *rest: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, of which a byte has none."""


class _Array:
    """Stands for ``numpy.ndarray``; its state is (version, shape, dtype, Fortran order, bytes)."""

    values: NDArray[np.uint8]

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or kind.name not in _BYTES:
            raise pickle.UnpicklingError("an array is not of bytes")
        if isinstance(content, str):
            content = content.encode("latin1")
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array holds no bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(tuple(shape), order="F" if is_fortran else "C")


def _reconstruct(kind: Any, *rest: Any) -> _Array:
    """Stands for ``numpy.core.multiarray._reconstruct``, which makes an empty array whose state follows."""
    return _Array()


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # since numpy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no array of bytes needs")
        return known


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled mapping of texts to numbers, texts, lists and arrays of bytes; also one that Python 2 wrote.

    Texts of Python 2 come as bytes, arrays as numpy arrays of uint8.

    Raises:
        DataError: the file is missing, larger than ``MAX_BYTES``, no such pickle, or one that names anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes; the limit is {MAX_BYTES}: is it a file of the published set?"
            )
        with path.open("rb") as stream:
            found = _Unpickler(stream, encoding="bytes").load()
        if not isinstance(found, dict):
            raise DataError(f"{path} holds a {type(found).__name__}, not a mapping: is it a file of the published set?")
        return {_text(key): value.values if isinstance(value, _Array) else value for key, value in found.items()}
    except DataError:
        raise
    except Exception as error:  # a broken pickle raises whatever its broken program leads to
        raise DataError(f"{path} is no pickle of plain values and arrays of bytes: {error}; it was not read") from error


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
