"""Sets of the ``datasets`` library as a source: ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIGURATION:SPLIT``.

NAME may be a folder: one that ``save_to_disk`` wrote, or whatever ``load_dataset`` reads, such as a copy of a repository.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from bridle.errors import ConfigError, DataError

PREFIX = "hf:"
_FEATURES = {"audio": "Audio", "image": "Image", "video": "Video"}
_ERROR_CHARACTERS = 300
_WORD = r"[^:/\\\[\]+]+"
_SPLIT = rf"{_WORD}(?:\[[^\]]*\])?"  # a slice, train[:100], or a sum of them
_BEHIND = rf"(?:(?::(?P<configuration>{_WORD}))?:(?P<split>{_SPLIT}(?:\+{_SPLIT})*))?"
_SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk writes


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a set: a readable name, the path that :func:`open_row` takes, and its further columns as text."""

    name: str
    path: str
    number: int
    cells: dict[str, str]


def is_set(source: str) -> bool:
    """True for a source or path of this kind."""
    return source.startswith(PREFIX) and not source.startswith(f"{PREFIX}//")  # which is a URL


def list_rows(source: str, medium: str) -> Iterator[Row]:
    """Every row of a set; classes by their names.

    Raises:
        DataError: there is no such set, it has several splits and none is named, or no column of the medium.
        ConfigError: the library is not installed.
    """
    data = _open(source)
    column = next((name for name, feature in data.features.items() if type(feature).__name__ == _FEATURES[medium]), None)
    if column is None:
        raise DataError(f"{source} has no column of type {_FEATURES[medium]}; its columns are {', '.join(data.features)}")
    scalars = {name: feature for name, feature in data.features.items() if type(feature).__name__ in ("Value", "ClassLabel")}
    further = data.select_columns(list(scalars)) if scalars else None
    for number in range(len(data)):
        values = further[number] if further is not None else {}
        cells = {name: _text(scalars[name], value) for name, value in values.items()}
        yield Row(f"{source}/{number}", f"{source}#{column}", number, cells)


def open_row(path: str, number: int) -> BinaryIO:
    """The file of a row. Sets stay open and are read by memory map, so this is cheap.

    Args:
        path: of :class:`Row`.
        number: of the row.

    Raises:
        OSError: the set or the file is gone, or the row holds none.
    """
    source, _, column = path.rpartition("#")
    try:
        cell = _open_column(source, column)[number][column]
    except DataError as error:
        raise OSError(str(error)) from error
    if cell is None or (cell.get("bytes") is None and cell.get("path") is None):
        raise OSError("the row holds no file")
    return io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else Path(cell["path"]).open("rb")


@lru_cache(maxsize=8)
def _open_column(source: str, column: str) -> Any:
    return _open(source).select_columns([column])


@lru_cache(maxsize=8)
def _open(source: str) -> Any:
    """The set, its files undecoded."""
    try:
        import datasets  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ConfigError(f"{source} needs the datasets library: pip install 'bridle[datasets]'") from error
    place, configuration, split = _parts(source.removeprefix(PREFIX))
    datasets.disable_progress_bars()
    is_saved = any((Path(place) / name).is_file() for name in _SAVED)
    if is_saved and configuration is not None:
        raise DataError(f"{source} names a configuration, '{configuration}', which a set written by save_to_disk has not")
    try:
        found = datasets.load_from_disk(place) if is_saved else datasets.load_dataset(place, configuration, split=split)
    except Exception as error:  # the library raises errors of a dozen others, for a dozen reasons
        shown = " ".join(str(error).split())[:_ERROR_CHARACTERS] or type(error).__name__
        hint = f"; write {PREFIX}{place}:CONFIGURATION:SPLIT" if "config name is missing" in shown.lower() else ""
        raise DataError(f"{source} cannot be opened: {shown}{hint}") from error
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            named = f"{place}:{configuration}" if configuration else place
            raise DataError(
                f"{source} has the splits {', '.join(found)}; name one, such as {PREFIX}{named}:{next(iter(found))}"
                + ("; slices of it are not read from a set written by save_to_disk" if split and "[" in split else "")
            )
        found = found[split]
    elif is_saved and split is not None and split != str(found.split):
        raise DataError(f"{source} is a single set, not one of several splits: leave ':{split}' out")
    for name, feature in found.features.items():
        if type(feature).__name__ in _FEATURES.values():
            found = found.cast_column(name, type(feature)(decode=False))
    return found


def _parts(text: str) -> tuple[str, str | None, str | None]:
    """Name or folder, configuration and split. A folder that is there may hold colons."""
    ends = [len(text), *(place for place in range(len(text) - 1, 0, -1) if text[place] == ":")]
    folder = next((text[:end] for end in ends if Path(text[:end]).is_dir()), None)
    match = re.fullmatch(rf"(?P<place>{'.*?' if folder is None else re.escape(folder)}){_BEHIND}", text, re.DOTALL)
    return (match["place"], match["configuration"], match["split"]) if match is not None else (text, None, None)


def _text(feature: Any, value: Any) -> str:
    if value is None:
        return ""
    return str(feature.int2str(value)) if hasattr(feature, "int2str") and isinstance(value, int) and value >= 0 else str(value)
