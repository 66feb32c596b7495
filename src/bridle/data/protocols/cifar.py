"""CIFAR-10 and CIFAR-100 (A. Krizhevsky 2009), python version: pickled batches, written once as a tar of BMPs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.data.manifest import Entry
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing
from bridle.data.protocols.pickles import read_pickle
from bridle.data.shards import list_members
from bridle.errors import DataError
from bridle.files import explain_write_error, write_atomically

_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Batches:
    """The files of one of the two sets.

    Attributes:
        train: batches of training pictures.
        test: batches of test pictures.
        meta: file with the classes' names.
        labels: key of a batch with class numbers, and key of ``meta`` with their names, by column.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: dict[str, tuple[str, str]]


CIFAR10 = Batches(
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
    "batches.meta",
    {"label": ("labels", "label_names")},
)
CIFAR100 = Batches(
    ("train",),
    ("test",),
    "meta",
    {"fine": ("fine_labels", "fine_label_names"), "coarse": ("coarse_labels", "coarse_label_names")},
)


def read_cifar(request: Request, *, batches: Batches) -> Listing:
    """The pictures as members of a tar that is written at the first use.

    Columns: ``split`` (train, test) and those of ``batches.labels``. The tar's members are
    ``SPLIT/LABEL[/LABEL]/BATCH-00000.bmp``; its name holds a digest of the batches.

    Raises:
        DataError: a batch is missing, malformed or names anything but arrays of bytes, or the tar cannot be written.
    """
    root = request.root(batches.meta)
    names = (batches.meta, *batches.train, *batches.test)
    paths = {name: request.file(root, name) for name in names}
    digest = hashlib.sha256()
    for name, path in paths.items():
        digest.update(f"{name}\0".encode() + path.read_bytes())
    cache = request.cache_folder(root)
    tar = cache / f"pictures-{digest.hexdigest()[:16]}.tar"
    if not tar.is_file():
        try:
            write_atomically(tar, lambda target: _write_tar(paths, batches, target))
        except OSError as error:
            raise DataError(explain_write_error(error, cache, tar.name)) from error
    listing = Listing()
    for member in list_members(tar):
        split, *labels, _ = member.name.split("/")
        cells = {"split": split, **dict(zip(batches.labels, labels, strict=True))}
        listing.add(Entry(member.name, str(tar), member.offset, member.size), cells)
    return listing


def _write_tar(paths: dict[str, Path], batches: Batches, target: Path) -> None:
    from PIL import Image

    meta = read_pickle(paths[batches.meta])
    classes = [_texts(meta.get(key), paths[batches.meta], key) for _, key in batches.labels.values()]
    with tarfile.open(target, "w") as tar:
        for split, names in (("train", batches.train), ("test", batches.test)):
            for name in names:
                batch = read_pickle(paths[name])
                pictures = _pictures(batch, paths[name])
                keys = [key for key, _ in batches.labels.values()]
                columns = [
                    _labels(batch.get(key), known, paths[name], len(pictures)) for key, known in zip(keys, classes, strict=True)
                ]
                for number, picture in enumerate(pictures):
                    place = "/".join(column[number] for column in columns)
                    stream = io.BytesIO()
                    Image.fromarray(picture).save(stream, "BMP")  # as PNG it would take ten times as long
                    member = tarfile.TarInfo(f"{split}/{place}/{name}-{number:05d}.bmp")
                    member.size = stream.tell()
                    stream.seek(0)
                    tar.addfile(member, stream)


def _pictures(batch: dict[str, Any], path: Path) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) of the batch's rows: all red values, then green, then blue."""
    data = batch.get("data")
    width = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width:
        shape = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: 'data' is {shape}; it must be (pictures, {width}) bytes: is it a batch of the published set?")
    return np.ascontiguousarray(data.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1))


def _texts(values: Any, path: Path, key: str) -> list[str]:
    if not isinstance(values, list) or not values:
        raise DataError(f"{path} has no list '{key}': is it a file of the published set?")
    texts = [value.decode("latin1") if isinstance(value, bytes) else str(value) for value in values]
    bad = next((text for text in texts if not text or set(text) & set("/\\\0") or text.startswith(".")), None)
    if bad is not None:
        raise DataError(f"{path}: '{bad}' is no name of a class: is it a file of the published set?")
    return texts


def _labels(values: Any, classes: Sequence[str], path: Path, num: int) -> list[str]:
    if not isinstance(values, list) or len(values) != num or not all(type(value) is int for value in values):
        raise DataError(f"{path} has not one class number for each of its {num} pictures: is it a batch of the published set?")
    bad = next((value for value in values if not 0 <= value < len(classes)), None)
    if bad is not None:
        raise DataError(f"{path} has class number {bad}; there are {len(classes)} classes, from 0")
    return [classes[value] for value in values]
