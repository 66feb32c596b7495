"""The settings a run begins or goes on with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridle import distributed
from bridle.config import to_dict
from bridle.data.entries import Manifest, with_whole_paths
from bridle.data.index import Index, read_index, save_index
from bridle.data.loaders import estimate_normalisation, with_normalisation
from bridle.data.manifest import read_manifest
from bridle.data.medium import Medium
from bridle.errors import ConfigError, DataError, RunError
from bridle.paths import check_sources
from bridle.run import RunConfig, RunFolder, clip_grid
from bridle.train.checkpoint import latest_checkpoint, read_state
from bridle.train.loop import resolve_precision


def check_folder(folder: RunFolder, resume: bool) -> None:
    """Refuse a folder that this run must not write to.

    Raises:
        RunError: it holds a run and ``resume`` is False, or something else, or is a file.
    """
    if folder.exists() and not resume:
        raise RunError(f"{folder.path} already holds a run; continue it with --resume or choose another --out")
    if folder.path.exists() and not folder.path.is_dir():
        raise RunError(f"{folder.path} is a file; name a folder for the run with --out")
    left = [each for each in folder.path.iterdir() if not each.name.startswith(".tmp-")] if folder.path.exists() else []
    if not folder.exists() and left:
        raise RunError(f"{folder.path} exists, is not empty and is not a run; choose another --out")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run.

    Attributes:
        manifest: they.
        kept: as they were listed when the run began, and not now.
    """

    manifest: Manifest
    kept: bool


def run_files(folder: RunFolder, sources: str | Path | Sequence[str | Path], medium: Medium) -> RunFiles:
    """The files of a run: as they were listed when it began, when it goes on with the same sources; else listed now.

    What was added to a folder since plays no part then, and what is gone is found when it is decoded.

    Raises:
        DataError: nothing can be read.
    """
    with contextlib.suppress(DataError, RunError):  # damaged, or of an older bridle: listed anew
        checkpoint = latest_checkpoint(folder.path) if folder.index.is_file() else None
        if checkpoint is not None:
            kept = read_index(folder.index)
            known = read_state(checkpoint)["data"] == kept.manifest.fingerprint
            if known and kept.about.get("sources") == _as_given(sources) and _all_there(sources):
                return RunFiles(kept.manifest, kept=True)
    return RunFiles(read_manifest(sources, medium), kept=False)


def keep_files(folder: RunFolder, sources: str | Path | Sequence[str | Path], files: RunFiles) -> None:
    """Write down the files of a run for :func:`run_files`, on rank 0; not those of another set, which are refused later.

    Raises:
        RunError: the folder cannot be written.
    """
    if files.kept or distributed.rank() != 0:
        return
    checkpoint = latest_checkpoint(folder.path)
    if checkpoint is None or read_state(checkpoint)["data"] in ("", files.manifest.fingerprint):
        save_index(Index(with_whole_paths(files.manifest), about={"sources": _as_given(sources)}), folder.index)


def _as_given(sources: str | Path | Sequence[str | Path]) -> list[str]:
    each = [sources] if isinstance(sources, str | Path) else sources
    elsewhere = [source.startswith("hf:") or "://" in source for source in map(str, each)]
    return [str(source if far else Path(source).absolute()) for source, far in zip(each, elsewhere, strict=True)]


def _all_there(sources: str | Path | Sequence[str | Path]) -> bool:
    """A folder that is gone altogether is told before the first step."""
    each = [sources] if isinstance(sources, str | Path) else sources
    try:
        check_sources([str(source) for source in each])
    except DataError:
        return False
    return True


