"""Frozen features of every clip of a manifest, from one pass over its files that feeds several encoders at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bridle.data.manifest import Manifest
from bridle.data.medium import MediumName
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, QuantizerError
from bridle.eval.codes import CodeReport, bag_of_codes, code_report, label_churn
from bridle.grid import PatchGrid
from bridle.inference import Model, Window
from bridle.models.encoder import check_layers
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.nn.pooling import MOTIONS, Course, Moments, Pooling, course_of, pool_course, pool_moments, time_moments
from bridle.objectives.view import whole_view
from bridle.quantize.codebook import unpack
from bridle.randomness import derive_seed

BAG_OF_CODES = "bag of codes"
POOLINGS: dict[MediumName, tuple[Pooling, ...]] = {
    "audio": ("mean", "time", "statistics"),
    "image": ("mean", "grid"),
    "video": ("mean", "grid", "grid statistics", "grid motion", "grid motion parts", "grid trajectory"),
}
"""What is offered to probes. The longest, of films, holds 64 x D numbers: 33 KB for a film at width 128, 197 KB at 768."""
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


@dataclass(frozen=True)
class Collected:
    """What :func:`collect_features` gives.

    Attributes:
        rows: row in the manifest of each of the n clips that could be read, ascending.
        features: by name of the features, then of the pooling: (n, D) float32 on the CPU.
        codes: of the first model; None when it has no fitted tokenizer.
        bad: the other files.
    """

    rows: tuple[int, ...]
    features: dict[str, dict[str, Tensor]]
    codes: CodeStatistics | None
    bad: tuple[BadFile, ...]


def default_layers(depth: int) -> tuple[int, ...]:
    """The layers an evaluation looks at: the one three quarters up, and the last."""
    return tuple(sorted({-(-3 * depth // 4), depth}))


@torch.no_grad()
def collect_features(
    models: Mapping[str, Model],
    manifest: Manifest,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
    on_file: Callable[[], object] | None = None,
    seed: int = 0,
) -> Collected:
    """Pooled features of every clip by every model, the medium's baseline and, with a tokenizer, bags of codes.

    Each file is decoded once; held in memory are one batch of windows, the course of one film, and the pooled rows. A long
    file's rows are those of all its windows together. Encoders give every one of ``POOLINGS`` of every layer, named
    ``statistics`` for the last layer and ``statistics of layer 3`` for others; the other two give ``clip``. The baseline is the
    mean over time of what the loader calls it, and the deviation where the medium has a time.

    Args:
        models: by name; all have one front end and one size of patch. The first one's tokenizer gives the codes.
        manifest: the files.
        layers: of the encoders, 1 to their depth; None for :func:`default_layers`.
        batch_size: windows per forward pass; changes no number beyond rounding.
        on_file: called after each file.
        seed: of the sample of windows for the statistics of the codes.

    Raises:
        DataError: no model, models of different front ends or patches, or no file can be read.
        ConfigError: there is no such layer, or none is asked for.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    first = _first_of_one_front_end(models)
    chosen = {name: default_layers(model.depth) if layers is None else tuple(layers) for name, model in models.items()}
    for name, model in models.items():
        check_layers(chosen[name], model.depth)
    medium = first.config.medium
    poolings = POOLINGS[medium.name]
    vectors = {name: [_Vectors(len(manifest), poolings) for _ in chosen[name]] for name in models}
    baseline = _Vectors(len(manifest), ("statistics" if medium.timed else "mean",))
    codes = _Codes.of(first, len(manifest), seed)
    bad: dict[int, BadFile] = {}
    windows = _windows(first, manifest, bad, on_file or (lambda: None))
    while group := list(islice(windows, batch_size)):
        for name, model in models.items():
            for encoded in model.encode(group, batch_size, chosen[name]):
                for found, features in zip(vectors[name], encoded.layers, strict=True):
                    found.add(group, features, encoded.grid, encoded.steps)
        for window in group:
            rows = first.loader.baseline(window.inputs)
            baseline.add([window], rows[None], PatchGrid(len(rows), 1, 1), torch.tensor([len(rows)]))
        if codes is not None:
            codes.add(group)
    good = [index for index in range(len(manifest)) if index not in bad]
    if not good:
        first_bad = f"; first: {bad[0].key} ({bad[0].reason})" if bad else ""
        raise DataError(f"none of {len(manifest)} files can be read{first_bad}; check the paths")
    pooled = {first.loader.baseline_name: {"clip": next(iter(baseline.finish(good).values()))}}
    for name, model in models.items():
        pooled[name] = {}
        for layer, found in zip(chosen[name], vectors[name], strict=True):
            for pooling, values in found.finish(good).items():
                pooled[name][pooling if layer == model.depth else f"{pooling} of layer {layer}"] = values
    if codes is not None:
        pooled[BAG_OF_CODES] = {"clip": codes.bags.finish(good).sqrt()}
    return Collected(tuple(good), pooled, codes.statistics() if codes is not None else None, (*manifest.bad, *bad.values()))


