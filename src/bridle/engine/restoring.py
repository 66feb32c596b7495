"""Putting a run back to a checkpoint: to its newest one when it is resumed, to a good one when it has diverged."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from bridle import distributed
from bridle.engine.parts import Parts
from bridle.errors import RunError
from bridle.networks import Networks, load_weights
from bridle.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, read_state, whole_checkpoints
from bridle.train.packing import unpack_optimizer, unpack_rng
from bridle.train.sharding import read_shards


def newest(run: Path) -> Path | None:
    """The checkpoint to go on from, on all ranks. A collective.

    Raises:
        RunError: the ranks see different ones, or there are checkpoints and none is whole.
    """
    path = latest_checkpoint(run)
    steps = distributed.gather_objects(path.name if path else "none")
    if len(set(steps)) > 1:
        raise RunError(f"the processes see different newest checkpoints ({', '.join(steps)}); --out must be on a shared disk")
    return path


def restore(parts: Parts, path: Path, num_phases: int) -> Checkpoint:
    """Give the networks the weights of a checkpoint, but for those that phases added since need.

    Args:
        parts: of the run.
        path: the checkpoint.
        num_phases: of the run as it is configured now.

    Raises:
        RunError: the checkpoint is damaged, of other data, or does not fit the configuration.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.state["data"] not in ("", parts.data):  # imported weights have seen none of a user's data
        what = "(other files or durations); give the same --data"
        if parts.config.finetune is not None:
            what = "(other clips, labels or parts); give the same MANIFEST and splits"
        raise RunError(f"the data are not those of the run in {parts.folder.path} {what} or start a new run")
    imported = is_imported(checkpoint)
    weights = {name: one for name, one in checkpoint.weights.items() if not imported or name.startswith("encoder.")}
    held = {name.split(".")[0] for name in weights}
    new = [name for name, _ in parts.networks.named_children() if name not in held]
    is_longer = num_phases > len(checkpoint.state["phase_steps"])
    load_weights(parts.networks, weights, path, new if is_longer or imported else ())
    return checkpoint


def is_imported(checkpoint: Checkpoint) -> bool:
    """True when its weights were trained elsewhere, and no step was done since."""
    return bool(checkpoint.state["data"] == "")


def good_checkpoint(run: Path, at_most: int) -> Path | None:
    """The newest whole checkpoint of steps up to ``at_most``, not written amid skipped ones; None when there is none."""
    return next((path for path in whole_checkpoints(run, at_most) if not read_state(path).get("skipped_in_a_row", 0)), None)


def go_back(networks: Networks, run: Path, step: int, start: dict[str, Tensor] | None) -> Checkpoint | None:
    """Give the networks the weights of the newest good checkpoint, or those of the start of the run. A collective.

    Args:
        networks: of the run.
        run: its folder.
        step: finished steps of the run.
        start: weights before the first step of a run that has no checkpoint yet.

    Returns:
        The checkpoint; None for the start.

    Raises:
        RunError: all checkpoints were written amid skipped steps.
    """
    distributed.barrier()
    path = good_checkpoint(run, step)
    if path is not None:
        checkpoint = load_checkpoint(path)
        load_weights(networks, checkpoint.weights, path)
        return checkpoint
    if start is None:
        raise RunError(f"every checkpoint of {run} was written amid steps with non-finite gradients; start a new run")
    networks.load_state_dict(start)
    return None


def restore_optimizer(optimizer: Optimizer, parameters: Iterable[tuple[str, Tensor]], checkpoint: Checkpoint) -> None:
    """Give an optimiser and the random generators the state of a checkpoint, whole or in shards. Of shards a collective."""
    named = dict(parameters)
    tensors = checkpoint.optimizer if checkpoint.shards is None else read_shards(checkpoint.shards, named)
    unpack_optimizer(optimizer, named.items(), tensors)
    unpack_rng(tensors)


def copied_optimizer(checkpoint: Checkpoint) -> dict[str, Tensor] | Path:
    """The optimiser of a checkpoint, to be saved in another one."""
    if checkpoint.shards is None:
        return checkpoint.optimizer
    copy = checkpoint.shards.parents[1] / ".tmp-shards"
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(checkpoint.shards, copy)
