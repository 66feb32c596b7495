"""Fine-tuning: encoder and classifier learn the classes of labelled clips (docs/finetuning.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

import torch
import tyro.conf
from torch import Tensor

from bridle.data.batch import Batch
from bridle.errors import ConfigError
from bridle.losses.classes import binary_cross_entropy, smooth, soft_cross_entropy
from bridle.masking import drop_rows
from bridle.mixing import Blend, MixConfig, draw_partners, mix
from bridle.models.classifier import Classifier
from bridle.models.encoder import Encoder
from bridle.nn.block import draw_drop_path
from bridle.nn.pooling import Averages
from bridle.objectives.base import Objective, StepOutput
from bridle.objectives.view import whole_view
from bridle.optim.groups import OptimConfig

MAX_POSITIVE_WEIGHT = 100.0


@dataclass(frozen=True)
class FinetuneConfig:
    """How an encoder learns classes. What is done to the clips is among the settings of their medium.

    Attributes:
        pooling: how patch features become one vector: mean, time, statistics, grid or grid statistics.
        optim: of encoder and classifier.
        layer_decay: each layer's learning rate over that of the next; 1 for the same rate everywhere.
        drop_path: chance that the last block is passed over for a clip; rises linearly from 0 in the first one.
        patch_drop: shares of the rows of patches along time, height and width that the encoder does not see in training.
        mixup: a of beta(a, a), from which the weight of a clip in a mixture is drawn; 0 for none.
        mixup_domain: ``batch``: clips of a batch are mixed on the device (of sound the powers); ``waveform``: sounds are
            mixed before they become log-mel, with partners from the whole training part.
        cutmix: the same for the area that is left of a picture; 0 for none.
        mix_ratio: share of the clips that are mixed.
        label_smoothing: share of the target that is spread over all classes.
        loss: ``cross_entropy``, ``bce``, or ``auto``: bce for several labels.
        class_weights: ``balanced`` weighs rare classes more in the loss.
        sampling: ``balanced`` draws clips of rare classes more often, with replacement.
        clips_per_epoch: clips of an epoch of balanced sampling; 0 for as many as there are.
        validate_every_epochs: epochs between two looks at the validation clips.
        label: column with the classes.
        multi_label: a clip may have several, or none.
        separator: between them in a cell.
        classes: their names; filled in from the data.

    Raises:
        ConfigError: a value out of range, or values that do not go together.
    """

    pooling: Averages = "mean"
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup_ratio=0.1)
    )
    layer_decay: float = 0.75
    drop_path: float = 0.1
    patch_drop: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mixup: float = 0.0
    mixup_domain: Literal["batch", "waveform"] = "batch"
    cutmix: float = 0.0
    mix_ratio: float = 1.0
    label_smoothing: float = 0.1
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["plain", "balanced"] = "plain"
    clips_per_epoch: int = 0
    validate_every_epochs: int = 1
    label: str = ""
    multi_label: bool = False
    separator: str = ","
    classes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()

    def __post_init__(self) -> None:
        MixConfig(self.mixup, self.cutmix, self.mix_ratio)  # checks its values, whatever the domain
        for name, value in (("drop_path", self.drop_path), *(("patch_drop", ratio) for ratio in self.patch_drop)):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"{name}={value} must lie in [0, 1)")
        if not 0.0 < self.layer_decay <= 1.0:
            raise ConfigError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if self.pooling not in get_args(Averages):
            raise ConfigError(f"pooling={self.pooling!r} is for frozen features; take {', '.join(get_args(Averages))}")
        if any(self.patch_drop) and self.pooling != "mean":
            raise ConfigError(
                f"patch_drop={self.patch_drop} leaves holes in the grid: it needs pooling=mean, not {self.pooling!r}"
            )
        if self.multi_label and self.loss == "cross_entropy":
            raise ConfigError("loss=cross_entropy is for one class a clip; with several labels take bce or auto")
        if self.clips_per_epoch < 0 or self.validate_every_epochs < 1:
            raise ConfigError(
                f"clips_per_epoch={self.clips_per_epoch} must be at least 0, "
                f"validate_every_epochs={self.validate_every_epochs} at least 1"
            )
        if self.clips_per_epoch and self.sampling != "balanced":
            raise ConfigError(f"clips_per_epoch={self.clips_per_epoch} is for sampling=balanced; a plain epoch has all clips")

    @property
    def exclusive(self) -> bool:
        """True for cross-entropy, where a clip's chances sum to 1."""
        return self.loss == "cross_entropy" or (self.loss == "auto" and not self.multi_label)

    @property
    def mixing(self) -> MixConfig:
        """How clips of a batch are mixed."""
        return MixConfig(self.mixup if self.mixup_domain == "batch" else 0.0, self.cutmix, self.mix_ratio)

    @property
    def waveforms(self) -> MixConfig | None:
        """How waveforms are mixed when they are loaded; None when they are not."""
        mixed = self.mixup > 0 and self.mixup_domain == "waveform"
        return MixConfig(self.mixup, 0.0, self.mix_ratio) if mixed else None