def resolve(config: RunConfig, manifest: Manifest, folder: RunFolder, device: torch.device) -> RunConfig:
    """The settings of the run in ``folder``: what depends on data and device is filled in, or taken from the run it resumes.

    Those of a new run are written to its ``config.yaml``; every rank gets rank 0's. A run that has no checkpoint yet is a new
    one: what kept it from its first step may be changed. So is one that holds imported weights only, but for its encoder. A
    collective.

    Raises:
        ConfigError: the run to resume was made with other settings.
        RunError: the folder cannot be written.
        DataError: no clip can be read to estimate the normalisation from.
    """
    checkpoint = latest_checkpoint(folder.path) if folder.exists() else None
    if checkpoint is not None and read_state(checkpoint)["data"]:
        return _resumed(config, folder.read_config())
    if checkpoint is not None:
        config = _with_imported(config, folder.read_config())
    precision = resolve_precision(config.train.precision, device)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    if config.clips.mean is None or config.clips.std is None:
        found = estimate_normalisation(manifest, config.clips, seed=config.seed)
        config = config.with_clips(with_normalisation(config.clips, found.mean, found.std))
    distributed.barrier()
    if distributed.rank() == 0:
        folder.write_config(config)
    distributed.barrier()
    return folder.read_config()  # rank 0's, on every rank


def _with_imported(config: RunConfig, saved: RunConfig) -> RunConfig:
    """The caller's settings for a run of imported weights that has no step yet; the encoder stays, and the normalisation
    where the caller has none.

    Raises:
        ConfigError: the encoder, or the size of its clips where its positions depend on that, is another one.
    """
    for name, (asked, kept) in _differences(to_dict(config.encoder), to_dict(saved.encoder)).items():
        raise ConfigError(f"the imported weights have encoder.{name}={kept}, not {asked}: leave the setting out")
    if saved.encoder.position_grid is not None and clip_grid(config) != clip_grid(saved):
        asked, kept = clip_grid(config).shape, clip_grid(saved).shape
        raise ConfigError(f"the imported weights are for clips of {kept} patches, not {asked}: leave the clips' size as it was")
    if config.clips.mean is None or config.clips.std is None:
        known: Any = {"mean": saved.clips.mean, "std": saved.clips.std}
        config = config.with_clips(dataclasses.replace(config.clips, **known))
    return config


def _resumed(config: RunConfig, saved: RunConfig) -> RunConfig:
    """The saved configuration, with the caller's values of settings that may change while a run goes on.

    Phases may be added behind those of the run.
    """
    train = {name: value for name, value in vars(config.train).items() if name != "batch_size"}
    if config.train.precision == "auto":
        train["precision"] = saved.train.precision
    caches: Any = {name: getattr(config.clips, name) for name in ("cache_gigabytes", "cache_folder")}
    saved = saved.with_clips(dataclasses.replace(saved.clips, **caches))
    longer = len(config.plan) > len(saved.plan) and config.plan[: len(saved.plan)] == saved.plan
    resumed = dataclasses.replace(
        saved,
        phases=config.phases if longer else saved.phases,
        train=dataclasses.replace(saved.train, **train),
        encoder_optim=dataclasses.replace(saved.encoder_optim, lr=config.encoder_optim.lr),
        tokenizer_optim=dataclasses.replace(saved.tokenizer_optim, lr=config.tokenizer_optim.lr),
    )
    if saved.finetune is not None and config.finetune is not None:
        optim = dataclasses.replace(saved.finetune.optim, lr=config.finetune.optim.lr)
        resumed = dataclasses.replace(resumed, finetune=dataclasses.replace(saved.finetune, optim=optim))
    more = " and phases may be added" if saved.finetune is None else " and the length stays"
    for name, (asked, kept) in _differences(to_dict(config), to_dict(resumed)).items():
        if asked is not None and name != "train.precision":
            raise ConfigError(
                f"the run to resume has {name}={kept}, not {asked}; settings of train (not its batch_size), learning rates and "
                f"the cache may change while a run goes on,{more}: leave the setting out or start a new run"
            )
    return resumed


def _differences(first: dict[str, Any], second: dict[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in first.items():
        if isinstance(value, dict):
            found |= _differences(value, second.get(key) or {}, f"{where}{key}.")
        elif value != second.get(key):
            found[f"{where}{key}"] = (value, second.get(key))
    return found
