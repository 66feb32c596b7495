"""Parameters and optimiser state divided among processes: FSDP2 and sharded files, by torch. Nothing is ever unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from bridle import distributed
from bridle.errors import RunError


def shard(module: nn.Module, device: torch.device) -> None:
    """Divide the parameters of a module among all processes: each element of its lists of blocks, and all the rest, is a
    unit that is gathered when it computes (FSDP2, ``fully_shard``). Buffers stay whole. That cannot be undone.

    Args:
        module: on the device, equal on all ranks.
        device: where it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for each in list(module.modules()):
        if isinstance(each, nn.ModuleList):
            for block in each:
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """True for a module that was given to :func:`shard`."""
    return hasattr(module, "set_requires_gradient_sync")


def is_divided(tensor: Tensor) -> bool:
    """True for a tensor of which each rank holds a part."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: its shard, or all of it when it is not divided."""
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks when it is divided; then a collective."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module, whole. A collective when it is sharded; then the tensors are on the CPU of every rank."""
    state = module.state_dict()
    if not any(map(is_divided, state.values())):
        return state
    return {name: whole(value.detach()).cpu() for name, value in state.items()}


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, divided as that is; no rank talks to another."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or isinstance(tensor, DTensor) or tensor.shape != parameter.shape:
        return tensor
    moved = tensor.to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each rank's part of divided tensors as one safetensors file of its own in ``folder``, by torch's distributed checkpoint.
    A collective.

    Raises:
        RunError: it cannot be written.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _quiet():
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except Exception as error:  # it wraps what went wrong on any rank in an exception of its own
        raise RunError(f"cannot write the optimiser to {folder}: {_reason(error)}; check the disk") from error


def read_shards(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`write_shards` wrote, for any number of ranks. A collective of as many as there are now.

    Args:
        folder: where.
        parameters: by name; ``NAME/...`` of a parameter's shape is divided as it is, all else is whole.

    Raises:
        RunError: the files are damaged.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        tensors: dict[str, Tensor] = {}
        for name, known in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
            if not isinstance(known, TensorStorageMetadata):
                raise ValueError(f"{name} is no tensor")
            parameter = parameters.get(name.rpartition("/")[0])
            alike = parameter is not None and parameter.shape == known.size
            like = parameter.detach() if alike and parameter is not None else None
            tensors[name] = torch.zeros(known.size, dtype=known.properties.dtype) if like is None else torch.zeros_like(like)
        with _quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not distributed.is_active())
    except Exception as error:
        raise RunError(f"cannot read the optimiser in {folder}: {_reason(error)}; remove that checkpoint") from error
    return tensors


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a single process reads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
