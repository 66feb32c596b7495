"""The classes of many files as a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, RunError
from bridle.files import as_utf8, explain_write_error, write_atomically
from bridle.inference import Model, Prediction, Window
from bridle.paths import TABLE_SUFFIXES, check_file
from bridle.wording import count

_SLAB_FILES = 256


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a table of predictions holds: its number of rows, and the files that have none because they cannot be read."""

    num_rows: int
    bad: tuple[BadFile, ...]


def write_predictions(
    model: Model, manifest: Manifest, out: Path, *, separator: str = ";", progress: Callable[[int], None] | None = None
) -> Predicted:
    """Write the classes of every file as ``.csv`` or ``.parquet``.

    Columns: ``key`` and ``path`` of the manifest's entry, ``prediction`` (the class; of several labels all that are present,
    joined by the separator), ``probability`` (of the most probable class), and ``p_NAME``, the probability of each class.

    Args:
        model: of a fine-tuned run.
        manifest: the files.
        out: the file; replaced as a whole when everything is done.
        separator: between several labels.
        progress: told about files that are done.

    Raises:
        RunError: the run is not fine-tuned, or the file cannot be written.
        ConfigError: the file's name ends otherwise, or its folder is not there or cannot be written to.
        DataError: no file can be read.
    """
    check_file(out, TABLE_SUFFIXES)
    finetune = model.config.finetune
    bad: list[BadFile] = list(manifest.bad)
    rows: list[tuple[Entry, Prediction]] = []
    entries = iter(manifest.entries)
    while slab := list(islice(entries, _SLAB_FILES)):
        rows += _predict(model, slab, bad)
        if progress is not None:
            progress(len(rows) + len(bad) - len(manifest.bad))
    if not rows:
        raise DataError(f"none of {count(len(bad), 'file')} can be read; first: {bad[0].key} ({bad[0].reason})")
    assert finetune is not None
    names = ["key", "path", "prediction", "probability", *(f"p_{name}" for name in finetune.classes)]
    table = (
        [entry.key, entry.path, separator.join(found.labels), float(found.probabilities.max()), *found.probabilities.tolist()]
        for entry, found in rows
    )
    try:
        write = _write_csv if out.suffix.lower() == ".csv" else _write_parquet
        write_atomically(out, lambda path: write(path, names, table))
    except OSError as error:
        raise RunError(explain_write_error(error, out.parent, out.name)) from error
    return Predicted(len(rows), tuple(bad))


def whole_files(model: Model, entries: Sequence[Entry], bad: list[BadFile]) -> dict[int, Tensor]:
    """Probabilities (C,) of the files that can be read to their end, by their place; the others are appended to ``bad``.

    Raises:
        RunError: the run is not fine-tuned.
    """
    broken: set[int] = set()

    def windows() -> Iterator[Window]:
        for index, entry in enumerate(entries):  # one by one, for keys need not be unique
            faults = len(bad)
            for window in model.windows([entry], bad):
                yield replace(window, index=index)
            if len(bad) > faults:
                broken.add(index)

    found = model.probabilities(windows()).finish()
    return {index: chances for index, chances in found.items() if index not in broken}


def _predict(model: Model, entries: list[Entry], bad: list[BadFile]) -> Iterator[tuple[Entry, Prediction]]:
    found = whole_files(model, entries, bad)
    finetune = model.config.finetune
    assert finetune is not None
    for index, chances in found.items():
        yield entries[index], Prediction(finetune.classes, chances, finetune.multi_label)


def _write_csv(path: Path, names: list[str], rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            writer.writerow(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)


def _write_parquet(path: Path, names: list[str], rows: Iterator[list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys, files, *columns = zip(*rows, strict=True)
    kinds = [*[pa.string()] * 3, *[pa.float32()] * (len(names) - 3)]
    texts = [[as_utf8(text) for text in column] for column in (keys, files)]
    arrays = [pa.array(column, kind) for column, kind in zip([*texts, *columns], kinds, strict=True)]
    pq.write_table(pa.table(arrays, names=names), path)
