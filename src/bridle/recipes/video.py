"""Recipes for films."""

from __future__ import annotations

from dataclasses import replace

from bridle.data.video import VideoConfig
from bridle.masking import MaskConfig
from bridle.models.encoder import SIZES, EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, EstimatorConfig
from bridle.nn.positions import AXES
from bridle.optim.groups import OptimConfig
from bridle.quantize import QuantizerConfig
from bridle.recipes.image import IMAGENET_MEAN, IMAGENET_STD
from bridle.run import RunConfig
from bridle.train.loop import TrainConfig


def video_base() -> RunConfig:
    """The paper's scale: Kinetics-400, ViT-B, 16 frames of 224 pixels, global batch 2048 over as many processes as there are.

    Command: ``torchrun --nproc-per-node 8 -m bridle pretrain video-base --data KINETICS --out runs/base``. As in the
    published scripts, the plan is a cold start only; tokenizer and encoder phases can be added behind it with ``--phases``.
    Crops of any area and shape between the least and the largest stand for the published scales of 1, 0.875, 0.75 and 0.66.
    Not run at this scale by us.
    """
    width, depth, heads = SIZES["base"]
    return RunConfig(
        recipe="video-base",
        phases="cold:801",
        audio=None,
        video=VideoConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, scale=(0.44, 1.0), flip=False, cache_gigabytes=0.0),
        encoder=EncoderConfig(width=width, depth=depth, heads=heads, patch=(2, 16, 16), channels=3, axes=AXES),
        predictor=PredictorConfig(kind="full", width=384, depth=4, heads=6),
        masks=MaskConfig(kind="tube", mask_ratio=0.9),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=256),
        estimator=EstimatorConfig(width=768, depth=3, heads=12),
        encoder_optim=OptimConfig(lr=1.2e-3, weight_decay=1e-4, warmup_ratio=40 / 801),
        tokenizer_optim=OptimConfig(lr=2e-4, weight_decay=1e-4, warmup_ratio=2 / 31),
        train=TrainConfig(batch_size=2048, num_workers=8, checkpoint_every_steps=1000),
    )


def video_small() -> RunConfig:
    """Small films on a laptop: 16 frames of 64 pixels that follow each other, half an hour on 2 cores.

    Command: ``bridle pretrain video-small --data FOLDER --out runs/small``. The cold start codes what moves. Made for fine
    motion, such as lips; for actions that take seconds, ``--video.stride 4``.
    """
    return RunConfig(
        recipe="video-small",
        phases="cold:4500steps, tokenizer:300steps",
        audio=None,
        video=VideoConfig(size=64, decode_size=72, channels=1, num_frames=16, stride=1, scale=(0.5, 1.0), flip=False),
        encoder=EncoderConfig(width=128, depth=4, heads=4, patch=(2, 16, 16), channels=1, axes=AXES),
        predictor=PredictorConfig(kind="cross", width=128, depth=2, heads=4),
        masks=MaskConfig(kind="random", mask_ratio=0.75, predict_ratio=0.5),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=6),
        cold_start=ColdStartConfig(normalise="motion", smooth=2, code_dim=32),
        estimator=EstimatorConfig(width=128, depth=2, heads=4),
        renew="head",
        encoder_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        tokenizer_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        train=TrainConfig(batch_size=32),
    )


def video_demo() -> RunConfig:
    """Moving digits in two minutes on 2 cores, on the random tokenizer's codes only; made for ``bridle demo``.

    Command: ``bridle demo --medium video``. Masked tubes, because a patch hidden for a moment only is copied from before
    or after, and what a digit looks like is not learnt.
    """
    small = video_small()
    return replace(
        small,
        recipe="video-demo",
        phases="cold:1500steps",
        video=VideoConfig(size=24, decode_size=24, channels=1, num_frames=4, stride=6, scale=(0.7, 1.0), flip=False),
        encoder=replace(small.encoder, patch=(2, 4, 4)),
        masks=MaskConfig(kind="tube", mask_ratio=0.6, predict_ratio=0.5),
        quantizer=QuantizerConfig(num_codebooks=2, codebook_size=128, code_dim=16, init_sample=16384, kmeans_steps=10),
        cold_start=ColdStartConfig(normalise="set"),
    )
