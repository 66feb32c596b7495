"""How long a recipe takes on this machine: real training steps on random clips, and real reading of files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from bridle.data.batch import Batch, Sample, collate
from bridle.data.loaders import ClipConfig, build_loader, plain
from bridle.data.manifest import Entry
from bridle.doctor.plan import Plan, raw_loader
from bridle.doctor.scan import OnProgress
from bridle.errors import DecodeError
from bridle.networks import Networks, build_objective
from bridle.objectives.base import Objective
from bridle.optim.groups import OptimConfig, build_adamw
from bridle.phases import Phase
from bridle.randomness import generator
from bridle.run import RunConfig
from bridle.train.loop import resolve_precision, train_step

FIRST_CLIPS = 2
_LOADED_FILES = 16


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Estimate of one phase.

    Attributes:
        kind: of the phase.
        length: as configured, e.g. ``30 epochs``.
        num_steps: its steps.
        step_seconds: of a step on a batch of full crops.
        num_timed_clips: clips of the batch that was timed; less than a batch when a whole one takes too long.
        epoch_seconds: of one epoch, without reading files.
        seconds: of the phase, without reading files.
    """

    kind: str
    length: str
    num_steps: int
    step_seconds: float
    num_timed_clips: int
    epoch_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Estimate of a whole run.

    Attributes:
        device: where the steps ran.
        precision: as resolved for it.
        phases: in the order of the recipe.
        read_seconds: to read and transform every clip of an epoch, in one process.
        reread_seconds: the same in later epochs, when short files come from memory.
        seconds: of the whole run.
    """

    device: str
    precision: str
    phases: tuple[PhaseTime, ...]
    read_seconds: float
    reread_seconds: float
    seconds: float


def estimate_speed(
    config: RunConfig,
    plan: Plan,
    entries: Sequence[Entry],
    device: torch.device,
    *,
    budget_seconds: float = 15.0,
    on_progress: OnProgress | None = None,
) -> Speed:
    """Time each kind of phase by a warm-up and two training steps, and reading by a few files.

    Args:
        config: the recipe.
        plan: of the recipe on the files.
        entries: readable files.
        device: where to train.
        budget_seconds: for each kind of phase; if a whole batch takes longer, a smaller one is timed and scaled up.
        on_progress: told about progress.
    """
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train.precision, device)))
    networks = Networks(config).to(device)
    _fit_codebooks(networks, device)
    kinds = {phase.kind: phase for phase in config.plan}
    steps: dict[str, tuple[float, int]] = {}
    for phase in kinds.values():
        if on_progress is not None:
            on_progress("timing steps", len(steps), len(kinds))
        steps[phase.kind] = _time_phase(phase, networks, config, budget_seconds)
    if on_progress is not None:
        on_progress("timing steps", len(kinds), len(kinds))
    uncached = plain(config.clips)
    kept = _time_reading(replace(uncached, cache_gigabytes=config.clips.cache_gigabytes), entries)
    return project(config, plan, steps, _time_reading(uncached, entries), kept, str(device))


def project(
    config: RunConfig, plan: Plan, steps: dict[str, tuple[float, int]], clip_seconds: float, kept_seconds: float, device: str
) -> Speed:
    """The whole run from its parts.

    Args:
        config: the recipe, its precision resolved.
        plan: of the recipe on the files.
        steps: (seconds of a step on a full batch, clips that were timed) by kind of phase.
        clip_seconds: to read one clip.
        kept_seconds: to read one of a file that is kept decoded, the first time: of a film that is all of it.
        device: name of the device.
    """
    times = []
    for phase in config.plan:
        seconds, clips = steps[phase.kind]
        num_steps = phase.total_steps(plan.steps_per_epoch)
        epoch = seconds * plan.full_steps
        phase_seconds = epoch * num_steps / plan.steps_per_epoch
        times.append(PhaseTime(phase.kind, phase.spoken_length, num_steps, seconds, clips, epoch, phase_seconds))
    cached = min(1.0, plan.cache_limit_bytes / max(1, plan.cache_bytes)) * plan.cacheable_clips
    reread = clip_seconds * (plan.num_clips - cached)
    read = reread + kept_seconds * cached
    num_epochs = sum(phase.num_steps for phase in times) / plan.steps_per_epoch
    reading = (read + reread * max(0.0, num_epochs - 1)) if num_epochs >= 1 else read * num_epochs
    computing, workers = sum(phase.seconds for phase in times), config.train.num_workers
    total = max(computing, reading / workers) if workers else computing + reading
    return Speed(device, config.train.precision, tuple(times), read, reread, total)


def _fit_codebooks(networks: Networks, device: torch.device) -> None:
    """To noise: codebooks must be there for a step, and their content does not change its time."""
    for tokenizer in (networks.cold, networks.tokenizer):
        if tokenizer is not None:
            config = tokenizer.quantizer.config
            noise = torch.randn(2 * config.codebook_size, config.code_dim, generator=generator("doctor", "codebooks"))
            tokenizer.quantizer.fit(noise.to(device), seed=0)


def _time_phase(phase: Phase, networks: Networks, config: RunConfig, budget_seconds: float) -> tuple[float, int]:
    """(seconds of a step on a full batch, clips that were timed)."""
    objective = build_objective(phase, networks, config)
    optim = config.tokenizer_optim if phase.kind == "tokenizer" else config.encoder_optim
    clips, full = min(FIRST_CLIPS, config.train.batch_size), config.train.batch_size
    seconds = _time_steps(objective, optim, config, phase, clips)
    affordable = int(clips * budget_seconds / (3 * seconds))
    if affordable > clips < full:
        clips = min(full, affordable)
        seconds = _time_steps(objective, optim, config, phase, clips)
    return seconds * full / clips, clips


def _time_steps(objective: Objective, optim: OptimConfig, config: RunConfig, phase: Phase, clips: int) -> float:
    """Mean seconds of a step; one with and one without the tokenizer's loss are timed, which differ in a joint phase."""
    optimizer = build_adamw(objective, optim)
    device = next(nn.Module.parameters(objective)).device
    batch, loader = random_batch(config, clips).to(device), raw_loader(config)
    objective.train()
    times = []
    for step in (0, 0, 1):
        start = time.perf_counter()
        ready = loader.finish(batch, augment=True)
        result = train_step(objective, objective, optimizer, ready, step, optim.clip_norm, config.train)
        float(result.skipped)  # waits for the device
        times.append(time.perf_counter() - start)
    every = config.joint_every_steps if phase.kind == "joint" else 2
    return times[1] / every + times[2] * (1 - 1 / every)


