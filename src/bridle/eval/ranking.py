"""Which features and which parameter of a probe are best, by inner splits of the training part: the choice of every probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.eval.splits import Indices, Split
from bridle.randomness import permutation

Predicted = Callable[[str, Indices, Indices, Sequence[float]], NDArray[Any]]
"""``(pooling, rows to train on, m rows to predict, grid of G parameters) -> (G, m, ...)``."""
Score = Callable[[NDArray[Any], Indices], NDArray[np.float64]]
"""``(predictions (G, m, ...), their m rows) -> (G,)``, higher is better."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is ranked, and how.

    Attributes:
        poolings: names of the features.
        grid: values of the probe's parameter.
        predicted: fits and predicts.
        score: of predictions.
        least_training: ranking trains on at most so many clips of an inner split, or a quarter of them if that is more, drawn
            by chance; None for all. It is for parameters that weigh the sum over clips, as C does: ranking multiplies them by
            how many times fewer clips it trains on. A much smaller share would still favour too much penalty.
    """

    poolings: Sequence[str]
    grid: Sequence[float]
    predicted: Predicted
    score: Score
    least_training: int | None = None


class Ranking:
    """Scores of every pooling and parameter on inner splits.

    Two outer splits share inner training parts: without folds 1 and 2 one trains the same, whichever of them is tested
    in the end. So a training part is fitted once, and predicts every clip that any inner split tests with it.

    Args:
        contest: what is ranked.
        inner: the inner splits of every outer one.
        seed: of the clips that are drawn to train on.
    """

    def __init__(self, contest: Contest, inner: Sequence[Sequence[Split]], seed: int) -> None:
        self._contest, self._seed = contest, seed
        self._tests: dict[bytes, dict[bytes, Indices]] = {}
        for split in (split for splits in inner for split in splits):
            self._tests.setdefault(split.train_index.tobytes(), {})[split.test_index.tobytes()] = split.test_index
        self._scores: dict[tuple[str, bytes], dict[bytes, NDArray[np.float64]]] = {}

    def choose(self, inner: Sequence[Split]) -> tuple[str, float, float]:
        """Pooling, parameter and mean score of the best over some of the inner splits; ties: the earlier pooling, then the
        earlier parameter.
        """
        best = ("", 0.0, -1.0)
        for pooling in self._contest.poolings:
            mean = np.mean([self._scores_of(pooling, split) for split in inner], axis=0)
            if mean.max() > best[2]:
                best = (pooling, self._contest.grid[int(mean.argmax())], float(mean.max()))
        return best

    def trained_on(self, split: Split) -> Indices:
        """The rows that ranking trains on in an inner split."""
        least, num = self._contest.least_training, len(split.train_index)
        return split.train_index if least is None else thin(split.train_index, max(least, num // 4), self._seed)

    def _scores_of(self, pooling: str, split: Split) -> NDArray[np.float64]:
        """(len(grid),)."""
        key = split.train_index.tobytes()
        if (pooling, key) not in self._scores:
            tests = self._tests[key]
            rows = np.unique(np.concatenate(list(tests.values())))
            train = self.trained_on(split)
            grid = [parameter * len(split.train_index) / len(train) for parameter in self._contest.grid]
            found = self._contest.predicted(pooling, train, rows, grid)
            self._scores[pooling, key] = {
                name: self._contest.score(found[:, np.searchsorted(rows, test)], test) for name, test in tests.items()
            }
        return self._scores[pooling, key][split.test_index.tobytes()]


def thin(index: Indices, num: int, seed: int) -> Indices:
    """At most ``num`` of the rows, drawn by the seed, in their order."""
    if len(index) <= num:
        return index
    return np.asarray(index[permutation(len(index), seed, "ranking")[:num].sort().values.numpy()])
