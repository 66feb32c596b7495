"""The engine: the phases of a run from start to finish, its checkpoints, and what is told about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from bridle import distributed
from bridle.data.batch import Batch
from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.manifest import Manifest
from bridle.data.quarantine import BadFile, Quarantine
from bridle.data.sampler import EpochOrder
from bridle.errors import BridleError, RunError
from bridle.networks import Networks, load_weights, model_fingerprint, renew, start_tokenizer
from bridle.objectives.base import Objective
from bridle.optim.groups import OptimConfig, build_adamw, layer_scale
from bridle.phases import Phase, has_new_labels
from bridle.quantize import COLLAPSED_BELOW, ResidualQuantizer
from bridle.randomness import derive_seed
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from bridle.train.history import CallRecorder
from bridle.train.loop import PhaseSpec, is_due, train_phase
from bridle.train.metrics import MetricsWriter, to_numbers
from bridle.train.packing import pack_optimizer, pack_rng, unpack_optimizer, unpack_rng
from bridle.train.reporter import Reporter
from bridle.train.stop import StopFlag

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
        build: the objective of a phase.
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
    build: Callable[[Phase], Objective]
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


def _rate_scale(config: RunConfig) -> Callable[[str], float]:
    decay = 1.0 if config.finetune is None else config.finetune.layer_decay
    return partial(layer_scale, depth=config.encoder.depth, decay=decay)


class Training:
    """The phases of a run, from where its newest checkpoint stands, and the watcher of their loop."""

    def __init__(self, parts: Parts, examinations: Sequence[Examination] = ()) -> None:
        self.parts, self.examinations = parts, tuple(examinations)
        self.config, self.folder, self.device, self.reporter = parts.config, parts.folder, parts.device, parts.reporter
        self.loader, self.dataset, self.order = parts.dataset.loader, parts.dataset, parts.order
        manifest, config, folder = parts.manifest, parts.config, parts.folder
        self.quarantine = Quarantine(
            folder.quarantine,
            manifest.num_files,
            config.train.max_bad_fraction,
            config.train.max_bad_in_a_row,
            known=manifest.bad,
            keys={entry.key for entry in manifest.entries},
            writes=distributed.rank() == 0,
        )
        self.read: list[tuple[tuple[BadFile, ...], int]] = []
        self.alarmed = False
        self.fault: str | None = None
        self.data = parts.data
        self.networks = parts.networks.to(parts.device)
        self.stop = StopFlag()
        self.phase_index = 0
        self.steps_before = 0
        self.last_step = 0
        self.lengths = [phase.total_steps(self.order.steps_per_epoch) for phase in config.plan]
        self.writer: MetricsWriter | None = None

    def execute(self) -> Outcome:
        """Run every phase that is left."""
        checkpoint = self._restore()
        phases = self.config.plan
        lengths = self.lengths
        first_phase = int(checkpoint.state["phase"]) if checkpoint else 0
        finished, done = True, 0
        self.last_step = checkpoint.step if checkpoint else 0
        with ExitStack() as stack:
            if distributed.rank() == 0:
                self.writer = MetricsWriter(self.folder.path, checkpoint.step if checkpoint else None)
                recorder = CallRecorder(self.folder.path, self.device, self.last_step)
                stack.callback(lambda: recorder.close(self.last_step))
            stack.enter_context(self.stop.installed())
            for index in range(first_phase, len(phases)):
                start = int(checkpoint.state["phase_step"]) if checkpoint and index == first_phase else 0
                self.phase_index, self.steps_before = index, sum(lengths[:index])
                done = self.steps_before + start
                if start < lengths[index]:
                    finished = self._run_phase(phases[index], lengths[: index + 1], start, checkpoint if start else None)
                    done = self.last_step
                if index + 1 < len(phases):  # a signal at the last step of a phase stops the run before the next one
                    finished = finished and not distributed.any_rank(self.stop.signal != 0, self.device)
                if not finished:
                    break
        if self.writer:
            self.writer.close()
        return Outcome(finished, done, len(self.quarantine), self.stop.signal)

    def _run_phase(self, phase: Phase, lengths: list[int], start: int, checkpoint: Checkpoint | None) -> bool:
        optim = optimiser_settings(self.config, phase)
        if start == 0 and phase.kind in ("tokenizer", "joint"):
            start_tokenizer(self.networks, self.config)
        if start == 0 and has_new_labels(self.config.plan, self.phase_index):
            renew(self.networks, self.config, self.phase_index)
        objective = self.parts.build(phase)
        first_epoch = sum(-(-length // self.order.steps_per_epoch) for length in lengths[:-1])
        if objective.unprepared():
            self.reporter.message(f"{phase.kind}: codebooks start by k-means")
            seed = derive_seed(self.config.seed, "codebooks", self.phase_index)
            objective.prepare(self._batches(first_epoch, 0, PREPARE_BATCHES), seed)
        optimizer = build_adamw(objective, optim, _rate_scale(self.config))
        self.objective = objective
        if checkpoint is not None:
            unpack_optimizer(optimizer, objective.named_parameters(), checkpoint.optimizer)
            unpack_rng(checkpoint.optimizer)
        name = f"{self.phase_index + 1}-{phase.kind}"
        self.reporter.phase(name, self.phase_index + 1, len(self.config.plan), lengths[-1], start)
        self.phase_name, self.alarmed = name, False
        batches = self._from_step(first_epoch, lengths[-1])
        return train_phase(PhaseSpec(name, lengths[-1], optim), objective, optimizer, batches, self, self.config.train, start)

    def _from_step(self, first_epoch: int, total_steps: int) -> Callable[[int], Iterator[Batch]]:
        return lambda step: iter(self._batches(first_epoch, step, total_steps - step))

    def _batches(self, first_epoch: int, start_step: int, num_steps: int) -> Iterator[Batch]:
        batches = batch_loader(
            self.dataset,
            self.order,
            start_step=first_epoch * self.order.steps_per_epoch + start_step,
            num_steps=num_steps,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            num_workers=self.config.train.num_workers,
            patch=self.config.encoder.patch,
        )
        return (self.loader.finish(batch.to(self.device), augment=True) for batch in batches)

    def _restore(self) -> Checkpoint | None:
        path = latest_checkpoint(self.folder.path)
        steps = distributed.gather_objects(path.name if path else "none")
        if len(set(steps)) > 1:
            raise RunError(
                f"the processes see different newest checkpoints ({', '.join(steps)}); --out must be on a shared disk"
            )
        if path is None:
            return None
        checkpoint = load_checkpoint(path)
        if checkpoint.state["data"] not in ("", self.data):  # imported weights have seen none of a user's data
            what = "(other files or durations); give the same --data"
            if self.config.finetune is not None:
                what = "(other clips, labels or parts); give the same MANIFEST and splits"
            raise RunError(f"the data are not those of the run in {self.folder.path} {what} or start a new run")
        self._write_settings()
        is_imported = checkpoint.state["data"] == ""
        weights = {name: one for name, one in checkpoint.weights.items() if not is_imported or name.startswith("encoder.")}
        held = {name.split(".")[0] for name in weights}
        new = [name for name, _ in self.networks.named_children() if name not in held]
        num_added = len(self.lengths) - len(checkpoint.state["phase_steps"])
        load_weights(self.networks, weights, path, new if num_added or is_imported else ())
        if num_added or is_imported:  # the run's weights must fit its configuration of now
            distributed.barrier()
            if distributed.rank() == 0:
                self._save(checkpoint.step, checkpoint.optimizer, {**checkpoint.state, "phase_steps": self.lengths})
            distributed.barrier()
            if not is_imported:
                self.reporter.message(f"phases added to the run: {num_added}")
        remembered = checkpoint.state.get("examinations", {})
        for examination in self.examinations:
            if examination.name in remembered:
                examination.restore(remembered[examination.name])
        self.reporter.message(f"resuming after step {checkpoint.step}")
        return checkpoint

    def _write_settings(self) -> None:
        """After all checks, so that a call that is refused changes nothing."""
        distributed.barrier()
        if distributed.rank() == 0 and self.folder.read_config() != self.config:
            self.folder.write_config(self.config)
        distributed.barrier()

    # What the loop tells its watcher.

    def step_done(self, step: int, batch: Batch) -> None:
        """Remember bad files, move the progress bar."""
        self.last_step = self.steps_before + step
        self.read.append((batch.bad, len(batch)))
        self.reporter.step(step)
        for examination in self.examinations:
            if is_due(self.last_step, examination.every_steps, sum(self.lengths)):
                self._examine(examination, step)

    def _examine(self, examination: Examination, step: int) -> None:
        failure: str | None = None
        values: dict[str, float] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # whatever it does, training goes on as it would without it
            try:
                values = examination(self.last_step, self.networks)
            except BridleError as error:
                failure = str(error)
        if values and failure is None:
            failure = self._write(step, values)
            self.reporter.examined(self.last_step, values)
        reasons = [reason for reason in distributed.gather_objects(failure) if reason is not None]
        if reasons and examination.needed:
            self.fault = reasons[0]  # told when a line is logged, where a checkpoint is written first
        elif reasons:
            self.reporter.message(f"{examination.name} at step {self.last_step}: {reasons[0]}")

    def log(self, step: int, values: dict[str, Tensor]) -> None:
        """Write one line of metrics; count the bad files of all ranks, so that all of them stop together."""
        numbers = {} if self.writer is None else to_numbers([{**values}])[0]  # waits for the device, once, where it is told
        failure = self._write(step, numbers) or self.fault
        self._report(numbers)
        gathered = distributed.gather_objects((self.read, failure))
        self.read = []
        for _, reason in gathered:
            if reason is not None:  # on all ranks, so that none of them waits for the others
                raise RunError(reason)
        for ranks in zip(*(read for read, _ in gathered), strict=True):
            self.quarantine.add([file for bad, _ in ranks for file in bad], sum(good for _, good in ranks))

    def _write(self, step: int, values: dict[str, float]) -> str | None:
        """A line of metrics, on the rank that writes; the reason if that failed."""
        if self.writer is None:
            return None
        self.writer.write(self.steps_before + step, self.phase_name, values)
        try:
            self.writer.flush()
        except RunError as error:
            return str(error)
        return None

    def _report(self, numbers: dict[str, float]) -> None:
        self.reporter.values(numbers)
        low = [name for name, value in numbers.items() if name.startswith("perplexity/") and value < COLLAPSED_BELOW]
        if low and not self.alarmed:
            self.alarmed = True
            self.reporter.message(f"ALARM: {', '.join(low)} below {COLLAPSED_BELOW} of K: few codes; if that stays, lower K")

    def checkpoint(self, step: int, optimizer: Optimizer) -> None:
        """Write a checkpoint; all ranks prove that their codebooks are equal, and wait for it."""
        for module in self.networks.modules():
            if isinstance(module, ResidualQuantizer):
                module.assert_equal_on_all_ranks()
        if distributed.rank() == 0:
            state = {"phase": self.phase_index, "phase_step": step, "phase_steps": self.lengths, "data": self.data}
            state |= {"examinations": {each.name: each.state() for each in self.examinations}} if self.examinations else {}
            packed = {**pack_optimizer(optimizer, self.objective.named_parameters()), **pack_rng()}
            self._save(self.steps_before + step, packed, state)
        distributed.barrier()

    def _save(self, step: int, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        save_checkpoint(
            self.folder.path,
            step,
            weights=self.networks.state_dict(),
            optimizer=optimizer,
            state=state,
            keep=self.config.train.num_checkpoints,
            metadata={"fingerprint": model_fingerprint(self.config, self.networks.state_dict())},
        )

    def should_stop(self, step: int) -> bool:
        """True once any rank got a signal; ranks talk about it only when a line is logged."""
        if distributed.is_active() and step % self.config.train.log_every_steps:
            return False
        return distributed.any_rank(self.stop.signal != 0, self.device)
