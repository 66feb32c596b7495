"""Doing again a step that was skipped, to see what of it is not finite."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridle import distributed
from bridle.data.index import read_index
from bridle.data.loaders import build_loader
from bridle.data.manifest import read_manifest
from bridle.engine.faults import CHECKPOINT, FOLDER, WEIGHTS, Diagnosis, Fault, diagnose, fault_path, read_fault
from bridle.engine.training import Training
from bridle.errors import RunError
from bridle.networks import LATER_NETWORKS, Networks, build_objective, load_weights
from bridle.pretraining import prepare
from bridle.run import RunFolder
from bridle.train.checkpoint import load_checkpoint
from bridle.train.reporter import Reporter, Silent
from bridle.train.weights import read_weights


@dataclass(frozen=True, slots=True)
class Replayed:
    """What doing a step again has shown.

    Attributes:
        fault: as it was written down.
        found: what is not finite now.
        weights_step: finished steps that the weights had seen.
        num_repeated: steps that were done again before it.
        largest_input: magnitude of the largest value of each clip of the batch, in their order, as the encoder gets it.
    """

    fault: Fault
    found: Diagnosis
    weights_step: int
    num_repeated: int
    largest_input: tuple[float, ...]


def replay(
    run: str | Path,
    fault: str | Path,
    sources: str | Path | Sequence[str | Path] = (),
    *,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Replayed:
    """Forward and backward of a skipped step on its batch, as it was written down in ``RUN/faults``.

    The weights are those the fault was seen on, where it could be seen on any when it was written down. Where it could not,
    the steps from the checkpoint before it on are repeated, in a copy of the run: on a CPU that gives the very weights of that
    moment, unless the run went back to an older checkpoint in between. The run itself stays as it is.

    Args:
        run: run folder.
        fault: folder below ``RUN/faults``, or its name.
        sources: what the run learns from, for repeating, if it lies elsewhere than when the run began.
        device: defaults to the GPU, else the CPU.
        reporter: told about the steps that are repeated.

    Raises:
        RunError: there is no such fault, it is damaged, of a fine-tuned run, or of other data than the sources; or the run was
            asked to stop while steps were repeated.
        DataError: no clip can be read.
    """
    folder, device = RunFolder(Path(run)), device or distributed.default_device()
    config = folder.read_config()
    if config.finetune is not None:
        raise RunError(f"{run} is a fine-tuned run: its labels are not kept with a fault; its fault.json names loss and clips")
    path = Path(fault) if Path(fault).is_dir() else folder.path / FOLDER / Path(fault).name
    known, batch = read_fault(path)
    finished = build_loader(config.clips).finish(batch.to(device), augment=True)
    largest = tuple(finished.inputs.abs().flatten(1).amax(1).tolist()) if len(batch) else ()
    if (path / WEIGHTS).is_file():
        networks = Networks(config)
        weights, _ = read_weights(path / WEIGHTS)
        held = {name.split(".")[0] for name in weights}
        load_weights(networks, weights, path / WEIGHTS, LATER_NETWORKS - held)
        objective = build_objective(config.plan[known.phase], networks.to(device), config).train()
        found = diagnose(objective, finished, known.phase_step - 1, config.train)
        return Replayed(known, found, known.weights_step, 0, largest)
    found, first = _repeat(folder, path, known, sources, device, reporter or Silent())
    return Replayed(known, found, known.step - 1, known.step - 1 - first, largest)


def _repeat(
    folder: RunFolder,
    path: Path,
    fault: Fault,
    sources: str | Path | Sequence[str | Path],
    device: torch.device,
    reporter: Reporter,
) -> tuple[Diagnosis, int]:
    """Do the steps up to the fault again, in a copy of the run that looks at each; returns also the step it begins at."""
    config = folder.read_config()
    index = read_index(folder.index).manifest
    manifest = read_manifest(sources, config.medium) if sources else index
    if manifest.fingerprint != index.fingerprint:
        raise RunError(f"the data are not those of {folder.path} (other files or durations); give the same --data, or none")
    with tempfile.TemporaryDirectory(prefix="bridle-replay-") as name:
        copy = RunFolder(Path(name) / "run")
        copy.write_config(config)
        first = 0
        if (path / CHECKPOINT).is_dir():
            first = load_checkpoint(path / CHECKPOINT).step
            shutil.copytree(path / CHECKPOINT, copy.path / "checkpoints" / f"step-{first:08d}")
        # A skipped step changes nothing: who looks right behind it sees the weights it had.
        looks: dict[str, Any] = {
            "log_every_steps": 1,
            "checkpoint_every_steps": fault.step,
            "max_skipped_in_a_row": fault.step + 1,
        }
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **looks))
        outcome = Training(prepare(config, manifest, copy, device, reporter)).execute(until=fault.step)
        if outcome.stop_signal:
            raise RunError(f"asked to stop after step {outcome.step} of {fault.step}; nothing is known of the fault yet")
        again = fault_path(copy.path, fault.step)
        if not again.is_dir():
            return Diagnosis((), ()), first
        seen, _ = read_fault(again)
        return Diagnosis(seen.terms, seen.parameters), first
