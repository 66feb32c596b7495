"""Downloading the archive of the demo: :mod:`bridle.fetch`, with little patience."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridle.fetch.archives import extract
from bridle.fetch.download import Limits, OnBytes
from bridle.fetch.download import download as download_file

__all__ = ["Archive", "OnBytes", "download", "extract"]


@dataclass(frozen=True)
class Archive:
    """A zip archive on the web in the layout of ESC-50, and its md5 in hexadecimal."""

    url: str
    md5: str


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int = 1_000_000_000,
    answer_seconds: float = 3.0,
    max_seconds: float = 300.0,
    on_bytes: OnBytes = lambda done, total: None,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole; asked for once, and nothing is left of half a file.

    Args:
        url: http or https.
        target: file to write; its folder is created.
        md5: expected checksum, in hexadecimal.
        max_bytes: most bytes that are taken.
        answer_seconds: how long the host may take to begin its answer.
        max_seconds: how long the whole download may take.
        on_bytes: told about progress.

    Raises:
        DataError: no answer, too large, too slow, broken off, or another checksum than expected.
        OSError: the file cannot be written.
    """
    limits = Limits(answer_seconds, silent_seconds=10.0, max_seconds=max_seconds, max_bytes=max_bytes, tries=1)
    download_file(url, target, f"md5:{md5}", limits=limits, resume=False, on_bytes=on_bytes)
