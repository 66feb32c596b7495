"""Clips of several classes at once (tags): a batch-norm head with binary cross-entropy, judged by mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bridle.data.columns import Columns
from bridle.data.labels import SEPARATOR, TagLabels, tag_labels
from bridle.data.manifest import Manifest
from bridle.errors import DataError
from bridle.eval.batchnorm_head import RATES, BatchNormConfig, batchnorm_logits, for_ranking
from bridle.eval.features import Choice
from bridle.eval.intervals import spread_interval
from bridle.eval.labelled import PROBING, Evaluated, OnProgress, Reading, read_labelled, silent
from bridle.eval.metrics import TagMetrics, average_precision, tag_metrics
from bridle.eval.protocol import FeatureSet, choose_splits, inner_splits
from bridle.eval.ranking import Contest, Ranking
from bridle.eval.splits import Indices, Split
from bridle.inference import Model


@dataclass(frozen=True, slots=True)
class TagSplitResult:
    """One outer split: what was chosen inside its training part, and the mAP of its test clips (rows ``test_index``)."""

    name: str
    mean_average_precision: float
    pooling: str
    parameter: float
    inner_mean_average_precision: float
    num_train: int
    test_index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TagResult:
    """A batch-norm head on some features.

    Attributes:
        mean_average_precision: mean over splits of the mAP over the classes with test clips.
        low: lower end of the 95 % Student interval over 3 splits or more; None for fewer.
        high: upper end.
        splits: one by one.
        metrics: over the test clips of all splits together, class by class.
    """

    mean_average_precision: float
    low: float | None
    high: float | None
    splits: tuple[TagSplitResult, ...]
    metrics: TagMetrics


@dataclass(frozen=True, slots=True)
class TagFeatures:
    """Features by name and what the batch-norm head makes of them."""

    features: str
    result: TagResult


@dataclass(frozen=True, kw_only=True)
class TagEvaluation(Evaluated):
    """Result of :func:`evaluate_tags_run`; ``bridle.config.to_dict`` makes it plain data. ``classes`` are the tags.

    Attributes:
        rows: the medium's baseline, random encoder, this run and, with a tokenizer, bag of codes.
    """

    rows: tuple[TagFeatures, ...]


def evaluate_tags_run(
    model: Model,
    manifest: Manifest,
    columns: Columns,
    *,
    separator: str = SEPARATOR,
    choice: Choice | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> TagEvaluation:
    """As :func:`bridle.eval.evaluate.evaluate_run`, where a cell of the label column holds any number of tags.

    Args:
        model: see :func:`bridle.inference.load`.
        manifest: tagged clips; those with an empty cell are left out, and a cell of separators alone is a clip without tags.
        columns: of the manifest.
        separator: stands between the tags of a cell.
        choice: of layers.
        batch_size: windows per forward pass.
        seed: of stratified splits and of the heads.
        on_progress: told how far the work is.

    Raises:
        DataError: a column that does not exist (names the nearest), fewer than 2 tags, no readable clip, or splits that
            cannot be made.
        ConfigError: there is no such layer.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    told = on_progress or silent

    def stratify(cells: Sequence[str]) -> Sequence[str]:
        return rarest_tags(tag_labels(cells, separator))

    reading = Reading(choice or Choice(), batch_size, seed, stratify)
    labelled = read_labelled(model, manifest, columns, reading, told)
    labels = tag_labels(labelled.manifest.columns[columns.label], separator)
    names = labelled.rows(model)
    rows = []
    for done, name in enumerate(names):
        told(PROBING, done, len(names))
        features = labelled.feature_set(labelled.collected.features[name])
        rows.append(TagFeatures(name, evaluate_tags(features, labels, BatchNormConfig(seed=seed, device=model.device))))
    told(PROBING, len(names), len(names))
    notes = _notes(labels, rows[0].result.metrics)
    return TagEvaluation(**vars(labelled.evaluated(model, labels.classes, notes)), rows=tuple(rows))


