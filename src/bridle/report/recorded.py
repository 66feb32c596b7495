"""What a run folder tells of its making: time, operations, versions. What was not recorded is None, never guessed."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bridle import flops
from bridle.masking import num_masked
from bridle.phases import Phase
from bridle.run import RunConfig, clip_grid
from bridle.train.history import read_history

SHOWN_PACKAGES = ("bridle", "torch", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a training so far.

    Attributes:
        seconds: of all calls that trained the run, as recorded, else from the opening of the log to its last line by the clock
            in the TensorBoard events; None without either.
        operations: floating-point operations of the matrix products of all steps, if every clip were full; None for a
            fine-tuned run.
        kilowatt_hours: ``seconds`` at a given power; None without either.
    """

    seconds: float | None
    operations: float | None
    kilowatt_hours: float | None


def cost(run: Path, config: RunConfig, steps: list[int], watts: float | None) -> Cost:
    """The cost of a run whose phases have made ``steps`` steps; ``watts`` is what the machine draws."""
    calls = read_history(run)
    seconds = sum(call.seconds for call in calls) if calls else event_seconds(run / "tensorboard")
    known = all(phase.kind != "supervised" for phase in config.plan)
    counts = zip(config.plan, steps, strict=True)
    operations = sum(count * step_operations(phase, config) for phase, count in counts) if known else None
    energy = None if seconds is None or watts is None else seconds * watts / 3.6e6
    return Cost(seconds, operations, energy)


def step_operations(phase: Phase, config: RunConfig) -> float:
    """Operations of one step of a phase on a batch of full clips; not of a supervised phase."""
    grid = clip_grid(config)
    masked, predicted = (int(count[0]) for count in num_masked(config.masks, grid, torch.tensor([grid.time])))
    counts = flops.PatchCounts(grid.num_patches, grid.num_patches - masked, predicted, config.masks.num_masks)
    tokenizer = sum(part.total for part in flops.tokenizer_distillation(config, counts).values())
    if phase.kind == "tokenizer":
        return config.train.batch_size * float(tokenizer)
    if phase.kind == "patches":
        return config.train.batch_size * float(sum(part.total for part in flops.masked_patches(config, counts).values()))
    codes = sum(part.total for part in flops.masked_codes(config, counts, cold=phase.kind == "cold").values())
    share = tokenizer / config.joint_every_steps if phase.kind == "joint" else 0.0
    return config.train.batch_size * (codes + share)


def event_seconds(folder: Path) -> float | None:
    """Time from the first to the last event, added up over the event files of a folder; None when there is none."""
    spans = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        times = list(_event_times(path.read_bytes()))
        if times:
            spans.append(max(times) - min(times))
    return sum(spans) if spans else None


def versions() -> dict[str, str]:
    """Of Python and the packages that the page was made with; those that are not installed are left out."""
    found = {"Python": platform.python_version()}
    for name in SHOWN_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _event_times(content: bytes) -> Iterator[float]:
    """Wall time of every whole record that holds a value.

    A TFRecord is 8 bytes of length, 4 of checksum, the record and 4 of checksum; an Event begins with its field 1, a double.
    """
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        record = content[place + 12 : place + 12 + length]
        place += 16 + length
        if len(record) == length and record[:1] == b"\x09" and length > 9:
            yield float(struct.unpack_from("<d", record, 1)[0])
