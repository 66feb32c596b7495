"""Codes and embeddings of whole sound sets as parquet, for pandas, pyarrow, DuckDB and Hugging Face datasets.

A row for each window of ``crop_seconds`` of a file, in the order of the manifest. :mod:`bridle.parquet` says how they lie in
a folder, and how many processes write it. The settings stand in the schema's metadata under ``bridle`` as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch

from bridle.data.loaders import content_settings
from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError
from bridle.files import as_utf8
from bridle.inference import Model, Window
from bridle.nn.pooling import Pooling, check_pooling, pool, pooled_width
from bridle.parquet import FILES_PER_PART, WHOLE, PartFolder, Progress, Shard, Written
from bridle.run import clip_grid

_SLAB_WINDOWS = 128  # kept in memory at once, and encoded in the order of their length, so that little is padding
_MAX_CODEBOOK_SIZE = 1 << 16  # codes are stored as uint16

Convert = Callable[[list[Entry], list[Window]], Any]
"""(entry of every window, windows) -> pyarrow.RecordBatch of a row each."""

T = TypeVar("T")


def write_codes(
    model: Model,
    manifest: Manifest,
    out: Path,
    *,
    files_per_part: int = FILES_PER_PART,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> Written:
    """Write the codes of every file.

    Columns: ``key`` and ``path`` of the manifest's entry, ``start_seconds`` of the window, ``grid`` (time, height, width) of
    its N patches, ``codes`` (N lists of R uint16, in the order of the grid), ``fingerprint`` of the model.

    Args:
        model: with a tokenizer.
        manifest: the files.
        out: folder, created if missing; parts of an earlier call with the same model, files and settings are kept.
        files_per_part: files in a part, at least 1.
        shard: the parts to write.
        progress: told about files of the shard that are done.

    Raises:
        RunError: the model has no tokenizer, ``out`` holds parts of something else, or it cannot be written.
        DataError: no file can be read.
        ConfigError: ``files_per_part`` is below 1, or K is above 65536.
    """
    quantizer = model.tokenizer.quantizer.config
    levels, size = quantizer.num_codebooks, quantizer.codebook_size
    if size > _MAX_CODEBOOK_SIZE:
        raise ConfigError(f"codebook_size is {size}; codes are stored as uint16, which holds {_MAX_CODEBOOK_SIZE}")
    code, grid = pa.list_(pa.uint16(), levels), pa.list_(pa.int32(), 3)
    settings = {"kind": "codes", "num_codebooks": levels, "codebook_size": size}
    schema = _schema(model, settings, [("grid", grid), ("codes", pa.list_(code))])

    def convert(entries: list[Entry], windows: list[Window]) -> Any:
        found = _encode_by_length(windows, lambda group: (codes for _, codes in model.encode_codes(group)))
        flat = pa.array(torch.cat([codes.codes for codes in found]).flatten().numpy().astype("uint16"))
        ends = torch.tensor([0, *(len(codes.codes) for codes in found)]).cumsum(0).to(torch.int32)
        rows = pa.ListArray.from_arrays(pa.array(ends.numpy()), pa.FixedSizeListArray.from_arrays(flat, levels))
        grids = pa.array([codes.grid.shape for codes in found], grid)
        return _record_batch(schema, model, entries, windows, [grids, rows])

    return _write(model, PartFolder(out, manifest, schema, files_per_part), convert, shard, progress)


def write_embeddings(
    model: Model,
    manifest: Manifest,
    out: Path,
    *,
    pooling: Pooling = "mean",
    layer: int | None = None,
    files_per_part: int = FILES_PER_PART,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> Written:
    """Write an embedding of every window of every file; a file of at most ``crop_seconds`` has one, that of ``model.embed``.

    Columns: ``key`` and ``path`` of the manifest's entry, ``start_seconds`` of the window, ``embedding`` (float32, as long as
    that of ``model.embed``), ``fingerprint`` of the model.

    Args:
        model: any.
        manifest: the files.
        out: folder, as for :func:`write_codes`.
        pooling: as for ``model.embed``.
        layer: as for ``model.embed``.
        files_per_part: files in a part, at least 1.
        shard: the parts to write.
        progress: told about files of the shard that are done.

    Raises:
        RunError: ``out`` holds parts of something else, or it cannot be written.
        DataError: no file can be read.
        ConfigError: ``files_per_part`` is below 1, or there is no such layer or pooling.
    """
    check_pooling(pooling, model.config.medium.timed)
    width = pooled_width(model.width, clip_grid(model.config), pooling)
    chosen = model.depth if layer is None else layer
    schema = _schema(
        model, {"kind": "embeddings", "pooling": pooling, "layer": chosen}, [("embedding", pa.list_(pa.float32(), width))]
    )

    def vectors(windows: list[Window]) -> Iterator[torch.Tensor]:
        for encoded in model.encode(windows, layers=(chosen,)):
            yield from pool(encoded.layers[0], encoded.grid, encoded.steps, pooling).cpu()

    def convert(entries: list[Entry], windows: list[Window]) -> Any:
        flat = torch.cat(_encode_by_length(windows, vectors)).numpy()
        rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
        return _record_batch(schema, model, entries, windows, [rows])

    return _write(model, PartFolder(out, manifest, schema, files_per_part), convert, shard, progress)


def _schema(model: Model, settings: dict[str, Any], columns: list[tuple[str, Any]]) -> Any:
    config = model.config
    first = [("key", pa.string()), ("path", pa.string()), ("start_seconds", pa.float64())]
    fields = [*first, *columns, ("fingerprint", pa.string())]
    described = {
        **settings,
        "columns": [name for name, _ in fields],
        "fingerprint": model.fingerprint,
        "bridle_version": _version(),
        "medium": config.medium.name,
        "clips": content_settings(config.clips),
        "patch": list(config.encoder.patch),
        "grid": list(clip_grid(config).shape),
    }
    return pa.schema(fields, metadata={"bridle": json.dumps(described)})


def _version() -> str:
    try:
        return metadata.version("bridle")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def _record_batch(schema: Any, model: Model, entries: list[Entry], windows: list[Window], columns: list[Any]) -> Any:
    starts = pa.array([window.start_seconds for window in windows], pa.float64())
    fingerprints = pa.array([model.fingerprint] * len(windows), pa.string())
    keys, paths = (_texts(names) for names in zip(*((entry.key, entry.path) for entry in entries), strict=True))
    return pa.record_batch([keys, paths, starts, *columns, fingerprints], schema=schema)


def _texts(names: Sequence[str]) -> Any:
    """A column; a name that is not UTF-8 gets replacement characters, for text columns hold nothing else."""
    return pa.array([as_utf8(name) for name in names], pa.string())


def _encode_by_length(windows: list[Window], encode: Callable[[list[Window]], Iterable[T]]) -> list[T]:
    """``encode(windows)``, computed from short to long."""
    order = sorted(range(len(windows)), key=lambda i: windows[i].inputs.shape[1])
    found = dict(zip(order, encode([windows[i] for i in order]), strict=True))
    return [found[i] for i in range(len(windows))]


def _write(model: Model, folder: PartFolder, convert: Convert, shard: Shard, progress: Progress | None) -> Written:
    def rows(entries: Sequence[Entry], bad: list[BadFile]) -> Iterator[tuple[int, Any]]:
        windows = model.windows(entries, bad)
        while slab := list(islice(windows, _SLAB_WINDOWS)):
            yield slab[-1].index, convert([entries[window.index] for window in slab], slab)

    return folder.write(shard, rows, progress)
