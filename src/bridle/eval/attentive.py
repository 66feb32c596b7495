"""Attentive probe: patches pooled by a learned query's attention, then a linear classifier.

As CAE (Chen et al. 2022, arXiv 2202.03026) and V-JEPA (Bardes et al. 2024, arXiv 2404.08471) probe frozen patch features: layer
norm, cross-attention of one learned query with H heads, a linear classifier. What V-JEPA adds behind the attention (an output
map and an MLP) is left out. Three exact rewritings make it quick on a CPU:

* A single query meets the key map only in their product, D numbers for each head. They are learned, and no patch gets a key.
* A weighted mean of values is the value of the weighted mean, so no patch gets a value.
* Scale and offset of the layer norm are absorbed by the two maps. In their place every column is standardised on the training
  patches, which trains faster; that, too, is done to queries and means instead of patches.

Every learning rate trains a probe of its own on the same batches, so patches are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.errors import ConfigError, DataError
from bridle.eval.batchnorm_head import head_loss
from bridle.eval.patches import PatchFeatures
from bridle.eval.protocol import Probe
from bridle.randomness import generator

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates to choose from."""


@dataclass(frozen=True, slots=True)
class AttentiveConfig:
    """How attentive probes are built and trained.

    Attributes:
        heads: H, of the attention; must divide the width.
        epochs: passes over the training clips.
        ranking_epochs: passes when learning rates are only compared.
        batch_size: clips per step; a pass is cut into parts of nearly equal size, at most so many clips each.
        weight_decay: of AdamW.
        seed: of the start and the order of the clips.
        device: where they are trained, a batch of patches at a time; None for the CPU.
    """

    heads: int = 4
    epochs: int = 20
    ranking_epochs: int = 10
    batch_size: int = 32
    weight_decay: float = 0.1
    seed: int = 0
    device: torch.device | None = None


