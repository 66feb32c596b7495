"""Decoded clips of small files in memory, so that they are decoded once only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info

from bridle.data.dataset import LoadedClip
from bridle.data.manifest import Entry


class ClipCache:
    """Clips by file, until ``gigabytes`` are full; which file comes first is as good as any other, so nothing is thrown out.

    Workers share the limit and hold their own part. A copy that is pickled begins empty. ``num_bytes`` are in it.
    """

    def __init__(self, gigabytes: float) -> None:
        self._gigabytes = gigabytes
        self._clips: dict[tuple[str, int], LoadedClip] = {}
        self.num_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_gigabytes": self._gigabytes, "_clips": {}, "num_bytes": 0}

    def takes(self, entry: Entry, num_bytes: int) -> bool:
        """Whether the entry's clip is in memory, or one of so many bytes would be kept."""
        return (entry.path, entry.offset) in self._clips or self.num_bytes + num_bytes <= self._limit()

    def get(self, entry: Entry, decode: Callable[[], LoadedClip]) -> LoadedClip:
        """The entry's clip, from memory or decoded; whoever gets it must not write into it."""
        name = (entry.path, entry.offset)  # keys of several sources may be equal
        clip = self._clips.get(name)
        if clip is None:
            clip = decode()
            size = clip.inputs.numel() * clip.inputs.element_size()
            if self.num_bytes + size <= self._limit():
                self._clips[name] = clip
                self.num_bytes += size
        return clip

    def _limit(self) -> float:
        worker = get_worker_info()
        return self._gigabytes * 1e9 / (worker.num_workers if worker is not None else 1)
