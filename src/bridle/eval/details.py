"""What one accuracy hides: metrics of a probe over all test clips, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bridle.errors import DataError
from bridle.eval.metrics import ClassificationMetrics, classification_metrics
from bridle.eval.protocol import FeatureSet, Probe, ProbeResult, choose_splits


@dataclass(frozen=True, slots=True)
class Details:
    """Metrics of a probe on some features.

    Attributes:
        features: their name.
        probe: its name.
        metrics: over the test clips of all splits together; their accuracy weighs clips alike, not splits.
    """

    features: str
    probe: str
    metrics: ClassificationMetrics


def held_out_probabilities(features: FeatureSet, probe: Probe, result: ProbeResult, seed: int = 0) -> NDArray[np.float64]:
    """Probability of every class for every clip, (N, classes in sorted order); NaN for clips that no split tests.

    The probe of each split is fitted again, with what was chosen. A class without training clips has probability 0.

    Args:
        features: that the result is of.
        probe: that the result is of.
        result: of :func:`bridle.eval.protocol.evaluate`.
        seed: that it was made with.

    Raises:
        DataError: the result is of another probe or of other splits.
    """
    splits = choose_splits(features, seed)
    if result.probe != probe.name or [each.name for each in result.splits] != [split.name for split in splits]:
        raise DataError(f"the result of {result.probe} is not of {probe.name} on these splits; evaluate it again")
    classes, labels = np.unique(np.asarray(features.labels), return_inverse=True)
    found = np.full((len(labels), len(classes)), np.nan)
    for split, chosen in zip(splits, result.splits, strict=True):
        rows = torch.as_tensor(features.pooled[chosen.pooling])
        present, coded = np.unique(labels[split.train_index], return_inverse=True)
        train, test = rows[split.train_index], rows[split.test_index]
        chances = probe.probabilities(train, torch.from_numpy(coded).to(rows.device), test, chosen.parameter)
        found[split.test_index] = 0.0
        found[np.ix_(split.test_index, present)] = chances.cpu().numpy()
    return found


def detail(
    name: str, features: FeatureSet, probe: Probe, result: ProbeResult, top_k: Sequence[int] = (1, 5), seed: int = 0
) -> Details:
    """Metrics of a probe's result on the features called ``name``; arguments as for :func:`held_out_probabilities`."""
    chances = held_out_probabilities(features, probe, result, seed)
    classes, labels = np.unique(np.asarray(features.labels), return_inverse=True)
    tested = ~np.isnan(chances[:, 0])
    return Details(name, probe.name, classification_metrics(chances[tested], labels[tested], classes.tolist(), top_k))
