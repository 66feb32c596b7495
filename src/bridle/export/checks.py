"""Numbers of an export beside those of the run it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.batch import Batch
from bridle.errors import RunError
from bridle.inference import Model, Window
from bridle.objectives.view import WholeView, whole_view
from bridle.prediction import to_probabilities
from bridle.quantize import ResidualQuantizer
from bridle.randomness import generator
from bridle.wording import count

TOLERANCE = 1e-4
"""Absolute, and relative for values above 1."""
_TIE = 1e-4
"""Change of a vector, as a fraction of its length, that may decide between two entries."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison that held.

    Attributes:
        what: was compared, in a few words.
        difference: the largest one.
        batch: clips in the batch; 0 where it was not a batch that was compared.
        frames: of the batch, padding included; 0 likewise.
        codes: in words, how the codes compare; "" where there were none.
    """

    what: str
    difference: float
    batch: int = 0
    frames: int = 0
    codes: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the run makes of a batch.

    Attributes:
        batch: finished clips.
        valid: (B, N) bool, patches that are no padding.
        patches: (B, N, D) features; those of padding mean nothing.
        summary: (B, D).
        vectors: (B, N, C) that the quantizer codes; None without a tokenizer.
        codes: (B, N, R); None likewise.
        probabilities: (B, C) of a fine-tuned run, else None.
    """

    batch: Batch
    valid: Tensor
    patches: Tensor
    summary: Tensor
    vectors: Tensor | None
    codes: Tensor | None
    probabilities: Tensor | None = None

    @property
    def name(self) -> tuple[int, int]:
        """(batch, frames) for a :class:`Check`."""
        return (len(self.batch), self.batch.inputs.shape[2])


@torch.inference_mode()
def expected(model: Model) -> Iterator[Expected]:
    """The run's own numbers for three batches of noise: one full clip, three that need padding, two of another length."""
    tokenizer = model.networks.best_tokenizer
    for lengths in _lengths(model):
        batch = model.batch(_noise(model, lengths))
        view = whole_view(batch, model.config.encoder.patch)
        features = model.networks.encoder(view.patches, view.every)
        vectors = None if tokenizer is None else tokenizer.vectors(view.patches, view.every)
        codes = None if tokenizer is None or vectors is None else tokenizer.quantizer.encode(vectors)
        chances = None
        if model.networks.classifier is not None and model.config.finetune is not None:
            logits = model.networks.classifier(features.patches, view.patches.grid, view.steps)
            chances = to_probabilities(logits, model.config.finetune)
        yield Expected(batch, _valid(view), features.patches, features.summary, vectors, codes, chances)


def _lengths(model: Model) -> list[list[int]]:
    """Frames of the clips of each batch."""
    full, config = model.loader.crop_frames, model.config.encoder
    if full == 1:
        return [[1], [1, 1, 1], [1, 1]]
    longest = full if config.positions == "learned" else full + max(full // 2, config.patch[0])
    third = max(1, full // 3)
    return [[full], [max(1, 2 * third), third, max(1, third // 2)], [third, longest]]


def _noise(model: Model, lengths: list[int]) -> list[Window]:
    """Clips as the loader gives them."""
    channels, height, width = model.config.clip_shape
    windows = []
    for index, frames in enumerate(lengths):
        draws = generator(index, "export check", frames)
        size = (channels, frames, height, width)
        if model.loader.dtype == torch.uint8:
            inputs = torch.randint(0, 256, size, generator=draws, dtype=torch.uint8)
        else:
            inputs = torch.randn(size, generator=draws) / 2
        windows.append(Window(index, 0.0, inputs))
    return windows


def _valid(view: WholeView) -> Tensor:
    if view.every.valid is None:
        return torch.ones(view.patches.values.shape[:2], dtype=torch.bool)
    return view.every.valid


def check_features(what: str, run: Expected, patches: Tensor, summary: Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest difference of features and summary.

    Args:
        what: was exported, for the error.
        run: its own numbers.
        patches: (B, N, D) of the export, 0 where they are padding.
        summary: (B, D) of the export.
        tolerance: absolute, and relative for values above 1; 0 asks for equal bits.

    Raises:
        RunError: a difference is above the tolerance, features of padding are not 0, or shapes differ.
    """
    wanted = torch.where(run.valid[..., None], run.patches, 0)
    return max(
        check_close(f"features of the {what}", patches, wanted, tolerance),
        check_close(f"summary of the {what}", summary, run.summary, tolerance),
    )


def check_close(what: str, found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest difference.

    Raises:
        RunError: it is above the tolerance, a value is not finite, or shapes differ.
    """
    if found.shape != wanted.shape:
        raise RunError(f"{what}: {tuple(found.shape)} where the run gives {tuple(wanted.shape)}; nothing was exported")
    difference = (found - wanted).abs()
    largest = float(difference.max()) if difference.numel() else 0.0
    if not bool((difference <= tolerance * wanted.abs().clamp(min=1)).all()):
        raise RunError(f"{what} differ by up to {largest:.2g} from the run's, more than {tolerance:g}; nothing was exported")
    return largest


def check_codes(what: str, run: Expected, codes: Tensor, quantizer: ResidualQuantizer) -> str:
    """How the codes compare, in words.

    Args:
        what: was exported, for the error.
        run: its own numbers, with codes.
        codes: (B, N, R) of the export, -1 where they are padding.
        quantizer: of the run.

    Raises:
        RunError: a code differs where no rounding can decide, a code of padding is not -1, or shapes differ.
    """
    assert run.codes is not None
    assert run.vectors is not None
    if codes.shape != run.codes.shape or bool((codes[~run.valid] != -1).any()):
        raise RunError(f"codes of the {what} are {tuple(codes.shape)} with other padding than -1; nothing was exported")
    found, wanted = codes[run.valid], run.codes[run.valid]
    rows = (found != wanted).any(1)
    if not bool(rows.any()):
        return "equal"
    if not bool(_is_tie(run.vectors[run.valid][rows], found[rows], wanted[rows], quantizer).all()):
        raise RunError(f"{int(rows.sum())} of {len(rows)} patches have other codes in the {what}; nothing was exported")
    return f"equal but for {count(int(rows.sum()), 'tie')} in {len(rows)} patches"


def _is_tie(vectors: Tensor, found: Tensor, wanted: Tensor, quantizer: ResidualQuantizer) -> Tensor:
    """(n,) bool: rounding may decide between the codes of the first level where they differ.

    Moving a residual by d changes the difference of its squared distances to two entries by at most ``2 |d| |e1 - e2|``.
    """
    codebooks = quantizer.codebooks.double()
    vectors = vectors.double()
    if quantizer.config.normalise == "l2":
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    rows, level = torch.arange(len(found)), (found != wanted).int().argmax(1)
    residual = vectors.clone()
    for before in range(codebooks.shape[0]):
        residual -= torch.where((before < level)[:, None], codebooks[before, wanted[:, before]], 0)
    other, own = found[rows, level], wanted[rows, level]
    exists = (other >= 0) & (other < codebooks.shape[1])
    first, second = codebooks[level, other.clamp(0, codebooks.shape[1] - 1)], codebooks[level, own]
    gap = ((residual - first).square().sum(1) - (residual - second).square().sum(1)).abs()
    reach: Tensor = 2 * _TIE * vectors.norm(dim=1) * (first - second).norm(dim=1)
    return exists & (gap <= reach)
