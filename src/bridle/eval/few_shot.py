"""Few-shot: how good a linear probe is that gets n clips of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bridle.errors import DataError
from bridle.eval.intervals import t_interval
from bridle.eval.linear_probe import linear_predictions
from bridle.eval.protocol import FeatureSet, ProbeResult, choose_splits
from bridle.eval.splits import Indices, Split
from bridle.randomness import permutation

STRENGTH = 1.0
"""C of the linear probe: a few clips cannot choose it, and they can nearly always be told apart, whatever it is."""


@dataclass(frozen=True, slots=True)
class FewShot:
    """Accuracy with ``shots`` clips of each class.

    Attributes:
        shots: n.
        accuracy: mean over draws, and over splits.
        low: lower end of the 95 % Student interval over the draws: how much it matters which clips are drawn.
        high: upper end.
        draws: accuracy of each draw, mean over splits.
        short: classes of which some training part has fewer than n clips; all of those are taken.
    """

    shots: int
    accuracy: float
    low: float
    high: float
    draws: tuple[float, ...]
    short: int


def few_shot(
    features: FeatureSet, chosen: ProbeResult, shots: Sequence[int], num_draws: int = 5, seed: int = 0
) -> tuple[FewShot, ...]:
    """Linear probes on clips drawn from the training part of every split, tested on all of its test clips.

    The draws for more shots hold those for fewer. The pooling of a split is the one in ``chosen``: the choice of features was
    made with all training labels, only the probe is few-shot.

    Args:
        features: of the clips.
        chosen: a probe's result on them, whose poolings are taken.
        shots: values of n.
        num_draws: how often clips are drawn, at least 2.
        seed: of the splits and the draws.

    Raises:
        DataError: an n below 1, fewer than 2 draws, or the result is of other splits.
    """
    if min(shots, default=1) < 1:
        raise DataError(f"{min(shots)} clips of each class are asked for; a probe needs at least 1")
    if num_draws < 2:
        raise DataError(f"{num_draws} draw of the clips is asked for; an interval needs at least 2")
    splits = choose_splits(features, seed)
    if [each.name for each in chosen.splits] != [split.name for split in splits]:
        raise DataError("the result whose poolings are to be taken is not of these splits; evaluate it again")
    labels = np.unique(np.asarray(features.labels), return_inverse=True)[1]
    pairs = list(zip(splits, (split.pooling for split in chosen.splits), strict=True))
    found = []
    for num in shots:
        draws = []
        for draw in range(num_draws):
            drawn = [(split, pooling, draw_shots(labels, split, num, draw, seed)) for split, pooling in pairs]
            draws.append(float(np.mean([_accuracy(features, labels, *each) for each in drawn])))
        short = {int(k) for split in splits for k in np.flatnonzero(_short(labels[split.train_index], num))}
        found.append(FewShot(num, float(np.mean(draws)), *t_interval(draws), tuple(draws), len(short)))
    return tuple(found)


def draw_shots(labels: Indices, split: Split, num: int, draw: int, seed: int = 0) -> Indices:
    """Up to ``num`` training rows of every class, ascending: a pure function of the split's name, the draw and the seed."""
    order = split.train_index[permutation(len(split.train_index), seed, "few-shot", split.name, draw).numpy()]
    own = labels[order]
    drawn = [order[own == number][:num] for number in np.unique(own)]
    return np.sort(np.concatenate(drawn))


def _accuracy(features: FeatureSet, labels: Indices, split: Split, pooling: str, drawn: Indices) -> float:
    rows = torch.as_tensor(features.pooled[pooling])
    targets = torch.from_numpy(labels).to(rows.device)
    predicted = linear_predictions(rows[drawn], targets[drawn], rows[split.test_index], (STRENGTH,))[0]
    return float((predicted == targets[split.test_index]).double().mean())


def _short(labels: Indices, num: int) -> Indices:
    counts = np.bincount(labels)
    return np.asarray((counts > 0) & (counts < num))