class AttentiveProbe(nn.Module):
    """Logits from the patches of clips.

    Attributes:
        query: (H, D), product of the learned query and the key map; 0 at the start, which pools by the mean.
        value: (H, D / H, D), the value map of each head.
        classifier: (C, D + 1), weights and, last, biases; a bias of the values would only add to these.
        mean: (D,) of the training patches.
        scale: (D,) standard deviation of the training patches.

    Args:
        width: D.
        num_outputs: C.
        heads: H.
        seed: of the value maps.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, num_outputs: int, heads: int, seed: int = 0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"heads={heads} must divide width={width}; choose heads from the divisors of the width")
        drawn = torch.randn(heads, width // heads, width, generator=generator(seed, "attentive probe", "values"))
        self.query = nn.Parameter(torch.zeros(heads, width))
        self.value = nn.Parameter(width**-0.5 * drawn)
        self.classifier = nn.Parameter(torch.zeros(num_outputs, width + 1))
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, patches: Tensor, valid: Tensor) -> Tensor:
        """Normalised patches (B, N, D), of which some are valid (B, N) bool, to logits (B, C)."""
        return self.classify(attended_means(patches, valid, self.scaled_query))

    @property
    def scaled_query(self) -> Tensor:
        """(H, D), to be met by patches that are not standardised: the softmax does not see the offset."""
        return self.query / self.scale

    def classify(self, means: Tensor) -> Tensor:
        """Weighted means of the patches, one for each head (B, H, D), to logits (B, C)."""
        values = torch.einsum("bhd,hvd->bhv", (means - self.mean) / self.scale, self.value).flatten(1)
        return F.linear(values, self.classifier[:, :-1], self.classifier[:, -1])


def attended_means(patches: Tensor, valid: Tensor, queries: Tensor) -> Tensor:
    """Means of patches (B, N, D), weighted by the softmax over the valid ones (B, N) of their products with queries (Q, D).

    Returns (B, Q, D).
    """
    scores = (patches @ queries.T).masked_fill(~valid[..., None], -torch.inf)
    return scores.softmax(dim=1).transpose(1, 2) @ patches


def fit_attentive(
    patches: PatchFeatures,
    rows: Sequence[int],
    targets: Tensor,
    num_outputs: int,
    rates: Sequence[float],
    config: AttentiveConfig | None = None,
) -> list[AttentiveProbe]:
    """A probe for each learning rate, in eval mode; the same seed gives the same probes.

    Args:
        patches: of all clips.
        rows: n training clips.
        targets: (n,) int64 classes in [0, C), or (n, C) bool tags.
        num_outputs: C.
        rates: learning rates of AdamW, falling to 0 along a cosine.
        config: how they are built and trained.

    Raises:
        DataError: no clips, targets of another length, or a rate that is not positive.
        ConfigError: the heads do not divide the width.
    """
    chosen = config or AttentiveConfig()
    if not rows or len(targets) != len(rows):
        raise DataError(f"{len(targets)} targets for {len(rows)} training clips; give one for each of at least 1 clip")
    if not rates or min(rates) <= 0:
        raise DataError(f"learning rates are {list(rates)}; give at least one, all above 0")
    probes = [AttentiveProbe(patches.width, num_outputs, chosen.heads, chosen.seed) for _ in rates]
    mean, scale = patches.moments(rows)
    for probe in probes:
        probe.mean.copy_(mean)
        probe.scale.copy_(scale)
        probe.to(chosen.device)
    targets = targets.to(chosen.device)
    groups = [{"params": list(probe.parameters()), "lr": rate} for probe, rate in zip(probes, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=chosen.weight_decay)
    steps_per_epoch = -(-len(rows) // chosen.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.epochs * steps_per_epoch)
    order = generator(chosen.seed, "attentive probe", "order")
    for _ in range(chosen.epochs):
        for batch in torch.randperm(len(rows), generator=order).tensor_split(steps_per_epoch):
            optimizer.zero_grad()
            found = logits_of(probes, patches, [rows[i] for i in batch.tolist()])
            own = targets[batch.to(targets.device)]
            torch.stack([head_loss(logits, own) for logits in found]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return [probe.eval() for probe in probes]


def logits_of(probes: Sequence[AttentiveProbe], patches: PatchFeatures, rows: Sequence[int]) -> list[Tensor]:
    """Logits (n, C) of the clips ``rows`` by every probe; their patches are read once."""
    values, valid = patches.batch(rows, probes[0].query.device)
    means = attended_means(values, valid, torch.cat([probe.scaled_query for probe in probes]))
    return [probe.classify(part) for probe, part in zip(probes, means.chunk(len(probes), dim=1), strict=True)]


@torch.no_grad()
def attentive_logits(
    patches: PatchFeatures,
    train: Sequence[int],
    targets: Tensor,
    queries: Sequence[int],
    num_outputs: int,
    rates: Sequence[float],
    config: AttentiveConfig | None = None,
) -> Tensor:
    """Logits (len(rates), m, C) on the CPU of m clips by probes that are fitted on others; see :func:`fit_attentive`."""
    chosen = config or AttentiveConfig()
    with torch.enable_grad():
        probes = fit_attentive(patches, train, targets, num_outputs, rates, chosen)
    starts = range(0, len(queries), chosen.batch_size)
    found = [torch.stack(logits_of(probes, patches, queries[start : start + chosen.batch_size])) for start in starts]
    return torch.cat(found, dim=1).cpu()


def attentive_probe(patches: PatchFeatures, rates: Sequence[float] = RATES, config: AttentiveConfig | None = None) -> Probe:
    """Attentive probe on the clips of ``patches``, its learning rate chosen among ``rates``.

    The features that it takes are not vectors but the numbers of the clips, :attr:`PatchFeatures.numbers`: patches of
    different clips differ in number, and there are too many of them to be copied for every split.
    """
    final = config or AttentiveConfig()
    short = replace(final, epochs=final.ranking_epochs)

    def logits(train: Tensor, coded: Tensor, queries: Tensor, grid: Sequence[float], chosen: AttentiveConfig) -> Tensor:
        clips, asked = (numbers[:, 0].tolist() for numbers in (train, queries))
        return attentive_logits(patches, clips, coded, asked, int(coded.max()) + 1, grid, chosen)

    def predict(train: Tensor, labels: Tensor, queries: Tensor, grid: Sequence[float], chosen: AttentiveConfig) -> Tensor:
        classes, coded = torch.unique(labels, return_inverse=True)
        predicted: Tensor = classes[logits(train, coded, queries, grid, chosen).argmax(dim=2)]
        return predicted

    def probabilities(train: Tensor, labels: Tensor, queries: Tensor, rate: float) -> Tensor:
        coded = torch.unique(labels, return_inverse=True)[1]
        return logits(train, coded, queries, (rate,), final)[0].double().softmax(dim=1)

    select, predict_final = (partial(predict, chosen=chosen) for chosen in (short, final))
    return Probe("attentive", tuple(rates), predict_final, select, probabilities)
