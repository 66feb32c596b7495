"""State of optimisers and random generators as flat, named tensors, ready for a safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bridle.errors import ConfigError, RunError
from bridle.train.sharding import placed_like

_RNG = "@rng/"  # no parameter's name begins so


def pack_optimizer(optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors ``"<parameter>/exp_avg"`` and so on, not copied.

    Learning rate and other settings are not in it: they are functions of the configuration and the step.

    Args:
        optimizer: AdamW, or any other whose state is made of tensors.
        named_parameters: as from ``module.named_parameters()``; must name every parameter of the optimiser.

    Raises:
        ConfigError: a parameter has no name, or a state is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named(optimizer, named_parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise ConfigError(f"state '{key}' of '{name}' is of type {type(value).__name__}; only tensors can be packed")
            tensors[f"{name}/{key}"] = value.detach()
    return tensors


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`pack_optimizer` took, exactly; the tensors are copied. Parameters without state lose theirs.

    Tensors of :func:`pack_rng` in the same mapping are passed over.

    Raises:
        ConfigError: a parameter of the optimiser has no name.
        RunError: the tensors name a parameter the optimiser does not have, or differ from it in shape.
    """
    named = _named(optimizer, named_parameters)
    index = {name: i for i, (name, _) in enumerate(named)}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith(_RNG):
            continue
        name, _, key = full.rpartition("/")
        if name not in index:
            raise RunError(
                f"optimiser state for '{name}', which is no trained parameter; resume with the run's own config.yaml"
            )
        expected = named[index[name]][1].shape
        if key != "step" and tensor.shape != expected:
            shapes = f"{tuple(tensor.shape)}, the parameter {tuple(expected)}"
            raise RunError(f"optimiser state '{full}' has shape {shapes}; resume with the run's own config.yaml")
        state.setdefault(index[name], {})[key] = placed_like(tensor, named[index[name]][1]).clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def pack_rng() -> dict[str, Tensor]:
    """State of torch's global generators, CPU and the current CUDA device if any. Names begin with ``@rng/``."""
    tensors = {f"{_RNG}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{_RNG}cuda"] = torch.cuda.get_rng_state()
    return tensors


def unpack_rng(tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`pack_rng` took; other names are passed over, and so is a CUDA state where there is no CUDA.

    Raises:
        RunError: the CPU generator's state is missing or is not one.
    """
    try:
        torch.set_rng_state(tensors[f"{_RNG}cpu"])
        if f"{_RNG}cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"{_RNG}cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise RunError(f"no usable random state '{_RNG}cpu' in the checkpoint ({error}); load an earlier one") from error


def _named(optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Name and parameter in the optimiser's own order."""
    names = {parameter: name for name, parameter in named_parameters}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter not in names for parameter in parameters):
        raise ConfigError("the optimiser holds a parameter without a name; pass named_parameters() of the module it trains")
    return [(names[parameter], parameter) for parameter in parameters]
