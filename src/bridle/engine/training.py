"""The phases of a run from start to finish, its checkpoints, and what is told about them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bridle import distributed
from bridle.data.batch import Batch
from bridle.data.dataset import batch_loader
from bridle.data.lasting import lasting
from bridle.engine.faults import FOLDER
from bridle.engine.labelling import empty_store, fill
from bridle.engine.logbook import Logbook, raise_on_all
from bridle.engine.parts import PREPARE_BATCHES, Examination, Outcome, Parts, optimiser_settings, rate_scale
from bridle.engine.recorder import FaultRecorder, Place
from bridle.engine.restoring import copied_optimizer, go_back, good_checkpoint, is_imported, newest, restore, restore_optimizer
from bridle.errors import BridleError, RunError, TrainingError
from bridle.networks import Networks, model_fingerprint, renew, start_tokenizer
from bridle.objectives.masked import MaskedCodes
from bridle.optim.groups import build_adamw
from bridle.phases import has_new_labels
from bridle.randomness import derive_seed
from bridle.train.agreement import assert_ranks_agree
from bridle.train.checkpoint import Checkpoint, save_checkpoint
from bridle.train.history import CallRecorder
from bridle.train.loop import Diverged, PhaseSpec, is_due, train_phase
from bridle.train.packing import pack_optimizer, pack_rng
from bridle.train.sharding import full_state, is_divided, shard, write_shards
from bridle.train.skipped import NOTHING_SKIPPED, Skipped, SkippedState
from bridle.train.stop import StopFlag
from bridle.wording import count


class Training:
    """The phases of a run, from where its newest checkpoint stands, and the watcher of their loop."""

    def __init__(self, parts: Parts, examinations: Sequence[Examination] = ()) -> None:
        self.parts, self.examinations = parts, tuple(examinations)
        self.config, self.folder, self.device, self.reporter = parts.config, parts.folder, parts.device, parts.reporter
        self.loader, self.dataset, self.order = parts.dataset.loader, parts.dataset, parts.order
        self.logbook = Logbook(parts)
        self.networks = parts.networks.to(parts.device)
        self.sharded = self.config.train.sharding == "full" and distributed.is_active()
        self.recorder = FaultRecorder(parts, lambda: full_state(self.networks))
        self.rollbacks: list[list[int]] = []
        self.start: dict[str, Tensor] | None = None
        self.stop = StopFlag()
        self.phase_index = self.first_epoch = self.steps_before = self.last_step = 0
        self.lengths = [phase.total_steps(self.order.steps_per_epoch) for phase in self.config.plan]

    def execute(self, until: int | None = None) -> Outcome:
        """Run every phase that is left; with ``until``, stop with a checkpoint after that step of the run."""
        self.until = until
        checkpoint = self._restore()
        first_phase = int(checkpoint.state["phase"]) if checkpoint else 0
        finished, done = True, 0
        self.last_step = checkpoint.step if checkpoint else 0
        with ExitStack() as stack:
            self.logbook.open(checkpoint.step if checkpoint else None)
            if distributed.rank() == 0:
                recorder = CallRecorder(self.folder.path, self.device, self.last_step)
                stack.callback(lambda: recorder.close(self.last_step))
            stack.enter_context(self.stop.installed())
            for index in range(first_phase, len(self.lengths)):
                start = int(checkpoint.state["phase_step"]) if checkpoint and index == first_phase else 0
                self.phase_index, self.steps_before = index, sum(self.lengths[:index])
                self.first_epoch = sum(-(-length // self.order.steps_per_epoch) for length in self.lengths[:index])
                done = self.steps_before + start
                if start < self.lengths[index]:
                    finished = self._run_phase(start, checkpoint if start else None)
                    done = self.last_step
                if index + 1 < len(self.lengths):  # a signal at the last step of a phase stops the run before the next one
                    finished = finished and self.last_step != self.until
                    finished = finished and not distributed.any_rank(self.stop.signal != 0, self.device)
                if not finished:
                    break
        self.logbook.close()
        return Outcome(finished, done, len(self.logbook.quarantine), self.stop.signal)

    def _run_phase(self, start: int, checkpoint: Checkpoint | None) -> bool:
        """A phase from step ``start`` on, with the weights, and the optimiser if it is amid the phase, of the checkpoint."""
        unlogged = 0
        while True:
            try:
                return self._attempt(start, checkpoint, unlogged)
            except Diverged as error:
                start, checkpoint, unlogged = error.step, self._go_back(error), error.unlogged

    def _attempt(self, start: int, checkpoint: Checkpoint | None, unlogged: int) -> bool:
        phase, length = self.config.plan[self.phase_index], self.lengths[self.phase_index]
        if any(map(is_divided, self.networks.parameters())):  # as the phase before left them
            self.networks = self._gathered()
        optim = optimiser_settings(self.config, phase)
        if checkpoint is None and phase.kind in ("tokenizer", "joint"):
            start_tokenizer(self.networks, self.config)
        if checkpoint is None and has_new_labels(self.config.plan, self.phase_index):
            renew(self.networks, self.config, self.phase_index)
        objective = self.objective = self.parts.build(self.networks, phase)
        if objective.unprepared():
            self.reporter.message(f"{phase.kind}: codebooks start by k-means")
            seed = derive_seed(self.config.seed, "codebooks", self.phase_index)
            objective.prepare(self._stream(0, PREPARE_BATCHES), seed)
        if isinstance(objective, MaskedCodes) and not self._keep_labels(objective):
            return False
        if self.sharded:
            shard(objective, self.device)
        optimizer = build_adamw(objective, optim, rate_scale(self.config))
        if checkpoint is not None:
            restore_optimizer(optimizer, objective.named_parameters(), checkpoint)
        name = f"{self.phase_index + 1}-{phase.kind}"
        self.reporter.phase(name, self.phase_index + 1, len(self.lengths), length, start)
        self.logbook.phase(name, self.steps_before)
        if start == length:  # the phase's last steps were passed over
            self.checkpoint(start, optimizer, NOTHING_SKIPPED)
            return True
        spec, before = PhaseSpec(name, length, optim), SkippedState(0, unlogged)
        if checkpoint is not None and checkpoint.state["phase_step"] == start:
            kept = (checkpoint.state.get(key, 0) for key in ("skipped_in_a_row", "skipped_unlogged"))
            before = SkippedState(*map(int, kept))
        return train_phase(
            spec, objective, optimizer, partial(self._stream, end=length), self, self.config.train, start, before
        )

    def _keep_labels(self, objective: MaskedCodes) -> bool:
        """False when the run was asked to stop on the way."""
        steps = self.order.steps_per_epoch
        store = empty_store(self.parts, objective.tokenizer, self.lengths[self.phase_index] / steps)
        if store is not None:
            self.reporter.message("labels are taken once: the clips are the same in every epoch")
            if not fill(store, self.parts, objective.tokenizer, self._stream(0, steps), lambda: self.stop.signal != 0):
                return False
        objective.labels = store
        return True

    def _stream(self, start: int, end: int) -> Iterator[Batch]:
        found = lasting(lambda step: self._batches(step, end - step), start, end, self.reporter.message)
        return map(self._finished, found)

    def _finished(self, batch: Batch) -> Batch:
        return self.loader.finish(batch.to(self.device), augment=True)

    def _batches(self, start_step: int, num_steps: int, num_workers: int | None = None) -> Iterable[Batch]:
        """Share of this rank of the batches of the phase's steps, as the workers give them."""
        return batch_loader(
            self.dataset,
            self.order,
            start_step=self.first_epoch * self.order.steps_per_epoch + start_step,
            num_steps=num_steps,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            num_workers=self.config.train.num_workers if num_workers is None else num_workers,
            patch=self.config.encoder.patch,
        )

    def _gathered(self) -> Networks:
        """The networks with whole weights. A collective."""
        whole = Networks(self.config)
        whole.load_state_dict(full_state(self.networks))
        return whole.to(self.device)

    def _go_back(self, error: Diverged) -> Checkpoint | None:
        if len(self.rollbacks) >= self.config.train.max_rollbacks:
            times = f"the run went back {count(len(self.rollbacks), 'time')} (limit train.max_rollbacks)"
            raise TrainingError(f"{error}; {times}; {self.folder.path / FOLDER} holds their batches") from error
        if self.sharded:
            self.networks = Networks(self.config).to(self.device)
        checkpoint = go_back(self.networks, self.folder.path, self.last_step, self.start)
        step = checkpoint.step if checkpoint else 0
        self.rollbacks.append([self.last_step, step])
        self.reporter.message(
            f"{error.count} steps in a row up to step {self.last_step} had non-finite gradients: the weights are those of step "
            f"{step} again, and training goes on with the batches behind step {self.last_step}"
        )
        amid = checkpoint is not None and checkpoint.state["phase"] == self.phase_index and checkpoint.state["phase_step"]
        return checkpoint if amid else None

    def _restore(self) -> Checkpoint | None:
        path = newest(self.folder.path)
        if path is None:
            if distributed.rank() == 0:  # of a call that was killed before its first checkpoint
                shutil.rmtree(self.folder.path / FOLDER, ignore_errors=True)
            self.start = {name: value.detach().to("cpu", copy=True) for name, value in self.networks.state_dict().items()}
            return None
        checkpoint = restore(self.parts, path, len(self.lengths))
        self._write_settings()
        num_added = len(self.lengths) - len(checkpoint.state["phase_steps"])
        if num_added or is_imported(checkpoint):  # the run's weights must fit its configuration of now
            distributed.barrier()
            if distributed.rank() == 0:
                state = {**checkpoint.state, "phase_steps": self.lengths}
                self._save(checkpoint.step, self.networks.state_dict(), copied_optimizer(checkpoint), state)
            distributed.barrier()
            checkpoint = restore(self.parts, newest(self.folder.path) or path, len(self.lengths))
            if not is_imported(checkpoint):
                self.reporter.message(f"phases added to the run: {num_added}")
        remembered = checkpoint.state.get("examinations", {})
        for examination in self.examinations:
            if examination.name in remembered:
                examination.restore(remembered[examination.name])
        self.rollbacks = list(checkpoint.state.get("rollbacks", []))
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
        self.logbook.seen(batch)
        self.reporter.step(step)
        if is_due(self.last_step, self.config.train.check_ranks_every_steps, 0):
            self._agree()
        for examination in self.examinations:
            if is_due(self.last_step, examination.every_steps, sum(self.lengths)):
                self._examine(examination, step)

    def _examine(self, examination: Examination, step: int) -> None:
        failure: str | None = None
        values: dict[str, float] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # whatever it does, training goes on as it would without it
            try:
                values = examination(self.last_step, self._gathered() if self.sharded else self.networks)
            except BridleError as error:
                failure = str(error)
        if values and failure is None:
            failure = self.logbook.write(step, values)
            self.reporter.examined(self.last_step, values)
        reasons = [reason for reason in distributed.gather_objects(failure) if reason is not None]
        if reasons and examination.needed:
            self.logbook.fault = reasons[0]  # told when a line is logged, where a checkpoint is written first
        elif reasons:
            self.reporter.message(f"{examination.name} at step {self.last_step}: {reasons[0]}")

    def log(self, step: int, values: dict[str, Tensor]) -> None:
        """Write one line of metrics, and stop all ranks together when one of them has to."""
        self.logbook.log(step, values)

    def skipped(self, found: Skipped) -> None:
        """Write down and tell what of the steps that begin a row of skipped ones is not finite."""
        for step in found.first:
            batch = next(iter(self._batches(step - 1, 1, num_workers=0)))
            place = Place(self.steps_before + step, self.phase_index, step)
            before = good_checkpoint(self.folder.path, place.step - 1)
            self.recorder.record(place, self.objective, batch, self.last_step, before)

    def checkpoint(self, step: int, optimizer: Optimizer, skipped: SkippedState) -> None:
        """Write a checkpoint; all ranks prove that they hold the same numbers, and wait for it."""
        self._agree()
        weights = full_state(self.networks)
        tensors = {**pack_optimizer(optimizer, self.objective.named_parameters()), **pack_rng()}
        shards = self.folder.path / "checkpoints" / ".tmp-shards"
        if self.sharded:
            if distributed.rank() == 0:
                shutil.rmtree(shards, ignore_errors=True)
            distributed.barrier()
            write_shards(shards, tensors)
        failure: str | None = None
        if distributed.rank() == 0:
            state = {"phase": self.phase_index, "phase_step": step, "phase_steps": self.lengths, "data": self.parts.data}
            state |= {"skipped_in_a_row": skipped.in_a_row, "skipped_unlogged": skipped.unlogged, "rollbacks": self.rollbacks}
            state |= {"examinations": {each.name: each.state() for each in self.examinations}} if self.examinations else {}
            spare = good_checkpoint(self.folder.path, self.last_step) if skipped.in_a_row else None
            try:
                self._save(self.steps_before + step, weights, shards if self.sharded else tensors, state, spare)
            except RunError as error:
                failure = str(error)
        raise_on_all(failure)
        self.start = None  # there is a checkpoint to go back to now

    def _agree(self) -> None:
        assert_ranks_agree({name: value for name, value in self.networks.state_dict().items() if not is_divided(value)})

    def _save(
        self,
        step: int,
        weights: dict[str, Tensor],
        optimizer: dict[str, Tensor] | Path,
        state: dict[str, Any],
        spare: Path | None = None,
    ) -> None:
        save_checkpoint(
            self.folder.path,
            step,
            weights=weights,
            optimizer=optimizer,
            state=state,
            keep=self.config.train.num_checkpoints,
            spare=spare,
            metadata={"fingerprint": model_fingerprint(self.config, weights)},
        )

    def should_stop(self, step: int) -> bool:
        """True once any rank got a signal; ranks talk about it only when a line is logged."""
        if self.steps_before + step == self.until:
            return True
        if distributed.is_active() and step % self.config.train.log_every_steps:
            return False
        return distributed.any_rank(self.stop.signal != 0, self.device)
