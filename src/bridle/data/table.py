"""Tables of files: CSV and parquet, every cell as text."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridle.errors import DataError

DURATION_COLUMN = "duration_seconds"

Row = tuple[str, dict[str, str]]
"""Where a row stands, for messages, and its cells by column."""


def read_table(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Names of the columns, and the rows, of a ``.csv`` or ``.parquet`` file.

    Raises:
        DataError: it is malformed.
    """
    return _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)


def _csv_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a UTF-8 comma-separated table: {error}; save it as CSV in UTF-8") from error
    if not lines:
        raise DataError(f"{path} is empty; its first line must name the columns")
    names = lines[0][1]
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise DataError(f"{path} line {number} has {len(cells)} cells for {len(names)} columns; quote cells with commas")
    padded = ((f"{path} line {number}", cells + [""] * (len(names) - len(cells))) for number, cells in lines[1:])
    return names, ((where, dict(zip(names, cells, strict=True))) for where, cells in padded)


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    # Heavy, and only parquet tables need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        # Nested and binary columns (sound inside the table, vectors) have no place in a table of text.
        skipped = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
        names = [column.name for column in file.schema_arrow if not any(test(column.type) for test in skipped)]
        values = file.read(columns=names).to_pydict()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable parquet table: {str(error).splitlines()[0]}") from error
    texts = [["" if value is None else str(value) for value in values[name]] for name in names]
    rows = zip(*texts, strict=True)
    return names, ((f"{path} row {i}", dict(zip(names, cells, strict=True))) for i, cells in enumerate(rows))


def choose_column(path: Path, names: Sequence[str], path_column: str | None, usual: Sequence[str]) -> str:
    """The column of paths: ``path_column``, or the first of the ``usual`` ones that the table has.

    Raises:
        DataError: it has none of them.
    """
    wanted = usual if path_column is None else (path_column,)
    for name in wanted:
        if name in names:
            return name
    there = f"its columns are {', '.join(names)}" if names else "it has no columns of text"
    if path_column is None:
        raise DataError(
            f"{path} has none of the path columns {', '.join(wanted)}; {there}: name the column of paths (path_column, --path)"
        )
    near = difflib.get_close_matches(path_column, names, n=1, cutoff=0.0)
    raise DataError(f"{path} has no column '{path_column}'; {there}" + (f"; did you mean '{near[0]}'?" if near else ""))


def read_duration(text: str, where: str) -> float:
    """Seconds of a cell of the column :data:`DURATION_COLUMN`; 0 of an empty one.

    Raises:
        DataError: it is no time.
    """
    try:
        seconds = float(text) if text.strip() else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{where}: {DURATION_COLUMN} is {text!r}; it must be seconds, or empty to read the file's header")
    return seconds
