"""The few collectives bridle needs; every one is the identity when no process group is running."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bridle.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long the collectives of :func:`patient_group` wait; those of the default group give up after 10 or 30 minutes."""


def is_active() -> bool:
    """True when a process group is running. Asked at each call, never remembered: groups start after modules are built."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The rank of this process, 0 without a process group."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_active() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over ranks, in place; returns it."""
    if is_active():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """The tensor of rank ``source`` on every rank, in place; returns it."""
    if is_active():
        dist.broadcast(tensor, source)
    return tensor


def barrier() -> None:
    """Wait until every rank is here."""
    if is_active():
        dist.barrier()


def patient_group() -> dist.ProcessGroup | None:
    """A group of all ranks, on the CPU, that waits :data:`PATIENCE`: for long work that one rank does alone.

    A collective: all ranks call it together. None without a process group.
    """
    return dist.new_group(backend="gloo", timeout=PATIENCE) if is_active() else None


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The picklable value of every rank, in rank order. A collective that waits, as long as ``group`` does."""
    if not is_active():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Rows of every rank, concatenated in rank order; ranks may hold different numbers of rows, also none.

    Args:
        tensor: (n_rank, ...) with equal trailing shape and dtype on all ranks.

    Returns:
        (sum of n_rank, ...), equal on all ranks.
    """
    if not is_active():
        return tensor
    counts = torch.zeros(world_size(), dtype=torch.int64, device=tensor.device)
    counts[rank()] = tensor.shape[0]
    dist.all_reduce(counts)
    sizes = [int(n) for n in counts.tolist()]
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


@contextmanager
def process_group() -> Iterator[None]:
    """A process group as described by torchrun's environment (gloo on CPU, NCCL on GPU); nothing when there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or is_active():
        yield
        return
    device = default_device()
    backend, device_id = "gloo", None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend, device_id = "nccl", device
    if (store := _store_of_this_attempt()) is None:
        dist.init_process_group(backend, device_id=device_id)
    else:
        size = int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size, device_id=device_id)
    try:
        yield
        dist.barrier()  # nobody leaves while another still talks
    finally:
        # What wraps a model for several processes holds the group in a reference cycle. Left to the interpreter's end, the
        # group's threads can outlive it, which aborts a process whose work is done.
        gc.collect()
        dist.destroy_process_group()


def _store_of_this_attempt() -> Any:
    """Where the processes of one torchrun agent find each other; None where torch's own way is right.

    torchrun (torch 2.13) keeps one store for all its attempts, in which the addresses of processes that died still stand:
    those of a second attempt call them, and hang or are refused. Agents of several machines count attempts each for
    itself, so there this is no remedy; they need ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` (docs/processes.md).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    return dist.PrefixStore(attempt, dist.TCPStore(address, port, is_master=False))  # type: ignore[attr-defined]


def default_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def usable_device(name: str | torch.device) -> torch.device:
    """The device, once it has held a tensor.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no values")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {str(name)!r} cannot be used: {reason}; use cpu, cuda or cuda:N") from error


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when the flag is true on any. A collective: all ranks call it together."""
    if not is_active():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
