"""Pretraining from start to finish: data, networks, phases, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from bridle import distributed
from bridle.data.batch import Batch
from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.loaders import build_loader
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.quarantine import BadFile, Quarantine
from bridle.data.sampler import EpochOrder
from bridle.errors import RunError
from bridle.networks import Networks, build_objective, load_weights, model_fingerprint, renew, start_tokenizer
from bridle.optim.groups import build_adamw
from bridle.phases import Phase, has_new_labels
from bridle.quantize import COLLAPSED_BELOW, ResidualQuantizer
from bridle.randomness import derive_seed
from bridle.run import RunConfig, RunFolder
from bridle.settings import check_folder, resolve
from bridle.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from bridle.train.loop import PhaseSpec, train_phase
from bridle.train.metrics import MetricsWriter
from bridle.train.packing import pack_optimizer, pack_rng, unpack_optimizer, unpack_rng
from bridle.train.stop import StopFlag

PREPARE_BATCHES = 8
"""Batches whose vectors start the codebooks."""


class Reporter(Protocol):
    """Who is told about progress; the command line draws it."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        """A phase begins at step ``done`` of ``steps``."""

    def step(self, done: int) -> None:
        """A step is done; cheap."""

    def values(self, values: dict[str, float]) -> None:
        """Newest logged values."""


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        """Ignore."""

    def step(self, done: int) -> None:
        """Ignore."""

    def values(self, values: dict[str, float]) -> None:
        """Ignore."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of :func:`pretrain` ended.

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


def pretrain(
    config: RunConfig,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Pretrain on the clips of ``sources`` and write the run folder ``out``.

    Args:
        config: usually from :mod:`bridle.recipes`.
        sources: folders, manifests or tar shards, or one of them.
        out: run folder.
        resume: continue the run in ``out`` from its newest whole checkpoint; start it when there is none.
        device: defaults to this process's GPU, else the CPU.
        reporter: told about progress.

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
    device = device or distributed.default_device()
    folder = RunFolder(Path(out))
    check_folder(folder, resume)
    if resume and not folder.exists():
        reporter.message(f"no run in {folder.path} yet: it begins")
    manifest = read_manifest(sources, config.medium)
    minutes = sum(entry.duration_seconds for entry in manifest.entries) / 60
    reporter.message(f"{len(manifest)} {config.medium.nouns}" + (f", {minutes:.1f} minutes" if config.medium.timed else ""))
    config = resolve(config, manifest, folder, device)
    run = _Run(config, manifest, folder, device, reporter)
    return run.execute()


class _Run:
    """One call of :func:`pretrain`: the state that lives as long as the call, and the watcher of its loop."""

    def __init__(
        self, config: RunConfig, manifest: Manifest, folder: RunFolder, device: torch.device, reporter: Reporter
    ) -> None:
        self.config, self.folder, self.device, self.reporter = config, folder, device, reporter
        self.loader = build_loader(config.clips)
        self.dataset = ClipDataset(manifest, self.loader, config.seed)
        self.order = EpochOrder(
            self.dataset.lengths(),
            batch_size=config.train.batch_size,
            crop_length=self.loader.crop_frames,
            patch_length=config.encoder.patch[0],
            seed=config.seed,
        )
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
        self.data = manifest.fingerprint
        self.networks = Networks(config).to(device)
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
        if distributed.rank() == 0:
            self.writer = MetricsWriter(self.folder.path, checkpoint.step if checkpoint else None)
        with self.stop.installed():
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
        optim = self.config.tokenizer_optim if phase.kind == "tokenizer" else self.config.encoder_optim
        optim = optim if phase.lr is None else replace(optim, lr=phase.lr)
        if start == 0 and phase.kind in ("tokenizer", "joint"):
            start_tokenizer(self.networks, self.config)
        if start == 0 and has_new_labels(self.config.plan, self.phase_index):
            renew(self.networks, self.config, self.phase_index)
        objective = build_objective(phase, self.networks, self.config)
        first_epoch = sum(-(-length // self.order.steps_per_epoch) for length in lengths[:-1])
        if objective.unprepared():
            self.reporter.message(f"{phase.kind}: codebooks start by k-means")
            seed = derive_seed(self.config.seed, "codebooks", self.phase_index)
            objective.prepare(self._batches(first_epoch, 0, PREPARE_BATCHES), seed)
        optimizer = build_adamw(objective, optim)
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
            raise RunError(
                f"the data are not those of the run in {self.folder.path} (other files or durations); "
                "give the same --data or start a new run"
            )
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

    def log(self, step: int, values: dict[str, Tensor]) -> None:
        """Write one line of metrics; count the bad files of all ranks, so that all of them stop together."""
        failure = self._write(step, values)
        gathered = distributed.gather_objects((self.read, failure))
        self.read = []
        for _, reason in gathered:
            if reason is not None:  # on all ranks, so that none of them waits for the others
                raise RunError(reason)
        for ranks in zip(*(read for read, _ in gathered), strict=True):
            self.quarantine.add([file for bad, _ in ranks for file in bad], sum(good for _, good in ranks))

    def _write(self, step: int, values: dict[str, Tensor]) -> str | None:
        """A line of metrics to file and screen, on the rank that writes; the reason if that failed."""
        if self.writer is None:
            return None
        self.writer.write(self.steps_before + step, self.phase_name, values)
        try:
            self.writer.flush()
        except RunError as error:
            return str(error)
        numbers = torch.stack([value.detach().float().cpu() for value in values.values()]).tolist()
        self._report(dict(zip(values, numbers, strict=True)))
        return None

    def _report(self, numbers: dict[str, float]) -> None:
        self.reporter.values(numbers)
        low = [name for name, value in numbers.items() if name.startswith("perplexity/") and value < COLLAPSED_BELOW]
        if low and not self.alarmed:
            self.alarmed = True
            self.reporter.message(f"ALARM: {', '.join(low)} below {COLLAPSED_BELOW} of K: few codes are in use at these levels")

    def checkpoint(self, step: int, optimizer: Optimizer) -> None:
        """Write a checkpoint; all ranks prove that their codebooks are equal, and wait for it."""
        for module in self.networks.modules():
            if isinstance(module, ResidualQuantizer):
                module.assert_equal_on_all_ranks()
        if distributed.rank() == 0:
            state = {"phase": self.phase_index, "phase_step": step, "phase_steps": self.lengths, "data": self.data}
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
