"""Recipes for fine-tuning: how the encoder of a pretrained run learns classes.

Costs are computed, not measured: forward and backward products of a ViT-B over all clips and epochs, and the time they take one
H100 at 40 % of its 989 TFLOP/s in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridle.data.medium import MediumName
from bridle.errors import ConfigError
from bridle.nn.pooling import Averages
from bridle.objectives.supervised import FinetuneConfig
from bridle.optim.groups import OptimConfig
from bridle.run import RunConfig
from bridle.train.loop import TrainConfig


@dataclass(frozen=True)
class Finetuning:
    """What a recipe says.

    Attributes:
        finetune: how classes are learnt.
        phases: how long.
        train: batch size and machinery.
        clips: settings of the front end that differ from those of the pretrained run.
        medium: that the recipe is for; None for any.
        pooling: where it depends on the medium.
    """

    finetune: FinetuneConfig
    phases: str
    train: TrainConfig
    clips: dict[str, Any]
    medium: MediumName | None = None
    pooling: Mapping[MediumName, Averages] = field(default_factory=dict)


def small() -> Finetuning:
    """A few hundred to some thousand labelled clips on a laptop; what is done to the clips stays as in pretraining.

    Command: ``bridle finetune RUN MANIFEST --label COLUMN --out RUN2``. Poolings that keep where something is (the frequency of
    sound, the place in a picture) and how much it changes in time tell the classes of small sets better than one mean. All
    layers learn at one rate: few steps are too few for the first ones at a small part of it.
    """
    return Finetuning(
        FinetuneConfig(optim=_adamw(1e-3, 0.1, decay=0.05), layer_decay=1.0, drop_path=0.1, mixup=0.3, mix_ratio=0.5),
        "supervised:60",
        TrainConfig(batch_size=32, max_bad_fraction=0.1),  # of a hundred files 1 % is a single one
        {},
        pooling={"audio": "statistics", "image": "time", "video": "grid statistics"},
    )


def audioset_2m() -> Finetuning:
    """AudioSet-2M, 527 tags, 10 s clips, by the settings of BRIDLE's published scripts: 200,000 weighted clips an epoch.

    Command: ``torchrun --nproc-per-node 8 -m bridle finetune runs/base AUDIOSET --protocol audioset-2m --recipe audioset-2m
    --out runs/as2m``. 100 epochs of 200,000 clips: 3.6e18 FLOP, 2.5 hours. Not run by us.
    """
    finetune = _audio_tags(lr=2e-4, sampling="balanced", clips_per_epoch=200_000)
    return Finetuning(finetune, "supervised:100", TrainConfig(batch_size=256, num_workers=8), _AUDIO, "audio")


def audioset_20k() -> Finetuning:
    """AudioSet-20K, the balanced 22,000 clips, 527 tags, by the settings of BRIDLE's published scripts.

    Command: ``torchrun --nproc-per-node 4 -m bridle finetune runs/base AUDIOSET --protocol audioset-20k --recipe audioset-20k
    --out runs/as20k``. 150 epochs of 22,160 clips: 6.0e17 FLOP, 0.4 hours. Not run by us.
    """
    return Finetuning(_audio_tags(lr=4e-4), "supervised:150", TrainConfig(batch_size=256, num_workers=8), _AUDIO, "audio")


def esc50() -> Finetuning:
    """ESC-50, 2000 clips of 5 s, 50 classes, 5 folds, by the settings of BRIDLE's published scripts.

    Command: ``bridle finetune runs/base ESC-50-master --protocol esc-50 --recipe esc50 --out runs/esc50``, a run for each
    fold. 300 epochs of 25 steps each: 2.1e17 FLOP for all five, 0.15 hours. Not run by us.
    """
    finetune = FinetuneConfig(
        optim=_adamw(2e-3, 10 / 300),
        mixup=10.0,
        mixup_domain="waveform",
        mix_ratio=0.5,
        patch_drop=(0.2, 0.2, 0.0),
    )
    clips = {"mask_frames": 96, "mask_mels": 48, "crop_seconds": 5.12}
    return Finetuning(finetune, "supervised:300", TrainConfig(batch_size=64), clips, "audio")


def imagenet() -> Finetuning:
    """ImageNet-1K, ViT-B, 224 pixels: length, rate and batch of BRIDLE's published scripts; decay and augmentation of MAE.

    Command: ``torchrun --nproc-per-node 8 -m bridle finetune runs/base IMAGENET --protocol imagenet --recipe imagenet
    --out runs/imagenet``. 200 epochs of 1251 steps: 2.7e19 FLOP, 19 hours. Not run by us.
    """
    finetune = FinetuneConfig(optim=_adamw(5e-4, 5 / 200, decay=0.05), layer_decay=0.65, mixup=0.8, cutmix=1.0)
    clips = {"rand_augment": 9.0, "erase": 0.25, "scale": (0.08, 1.0), "flip": True}
    return Finetuning(finetune, "supervised:200", TrainConfig(batch_size=1024, num_workers=8), clips, "image")


def kinetics() -> Finetuning:
    """Kinetics-400, ViT-B, 16 frames of 224 pixels: length and rate of BRIDLE's published scripts; the rest of VideoMAE.

    Command: ``torchrun --nproc-per-node 8 -m bridle finetune runs/base KINETICS --protocol kinetics-400 --recipe kinetics400
    --out runs/k400``. 75 epochs of 240,000 films: 1.9e19 FLOP, 14 hours. Not run by us.
    """
    finetune = FinetuneConfig(optim=_adamw(7.5e-4, 5 / 75, decay=0.05), mixup=0.8, cutmix=1.0)
    clips = {"rand_augment": 7.0, "erase": 0.25, "scale": (0.25, 1.0), "flip": True}
    return Finetuning(finetune, "supervised:75", TrainConfig(batch_size=512, num_workers=8), clips, "video")


FINETUNING: dict[str, Callable[[], Finetuning]] = {
    "small": small,
    "esc50": esc50,
    "audioset-20k": audioset_20k,
    "audioset-2m": audioset_2m,
    "imagenet": imagenet,
    "kinetics400": kinetics,
}
"""By name."""

_AUDIO: dict[str, Any] = {"mask_frames": 192, "mask_mels": 48, "crop_seconds": 10.24}


def finetuning(name: str, source: RunConfig, from_scratch: bool = False) -> RunConfig:
    """The configuration that a recipe makes of a pretrained run's.

    Args:
        name: of the recipe.
        source: configuration of the run.
        from_scratch: begins with new weights: no layer-wise lr decay, which is for layers that know something already.

    Raises:
        ConfigError: there is no such recipe, or it is for another medium.
    """
    if name not in FINETUNING:
        raise ConfigError(f"there is no recipe '{name}' for fine-tuning; there are {', '.join(FINETUNING)}")
    made = FINETUNING[name]()
    if made.medium not in (None, source.medium.name):
        raise ConfigError(f"recipe {name} is for {made.medium}, and the run is of {source.medium.name}; take small")
    decay = 1.0 if from_scratch else made.finetune.layer_decay
    finetune = replace(made.finetune, layer_decay=decay, pooling=made.pooling.get(source.medium.name, made.finetune.pooling))
    found = replace(source, recipe=name, phases=made.phases, finetune=finetune, train=made.train)
    return found.with_clips(replace(found.clips, **made.clips))


def _adamw(lr: float, warmup_ratio: float, decay: float = 5e-4) -> OptimConfig:
    return OptimConfig(lr=lr, weight_decay=decay, betas=(0.9, 0.999), warmup_ratio=warmup_ratio)


def _audio_tags(lr: float, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(
        optim=_adamw(lr, 0.1),
        mixup=10.0,
        mixup_domain="waveform",
        mix_ratio=0.5,
        patch_drop=(0.2, 0.2, 0.0),
        label_smoothing=0.0,
        multi_label=True,
        **settings,
    )
