"""Run folders with random weights and fitted codebooks, without the time that training takes."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from reference.configs import normalised

from bridle.networks import Networks, model_fingerprint
from bridle.recipes import recipe
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import save_checkpoint


def small_config(medium: str, phases: str = "cold:1, tokenizer:1", **encoder: Any) -> RunConfig:
    """The debug recipe of a medium, normalised, with other settings of the encoder."""
    config = normalised(recipe(f"{medium}-debug"), *{"audio": (-4.0, 3.0)}.get(medium, (0.5, 0.25)))
    return dataclasses.replace(config, phases=phases, encoder=dataclasses.replace(config.encoder, **encoder))


def random_networks(config: RunConfig, seed: int = 0) -> Networks:
    """Networks with every weight and bias random, norms too, and codebooks fitted on noise."""
    networks = Networks(config).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    for parameter in networks.parameters():
        spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.add_(spread * torch.randn(parameter.shape, generator=draws))
    for tokenizer in (networks.tokenizer, networks.cold):
        if tokenizer is not None:
            quantizer = tokenizer.quantizer
            quantizer.fit(torch.randn(512, quantizer.config.code_dim, generator=draws), seed)
    return networks


def write_run(folder: Path, config: RunConfig, seed: int = 0, steps: tuple[int, ...] = (0,)) -> Path:
    """A run folder that :func:`bridle.load` reads; ``steps`` are (done, all) of its one phase, where there are any."""
    weights = random_networks(config, seed).state_dict()
    state = {"phase": 0, "phase_step": steps[0], "phase_steps": list(steps[1:]), "data": ""}
    metadata = {"fingerprint": model_fingerprint(config, weights)}
    save_checkpoint(folder, steps[0], weights=weights, optimizer={}, state=state, metadata=metadata)
    RunFolder(folder).write_config(config)
    return folder
