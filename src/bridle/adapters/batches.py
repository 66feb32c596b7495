"""What mteb's loaders hold, as items of a :class:`~bridle.inference.Model`. Files are handed on undecoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch.utils.data import DataLoader, SequentialSampler

from bridle.data.medium import MediumName
from bridle.errors import DataError
from bridle.inference import Item

MODALITIES = ("text", "image", "audio", "video")
"""What mteb calls the columns of its batches."""


def items_of(inputs: DataLoader[Any], column: MediumName, sample_rate: int, folder: Path) -> Iterator[Item]:
    """The items of a loader in their order, one at a time.

    Args:
        inputs: a loader of mteb's, whose batches have lists under the names of ``MODALITIES``.
        column: the one to take.
        sample_rate: to which waveforms are brought, Hz.
        folder: where a file that the set holds as bytes lies from the moment its item is given until the next one is asked for.

    Raises:
        DataError: there is no such column, or a row of it is empty.
    """
    _check_column(column, getattr(inputs.dataset, "column_names", None) or [column])
    cells = _undecoded(inputs, column)
    for row, cell in enumerate(_decoded(inputs, column) if cells is None else cells):
        is_file = isinstance(cell, Mapping) and "bytes" in cell
        if cell is None or (is_file and cell["bytes"] is None and cell["path"] is None):
            raise DataError(f"row {row} has no {column}; leave it out of the task")
        if not is_file:
            yield _waveform(cell, sample_rate) if column == "audio" else cell
        elif cell["bytes"] is None:
            yield cell["path"]
        else:
            file = folder / f"row-{row}{Path(cell['path'] or '').suffix}"
            file.write_bytes(cell["bytes"])
            yield file
            file.unlink()


def _undecoded(inputs: DataLoader[Any], column: str) -> Iterable[Any] | None:
    """Files of the set behind a loader; None where the loader is anything but a plain pass over a set that has files."""
    import datasets  # type: ignore[import-untyped, unused-ignore]

    data = inputs.dataset
    if not isinstance(data, datasets.Dataset) or not isinstance(inputs.sampler, SequentialSampler):
        return None
    feature = data.features.get(column)
    if data.format["type"] is not None or not isinstance(feature, datasets.Audio | datasets.Image | datasets.Video):
        return None
    files = data.select_columns([column]).cast_column(column, dataclasses.replace(feature, decode=False))
    return (row[column] for row in files)


def _decoded(inputs: DataLoader[Any], column: str) -> Iterator[Any]:
    for batch in inputs:
        _check_column(column, batch)
        yield from batch[column]


def _check_column(column: str, present: Collection[str]) -> None:
    if column not in present:
        others = [name for name in MODALITIES if name in present] or sorted(present)
        raise DataError(f"the task gives {' and '.join(others)}, and this run encodes {column}; choose tasks of {column}")


def _waveform(cell: Any, sample_rate: int) -> Item:
    """Mono at the rate, from an array (S,) or (channels, S) and its rate; what is anything else the model refuses."""
    try:
        samples, rate = np.asarray(cell["array"]), int(cell["sampling_rate"])
    except (TypeError, KeyError):
        return cell
    if samples.ndim > 1:
        samples = samples.mean(axis=0)
    if rate != sample_rate and samples.size:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(samples))