def _first_of_one_front_end(models: Mapping[str, Model]) -> Model:
    if not models:
        raise DataError("0 models given; features need at least 1")
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        if (model.config.clips, model.config.encoder.patch) != (first.config.clips, first.config.encoder.patch):
            raise DataError(f"'{name}' and '{first_name}' differ in their front end or patch; collect them one by one")
    return first


def _windows(model: Model, manifest: Manifest, bad: dict[int, BadFile], on_file: Callable[[], object]) -> Iterator[Window]:
    """Windows of every file; one that breaks off after some of its windows is bad as a whole."""
    for index, entry in enumerate(manifest.entries):
        faults: list[BadFile] = []
        for window in model.windows([entry], faults):
            yield replace(window, index=index)
        if faults:
            bad[index] = faults[0]
        on_file()


class _OpenFile:
    """A file so far: moments over its steps, its windows merged as by Chan, Golub and LeVeque (1979), and its course."""

    def __init__(self, row: int) -> None:
        self.row, self._steps = row, 0
        self._mean = self._variance = torch.zeros(())
        self._last: Tensor | None = None
        self._course: list[Course] = []

    def add(self, new: int, mean: Tensor, deviation: Tensor) -> None:
        """Its next window, of ``new`` steps, each (places, D)."""
        steps = self._steps + new
        shift, old, share = mean - self._mean, self._steps / steps, new / steps
        self._mean = self._mean + shift * share
        self._variance = self._variance * old + deviation.square() * share + shift.square() * (old * share)
        self._steps = steps

    def add_course(self, steps: Tensor, grid: PatchGrid) -> None:
        """Of the same window, its time steps (T, places, D)."""
        joined = steps if self._last is None else torch.cat([self._last, steps])
        changes, means = course_of(joined, grid)
        self._course.append(Course(changes.cpu(), means[-len(steps) :].cpu()))
        self._last = steps[-1:].clone()

    def moments(self) -> Moments:
        """Of what was added."""
        return Moments(self._mean, self._variance.sqrt())

    def course(self) -> Course:
        """Of what was added."""
        return Course(*map(torch.cat, zip(*self._course, strict=True)))


class _Vectors:
    """Vectors of each file by pooling. More is held of the files of one batch only; a file is pooled when it is over.

    Args:
        num_files: how many files.
        poolings: which.
    """

    def __init__(self, num_files: int, poolings: Sequence[Pooling]) -> None:
        self._num_files, self._poolings = num_files, poolings
        self._moves = any(pooling in MOTIONS for pooling in poolings)
        self._open: list[_OpenFile] = []
        self._found: dict[str, Tensor] = {}

    def add(self, group: Iterable[Window], features: Tensor, grid: PatchGrid, steps: Tensor) -> None:
        """Windows in the order of their files: features (B, N, D) and valid steps (B,)."""
        moments = (each.cpu() for each in time_moments(features, grid, steps))
        clips = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
        for window, count, clip, mean, deviation in zip(group, steps.tolist(), clips, *moments, strict=True):
            if not self._open or self._open[-1].row != window.index:
                self._open.append(_OpenFile(window.index))
            self._open[-1].add(count, mean, deviation)
            if self._moves:
                self._open[-1].add_course(clip[:count], grid)
        self._close(self._open[:-1], grid)
        self._open, self._grid = self._open[-1:], grid

    def finish(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Of the files ``rows``, each (n, X) float32. To be called once, behind the last window."""
        self._close(self._open, self._grid)
        return {name: found if len(rows) == len(found) else found[list(rows)] for name, found in self._found.items()}

    def _close(self, files: Sequence[_OpenFile], grid: PatchGrid) -> None:
        if not files:
            return
        moments = Moments(*(torch.stack(each) for each in zip(*(file.moments() for file in files), strict=True)))
        courses = [file.course() for file in files] if self._moves else []
        for pooling in self._poolings:
            if pooling in MOTIONS:
                vectors = torch.stack([pool_course(course, pooling) for course in courses])
            else:
                vectors = pool_moments(moments, grid, pooling)
            if pooling not in self._found:
                self._found[pooling] = torch.zeros(self._num_files, vectors.shape[1])
            self._found[pooling][[file.row for file in files]] = vectors


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


class _Codes:
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
    def of(cls, model: Model, num_files: int, seed: int) -> _Codes | None:
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
