"""Encoder, tokenizer and classifier as functions of tensors alone, in which batch and time may be symbols.

The networks themselves ask for numbers that an exporter would take for constants (``len`` of a tensor, whether every patch
is valid), and the quantizer searches in chunks. These are the same formulas on the same weights; what is exported is compared
with the networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bridle.data.batch import valid_steps
from bridle.grid import PatchGrid, Subset
from bridle.models.classifier import Classifier
from bridle.models.encoder import Encoder, key_mask
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.nn.patches import PatchSize, normalise_patches, patchify
from bridle.nn.pooling import Moments, pool_moments
from bridle.nn.positions import sequence, sine_cosine, stretch
from bridle.objectives.supervised import FinetuneConfig
from bridle.prediction import to_probabilities
from bridle.quantize import ResidualQuantizer


def valid_patches(grid: PatchGrid, lengths: Tensor, patch: PatchSize) -> Tensor:
    """(B, N) bool: the patches that are no padding, for ``lengths`` (B,) in frames."""
    step = torch.arange(grid.num_patches, device=lengths.device) // grid.patches_per_step
    return step[None] < valid_steps(lengths, patch[0])[:, None]


def positions_of(encoder: Encoder, grid: PatchGrid) -> Tensor | None:
    """(N, D) added to the patches of ``grid``; None where a convolution makes them."""
    if encoder.config.positions == "convolved":
        return None
    counted = counted_grid(encoder, grid)
    return stretch(counted_positions(encoder, counted), counted, grid.height, grid.width)


def counted_grid(encoder: Encoder, grid: PatchGrid) -> PatchGrid:
    """What positions are counted on, for as many time steps."""
    _, height, width = encoder.config.position_grid or grid.shape
    return PatchGrid(grid.time, height, width)


def counted_positions(encoder: Encoder, counted: PatchGrid) -> Tensor:
    """(N, D) positions of ``counted``, before they are stretched."""
    config = encoder.config
    if encoder.position_table is not None:
        return encoder.position_table[: counted.num_patches]
    if config.positions == "sequence":
        return sequence(counted, config.width)
    return sine_cosine(counted, config.width, config.axes)


class EncoderGraph(nn.Module):
    """Finished clips to features.

    Args:
        encoder: of a run.
        grid: of a full clip, whose height and width every clip has.
    """

    stretching: Tensor | None

    def __init__(self, encoder: Encoder, grid: PatchGrid) -> None:
        super().__init__()
        self.encoder = encoder
        counted = counted_grid(encoder, PatchGrid(1, grid.height, grid.width))
        matrix = None
        if counted.shape[1:] != grid.shape[1:]:
            # Stretching is linear, so one matrix says it; runtimes have no bicubic resizing of all shapes.
            matrix = stretch(torch.eye(counted.num_patches), counted, grid.height, grid.width)
        self.register_buffer("stretching", matrix, persistent=False)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, H, W) and their (B,) valid frames -> ``patches`` (B, N, D), 0 for padding, and ``summary`` (B, D)."""
        encoder, patch = self.encoder, self.encoder.config.patch
        patches = patchify(inputs, patch)
        grid, valid = patches.grid, valid_patches(patches.grid, lengths, patch)
        subset = Subset(None, valid)
        tokens = encoder.embed(patches.values)
        if encoder.convolved is not None:
            x = tokens + encoder.convolved(tokens, subset, grid.num_patches)
        else:
            x = tokens + self._positions(grid)
        if encoder.class_token is not None:
            x = torch.cat([encoder.class_token.expand(x.shape[0], 1, -1), x], dim=1)
        x = encoder.input_norm(x)
        allowed = key_mask(valid, extra=int(encoder.class_token is not None))
        bias = encoder.relative(subset, grid.num_patches) if encoder.relative is not None else None
        for block in encoder.blocks:
            x = block(x, allowed, bias)
        x = encoder.norm(x)
        weight = valid.to(x.dtype)[..., None]
        if encoder.class_token is not None:
            return x[:, 1:] * weight, x[:, 0]
        return x * weight, (x * weight).sum(1) / weight.sum(1)

    def _positions(self, grid: PatchGrid) -> Tensor:
        positions = counted_positions(self.encoder, counted_grid(self.encoder, grid))
        if self.stretching is None:
            return positions
        return (self.stretching @ positions.reshape(grid.time, -1, positions.shape[-1])).flatten(0, 1)