@dataclass(frozen=True, eq=False)
class Targets:
    """What the clips of a manifest are.

    Attributes:
        values: (rows, C) float32, 1 where a clip is of a class; on the CPU.
        weights: (C,) float32 factors of the loss, by class.
    """

    values: Tensor
    weights: Tensor


def balanced_weights(values: Tensor, exclusive: bool) -> Tensor:
    """Factors (C,) that give every class the same say in the loss; 1 for a class of no clip or of all of them.

    Of exclusive classes ``n / (C n_c)`` with n_c of n clips and C classes that have clips, which is 1 in the mean over clips;
    else ``(n - n_c) / n_c``, of the terms of present classes, at most 100.
    """
    counts = values.sum(0)
    num, some = len(values), counts.clamp(min=1)
    if exclusive:
        factors = num / (int((counts > 0).sum()) * some)
    else:
        factors = ((num - counts) / some).clamp(max=MAX_POSITIVE_WEIGHT)
    return torch.where((counts > 0) & (counts < num), factors, 1.0)


class Supervised(Objective):
    """Classes of labelled clips. In training, clips are mixed, and blocks and patches left out, as the settings say.

    Args:
        encoder: trained.
        classifier: trained.
        config: how.
        targets: of the manifest whose rows the batches name.
        blend: how values of the medium are mixed.
        scale: see :func:`bridle.mixing.mix`.
    """

    def __init__(
        self,
        encoder: Encoder,
        classifier: Classifier,
        config: FinetuneConfig,
        targets: Targets,
        blend: Blend = "values",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, self.classifier, self.config, self.targets = encoder, classifier, config, targets
        self.blend: Blend = blend
        self.scale = scale
        self.register_buffer("class_weights", targets.weights.clone(), persistent=False)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Loss ``class`` and, of one class a clip, metric ``accuracy``, summed over clips; a mixture is of its larger part."""
        device = batch.inputs.device
        inputs, targets = self._mixed(batch) if self.training else (batch.inputs, self.targets.values[batch.indices])
        targets = targets.to(device, non_blocking=True)
        logits = self._logits(replace(batch, inputs=inputs))
        loss = self._losses(logits, targets).sum()
        if self.config.multi_label:
            return StepOutput({"class": loss})
        with torch.no_grad():
            right = (targets.argmax(1) == logits.argmax(1)).float().sum()
        return StepOutput({"class": loss}, {"accuracy": right})

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Clips."""
        return {"class": len(batch)} | ({} if self.config.multi_label else {"accuracy": len(batch)})

    def weights(self) -> dict[str, float]:
        """One loss of weight 1."""
        return {"class": 1.0}

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, C) on the CPU; waveforms were mixed when they were loaded."""
        config, values = self.config, self.targets.values
        targets = values[batch.indices]
        if config.waveforms is not None:
            partners, weights = draw_partners(batch.seeds, len(values), config.waveforms)
            targets = weights[:, None] * targets + (1 - weights[:, None]) * values[partners]
        if not config.mixing.on or not len(batch):
            return batch.inputs, targets
        mixture = mix(batch.inputs, batch.lengths, batch.seeds, config.mixing, self.blend, self.scale)
        weights = mixture.weights[:, None]
        return mixture.inputs, weights * targets + (1 - weights) * targets.flip(0)

    def _logits(self, batch: Batch) -> Tensor:
        view = whole_view(batch, self.encoder.config.patch)
        device = batch.inputs.device
        kept = None
        if self.training and self.config.drop_path:
            kept = draw_drop_path(batch.seeds, self.encoder.config.depth, self.config.drop_path).to(device, non_blocking=True)
        if self.training and any(self.config.patch_drop):
            subset = drop_rows(view.patches.grid, view.steps, batch.seeds, self.config.patch_drop).to(device)
            return self.classifier.of_subset(self.encoder(view.patches, subset, kept).patches, subset)
        return self.classifier(self.encoder(view.patches, view.every, kept).patches, view.patches.grid, view.steps)  # type: ignore[no-any-return]

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        config, factors = self.config, self.class_weights
        assert isinstance(factors, Tensor)
        soft = smooth(targets, config.label_smoothing, config.exclusive)
        if config.exclusive:
            losses = soft_cross_entropy(logits, soft)
            return losses * (targets @ factors) if config.class_weights == "balanced" else losses
        return binary_cross_entropy(logits, soft, factors if config.class_weights == "balanced" else None)
