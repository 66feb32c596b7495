"""Pretraining from start to finish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bridle import distributed
from bridle.data.dataset import ClipDataset
from bridle.data.entries import Manifest
from bridle.data.loaders import build_loader
from bridle.engine.parts import Outcome, Parts, epoch_order
from bridle.engine.training import Training
from bridle.networks import Networks, build_objective
from bridle.objectives.base import Objective
from bridle.phases import Phase
from bridle.probing import FrozenProbe, ProbeConfig
from bridle.run import RunConfig, RunFolder
from bridle.settings import check_folder, keep_files, resolve, run_files
from bridle.train.reporter import Reporter, Silent


def pretrain(
    config: RunConfig,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
    probe: ProbeConfig | None = None,
) -> Outcome:
    """Pretrain on the clips of ``sources`` and write the run folder ``out``.

    Args:
        config: usually from :mod:`bridle.recipes`.
        sources: folders, manifests or tar shards, or one of them.
        out: run folder.
        resume: continue the run in ``out`` from its newest whole checkpoint; start it when there is none.
        device: defaults to this process's GPU, else the CPU.
        reporter: told about progress.
        probe: labelled clips on which the encoder is probed now and then; changes nothing in the run.

    Returns:
        How it ended.

    Raises:
        ConfigError: the settings do not fit the data, or are others than those of the run that is resumed.
        RunError: ``out`` holds a run and ``resume`` is False, the run was made from other data, or it cannot be written.
        DataError: no clip can be read, or too many cannot.
        QuantizerError: the sample that starts the codebooks holds fewer than K vectors, or NaN.
        TrainingError: gradients stay non-finite.
    """
    reporter = reporter if reporter is not None and distributed.rank() == 0 else Silent()
    folder = RunFolder(Path(out))
    check_folder(folder, resume)
    if resume and not folder.exists():
        reporter.message(f"no run in {folder.path} yet: it begins")
    files = run_files(folder, sources, config.medium)
    parts = prepare(config, files.manifest, folder, device or distributed.default_device(), reporter)
    keep_files(folder, sources, files)
    return Training(parts, [FrozenProbe(parts.config, probe, parts.device)] if probe is not None else []).execute()


def prepare(config: RunConfig, manifest: Manifest, folder: RunFolder, device: torch.device, reporter: Reporter) -> Parts:
    """What :func:`pretrain` trains: the settings are resolved, and written to the folder of a new run; errors are its."""
    minutes = float(manifest.durations.sum()) / 60
    reporter.message(f"{len(manifest)} {config.medium.nouns}" + (f", {minutes:.1f} minutes" if config.medium.timed else ""))
    config = resolve(config, manifest, folder, device)
    loader = build_loader(config.clips)
    dataset = ClipDataset(manifest, loader, config.seed)
    order = epoch_order(dataset, config)

    def build(networks: Networks, phase: Phase) -> Objective:
        return build_objective(phase, networks, config)

    return Parts(config, folder, manifest, dataset, order, Networks(config), build, manifest.fingerprint, device, reporter)
