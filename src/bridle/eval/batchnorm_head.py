"""Batch-norm head: a linear classifier behind a batch norm without scale and offset, by stochastic gradient descent.

It is how MAE (He et al. 2022, arXiv 2111.06377, appendix A.1) probes: batch norm, one linear layer, no weight decay, a cosine
schedule. MAE trains by LARS on batches of 16,384 random crops for 90 epochs, 10 of them warm-up, at a rate that is set by hand;
here it is SGD with momentum 0.9 on cached features of whole clips, and the rate is chosen among several on inner splits.

All rates see the same batches, so they share the batch norm, and a grid costs little more than one rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.errors import DataError
from bridle.eval.knn import check_features
from bridle.eval.protocol import Probe
from bridle.randomness import generator

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates to choose from."""
RANKING_CLIPS = 1000
"""See :func:`for_ranking`."""
_CHUNK = 4096  # queries at a time on the device


@dataclass(frozen=True, slots=True)
class BatchNormConfig:
    """How heads are trained.

    Attributes:
        epochs: passes over the training clips.
        batch_size: clips per step; a pass is cut into parts of nearly equal size, at most so many clips each.
        momentum: of SGD.
        seed: of the order of the clips.
        device: where heads are trained, a batch of features at a time; None for where the features are.
    """

    epochs: int = 50
    batch_size: int = 128
    momentum: float = 0.9
    seed: int = 0
    device: torch.device | None = None


class BatchNormHeads(nn.Module):
    """Linear classifiers of one width behind one batch norm, in eval mode once fitted.

    Args:
        width: D.
        num_outputs: C.
        num_heads: G of them, a learning rate each.
    """

    def __init__(self, width: int, num_outputs: int, num_heads: int) -> None:
        super().__init__()
        # Frozen features do not drift, so the plain average over all batches is right: a moving one still holds its start
        # after the few steps that a small set has.
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False, momentum=None)
        # Without a hidden layer there is no symmetry to break, so nothing is drawn by chance.
        self.weights = nn.ParameterList(torch.zeros(num_outputs, width) for _ in range(num_heads))
        self.biases = nn.ParameterList(torch.zeros(num_outputs) for _ in range(num_heads))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        device: torch.device = self.weights[0].device
        return device

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to logits (G, B, C)."""
        joint = F.linear(self.norm(features), torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return joint.reshape(len(features), len(self.weights), -1).transpose(0, 1)


def fit_heads(
    features: Tensor, targets: Tensor, num_outputs: int, rates: Sequence[float], config: BatchNormConfig | None = None
) -> BatchNormHeads:
    """A head for each learning rate; the same seed gives the same heads.

    Args:
        features: (N, D) training features, N at least 2.
        targets: (N,) int64 classes in [0, C), or (N, C) bool tags.
        num_outputs: C.
        rates: G learning rates for a batch of 256; smaller batches take proportionally less, as in MAE.
        config: how they are trained.

    Raises:
        DataError: fewer than two rows, targets of another length, a rate that is not positive, or NaN or infinity.
    """
    chosen = config or BatchNormConfig()
    check_features(features)
    if len(features) < 2 or len(targets) != len(features):
        raise DataError(f"{len(targets)} targets for {len(features)} rows of features; give one for each of at least 2 rows")
    if not rates or min(rates) <= 0:
        raise DataError(f"learning rates are {list(rates)}; give at least one, all above 0")
    heads = BatchNormHeads(features.shape[1], num_outputs, len(rates)).to(chosen.device or features.device)
    steps_per_epoch = -(-len(features) // chosen.batch_size)
    scale = len(features) / steps_per_epoch / 256
    parameters = zip(heads.weights, heads.biases, strict=True)
    groups = [{"params": pair, "lr": scale * rate} for pair, rate in zip(parameters, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=chosen.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.epochs * steps_per_epoch)
    order = generator(chosen.seed, "batch-norm head")
    for _ in range(chosen.epochs):
        for drawn in torch.randperm(len(features), generator=order).tensor_split(steps_per_epoch):
            batch = drawn.to(features.device)
            own = targets[batch].to(heads.device)
            optimizer.zero_grad()
            losses = [head_loss(logits, own) for logits in heads(features[batch].to(heads.device).float())]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return heads.eval()


def for_ranking(config: BatchNormConfig | None, rates: Sequence[float], num_clips: int) -> tuple[BatchNormConfig, list[float]]:
    """How heads are trained when learning rates are only compared: on many clips for fewer epochs, at higher rates.

    A quarter of the steps at four times the rate comes to nearly the same heads, so they rank alike; a quarter of the clips
    would not do, as heads on fewer clips want lower rates. Up to ``RANKING_CLIPS`` clips nothing changes; from four times as
    many on it is a quarter.
    """
    chosen = config or BatchNormConfig()
    epochs = max(1, round(chosen.epochs / min(4.0, max(1.0, num_clips / RANKING_CLIPS))))
    return replace(chosen, epochs=epochs), [rate * chosen.epochs / epochs for rate in rates]


def head_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of the cross-entropy of logits (B, C) with classes (B,) int64, or of the binary ones, summed over all
    tags (B, C) bool: so that good learning rates do not depend on how many tags there are.
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)


@torch.no_grad()
def batchnorm_logits(
    train: Tensor,
    targets: Tensor,
    queries: Tensor,
    rates: Sequence[float],
    num_outputs: int,
    config: BatchNormConfig | None = None,
) -> Tensor:
    """Logits (len(rates), M, C) of queries (M, D), on their device, by heads fitted on ``train``; see :func:`fit_heads`."""
    with torch.enable_grad():
        heads = fit_heads(train, targets, num_outputs, rates, config)
    found = [heads(part.to(heads.device).float()).to(queries.device) for part in torch.split(queries, _CHUNK)]
    return torch.cat(found, dim=1)


def batchnorm_probe(rates: Sequence[float] = RATES, config: BatchNormConfig | None = None) -> Probe:
    """Batch-norm head, its learning rate chosen among ``rates``."""

    def select(train: Tensor, labels: Tensor, queries: Tensor, grid: Sequence[float]) -> Tensor:
        short, scaled = for_ranking(config, grid, len(train))
        return batchnorm_predictions(train, labels, queries, scaled, short)

    predict = partial(batchnorm_predictions, config=config)
    return Probe("batchnorm", tuple(rates), predict, select, partial(batchnorm_probabilities, config=config))


def batchnorm_predictions(
    train: Tensor, labels: Tensor, queries: Tensor, rates: Sequence[float], config: BatchNormConfig | None = None
) -> Tensor:
    """Predicted class of every query (M, D) for every rate, (len(rates), M) int64, values of ``labels`` (N,)."""
    classes, coded = torch.unique(labels, return_inverse=True)
    predicted: Tensor = classes[batchnorm_logits(train, coded, queries, rates, len(classes), config).argmax(dim=2)]
    return predicted


def batchnorm_probabilities(
    train: Tensor, labels: Tensor, queries: Tensor, rate: float, config: BatchNormConfig | None = None
) -> Tensor:
    """Probability of every class that occurs in ``labels``, ascending, for every query: (M, classes)."""
    classes, coded = torch.unique(labels, return_inverse=True)
    return batchnorm_logits(train, coded, queries, (rate,), len(classes), config)[0].double().softmax(dim=1)
