"""Floating-point operations of a training step on one clip, from the configuration alone; and torch's own count beside it.

Counted are matrix products, two operations for each multiplication and addition, as they are computed: attention is dense,
also where a window hides most of it. Norms, softmax and the like are left out. A clip is full: it has no padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bridle.models.encoder import EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, EstimatorConfig, smoothing_cell
from bridle.nn.relative import GATES
from bridle.quantize import QuantizerConfig

_MLP_RATIO = 4.0  # of predictor and estimator


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of the forward and of the backward pass."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        """Of both parts."""
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Flops:
        """Of ``times`` runs."""
        return Flops(self.forward * times, self.backward * times)


@dataclass(frozen=True, slots=True)
class PatchCounts:
    """Patches of a clip.

    Attributes:
        every: N, all of them.
        visible: V, what the encoder sees under each mask.
        predicted: M, what is predicted under each mask.
        num_masks: masks of a clip.
    """

    every: int
    visible: int
    predicted: int
    num_masks: int = 1


class Sizes(Protocol):
    """What is asked of a configuration; :class:`bridle.run.RunConfig` has it."""

    @property
    def encoder(self) -> EncoderConfig:
        """Of the encoder, and of the tokenizer's ViT."""

    @property
    def predictor(self) -> PredictorConfig:
        """Of the predictor."""

    @property
    def quantizer(self) -> QuantizerConfig:
        """Of the codebooks."""

    @property
    def cold_start(self) -> ColdStartConfig:
        """Of the random tokenizer."""

    @property
    def estimator(self) -> EstimatorConfig:
        """Of the estimator."""


def masked_codes(sizes: Sizes, counts: PatchCounts, *, cold: bool) -> dict[str, Flops]:
    """Parts of a step of :class:`~bridle.objectives.masked.MaskedCodes`.

    Args:
        sizes: of the networks.
        counts: patches of a clip.
        cold: labels come from the random tokenizer.
    """
    levels_times_codes = sizes.quantizer.num_codebooks * sizes.quantizer.codebook_size
    labels = _random_labels(sizes, counts) if cold else _tokenizer_labels(sizes, counts)
    return {**_masked(sizes, counts, levels_times_codes), "labels, random tokenizer" if cold else "labels, tokenizer": labels}


def masked_patches(sizes: Sizes, counts: PatchCounts) -> dict[str, Flops]:
    """Parts of a step of :class:`~bridle.objectives.masked.MaskedPatches`."""
    return _masked(sizes, counts, sizes.encoder.patch_values)


def tokenizer_distillation(sizes: Sizes, counts: PatchCounts) -> dict[str, Flops]:
    """Parts of a step of :class:`~bridle.objectives.tokenizer.TokenizerDistillation`."""
    encoder, estimator, dim = sizes.encoder, sizes.estimator, sizes.quantizer.code_dim
    neck = _neck(encoder, dim, counts.every)
    vit = _encoder(encoder, counts.every, counts.every) + Flops(neck, 2 * neck)
    ends = _linear(counts.every, dim, estimator.width) + _linear(counts.every, estimator.width, encoder.width)
    estimate = ends + estimator.depth * _block(counts.every, estimator.width, _MLP_RATIO)
    return {
        "encoder, all patches": Flops(_encoder(encoder, counts.every, counts.every).forward),
        "tokenizer, trained": vit + Flops(_search(sizes.quantizer, dim, counts.every)),
        "estimator": Flops(estimate, 2 * estimate),
    }


def measure(compute: Callable[[], Tensor]) -> Flops:
    """Torch's count of what ``compute`` does, and of the backward pass from its result where that has one.

    Attention is taken apart into its products, because torch knows no count of its fused kernel on a CPU.
    """
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            result = compute()
        with FlopCounterMode(display=False) as backward:
            if result.requires_grad:
                result.sum().backward()  # type: ignore[no-untyped-call]
    return Flops(forward.get_total_flops(), backward.get_total_flops())


def _masked(sizes: Sizes, counts: PatchCounts, outputs: int) -> dict[str, Flops]:
    """Encoder on visible patches; predictor and a head of so many outputs."""
    predictor, width = sizes.predictor, sizes.predictor.width
    context = counts.visible + 1  # the summary comes first
    forward = _linear(context, sizes.encoder.width, width) + _linear(counts.predicted, width, outputs)
    if predictor.kind == "cross":
        forward += predictor.depth * _block(counts.predicted, width, _MLP_RATIO, context)
    else:
        forward += predictor.depth * _block(context + counts.predicted, width, _MLP_RATIO)
    return {
        "encoder, visible patches": _encoder(sizes.encoder, counts.visible, counts.every) * counts.num_masks,
        "predictor and head": Flops(forward, 2 * forward) * counts.num_masks,
    }


def _random_labels(sizes: Sizes, counts: PatchCounts) -> Flops:
    rows, dim = counts.predicted * counts.num_masks, sizes.cold_start.code_dim or sizes.quantizer.code_dim
    projection = _linear(
        rows, sizes.encoder.patch_values // math.prod(smoothing_cell(sizes.cold_start, sizes.encoder.patch)), dim
    )
    return Flops(projection + _search(sizes.quantizer, dim, rows))


def _tokenizer_labels(sizes: Sizes, counts: PatchCounts) -> Flops:
    """One pass over all patches, whatever the number of masks; the neck only where something is predicted."""
    rows, dim = counts.predicted * counts.num_masks, sizes.quantizer.code_dim
    vit = _encoder(sizes.encoder, counts.every, counts.every).forward
    return Flops(vit + _neck(sizes.encoder, dim, rows) + _search(sizes.quantizer, dim, rows))


def _encoder(config: EncoderConfig, patches: int, every: int) -> Flops:
    """Trained, on ``patches`` out of ``every``. Its first layer needs no gradient of its input."""
    first = _linear(patches, config.patch_values, config.embed_width or config.width)
    rest = config.depth * _block(patches + config.class_token, config.width, config.mlp_ratio)
    if config.embed_width is not None:
        rest += _linear(patches, config.embed_width, config.width)
    if config.positions == "convolved":
        kernel, groups = config.position_kernel  # an even one gives one position more, which is cut off
        rest += _linear(every + 1 - kernel % 2, kernel * config.width // groups, config.width)
    if config.relative_positions is not None:
        rest += config.depth * _linear(patches * config.heads, config.width // config.heads, GATES)
    return Flops(first + rest, first + 2 * rest)


def _neck(config: EncoderConfig, code_dim: int, rows: int) -> int:
    return _linear(rows, config.width, config.width) + _linear(rows, config.width, code_dim)


def _search(config: QuantizerConfig, code_dim: int, rows: int) -> int:
    """Every level compares what is left with every entry."""
    return config.num_codebooks * _linear(rows, code_dim, config.codebook_size)


def _block(queries: int, width: int, mlp_ratio: float, context: int | None = None) -> int:
    """Attention to the context (None: to the queries themselves), then MLP."""
    keys = queries if context is None else context
    products = 2 * _linear(queries, width, width) + _linear(keys, width, 2 * width)
    return products + 2 * _linear(queries, width, keys) + 2 * _linear(queries, width, round(width * mlp_ratio))


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs
