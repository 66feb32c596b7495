"""The files: headers of all of them, a real decode of some, and copies."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bridle.data.huggingface import is_set
from bridle.data.manifest import Entry, Manifest, files_like, read_manifest
from bridle.data.medium import AUDIO, MEDIA, Info, Medium, MediumName
from bridle.data.quarantine import BadFile
from bridle.doctor.content import Content, examine_content
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.randomness import permutation

HEAD_BYTES = 1 << 16
_NUM_THREADS = 8
_SLAB_FILES = 2_000  # bounds the pending work of the threads

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, the files done and their number."""

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found.

    Attributes:
        manifest: files whose header is readable, with durations; ``bad`` has those whose header is not.
        infos: their headers, one per entry.
        num_bytes: size of all files that could be opened.
        num_copies: files whose size and first 64 KiB another file has too, beyond the first of each.
        num_decoded: files of the sample that was decoded.
        undecodable: files of the sample that break when they are decoded.
        blank: files of the sample that hold silence, or pixels of one colour.
        cut_short: files of the sample that hold less than their header says.
    """

    manifest: Manifest
    infos: tuple[Info, ...]
    num_bytes: int
    num_copies: int
    num_decoded: int
    undecodable: tuple[BadFile, ...]
    blank: tuple[str, ...]
    cut_short: tuple[str, ...]

    @property
    def bad(self) -> tuple[BadFile, ...]:
        """All files known to be unreadable."""
        return (*self.manifest.bad, *self.undecodable)

    @property
    def readable(self) -> tuple[tuple[Entry, Info], ...]:
        """The other files with their headers."""
        broken = {file.key for file in self.undecodable}
        pairs = zip(self.manifest.entries, self.infos, strict=True)
        return tuple((entry, info) for entry, info in pairs if entry.key not in broken)


def scan_files(
    sources: Sequence[str | Path] | Manifest,
    medium: Medium = AUDIO,
    *,
    path_column: str | None = None,
    num_decoded: int | None = 200,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Scan:
    """Read every header and decode a random sample.

    Args:
        sources: as for :func:`~bridle.data.manifest.read_manifest`, or what it gave.
        medium: what is looked for.
        path_column: of tables, as for ``read_manifest``.
        num_decoded: files to decode, drawn at random; None for all. Of long ones only parts are decoded.
        seed: of the draw.
        on_progress: told about progress.

    Raises:
        DataError: as ``read_manifest``; or no header is readable.
        ConfigError: ``num_decoded`` is negative.
    """
    if num_decoded is not None and num_decoded < 0:
        raise ConfigError(f"num_decoded is {num_decoded}; it must be at least 0")
    tell = on_progress or (lambda stage, done, total: None)
    listed = sources
    if not isinstance(listed, Manifest):
        listed = read_manifest(list(listed), medium, path_column=path_column, probe=False)
    entries, heads, bad = [], [], list(listed.bad)
    for entry, head in zip(
        listed.entries, _parallel(lambda entry: _read_head(entry, medium), listed.entries, "reading headers", tell), strict=True
    ):
        if isinstance(head, BadFile) and entry.found and medium.passes_over(head):
            continue
        if isinstance(head, BadFile):
            bad.append(head)
        else:
            entries.append(entry.with_info(head.info))
            heads.append(head)
    if not entries:
        if not bad:
            raise DataError(
                f"none of {len(listed.entries)} files holds {medium.name}: {medium.absent}; name a folder of {medium.nouns}"
            )
        first = f"{bad[0].key} ({bad[0].reason})"
        none = (
            f"none of {len(bad)} files is readable; first: {first}"
            if len(bad) > 1
            else f"the one file is not readable: {first}"
        )
        raise DataError(f"{none}; check the files")
    rows = permutation(len(entries), seed, "doctor")[:num_decoded].tolist()
    sample = [(entries[row], heads[row].info) for row in sorted(rows)]
    decoded = list(_parallel(lambda pair: examine_content(*pair), sample, "decoding", tell))
    good = [(entry.key, result) for (entry, _), result in zip(sample, decoded, strict=True) if isinstance(result, Content)]
    copies = Counter((head.size, head.digest) for head in heads)
    return Scan(
        manifest=Manifest(tuple(entries), bad=tuple(bad)),
        infos=tuple(head.info for head in heads),
        num_bytes=sum(head.size for head in heads),
        num_copies=len(heads) - len(copies),
        num_decoded=len(sample),
        undecodable=tuple(result for result in decoded if isinstance(result, BadFile)),
        blank=tuple(key for key, result in good if result.blank),
        cut_short=tuple(key for key, result in good if result.cut_short),
    )


def other_media(
    sources: Sequence[str | Path], scan: Scan, medium: Medium, path_column: str | None = None
) -> dict[MediumName, int]:
    """Files of the sources that are called like those of other media and are not among the scanned ones, by medium."""
    known = {(entry.path, entry.offset) for entry in scan.manifest.entries}
    bad = {file.key for file in scan.manifest.bad}
    found: dict[MediumName, int] = {}
    for other in MEDIA.values():
        if other is not medium and not any(is_set(str(source)) for source in sources):
            left = [entry for entry in files_like(other, sources, path_column) if (entry.path, entry.offset) not in known]
            found[other.name] = sum(entry.key not in bad for entry in left)
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, slots=True)
class _Head:
    info: Info
    size: int
    digest: bytes


def _read_head(entry: Entry, medium: Medium) -> _Head | BadFile:
    try:
        with entry.opened() as source:
            info = medium.probe(source, entry.key)
            if isinstance(source, str):
                with Path(source).open("rb") as file:
                    head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
            else:
                size = source.seek(0, os.SEEK_END)  # the entry of a row does not tell
                source.seek(0)
                head = source.read(HEAD_BYTES)
    except (DecodeError, OSError) as error:
        return BadFile.of(entry, error)
    return _Head(info, size, hashlib.blake2b(head, digest_size=16).digest())


def _parallel(work: Callable[[S], T], items: Sequence[S], stage: str, tell: OnProgress) -> Iterator[T]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(items), _SLAB_FILES):
            results: Iterable[T] = pool.map(work, items[start : start + _SLAB_FILES])
            for done, result in enumerate(results, start=start + 1):
                tell(stage, done, len(items))
                yield result
