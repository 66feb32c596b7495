"""What a run is made of, and what a call of the engine says in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from bridle.data.dataset import ClipDataset
from bridle.data.manifest import Manifest
from bridle.data.sampler import EpochOrder
from bridle.networks import Networks
from bridle.objectives.base import Objective
from bridle.optim.groups import OptimConfig, layer_scale
from bridle.phases import Phase
from bridle.run import RunConfig, RunFolder
from bridle.train.reporter import Reporter

PREPARE_BATCHES = 8
"""Batches whose vectors start the codebooks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended.

    Attributes:
        finished: False when it was asked to stop; a checkpoint was written.
        step: optimiser steps done since the run began.
        num_bad_files: files in quarantine.
        stop_signal: the signal that asked it to stop, else 0.
    """

    finished: bool
    step: int
    num_bad_files: int
    stop_signal: int = 0


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run is made of.

    Attributes:
        config: resolved.
        folder: of the run.
        manifest: its files.
        dataset: their clips.
        order: which make up which batch.
        networks: as they are before the first step; a checkpoint replaces all of them.
        build: the objective of a phase on networks of the run.
        data: digest of what is learnt from; a run does not go on with other data.
        device: where to compute.
        reporter: told about progress.
    """

    config: RunConfig
    folder: RunFolder
    manifest: Manifest
    dataset: ClipDataset
    order: EpochOrder
    networks: Networks
    build: Callable[[Networks, Phase], Objective]
    data: str
    device: torch.device
    reporter: Reporter


def epoch_order(clips: ClipDataset, config: RunConfig) -> EpochOrder:
    """The batches of a run's clips."""
    return EpochOrder(clips.lengths(), config.train.batch_size, clips.loader.crop_frames, config.encoder.patch[0], config.seed)


class Examination(Protocol):
    """What is measured now and then while a run goes on; changes nothing in it."""

    name: str
    every_steps: int
    needed: bool
    """A failure ends the run; else it is told, and the run goes on."""

    def __call__(self, step: int, networks: Networks) -> dict[str, float]:
        """Measure after ``step`` steps of the run, on all ranks at once; the values are logged."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember of it, as plain data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave."""


def optimiser_settings(config: RunConfig, phase: Phase) -> OptimConfig:
    """Of a phase, with its own peak learning rate where it has one."""
    optim = config.tokenizer_optim if phase.kind == "tokenizer" else config.encoder_optim
    if config.finetune is not None:
        optim = config.finetune.optim
    return optim if phase.lr is None else replace(optim, lr=phase.lr)


def rate_scale(config: RunConfig) -> Callable[[str], float]:
    """Factor of the learning rate of a parameter, by its name."""
    decay = 1.0 if config.finetune is None else config.finetune.layer_decay
    return partial(layer_scale, depth=config.encoder.depth, decay=decay)