class TokenizerGraph(nn.Module):
    """Finished clips to codes.

    Args:
        tokenizer: of a run, fitted.
        patch: its patches.
        grid: as for :class:`EncoderGraph`.
    """

    def __init__(self, tokenizer: Tokenizer | RandomTokenizer, patch: PatchSize, grid: PatchGrid) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.patch = patch
        self.encoder = EncoderGraph(tokenizer.encoder, grid) if isinstance(tokenizer, Tokenizer) else None

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T, H, W) and their (B,) valid frames -> codes (B, N, R), -1 for padding."""
        patches = patchify(inputs, self.patch)
        valid = valid_patches(patches.grid, lengths, self.patch)
        if isinstance(self.tokenizer, Tokenizer):
            assert self.encoder is not None
            vectors: Tensor = self.tokenizer.neck(self.encoder(inputs, lengths)[0])
        else:
            vectors = _projected(self.tokenizer, patches.values, patches.grid, valid)
        return torch.where(valid[..., None], search(self.tokenizer.quantizer, vectors), -1)


def _projected(tokenizer: RandomTokenizer, values: Tensor, grid: PatchGrid, valid: Tensor) -> Tensor:
    """The vectors (B, N, C) of a random tokenizer."""
    (time, height, width), cell = tokenizer.patch, tokenizer.cell
    if tokenizer.config.normalise == "motion":
        cut = values.reshape(
            -1, grid.time, grid.patches_per_step, values.shape[-1] // (time * height * width), time, height * width
        )
        weight = valid.to(values.dtype).reshape(-1, grid.time, grid.patches_per_step, 1, 1, 1)
        mean = (cut.mean(4, keepdim=True) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        values = (cut - mean).reshape(values.shape)
    elif tokenizer.config.normalise == "patch":
        values = normalise_patches(values)
    if tokenizer.config.smooth > 1:
        axes = [size for units, step in zip(tokenizer.patch, cell, strict=True) for size in (units // step, step)]
        values = values.reshape(*values.shape[:-1], -1, *axes).mean((-5, -3, -1)).flatten(-4)
    return values @ tokenizer.projection


def search(quantizer: ResidualQuantizer, vectors: Tensor) -> Tensor:
    """Codes (..., R) of vectors (..., C): :meth:`ResidualQuantizer.encode` without chunks and checks."""
    residual = nn.functional.normalize(vectors, dim=-1) if quantizer.config.normalise == "l2" else vectors
    codes = []
    for codebook in quantizer.codebooks:
        chosen = (codebook.square().sum(1) / 2 - residual @ codebook.T).argmin(-1)
        codes.append(chosen)
        residual = residual - codebook[chosen]
    return torch.stack(codes, dim=-1)


class ClassifierGraph(nn.Module):
    """Finished clips to the probabilities of the classes.

    Args:
        encoder: of a fine-tuned run.
        classifier: of that run.
        grid: of a full clip, whose height and width every clip has.
        config: of the fine-tuning.
    """

    cells: Tensor | None

    def __init__(self, encoder: Encoder, classifier: Classifier, grid: PatchGrid, config: FinetuneConfig) -> None:
        super().__init__()
        self.encoder, self.classifier, self.config = EncoderGraph(encoder, grid), classifier, config
        self.places = grid.patches_per_step
        matrix = None
        if config.pooling.startswith("grid"):  # averaging over cells is linear
            identity = Moments(torch.eye(self.places)[None], torch.zeros(1))
            matrix = pool_moments(identity, grid, "grid").reshape(-1, self.places)
        self.register_buffer("cells", matrix, persistent=False)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T, H, W) and their (B,) valid frames -> ``probabilities`` (B, classes)."""
        patches, _ = self.encoder(inputs, lengths)
        steps = patches.unflatten(1, (-1, self.places))  # 0 for padding
        valid = torch.arange(steps.shape[1])[None] < valid_steps(lengths, self.encoder.encoder.config.patch[0])[:, None]
        weight = valid.to(steps.dtype) / valid.sum(1, keepdim=True)
        mean = (steps * weight[..., None, None]).sum(1)
        variance = ((steps - mean[:, None]).square() * weight[..., None, None]).sum(1)
        values = mean
        if self.config.pooling == "mean":
            return to_probabilities(self.classifier.classify(mean.mean(1)), self.config)
        if self.config.pooling.endswith("statistics"):
            values = torch.cat([mean, variance.clamp_min(1e-12).sqrt()], dim=-1)
        if self.cells is not None:
            values = torch.einsum("cp,bpd->bcd", self.cells, values)
        return to_probabilities(self.classifier.classify(values.flatten(1)), self.config)
