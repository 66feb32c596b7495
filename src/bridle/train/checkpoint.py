"""Checkpoints that survive a kill at any moment, a full disk and a damaged file; loading never unpickles.

``RUN/checkpoints/step-00000123/`` holds ``model.safetensors``, ``optimizer.safetensors`` (of a sharded run the folder
``optimizer`` with a file of each process), ``state.json`` and, written last, ``manifest.json`` with the size and sha256 of
each. ``RUN/checkpoints/latest`` names the newest. A folder is written and synced under another name first, so whatever is
called ``step-...`` was whole when it got its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bridle.errors import ConfigError, RunError
from bridle.files import explain_write_error, fsync, link_or_copy, write_atomically
from bridle.train.weights import FORMAT_VERSION, other_version, read_weights, storable, weights_header

FORMAT = "bridle-checkpoint"
_WEIGHTS, _OPTIMIZER, _STATE, _SHARDS = "model.safetensors", "optimizer.safetensors", "state.json", "optimizer"
_FILE_NAME = re.compile(rf"({_SHARDS}/)?[\w-][\w.-]*")
_FOLDER_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`save_checkpoint` was given. The tensors are on the CPU and own their memory.

    Attributes:
        step: number of finished steps.
        weights: as ``state_dict()`` of the model.
        optimizer: as from ``bridle.train.packing``; of a sharded run empty.
        state: plain data.
        shards: folder of a sharded run's optimiser, for ``bridle.train.sharding``; None for others.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    shards: Path | None = None


def save_checkpoint(
    run: Path,
    step: int,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | Path,
    state: Mapping[str, Any],
    keep: int = 3,
    spare: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint, make it the latest, drop old ones and refresh ``RUN/model.safetensors``.

    One process of a run calls this. When ``step`` has a checkpoint already, the new one is called ``step-00000123.1``
    (and so on), and the old one is removed once the pointer has moved on. A removal that fails is logged, not raised.

    Args:
        run: the run folder, created if missing.
        step: number of finished steps.
        weights: tensors of any device, strides or shared storage; each is stored on its own.
        optimizer: the same; or a folder of shards on the same disk, which is moved.
        state: data that JSON can hold (keys become str, tuples become lists).
        keep: number of whole checkpoints to keep, at least 1.
        spare: one that is kept besides.
        metadata: strings for the header of the weights, besides ``format``, ``version`` and ``step``.

    Returns:
        The checkpoint's folder.

    Raises:
        ConfigError: ``step`` or ``keep`` is out of range.
        RunError: the disk is full or cannot be written; earlier checkpoints are untouched.
        TypeError: JSON cannot hold ``state``.
    """
    if step < 0 or keep < 1:
        raise ConfigError(f"step is {step} and keep {keep}; step must be at least 0 and keep at least 1")
    text = json.dumps(dict(state), indent=1)
    header = {**(metadata or {}), **weights_header(step)}
    folder = run / "checkpoints"
    temporary = folder / f".tmp-{step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_folder(temporary, step, text, header, weights, optimizer)
        path = _free_name(folder, step)
        temporary.rename(path)
        fsync(folder)
        write_atomically(folder / "latest", path.name + "\n")
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            reason = explain_write_error(error, folder, f"checkpoint of step {step}")
            raise RunError(f"{reason}; {_untouched(run, step)}") from error
        raise
    _prune(run, path, keep, spare)
    try:
        write_atomically(run / _WEIGHTS, lambda target: link_or_copy(path / _WEIGHTS, target))
    except OSError as error:
        reason = explain_write_error(error, run, _WEIGHTS)
        raise RunError(f"{reason}; the checkpoint of step {step} is whole") from error
    return path


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint (files and sizes as in its manifest), or None when none was ever finished.

    The pointer goes first; if its checkpoint is broken, a warning is logged and the highest whole step is taken.

    Raises:
        RunError: there are checkpoints but none is whole, or the folder cannot be read.
    """
    folder = run / "checkpoints"
    try:
        paths = _by_step(folder)
        pointed = folder / _read_pointer(folder)
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror}; make it readable for this user") from error
    candidates = [pointed, *(path for path in paths if path != pointed)] if pointed in paths else paths
    for path in candidates:
        try:
            _read_manifest(path)
        except RunError as error:
            _log.warning("checkpoint passed over: %s", error)
        else:
            return path
    if paths:
        names = ", ".join(path.name for path in paths)
        raise RunError(f"no checkpoint in {folder} is whole ({names}); restore one from a copy, or remove them to start over")
    return None


def whole_checkpoints(run: Path, at_most: int) -> Iterator[Path]:
    """The checkpoints of steps up to ``at_most`` whose files and sizes are as in their manifest, newest first.

    Raises:
        RunError: the folder cannot be read.
    """
    folder = run / "checkpoints"
    try:
        paths = _by_step(folder)
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror}; make it readable for this user") from error
    return (path for path in paths if _order(path)[0] <= at_most and _is_whole(path))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder after comparing every file with its size and sha256. Nothing is unpickled.

    Raises:
        RunError: the folder is missing, half written, damaged or of another format version.
    """
    manifest = _readable(path)
    try:
        for name, sha256 in manifest.sha256.items():
            if _sha256(path / name) != sha256:
                raise RunError(_damaged(path, f"{name} differs from its sha256"))
    except OSError as error:
        raise RunError(_damaged(path, str(error))) from error
    state = read_state(path)
    weights, header = read_weights(path / _WEIGHTS)
    if header.get("step") != str(manifest.step):
        raise RunError(_damaged(path, f"manifest.json says step {manifest.step}, the weights {header.get('step')}"))
    if _OPTIMIZER not in manifest.sha256:
        return Checkpoint(manifest.step, weights, {}, state, path / _SHARDS)
    optimizer, _ = read_weights(path / _OPTIMIZER)
    return Checkpoint(manifest.step, weights, optimizer, state)


def read_state(path: Path) -> dict[str, Any]:
    """The plain data of a checkpoint folder alone, as :func:`save_checkpoint` was given them.

    Raises:
        RunError: they are missing, damaged or of another format version.
    """
    _readable(path)
    try:
        state = json.loads((path / _STATE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(_damaged(path, str(error))) from error
    if not isinstance(state, dict):
        raise RunError(_damaged(path, f"{_STATE} is no mapping"))
    return state


@dataclass(frozen=True)
class _Manifest:
    version: int
    step: int
    sha256: dict[str, str]  # by file name; empty for another version


def _write_folder(
    folder: Path,
    step: int,
    state: str,
    header: dict[str, str],
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | Path,
) -> None:
    write_atomically(folder / _STATE, state)
    files: dict[str, tuple[Mapping[str, Tensor], dict[str, str] | None]] = {_WEIGHTS: (weights, header)}
    if isinstance(optimizer, Path):
        optimizer.rename(folder / _SHARDS)
    else:
        files[_OPTIMIZER] = (optimizer, None)
    for name, (tensors, metadata) in files.items():
        save_file(storable(tensors), folder / name, metadata)
    for path in sorted(folder.rglob("*.safetensors")):
        shutil.copymode(folder / _STATE, path)  # safetensors makes files private; the user's umask decides
        fsync(path)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    described = {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "step": step, "files": described}
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))


def _free_name(folder: Path, step: int) -> Path:
    path, revision = folder / f"step-{step:08d}", 0
    while path.exists():
        revision += 1
        path = folder / f"step-{step:08d}.{revision}"
    return path


def _order(path: Path) -> tuple[int, int]:
    match = _FOLDER_NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _by_step(folder: Path) -> list[Path]:
    """Folders named like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _FOLDER_NAME.fullmatch(path.name)), key=_order, reverse=True)


def _read_pointer(folder: Path) -> str:
    """Content of ``latest`` if it is the name of a checkpoint, else the empty string."""
    try:
        text = (folder / "latest").read_bytes()[:100].decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return text if _FOLDER_NAME.fullmatch(text) else ""


def _readable(path: Path) -> _Manifest:
    """The manifest, if it is of this version."""
    manifest = _read_manifest(path)
    if manifest.version != FORMAT_VERSION:
        raise RunError(other_version(path, str(manifest.version)))
    return manifest


def _read_manifest(path: Path) -> _Manifest:
    """The manifest, its sizes compared with the files; one of another version is not looked into."""
    try:
        data = json.loads((path / "manifest.json").read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
        version = int(data["version"])
        if version != FORMAT_VERSION:
            return _Manifest(version, -1, {})
        files = {str(name): (int(known["size"]), str(known["sha256"])) for name, known in data["files"].items()}
        for name in (_WEIGHTS, _STATE, _OPTIMIZER):
            if name not in files and (name != _OPTIMIZER or not any(each.startswith(f"{_SHARDS}/") for each in files)):
                raise ValueError(f"{name} is not in it")
        for name, (size, _) in files.items():
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"it names {name!r}")
            found = (path / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes, not {size}")
        return _Manifest(version, int(data["step"]), {name: sha256 for name, (_, sha256) in files.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(_damaged(path, f"manifest.json: {error}")) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(run: Path, newest: Path, keep: int, spare: Path | None) -> None:
    """Remove left-overs and all but ``keep`` whole checkpoints: ``newest``, the steps before it, then any after it."""
    folder = newest.parent
    for stale in (*folder.glob(".tmp-*"), *run.glob(".tmp-*"), *run.glob("faults/.tmp-*")):  # one process writes to a run
        _remove(stale)
    step = _order(newest)[0]
    others = [path for path in _by_step(folder) if path != newest]
    kept = 1
    for path in sorted(others, key=lambda path: _order(path)[0] > step):
        if path == spare:
            continue
        if _order(path)[0] != step and kept < keep:
            kept += _is_whole(path)
        else:
            _remove(path)


def _is_whole(path: Path) -> bool:
    try:
        _read_manifest(path)
    except RunError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            # Renamed first: a removal that is cut short must not leave something that is called a checkpoint.
            trash = path if path.name.startswith(".tmp-") else path.rename(path.with_name(f".tmp-{path.name}"))
            shutil.rmtree(trash)
        else:
            path.unlink()
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)


def _untouched(run: Path, step: int) -> str:
    try:
        previous = latest_checkpoint(run)
    except RunError as error:
        return str(error)
    if previous is None:
        return "there was no previous checkpoint"
    which = "newest whole checkpoint is" if _order(previous)[0] == step else "previous checkpoint is untouched:"
    return f"the {which} step {_order(previous)[0]}"


def _damaged(path: Path, reason: str) -> str:
    return f"checkpoint {path} is half written or damaged ({reason}); remove it to resume from the one before it"
