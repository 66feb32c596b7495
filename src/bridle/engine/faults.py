"""Steps whose gradient was not finite, written down so that they can be looked into: docs/engine.md, "Non-finite steps"."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bridle.data.batch import Batch
from bridle.errors import RunError
from bridle.files import explain_write_error, fsync, link_or_copy, write_atomically
from bridle.objectives.base import Objective
from bridle.train.loop import TrainConfig, autocast
from bridle.train.sharding import local
from bridle.train.weights import read_weights, storable
from bridle.wording import count

FOLDER = "faults"
VERSION = 1
MAX_RECORDED = 5
"""Faults that are written down in a run; each takes as much room as its batch and the weights."""

WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint"
"""Beside a fault: the weights it shows on, or the whole checkpoint before it."""

_TENSORS = ("inputs", "lengths", "seeds", "indices", "aspects")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What of a step is not finite.

    Attributes:
        terms: names of losses.
        parameters: names of parameters by their gradient, in the order of the networks. A fault in a layer spoils the
            gradients of those before it: the last name is the nearest to its origin.
    """

    terms: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def shown(self) -> bool:
        """True when anything is not finite."""
        return bool(self.terms or self.parameters)

    def __str__(self) -> str:
        if not self.shown:
            return "losses and gradients are finite"
        losses = "losses are finite"
        if self.terms:
            losses = f"{'loss' if len(self.terms) == 1 else 'losses'} {', '.join(self.terms)} not finite"
        if not self.parameters:
            return losses
        return f"{losses}; gradients of {count(len(self.parameters), 'parameter')} not finite, up to {self.parameters[-1]}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A step that was skipped.

    Attributes:
        step: of the run, counted from 1.
        phase: number of the phase, from 0.
        phase_step: step within the phase, counted from 1.
        keys: of the batch's clips.
        terms: losses that are not finite on the weights of ``weights_step``.
        parameters: whose gradients are not.
        weights_step: finished steps that the weights beside the fault have seen.
        version: of the folder.
    """

    step: int
    phase: int
    phase_step: int
    keys: tuple[str, ...]
    terms: tuple[str, ...]
    parameters: tuple[str, ...]
    weights_step: int
    version: int = VERSION


def diagnose(objective: Objective, batch: Batch, step: int, config: TrainConfig) -> Diagnosis:
    """Forward and backward of one process on a finished batch; leaves no gradient behind and changes nothing else.

    Args:
        objective: in train mode.
        batch: on the objective's device.
        step: finished steps of the phase before this one.
        config: micro-batches and precision.
    """
    objective.zero_grad(set_to_none=True)
    weights, terms = objective.weights(), set()
    for part in batch.split(config.num_micro_batches):
        counts = objective.counts(part, step)
        with autocast(config, batch.inputs.device):
            output = objective(part, step)
        terms |= {name for name, loss in output.losses.items() if not torch.isfinite(loss)}
        total = sum(weights[name] * loss / max(counts[name], 1) for name, loss in output.losses.items())
        total.backward()
    spoilt = (
        name for name, one in objective.named_parameters() if one.grad is not None and not local(one.grad).isfinite().all()
    )
    found = Diagnosis(tuple(sorted(terms)), tuple(spoilt))
    objective.zero_grad(set_to_none=True)
    return found


def fault_path(run: Path, step: int) -> Path:
    """Where the fault of a step of the run is written."""
    return run / FOLDER / f"step-{step:08d}"


def recorded(run: Path) -> list[Path]:
    """The faults of a run that are written down, by their step."""
    return sorted((run / FOLDER).glob("step-*"))


def write_fault(run: Path, fault: Fault, batch: Batch, weights: Mapping[str, Tensor] | Path | None) -> Path:
    """Write a fault as a folder that is whole when it has its name.

    Args:
        run: the run folder.
        fault: what is known.
        batch: as its loader gave it, not finished.
        weights: those it shows on, or the checkpoint folder before it, which is linked; None when there is neither.

    Returns:
        The folder.

    Raises:
        RunError: it cannot be written.
    """
    path = fault_path(run, fault.step)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(storable({name: getattr(batch, name) for name in _TENSORS}), temporary / "batch.safetensors")
        if isinstance(weights, Path):
            shutil.copytree(weights, temporary / CHECKPOINT, copy_function=_link)
        elif weights is not None:
            save_file(storable(weights), temporary / WEIGHTS)
        for file in temporary.glob("*.safetensors"):
            fsync(file)
        write_atomically(temporary / "fault.json", json.dumps(asdict(fault), indent=1))
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        fsync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(explain_write_error(error, path.parent, path.name)) from error
    return path


def _link(source: str, target: str) -> None:
    link_or_copy(Path(source), Path(target))


def read_fault(path: Path) -> tuple[Fault, Batch]:
    """What :func:`write_fault` wrote, without the weights.

    Raises:
        RunError: it is no fault, damaged, or of another version.
    """
    try:
        values = json.loads((path / "fault.json").read_bytes())
        if values["version"] != VERSION:
            raise RunError(f"{path} was written in version {values['version']}; this bridle reads version {VERSION}")
        numbers = [int(values[name]) for name in ("step", "phase", "phase_step")]
        names = [tuple(map(str, values[name])) for name in ("keys", "terms", "parameters")]
        fault = Fault(numbers[0], numbers[1], numbers[2], names[0], names[1], names[2], int(values["weights_step"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it has no fault.json" if isinstance(error, OSError) else f"fault.json: {error}"
        raise RunError(f"{path} is no fault of a run ({reason}); give a folder RUN/{FOLDER}/step-...") from error
    tensors, _ = read_weights(path / "batch.safetensors")
    if set(tensors) != set(_TENSORS):
        raise RunError(f"{path / 'batch.safetensors'} holds {', '.join(sorted(tensors))}, not {', '.join(sorted(_TENSORS))}")
    inputs, lengths, seeds, indices, aspects = (tensors[name] for name in _TENSORS)
    return fault, Batch(inputs, lengths, seeds, indices, aspects)
