"""What a recipe makes of the files: clips, batches, patches, memory and disk. Nothing is decoded for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from bridle.data.batch import valid_steps
from bridle.data.dataset import Loader
from bridle.data.loaders import build_loader, plain
from bridle.data.manifest import Manifest
from bridle.data.sampler import EpochOrder
from bridle.engine.parts import PREPARE_BATCHES
from bridle.networks import Networks, build_objective
from bridle.optim.groups import parameter_groups
from bridle.run import RunConfig, clip_grid

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Figures of a recipe on a manifest.

    Attributes:
        recipe: its name.
        num_clips: clips in an epoch: one crop of every file.
        steps_per_epoch: batches in an epoch.
        full_steps: what an epoch computes, padding included, in batches of ``batch_size`` full crops.
        padding_ratio: share of the computed time steps that is padding.
        seen_ratio: share of the files' time that an epoch sees or hears; 1 for pictures.
        crop_seconds: of the longest clip; 0 for pictures.
        num_patches: valid patches in an epoch.
        kmeans_sample: vectors that the codebooks start from.
        num_parameters: of all networks.
        memory_bytes: weights, gradients and optimiser state of the largest phase.
        cache_bytes: of all files that the loader may keep decoded; ``cache_limit_bytes`` is its limit.
        cacheable_clips: files that the loader may keep decoded.
        checkpoint_bytes: one checkpoint; ``disk_bytes`` with those that are kept and the one being written.
    """

    recipe: str
    num_clips: int
    steps_per_epoch: int
    full_steps: float
    padding_ratio: float
    seen_ratio: float
    crop_seconds: float
    num_patches: int
    kmeans_sample: int
    num_parameters: int
    memory_bytes: int
    cache_bytes: int
    cache_limit_bytes: int
    cacheable_clips: int
    checkpoint_bytes: int
    disk_bytes: int


def raw_loader(config: RunConfig) -> Loader:
    """The recipe's loader before the normalisation is estimated: what it gives are values as they are decoded."""
    return build_loader(plain(config.clips))


def make_plan(manifest: Manifest, config: RunConfig) -> Plan:
    """Put the manifest in the recipe's order and count.

    Raises:
        DataError: the manifest is empty.
        ConfigError: sizes of the recipe do not fit together.
    """
    loader = raw_loader(config)
    lengths = torch.tensor([loader.length(entry) for entry in manifest.entries], dtype=torch.int64)
    patch_time, places = config.encoder.patch[0], clip_grid(config).patches_per_step
    order = EpochOrder(lengths, config.train.batch_size, loader.crop_frames, patch_time, config.seed)
    steps = valid_steps(lengths, patch_time)
    padding = order.padding_ratio(0)
    crop_steps = int(valid_steps(torch.tensor([loader.crop_frames]), patch_time))
    total = float(manifest.durations.sum())
    seen = [loader.clip_seconds(entry) for entry in manifest.entries]
    cached = [loader.cacheable_bytes(entry) for entry in manifest.entries]
    networks = Networks(config)
    weights, optimizer = _state_bytes(networks, config)
    return Plan(
        recipe=config.recipe,
        num_clips=len(manifest),
        steps_per_epoch=order.steps_per_epoch,
        full_steps=int(steps.sum()) / (1 - padding) / (config.train.batch_size * crop_steps),
        padding_ratio=padding,
        seen_ratio=min(1.0, sum(seen) / total) if total else 1.0,
        crop_seconds=max(seen),
        num_patches=int(steps.sum()) * places,
        kmeans_sample=_kmeans_sample(order, steps) * places,
        num_parameters=sum(p.numel() for p in networks.parameters()),
        memory_bytes=weights + optimizer + optimizer // 2,  # Adam keeps two numbers per gradient
        cache_bytes=sum(cached),
        cache_limit_bytes=round(config.clips.cache_gigabytes * 1e9),
        cacheable_clips=sum(size > 0 for size in cached),
        checkpoint_bytes=weights + optimizer,
        disk_bytes=(weights + optimizer) * (config.train.num_checkpoints + 1),
    )


def _kmeans_sample(order: EpochOrder, steps: torch.Tensor) -> int:
    """Time steps in the first ``PREPARE_BATCHES`` batches, over epochs if one is shorter."""
    batches = (batch for epoch in range(PREPARE_BATCHES) for batch in order.iterate(epoch))
    return sum(int(steps[batch].sum()) for batch in islice(batches, PREPARE_BATCHES))


def _state_bytes(networks: Networks, config: RunConfig) -> tuple[int, int]:
    """Bytes of all weights, and of the optimiser state of the phase that trains most."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in networks.state_dict().values())
    trained = 0
    for phase in config.plan:
        groups = parameter_groups(build_objective(phase, networks, config).named_parameters(), 0.0)
        trained = max(trained, sum(p.numel() for group in groups for p in group["params"]))
    return weights, 2 * trained * _FLOAT_BYTES
