"""Which clips make up which batch: a pure function of (seed, epoch), so resuming needs one integer and no replay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bridle.data.batch import valid_steps
from bridle.errors import ConfigError, DataError
from bridle.randomness import counter_uniform, derive_seed, permutation

MAX_CLASS_PADDING = 0.1


class EpochOrder:
    """Batches of clips of like length, each of about ``batch_size * crop_length`` frames.

    Clips fall into length classes, in which the shortest has more than 90 % of the time steps of the longest. An epoch
    shuffles the clips of each class, lays the classes end to end from long to short and cuts the line into batches:
    as many clips as fit into ``batch_size`` full crops at the length of the batch's first class. A batch at the
    border of two classes joins their left-overs, so every clip comes exactly once per epoch; the cuts depend on the
    sizes of the classes alone, so every epoch has the same number of steps. A last batch smaller than the one before
    it shares that one's clips evenly. Then the batches are shuffled.
    Padding is below 10 % once an epoch has several times more batches than length classes (at most 20 in 5 s of sound).

    Args:
        lengths: frames of every clip, longer ones count as a crop.
        batch_size: clips of full crop length in a batch, over all ranks.
        crop_length: frames of a full crop.
        patch_length: t, frames per patch.
        seed: of the order.
        max_clips: most clips in a batch however short they are; ``16 * batch_size`` by default.

    Raises:
        DataError: there is no clip.
        ConfigError: a size is less than 1.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int,
        crop_length: int,
        patch_length: int,
        seed: int,
        max_clips: int | None = None,
    ) -> None:
        max_clips = 16 * batch_size if max_clips is None else max_clips
        sizes = {
            "batch_size": batch_size,
            "crop_length": crop_length,
            "patch_length": patch_length,
            "max_clips": max_clips,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        frames = torch.as_tensor(lengths, dtype=torch.int64)
        if len(frames) == 0:
            raise DataError("there is no clip to put in order; check the manifest")
        self._seed = seed
        self._steps = valid_steps(frames.clamp(max=crop_length), patch_length)
        crop_steps = int(valid_steps(torch.tensor([crop_length]), patch_length))
        tops = torch.tensor(_class_tops(crop_steps))
        # Class 0 holds the longest clips.
        self._class = len(tops) - 1 - torch.searchsorted(tops, self._steps)
        self._capacities = [min(max_clips, batch_size * crop_steps // top) for top in tops.flip(0).tolist()]
        self._cuts = _cut(torch.bincount(self._class, minlength=len(tops)).tolist(), self._capacities)

    @property
    def num_clips(self) -> int:
        """Clips in an epoch."""
        return len(self._steps)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in every epoch."""
        return len(self._cuts) - 1

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch in their order: lists of clip numbers."""
        return list(self.iterate(epoch))

    def iterate(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from batch ``start`` on, made one by one."""
        order = self._clip_order(epoch)
        for batch in permutation(self.steps_per_epoch, self._seed, "batches", epoch)[start:].tolist():
            yield order[self._cuts[batch] : self._cuts[batch + 1]].tolist()

    def padding_ratio(self, epoch: int) -> float:
        """Share of an epoch's time steps that are padding, in [0, 1)."""
        steps = self._steps[self._clip_order(epoch) % self.num_clips]
        bounds = torch.tensor(self._cuts)
        batch = torch.repeat_interleave(torch.arange(self.steps_per_epoch), bounds.diff())
        longest = torch.zeros(self.steps_per_epoch, dtype=torch.int64).scatter_reduce(0, batch, steps, "amax")
        return 1.0 - int(steps.sum()) / int((longest * bounds.diff()).sum())

    def _clip_order(self, epoch: int) -> Tensor:
        """Clips of an epoch from the class of the longest to that of the shortest, shuffled within each."""
        shuffled = permutation(self.num_clips, self._seed, "clips", epoch)
        return shuffled[torch.argsort(self._class[shuffled], stable=True)]


class WeightedOrder(EpochOrder):
    """Batches of clips that are drawn with replacement, each epoch anew.

    How many are drawn of each length class follows from the weights alone, so every epoch has the same number of steps; it is
    at least one of each class in which any clip has a weight, so that none is left out for good.
    The k-th draw of a clip in an epoch is the number ``clip + k * num_clips``, k from 0, so that each draw has its own crop.

    Args:
        order: of the same clips, each once.
        weights: (num_clips,) of every clip, at least 0.
        num_draws: clips in an epoch, to a few; 0 for as many as there are.

    Raises:
        ConfigError: not one weight for each clip, a weight that is negative or not finite, or all are 0.
    """

    def __init__(self, order: EpochOrder, weights: Tensor, num_draws: int = 0) -> None:
        weights = weights.double()
        if weights.shape != (order.num_clips,) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
            raise ConfigError(
                f"{weights.numel()} weights for {order.num_clips} clips: give one each, at least 0, finite and not all 0"
            )
        vars(self).update(vars(order))
        self._weights = weights
        shares = torch.zeros(len(self._capacities), dtype=torch.float64).index_add_(0, self._class, weights)
        ends = (shares.cumsum(0) / shares.sum() * (num_draws or order.num_clips)).round().long()
        self._quotas = torch.maximum(ends.diff(prepend=ends.new_zeros(1)), (shares > 0).long())
        self._cuts = _cut(self._quotas.tolist(), self._capacities)

    def _clip_order(self, epoch: int) -> Tensor:
        drawn = []
        for number, quota in enumerate(self._quotas.tolist()):
            members = (self._class == number).nonzero()[:, 0]
            if quota:
                ends = self._weights[members].cumsum(0)
                seed = torch.tensor([derive_seed(self._seed, "draws", epoch, number)])
                places = counter_uniform(seed, quota)[0] * ends[-1]
                drawn.append(members[torch.searchsorted(ends, places, right=True).clamp(max=len(members) - 1)])
        clips = torch.cat(drawn)
        return clips + self.num_clips * _occurrence(clips)


def _occurrence(values: Tensor) -> Tensor:
    """How often each value has come before it."""
    order = values.argsort(stable=True)
    placed = values[order]
    first = torch.searchsorted(placed, placed)
    found = torch.empty_like(values)
    found[order] = torch.arange(len(values)) - first
    return found


def _class_tops(crop_steps: int) -> list[int]:
    """Longest number of time steps of each length class, ascending; the last class ends with the full crop."""
    tops: list[int] = []
    top = crop_steps
    while top > 0:
        tops.append(top)
        # The shortest of a class is the least whole number above (1 - padding) * top.
        top = int((1 - MAX_CLASS_PADDING) * top + 1e-9)
    return tops[::-1]


def _cut(class_sizes: list[int], capacities: list[int]) -> list[int]:
    """Borders of the batches along the line of clips, from class 0 on: ``[0, ..., number of clips]``."""
    cuts, start = [0], 0
    for size, capacity in zip(class_sizes, capacities, strict=True):
        end = start + size
        while cuts[-1] < end:
            cuts.append(cuts[-1] + capacity)
        start = end
    cuts[-1] = start
    if len(cuts) > 2:
        cuts[-2] = min(cuts[-2], (cuts[-3] + start + 1) // 2)
    return cuts
