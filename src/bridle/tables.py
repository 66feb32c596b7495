"""Codes and embeddings of whole sound sets as parquet, for pandas, pyarrow, DuckDB and Hugging Face datasets.

``OUT/part-00000.parquet`` holds the rows of the first ``files_per_part`` files of the manifest, and so on: a row for each
window of ``crop_seconds`` of a file, in the order of the manifest. A part is written under another name and renamed, so
one that is there is whole; a call that was cut short is continued by calling again. The settings stand in the schema's
metadata under ``bridle`` as JSON. Unreadable files are listed in ``OUT/_quarantine.jsonl``; readers of parquet folders
pass over names that begin with an underscore.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bridle.data.loaders import content_settings
from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError, RunError
from bridle.files import as_utf8, explain_write_error, write_atomically
from bridle.inference import Model, Window
from bridle.nn.pooling import Pooling, check_pooling, pool, pooled_width
from bridle.run import clip_grid
from bridle.wording import count

QUARANTINE_NAME = "_quarantine.jsonl"
FILES_PER_PART = 1000
_SLAB_WINDOWS = 128  # kept in memory at once, and encoded in the order of their length, so that little is padding
_MAX_CODEBOOK_SIZE = 1 << 16  # codes are stored as uint16

Progress = Callable[[int], None]
"""Called now and then with the number of files that are done."""

Convert = Callable[[list[Entry], list[Window]], Any]
"""(entry of every window, windows) -> pyarrow.RecordBatch of a row each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the folder after a call.

    Attributes:
        num_rows: windows, over all parts.
        num_parts: parts.
        num_kept_parts: parts of an earlier call that were kept.
        bad: files that cannot be read; one that breaks off in the middle has rows up to there.
    """

    num_rows: int
    num_parts: int
    num_kept_parts: int
    bad: tuple[BadFile, ...]


def write_codes(
    model: Model, manifest: Manifest, out: Path, *, files_per_part: int = FILES_PER_PART, progress: Progress | None = None
) -> Written:
    """Write the codes of every file.

    Columns: ``key`` and ``path`` of the manifest's entry, ``start_seconds`` of the window, ``grid`` (time, height, width) of
    its N patches, ``codes`` (N lists of R uint16, in the order of the grid), ``fingerprint`` of the model.

    Args:
        model: with a tokenizer.
        manifest: the files.
        out: folder, created if missing; parts of an earlier call with the same model, files and settings are kept.
        files_per_part: files in a part, at least 1.
        progress: told about files that are done.

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

    return _write(model, manifest, out, schema, convert, files_per_part, progress)


def write_embeddings(
    model: Model,
    manifest: Manifest,
    out: Path,
    *,
    pooling: Pooling = "mean",
    layer: int | None = None,
    files_per_part: int = FILES_PER_PART,
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
        progress: told about files that are done.

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

    return _write(model, manifest, out, schema, convert, files_per_part, progress)


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


@dataclass(frozen=True, slots=True)
class _Part:
    num_rows: int
    bad: tuple[BadFile, ...]


def _write(
    model: Model,
    manifest: Manifest,
    out: Path,
    schema: Any,
    convert: Convert,
    files_per_part: int,
    progress: Progress | None,
) -> Written:
    if files_per_part < 1:
        raise ConfigError(f"files_per_part is {files_per_part}; it must be at least 1")
    settings = json.loads(schema.metadata[b"bridle"])
    settings |= {"files_per_part": files_per_part, "num_files": len(manifest), "files": manifest.fingerprint}
    schema = schema.with_metadata({"bridle": json.dumps(settings)})
    kept = _read_parts(out, settings)
    parts: list[_Part] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".tmp-*"):
            stale.unlink()
        for number, start in enumerate(range(0, len(manifest), files_per_part)):
            entries = manifest.entries[start : start + files_per_part]
            tell = _shifted(progress, start)
            part = kept.get(number) or _write_part(_part_path(out, number), model, entries, schema, convert, tell)
            tell(len(entries))
            parts.append(part)
        bad = (*manifest.bad, *(file for part in parts for file in part.bad))
        _write_quarantine(out / QUARANTINE_NAME, bad)
    except OSError as error:
        raise RunError(explain_write_error(error, out, "parquet parts")) from error
    num_rows = sum(part.num_rows for part in parts)
    if num_rows == 0:
        for number in range(len(parts)):
            _part_path(out, number).unlink()  # so that a call after the repair starts anew
        raise DataError(
            f"none of {count(len(manifest), 'file')} can be read; first: {bad[0].key} ({bad[0].reason}); check the files"
        )
    return Written(num_rows, len(parts), len(kept), bad)


def _write_part(path: Path, model: Model, entries: Sequence[Entry], schema: Any, convert: Convert, tell: Progress) -> _Part:
    bad: list[BadFile] = []
    num_rows = 0

    def create(target: Path) -> None:
        nonlocal num_rows
        windows = model.windows(entries, bad)
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            while slab := list(islice(windows, _SLAB_WINDOWS)):
                writer.write_batch(convert([entries[window.index] for window in slab], slab))
                num_rows += len(slab)
                tell(slab[-1].index)
            # With the rows in one file, so that they cannot disagree.
            writer.add_key_value_metadata({"bridle.bad": json.dumps([asdict(file) for file in bad])})

    write_atomically(path, create)
    return _Part(num_rows, tuple(bad))


def _read_parts(out: Path, settings: dict[str, Any]) -> dict[int, _Part]:
    """The parts that are there by number; one that is damaged counts as missing.

    Raises:
        RunError: a part of another model, other files or other settings.
    """
    found: dict[int, _Part] = {}
    for path in sorted(out.glob("part-*.parquet")):
        with contextlib.suppress(pa.ArrowException, OSError):
            footer = pq.read_metadata(path)
            texts = footer.metadata or {}
            _check_same(path, json.loads(texts.get(b"bridle", b"{}")), settings)
            bad = tuple(BadFile(**file) for file in json.loads(texts[b"bridle.bad"]))
            found[int(path.stem.removeprefix("part-"))] = _Part(footer.num_rows, bad)
    return found


def _check_same(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    remedy = "choose another --out, or remove that folder"
    if there.get("fingerprint") != wanted["fingerprint"]:
        raise RunError(
            f"{path} was written by another model, {there.get('fingerprint')}, not {wanted['fingerprint']}; {remedy}"
        )
    if there["files"] != wanted["files"]:
        raise RunError(f"{path} was written from other files; {remedy}")
    for name, value in wanted.items():
        if name == "bridle_version" or there.get(name) == value:
            continue
        raise RunError(f"{path} was written with {name}={there.get(name)}, not {value}; {remedy}")


def _part_path(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _write_quarantine(path: Path, bad: Sequence[BadFile]) -> None:
    if not bad:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in bad)
    write_atomically(path, "".join(lines).encode("utf-8", "surrogateescape"))


def _shifted(progress: Progress | None, start: int) -> Progress:
    return lambda done: progress(start + done) if progress is not None else None
