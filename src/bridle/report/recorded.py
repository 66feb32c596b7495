"""What a run folder tells of its making: time, operations, versions. What was not recorded is None, never guessed."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bridle import flops
from bridle.masking import num_masked
from bridle.phases import Phase
from bridle.run import RunConfig, clip_grid
from bridle.train.history import Call, read_history

SHOWN_PACKAGES = ("bridle", "torch", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a training so far.

    Attributes:
        seconds: of all calls that trained the run, as recorded. A call that was killed left no record and counts from the
            opening of its TensorBoard events to the last of them. None without either.
        at_least: some call is not recorded, so that it took longer than its events or left none.
        operations: floating-point operations of the matrix products of all steps, if every clip were full; None for a
            fine-tuned run.
        kilowatt_hours: ``seconds`` at a given power; None without either.
    """

    seconds: float | None
    at_least: bool
    operations: float | None
    kilowatt_hours: float | None


def cost(run: Path, config: RunConfig, steps: list[int], watts: float | None) -> Cost:
    """The cost of a run whose phases have made ``steps`` steps; ``watts`` is what the machine draws."""
    calls, spans = read_history(run), event_spans(run / "tensorboard")
    lost = unrecorded(spans, calls)
    seconds = sum(call.seconds for call in calls) + sum(span.seconds for span in lost) if calls or spans else None
    at_least = bool(lost) or _has_gap(calls, sum(steps))
    known = all(phase.kind != "supervised" for phase in config.plan)
    counts = zip(config.plan, steps, strict=True)
    operations = sum(count * step_operations(phase, config) for phase, count in counts) if known else None
    energy = None if seconds is None or watts is None else seconds * watts / 3.6e6
    return Cost(seconds, at_least, operations, energy)


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


@dataclass(frozen=True, slots=True)
class Span:
    """What one file of TensorBoard events tells: the time from its first to its last, and the steps they are of."""

    seconds: float
    first_step: int
    last_step: int


def event_spans(folder: Path) -> tuple[Span, ...]:
    """Of the event files of a folder, oldest first; files in which no step was logged are left out."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        events = list(_events(path.read_bytes()))
        times, steps = [time for time, _ in events], [step for _, step in events if step]
        if steps:
            found.append(Span(max(times) - min(times), min(steps), max(steps)))
    return tuple(found)


def unrecorded(spans: Sequence[Span], calls: Sequence[Call]) -> list[Span]:
    """The spans that are of no recorded call: those of calls that were killed.

    A call goes on where the newest checkpoint stands, so the last span whose steps it holds is its own, and one before that
    is of a call that was killed and began at the same checkpoint.
    """
    left = list(spans)
    lost: list[Span] = []
    for call in reversed(calls):
        own = [i for i, span in enumerate(left) if call.first_step < span.first_step and span.last_step <= call.last_step]
        if own:
            lost += left[own[-1] + 1 :]
            left = left[: own[-1]]
    return left + lost


def versions() -> dict[str, str]:
    """Of Python and the packages that the page was made with; those that are not installed are left out."""
    found = {"Python": platform.python_version()}
    for name in SHOWN_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _has_gap(calls: Sequence[Call], steps: int) -> bool:
    """Whether steps of the run were made by no recorded call."""
    ends = [0, *(call.last_step for call in calls)]
    starts = [*(call.first_step for call in calls), steps]
    return any(start > end for start, end in zip(starts, ends, strict=True))


def _events(content: bytes) -> Iterator[tuple[float, int]]:
    """Wall time and step of every whole record that holds an event; 0 where it tells no step.

    A TFRecord is 8 bytes of length, 4 of checksum, the record and 4 of checksum; an Event begins with its field 1, a double,
    and its field 2, a varint.
    """
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        record = content[place + 12 : place + 12 + length]
        place += 16 + length
        if len(record) == length and record[:1] == b"\x09" and length > 9:
            yield float(struct.unpack_from("<d", record, 1)[0]), _varint(record[10:]) if record[9:10] == b"\x10" else 0


def _varint(content: bytes) -> int:
    """The number that the bytes begin with, 7 bits a byte, the lowest first, as long as the highest bit is set."""
    value = 0
    for index, byte in enumerate(content[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            break
    return value
