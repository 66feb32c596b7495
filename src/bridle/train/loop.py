"""The training loop: one phase, one step, and when periodic things are due. It knows objectives, never a method.

A step reads as: count, forward, backward, clip, step, update. Nothing in it waits for the device; values are read when
they are logged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bridle import distributed
from bridle.config import LATER
from bridle.data.batch import Batch
from bridle.errors import BridleError, ConfigError, DataError, TrainingError
from bridle.objectives.base import Objective, StepOutput
from bridle.optim.groups import OptimConfig, clip_gradients
from bridle.optim.schedule import warmup_cosine
from bridle.train.sharding import is_sharded, whole
from bridle.train.skipped import NOTHING_SKIPPED, Skipped, SkippedState, SkippedSteps

Precision = Literal["auto", "fp32", "bf16"]
Sharding = Literal["none", "full"]
_AT_LEAST_1 = (
    "batch_size",
    "num_micro_batches",
    "log_every_steps",
    "checkpoint_every_steps",
    "num_checkpoints",
    "max_bad_in_a_row",
    "max_skipped_in_a_row",
    "check_ranks_every_steps",
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything about the machinery and nothing about the method.

    Attributes:
        batch_size: clips of full crop length in a global batch; a batch of shorter clips holds more of them.
        num_micro_batches: micro-batches that a process cuts its share of a batch into; changes memory, not the result.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the device has bf16 arithmetic.
        num_workers: loader processes; 0 loads in the training process.
        log_every_steps: steps from one logged line to the next.
        checkpoint_every_steps: steps from one checkpoint to the next; one is also written at the end of each phase.
        num_checkpoints: newest checkpoints that are kept.
        max_bad_fraction: share of unreadable files above which the run stops.
        max_bad_in_a_row: unreadable files in a row that stop the run.
        max_skipped_in_a_row: steps in a row with non-finite gradients after which the run goes back to a checkpoint.
        sharding: what several processes divide among them: ``none``: the batch alone (DDP); ``full``: weights, gradients and
            the optimiser's state too (FSDP2), where these do not fit into one device; the weights alone must.
        check_ranks_every_steps: steps from one comparison of the processes' weights and codebooks to the next.
        label_cache_gigabytes: memory for the codes that a frozen tokenizer gives to clips that are the same in every epoch, and
            then looks at once; 0 to look at them each time.
        max_rollbacks: times that a run goes back so before it stops.

    Raises:
        ConfigError: a value out of range.
    """

    batch_size: int = 64
    num_micro_batches: int = 1
    precision: Precision = "auto"
    num_workers: int = 0
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500
    num_checkpoints: int = 2
    max_bad_fraction: float = 0.01
    max_bad_in_a_row: int = 100
    max_skipped_in_a_row: int = 20
    max_rollbacks: int = field(default=3, metadata=LATER)
    sharding: Sharding = field(default="none", metadata=LATER)
    check_ranks_every_steps: int = field(default=1000, metadata=LATER)
    label_cache_gigabytes: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        for name in _AT_LEAST_1:
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be 1 or more")
        for name in ("num_workers", "max_rollbacks", "label_cache_gigabytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be 0 or more")
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise ConfigError(f"train.max_bad_fraction={self.max_bad_fraction} must lie between 0 and 1")


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """``auto`` becomes ``bf16`` where the device computes in bf16, else ``fp32``; other values stay."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "fp32"


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """One phase as the loop sees it: its name, its length in steps, and its optimiser's settings."""

    name: str
    total_steps: int
    optim: OptimConfig


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step leaves behind, all on the device: means over items, gradient norm, whether the step was skipped."""

    values: dict[str, Tensor]
    skipped: Tensor


class Diverged(TrainingError):
    """So many steps in a row were skipped that going on as before is of no use. ``step`` counts within the phase."""

    def __init__(self, step: int, state: SkippedState) -> None:
        count = state.in_a_row
        super().__init__(
            f"{count} steps in a row up to step {step} of the phase had non-finite gradients; lower the learning rate or set "
            "train.precision=fp32, then --resume"
        )
        self.step = step
        self.count = count
        self.unlogged = state.unlogged


class Watcher(Protocol):
    """What the loop tells the outside. All steps count within the phase, from 1 after the first step."""

    def step_done(self, step: int, batch: Batch) -> None:
        """After every step; cheap."""

    def skipped(self, found: Skipped) -> None:
        """When a line is logged or a checkpoint is due, on all ranks, if steps were skipped since."""

    def log(self, step: int, values: dict[str, Tensor]) -> None:
        """Every ``log_every_steps`` steps, on all ranks, with values still on the device. May raise to stop the run."""

    def checkpoint(self, step: int, optimizer: Optimizer, skipped: SkippedState) -> None:
        """When a checkpoint is due."""

    def should_stop(self, step: int) -> bool:
        """True to write a checkpoint now and leave."""


def is_due(step: int, every: int, last: int) -> bool:
    """The one rule for periodic actions: every ``every`` steps and at the last one."""
    return step % every == 0 or step == last


def train_phase(
    spec: PhaseSpec,
    objective: Objective,
    optimizer: Optimizer,
    batches: Callable[[int], Iterable[Batch]],
    watcher: Watcher,
    config: TrainConfig,
    start_step: int = 0,
    before: SkippedState = NOTHING_SKIPPED,
) -> bool:
    """Run a phase from ``start_step`` to its end.

    Args:
        spec: name, length, optimiser settings.
        objective: its codebooks prepared.
        optimizer: of this phase, its state restored when ``start_step`` is not 0.
        batches: gives this rank's batches from a step on.
        watcher: told about steps, values and checkpoints.
        config: precision, accumulation and periods.
        start_step: steps of the phase already done.
        before: which of the steps already done were skipped.

    Returns:
        True when the phase was finished, False when the watcher asked to stop.

    Raises:
        Diverged: ``max_skipped_in_a_row`` steps in a row had non-finite gradients.
        DataError: the data end. One process has written a checkpoint by then; several cannot agree on one.
    """
    device = next(objective.parameters()).device
    model = _wrap(objective)
    objective.train()
    skipped = SkippedSteps(before)

    def look() -> int:
        found = skipped.look()
        if found.steps:
            watcher.skipped(found)
        return found.in_a_row

    stream = iter(batches(start_step))
    for step in range(start_step, spec.total_steps):
        try:
            batch = next(stream)
        except DataError:
            if step > start_step and not distributed.is_active():
                look()
                watcher.checkpoint(step, optimizer, skipped.state)
            raise
        _set_lr(optimizer, spec, step)
        result = train_step(model, objective, optimizer, batch.to(device), step, spec.optim.clip_norm, config)
        done = step + 1
        skipped.add(done, result.skipped)
        watcher.step_done(done, batch)
        stop = watcher.should_stop(done)
        logs, saves = (
            is_due(done, every, spec.total_steps) for every in (config.log_every_steps, config.checkpoint_every_steps)
        )
        if not (logs or saves or stop):
            continue
        in_a_row = look()
        if logs:
            lr = max(group["lr"] for group in optimizer.param_groups)
            more = {"lr": torch.tensor(lr), "skipped": torch.tensor(float(skipped.logged()))}
            try:
                watcher.log(done, {**result.values, **objective.health(), **more})
            except BridleError:
                watcher.checkpoint(done, optimizer, skipped.state)  # the end must not cost the steps since the last one
                raise
        if in_a_row >= config.max_skipped_in_a_row:
            raise Diverged(done, skipped.state)
        if done == spec.total_steps:  # a good one whatever came last: the next phase begins to count anew
            watcher.checkpoint(done, optimizer, replace(skipped.state, in_a_row=0))
        elif stop or (saves and in_a_row == 0):  # the good ones are not pushed out
            watcher.checkpoint(done, optimizer, skipped.state)
        if stop and done < spec.total_steps:
            return False
    return True


def train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    batch: Batch,
    step: int,
    clip_norm: float,
    config: TrainConfig,
) -> StepResult:
    """One optimiser step on this rank's share of a global batch.

    Losses are sums; they are divided by the number of items on all ranks, so the result does not depend on how the batch was
    divided. A non-finite gradient norm skips the step on the device: weights and optimiser state stay as they were.
    """
    device = batch.inputs.device
    micro = batch.split(config.num_micro_batches)
    counts = _global_counts(objective, micro, step)
    weights = objective.weights()
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for index, part in enumerate(micro):
        with _sync_gradients(model, index == len(micro) - 1):
            with autocast(config, device):
                output: StepOutput = model(part, step)
            total = sum((weights[name] / counts[name]) * loss for name, loss in output.losses.items())
            (total * distributed.world_size()).backward()  # type: ignore[union-attr]
        outputs.append(output)
    norm = clip_gradients([p for p in objective.parameters() if p.requires_grad], clip_norm)
    norm = whole(norm)
    skipped = (~torch.isfinite(norm)).to(torch.float32)
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    spoilt = torch.where(skipped > 0, torch.nan, 0.0)  # statistics that are not finite change no codebook
    statistics = _add([output.statistics for output in outputs])
    objective.update({name: value + spoilt for name, value in statistics.items()})
    sums = _add([{**output.losses, **output.metrics} for output in outputs])
    return StepResult(_means(sums, counts) | {"gradient_norm": norm.detach()}, skipped)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context of a forward pass in the configured precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def _wrap(objective: Objective) -> nn.Module:
    if not distributed.is_active() or is_sharded(objective):
        return objective
    with warnings.catch_warnings():
        # Its successor still synchronises buffers at the start, which codebooks do not need.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=objective.varying)


def _set_lr(optimizer: Optimizer, spec: PhaseSpec, step: int) -> None:
    warmup = round(spec.optim.warmup_ratio * spec.total_steps)
    lr = warmup_cosine(step, total_steps=spec.total_steps, warmup_steps=warmup, peak=spec.optim.lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _global_counts(objective: Objective, micro: list[Batch], step: int) -> dict[str, float | Tensor]:
    local: dict[str, float] = {}
    for part in micro:
        for name, count in objective.counts(part, step).items():
            local[name] = local.get(name, 0.0) + count
    if not distributed.is_active():
        return {name: max(count, 1.0) for name, count in local.items()}
    device = micro[0].inputs.device
    packed = torch.tensor(list(local.values()), dtype=torch.float32).to(device, non_blocking=True)
    return dict(zip(local, distributed.all_reduce_sum(packed).clamp(min=1.0).unbind(), strict=True))


def _means(sums: dict[str, Tensor], counts: dict[str, float | Tensor]) -> dict[str, Tensor]:
    packed = torch.stack([value.detach().float() for value in sums.values()])
    packed = distributed.all_reduce_sum(packed)
    return {name: value / counts[name] for name, value in zip(sums, packed.unbind(), strict=True)}


def _add(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = dict(parts[0])
    for part in parts[1:]:
        for name, value in part.items():
            total[name] = total[name] + value
    return total


def _sync_gradients(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients of all but the last micro-batch stay on their rank."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
