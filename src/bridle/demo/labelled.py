"""What every set of the demo is, and how many steps of training fit into its time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridle.doctor.speed import Speed

LEAST_STEPS = 20


@dataclass(frozen=True)
class LabelledSet:
    """Labelled files, ready to be used.

    Attributes:
        source: CSV table, or folder whose subfolders tell split and class.
        labels: columns with a class; each is evaluated.
        protocol: column of the official protocol, ``fold`` or ``split``; or empty.
        title: what it is.
        reason: why it was taken.
    """

    source: Path
    labels: tuple[str, ...]
    protocol: str
    title: str
    reason: str


def steps_in(seconds: float, speed: Speed) -> int:
    """Steps that fit into ``seconds``, its start included; a multiple of 10, at least ``LEAST_STEPS``.

    Args:
        seconds: for a run of a single phase.
        speed: the doctor's estimate of that run; its files are read twice, for the normalisation and in the first epoch.
    """
    step = sum(phase.seconds for phase in speed.phases) / sum(phase.num_steps for phase in speed.phases)
    return max(LEAST_STEPS, int((seconds - 2 * speed.read_seconds) / step) // 10 * 10)