def evaluate_tags(
    features: FeatureSet, labels: TagLabels, config: BatchNormConfig | None = None, rates: Sequence[float] = RATES
) -> TagResult:
    """Nested evaluation of a batch-norm head: pooling and learning rate of a split are those of the best mean inner mAP.

    Args:
        features: of N clips; its ``labels`` are only names by which clips are dealt, see :func:`rarest_tags`.
        labels: the tags of the same clips.
        config: how heads are trained; its seed is that of the splits, too.
        rates: learning rates to choose from.

    Raises:
        DataError: the splits cannot be made, or tags for another number of clips.
    """
    if len(labels.targets) != len(features.labels):
        raise DataError(
            f"there are tags of {len(labels.targets)} clips and features of {len(features.labels)}; give both of the same"
        )
    chosen = config or BatchNormConfig()
    targets, results = labels.targets.numpy(), []
    scores = np.full(targets.shape, np.nan)
    splits = choose_splits(features, chosen.seed)
    parts = [_tagged_inner_splits(features, targets, split, chosen.seed) for split in splits]
    ranking = Ranking(_contest(features, targets, rates, chosen), parts, chosen.seed)
    for split, own in zip(splits, parts, strict=True):
        pooling, rate, inner = ranking.choose(own)
        found = _scores(features, pooling, targets, split, (rate,), chosen)[0]
        scores[split.test_index] = found
        mean = mean_average_precision(found, targets[split.test_index])
        if mean is None:
            raise DataError(f"no test clip of split '{split.name}' has a tag; use other splits")
        test = tuple(split.test_index.tolist())
        results.append(TagSplitResult(split.name, mean, pooling, rate, inner, len(split.train_index), test))
    means = [result.mean_average_precision for result in results]
    spread = spread_interval(means)
    low, high = (None, None) if spread is None else (spread.low, spread.high)
    tested = ~np.isnan(scores[:, 0])
    metrics = tag_metrics(scores[tested], targets[tested], labels.classes)
    return TagResult(float(np.mean(means)), low, high, tuple(results), metrics)


def mean_average_precision(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float | None:
    """Mean average precision of scores (N, C) over the classes that are true of some clip, (N, C); None when none is."""
    found = [average_precision(*pair) for pair in zip(scores.T, targets.T, strict=True)]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def rarest_tags(labels: TagLabels) -> list[str]:
    """Of each clip the tag that fewest clips have, the first of several; empty for a clip without."""
    counts = labels.targets.sum(dim=0)
    rarest = torch.where(labels.targets, counts, len(labels.targets) + 1).argmin(dim=1)
    some = labels.targets.any(dim=1)
    return [labels.classes[tag] if has else "" for tag, has in zip(rarest.tolist(), some.tolist(), strict=True)]


def _tagged_inner_splits(features: FeatureSet, targets: NDArray[np.bool_], split: Split, seed: int) -> list[Split]:
    """Those with a test clip that has a tag."""
    inner = [part for part in inner_splits(features, split, seed) if targets[part.test_index].any()]
    if not inner:
        raise DataError(f"no training clip of split '{split.name}' has a tag; use other splits")
    return inner


def _contest(features: FeatureSet, targets: NDArray[np.bool_], rates: Sequence[float], config: BatchNormConfig) -> Contest:
    """All poolings and rates, by mean average precision."""

    def predicted(pooling: str, train: Indices, rows: Indices, grid: Sequence[float]) -> NDArray[np.float64]:
        short, scaled = for_ranking(config, grid, len(train))
        return _scores(features, pooling, targets, Split("", train, rows), scaled, short)

    def score(found: NDArray[np.float64], rows: Indices) -> NDArray[np.float64]:
        return np.asarray([mean_average_precision(each, targets[rows]) or 0.0 for each in found])

    return Contest(list(features.pooled), rates, predicted, score)


def _scores(
    features: FeatureSet,
    pooling: str,
    targets: NDArray[np.bool_],
    split: Split,
    rates: Sequence[float],
    config: BatchNormConfig,
) -> NDArray[np.float64]:
    """Probability of every tag for the test clips by every rate, (len(rates), m, C)."""
    rows = torch.as_tensor(features.pooled[pooling])
    tags = torch.from_numpy(targets[split.train_index]).to(rows.device)
    logits = batchnorm_logits(rows[split.train_index], tags, rows[split.test_index], rates, targets.shape[1], config)
    return np.asarray(logits.double().sigmoid().cpu().numpy())


def _notes(labels: TagLabels, metrics: TagMetrics) -> list[str]:
    notes = []
    if metrics.without_positives:
        missing = metrics.without_positives
        notes.append(f"{len(missing)} of {len(labels.classes)} tags have no test clip and do not count, first '{missing[0]}'")
    return notes
