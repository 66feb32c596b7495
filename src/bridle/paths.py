"""Paths that a user names, looked at before anything heavy is imported or computed."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bridle.errors import ConfigError, DataError, RunError

TABLE_SUFFIXES = (".csv", ".parquet")
_NAMED_FOLDS = 10
_COUNTED = re.compile(r"\{\d+\.\.\d+\}")


def check_run(run: Path) -> None:
    """Refuse a folder that is no run.

    Raises:
        RunError: it has no ``config.yaml``; where its sub-folders are the runs of folds, they are named.
    """
    if (run / "config.yaml").is_file():
        return
    folds = sorted(found.parent for found in run.glob("fold-*/config.yaml"))
    if folds:
        names = ", ".join(fold.name for fold in folds[:_NAMED_FOLDS]) + (", ..." if len(folds) > _NAMED_FOLDS else "")
        many = f"{len(folds)} folds" if len(folds) > 1 else "1 fold"
        raise RunError(f"{run} is a folder of {many} ({names}); give one of them: {folds[0]}")
    raise RunError(f"{run} is not a run folder: it has no config.yaml; give the folder named by 'pretrain --out'")


def check_sources(sources: Sequence[str | Path]) -> None:
    """Refuse sources that do not exist; patterns, URLs and sets of Hugging Face are left to those who read them.

    Raises:
        DataError: one does not exist.
    """
    for source in map(str, sources):
        elsewhere = source.startswith("hf:") or "://" in source or glob.has_magic(source) or _COUNTED.search(source)
        if not elsewhere and not os.path.lexists(source):
            raise DataError(f"{source} does not exist; give a folder, a .csv or .parquet table, a .tar or a file")


def check_file(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written in the end.

    Args:
        path: the file; an old one would be replaced.
        suffixes: how its name may end; any way if none are given.

    Raises:
        ConfigError: it ends otherwise, is a folder, or its folder does not exist or cannot be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} does not exist; make it, or choose another file")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"the folder {path.parent} cannot be written to; choose another file")


def check_folder(path: Path) -> None:
    """Refuse a folder that could not be made or written to in the end.

    Raises:
        ConfigError: it, or what is above it, is a file or cannot be written to.
    """
    there = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, so the folder {path} cannot be there; choose another --out")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"the folder {there} cannot be written to; choose another --out")
