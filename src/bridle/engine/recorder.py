"""While a run goes on: which batch a skipped step had, what of it is not finite, written down and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from bridle import distributed
from bridle.data.batch import Batch
from bridle.engine.faults import MAX_RECORDED, Diagnosis, Fault, diagnose, fault_path, recorded, write_fault
from bridle.engine.parts import Parts
from bridle.errors import RunError
from bridle.files import as_utf8
from bridle.objectives.base import Objective
from bridle.wording import first_of

_SHOWN_CLIPS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A step, counted from 1: of the run, and within which phase."""

    step: int
    phase: int
    phase_step: int


class FaultRecorder:
    """Writes down the first step of each row of skipped ones, :data:`~bridle.engine.faults.MAX_RECORDED` of them in a run.

    Args:
        parts: of the run.
        weights: gives those of now, whole; a collective.
    """

    def __init__(self, parts: Parts, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self._parts, self._weights = parts, weights

    def record(self, place: Place, objective: Objective, batch: Batch, weights_step: int, checkpoint: Path | None) -> None:
        """Look into a step on the weights of now, and write it down where the run keeps faults. A collective.

        Args:
            place: the step.
            objective: of its phase, in train mode.
            batch: this rank's share of the step's batch, as its loader gave it.
            weights_step: finished steps of the run.
            checkpoint: newest one before the step.
        """
        parts = self._parts
        wanted = not fault_path(parts.folder.path, place.step).exists() and len(recorded(parts.folder.path)) < MAX_RECORDED
        if not distributed.gather_objects(wanted)[0]:  # as rank 0 sees it
            parts.reporter.message(f"step {place.step}: the gradient is not finite; the step is skipped")
            return
        finished = parts.dataset.loader.finish(batch.to(parts.device), augment=True)
        found = diagnose(objective, finished, place.phase_step - 1, parts.config.train)
        keys = tuple(parts.manifest.entries[row % len(parts.manifest)].key for row in batch.indices.tolist())
        shares = distributed.gather_objects((found, keys))
        weights = self._weights() if any(each.shown for each, _ in shares) else {}
        # Gradients of divided parameters are of all ranks; losses are of a rank's own clips.
        showing = [rank for rank, (each, _) in enumerate(shares) if each.terms]
        showing += [rank for rank, (each, _) in enumerate(shares) if each.shown]
        owner = showing[0] if showing else 0
        failure = None
        if owner == distributed.rank():
            fault = Fault(place.step, place.phase, place.phase_step, keys, found.terms, found.parameters, weights_step)
            if not found.shown:
                fault = replace(fault, weights_step=int(checkpoint.name.split("-")[1].split(".")[0]) if checkpoint else 0)
            failure = self._write(fault, batch, weights if found.shown else checkpoint)
        failures = [each for each in distributed.gather_objects(failure) if each is not None]
        self._tell(place, *shares[owner], failures[0] if failures else None)

    def _write(self, fault: Fault, batch: Batch, weights: Mapping[str, Tensor] | Path | None) -> str | None:
        try:
            write_fault(self._parts.folder.path, fault, batch, weights)
        except RunError as error:
            return str(error)  # what cannot be written down must not end the run
        return None

    def _tell(self, place: Place, found: Diagnosis, keys: tuple[str, ...], failure: str | None) -> None:
        parts = self._parts
        where = failure or f"bridle replay {parts.folder.path} {fault_path(parts.folder.path, place.step).name}"
        what = str(found) if found.shown else "on the weights of now its losses and gradients are finite"
        parts.reporter.message(
            f"step {place.step}: the gradient is not finite; the step is skipped. {what}. "
            f"Clips {first_of(tuple(map(as_utf8, keys)), _SHOWN_CLIPS)}. {where}"
        )