def random_batch(config: RunConfig, clips: int) -> Batch:
    """Noise in the shape of ``clips`` full clips of the recipe, as they come from its loader."""
    loader = raw_loader(config)
    channels, height, width = loader.frame_shape
    noise = torch.randn((clips, channels, loader.crop_frames, height, width), generator=generator("doctor", "batch"))
    if loader.dtype == torch.uint8:
        noise = (64 * noise + 128).clamp(0, 255).to(torch.uint8)
    samples = [Sample(inputs, inputs.shape[1], i, i) for i, inputs in enumerate(noise)]
    return collate(samples, config.encoder.patch)


def _time_reading(clips: ClipConfig, entries: Sequence[Entry]) -> float:
    """Mean seconds to load a clip, over files from all over the list; files that break are passed over."""
    chosen = entries[:: max(1, len(entries) // _LOADED_FILES)][:_LOADED_FILES]
    times: list[float] = []
    for number in (1, _LOADED_FILES):  # to warm up, then to count
        loader, times = build_loader(clips), []
        for entry in chosen[:number]:
            start = time.perf_counter()
            try:
                loader.load(entry, generator("doctor", "reading"))
            except (DecodeError, OSError):
                continue
            times.append(time.perf_counter() - start)
    return sum(times) / max(1, len(times))
