"""Decoded clips of small files in memory, and in a folder when one is named, so that they are decoded once only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import get_worker_info

from bridle.data.dataset import LoadedClip
from bridle.data.manifest import Entry
from bridle.errors import ConfigError
from bridle.files import explain_write_error, write_atomically

CACHE_VERSION = 1
"""Of what decoding gives; raised when it comes to give something else for the same settings."""

_log = logging.getLogger(__name__)


class ClipCache:
    """Clips by file, until ``gigabytes`` are full; which file comes first is as good as any other, so nothing is thrown out.

    Workers share the limit and hold their own part. A copy that is pickled begins empty. ``num_bytes`` are in it.

    With a folder, a clip that is not in memory is looked for there, ``FOLDER/ab/cdef....safetensors``, and written there once
    it was decoded, by all processes and runs that name the folder. Its name is a digest of ``settings`` and of the file's path,
    place in its tar, size and time of change: other settings or a changed file find nothing.

    Args:
        gigabytes: of memory.
        folder: for files; "" for none.
        settings: all that decoding depends on, as JSON holds it.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, gigabytes: float, folder: str = "", settings: Mapping[str, Any] | None = None) -> None:
        self._gigabytes = gigabytes
        self._folder = Path(folder) if folder else None
        self._settings = json.dumps(settings, sort_keys=True)
        self._clips: dict[tuple[str, int], LoadedClip] = {}
        self.num_bytes = 0
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(explain_write_error(error, self._folder, "decoded clips")) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_clips": {}, "num_bytes": 0}

    def takes(self, entry: Entry, num_bytes: int) -> bool:
        """Whether the entry's clip is in memory, or one of so many bytes would be kept."""
        kept = (entry.path, entry.offset) in self._clips or self._folder is not None
        return kept or self.num_bytes + num_bytes <= self._limit()

    def get(self, entry: Entry, decode: Callable[[], LoadedClip]) -> LoadedClip:
        """The entry's clip, kept or decoded; whoever gets it must not write into it."""
        name = (entry.path, entry.offset)  # keys of several sources may be equal
        clip = self._clips.get(name)
        if clip is None:
            clip = decode() if self._folder is None else self._from_folder(self._folder, entry, decode)
            size = clip.inputs.numel() * clip.inputs.element_size()
            if self.num_bytes + size <= self._limit():
                self._clips[name] = clip
                self.num_bytes += size
        return clip

    def _from_folder(self, folder: Path, entry: Entry, decode: Callable[[], LoadedClip]) -> LoadedClip:
        digest = hashlib.sha256(f"{self._settings}\0{file_identity(entry)}".encode("utf-8", "surrogateescape")).hexdigest()
        path = folder / digest[:2] / f"{digest[2:32]}.safetensors"
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # not there, or half of a disk's memory of it
            clip = decode()
        header = {"start_seconds": repr(clip.start_seconds), "aspect": repr(clip.aspect), "crc32": str(_checksum(clip))}
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, save({"inputs": clip.inputs.contiguous()}, header))
        except OSError as error:
            self._folder = None  # training does not need it
            _log.warning("%s; clips are decoded again each time", explain_write_error(error, folder, "decoded clips"))
        return clip

    def _limit(self) -> float:
        worker = get_worker_info()
        return self._gigabytes * 1e9 / (worker.num_workers if worker is not None else 1)


def file_identity(entry: Entry) -> str:
    """Changes with the file behind an entry, as far as that can be seen without reading it."""
    changed = ""
    if os.path.isfile(entry.path):  # noqa: PTH113 - asked for every clip
        known = os.stat(entry.path)  # noqa: PTH116
        changed = f"{known.st_size}\0{known.st_mtime_ns}"
    return f"{os.path.abspath(entry.path)}\0{entry.offset}\0{entry.size}\0{entry.duration_seconds}\0{changed}"  # noqa: PTH100


def _read(path: Path) -> LoadedClip:
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        inputs = file.get_tensor("inputs").clone()
    clip = LoadedClip(inputs, float(header["start_seconds"]), float(header["aspect"]))
    if _checksum(clip) != int(header["crc32"]):
        raise ValueError("the file has changed since it was written")
    return clip


def _checksum(clip: LoadedClip) -> int:
    content = zlib.crc32(clip.inputs.contiguous().view(torch.uint8).numpy().tobytes())
    return zlib.crc32(f"{clip.start_seconds!r} {clip.aspect!r}".encode(), content)
