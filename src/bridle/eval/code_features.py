"""Codes of files by a run's tokenizer: a bag of each file, and statistics of them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridle.errors import QuantizerError
from bridle.eval.codes import CodeReport, bag_of_codes, code_report, label_churn
from bridle.inference import Model, Window
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.objectives.view import whole_view
from bridle.quantize.codebook import unpack
from bridle.randomness import derive_seed

CODE_WINDOWS = 2048
"""Windows whose codes are kept for the statistics: all of a small set, a uniform sample of a large one."""


@dataclass(frozen=True)
class CodeStatistics:
    """What a tokenizer's codes of some clips look like.

    Attributes:
        tokenizer: ``trained``, or ``cold start`` when no tokenizer phase was run.
        residual: share of the vectors' energy left after each level, over all clips.
        report: usage and shared information of up to ``CODE_WINDOWS`` windows.
        churn: of each level, :func:`bridle.eval.codes.label_churn` between the cold start's codes of the same patches and
            these; empty for a tokenizer that is the cold start's, or has no cold start.
    """

    tokenizer: str
    residual: tuple[float, ...]
    report: CodeReport
    churn: tuple[float, ...] = ()


class _Frequencies:
    """Weighted means of each file's windows, (num_files, X) float32."""

    def __init__(self, num_files: int) -> None:
        self._weights = torch.zeros(num_files, 1)
        self._sums = torch.zeros(num_files, 0)

    def add(self, group: Iterable[Window], weights: Tensor, values: Tensor) -> None:
        """Values (B, X) of B windows, weights (B,)."""
        if self._sums.shape[1] == 0:
            self._sums = torch.zeros(len(self._weights), values.shape[1])
        index = torch.tensor([window.index for window in group])
        column = weights[:, None].float()
        self._weights.index_add_(0, index, column)
        self._sums.index_add_(0, index, values.float() * column)

    def finish(self, rows: Sequence[int]) -> Tensor:
        """The means of the files ``rows``, (n, X)."""
        return (self._sums / self._weights.clamp(min=1))[list(rows)]


class CodeFeatures:
    """Codes by a model's tokenizer: frequencies of each file, and what the statistics need."""

    def __init__(self, model: Model, tokenizer: Tokenizer | RandomTokenizer, num_files: int, seed: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        cold = model.networks.cold
        started = isinstance(tokenizer, Tokenizer) and cold is not None and bool(cold.quantizer.fitted)
        self._before = cold if started else None
        self._energies = torch.zeros(tokenizer.quantizer.config.num_codebooks + 1, dtype=torch.float64)
        self._sample: list[tuple[Tensor, Tensor]] = []
        self._seen = 0
        self._random = np.random.Generator(np.random.PCG64(derive_seed(seed, "code windows")))
        self.bags = _Frequencies(num_files)

    @classmethod
    def of(cls, model: Model, num_files: int, seed: int) -> CodeFeatures | None:
        """None when the model has no fitted tokenizer."""
        tokenizer = model.networks.best_tokenizer
        return None if tokenizer is None else cls(model, tokenizer, num_files, seed)

    def add(self, group: list[Window]) -> None:
        """Code windows."""
        config, quantizer = self._model.config, self._tokenizer.quantizer
        view = whole_view(self._model.batch(group), config.encoder.patch)
        counts = (view.steps * view.patches.grid.patches_per_step).tolist()
        with self._model.autocast():
            quantized = quantizer(view.pick(self._tokenizer.vectors(view.patches, view.every)))
        self._energies += unpack(quantized.statistics, quantizer.codebooks).energies.double().cpu()
        codes = quantized.codes.cpu().split(counts)
        # Squared, a bag holds frequencies, which may be averaged over the windows of a file.
        frequencies = torch.stack([bag_of_codes(row, config.quantizer.codebook_size).square() for row in codes])
        self.bags.add(group, view.steps, frequencies)
        before = codes
        if self._before is not None:
            vectors = view.pick(self._before.vectors(view.patches, view.every))
            before = self._before.quantizer.encode(vectors).cpu().split(counts)  # type: ignore[no-untyped-call]
        for row in zip(codes, before, strict=True):
            self._keep(row)

    def _keep(self, codes: tuple[Tensor, Tensor]) -> None:
        """Reservoir sampling (Vitter 1985): every window seen so far is in the sample with equal probability."""
        self._seen += 1
        if len(self._sample) < CODE_WINDOWS:
            self._sample.append(codes)
        elif (slot := int(self._random.integers(self._seen))) < CODE_WINDOWS:
            self._sample[slot] = codes

    def statistics(self) -> CodeStatistics:
        """Of all windows added."""
        energies = self._energies.tolist()
        if not math.isfinite(sum(energies)):
            raise QuantizerError("the tokenizer gives vectors that are not finite on these clips; take an earlier checkpoint")
        positions = torch.cat([torch.arange(len(codes)) for codes, _ in self._sample])
        codes, before = (torch.cat(side) for side in zip(*self._sample, strict=True))
        report = code_report(codes, positions, self._model.config.quantizer.codebook_size)
        kind = "cold start" if isinstance(self._tokenizer, RandomTokenizer) else "trained"
        churn = [label_churn(old, new) for old, new in zip(before.unbind(1), codes.unbind(1), strict=True)]
        residual = tuple(left / max(energies[0], 1e-30) for left in energies[1:])
        return CodeStatistics(kind, residual, report, () if self._before is None else tuple(churn))
