"""Recipes for pictures."""

from __future__ import annotations

from dataclasses import replace

from bridle.data.image import ImageConfig
from bridle.masking import MaskConfig
from bridle.models.encoder import SIZES, EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, EstimatorConfig
from bridle.optim.groups import OptimConfig
from bridle.quantize import QuantizerConfig
from bridle.run import RunConfig
from bridle.train.loop import TrainConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_small() -> RunConfig:
    """Small grey pictures of 28 x 28 pixels on a laptop, 20 minutes on 2 cores; other sizes by a few settings.

    Command: ``bridle pretrain image-small --data FOLDER --out runs/small``. For colour and larger pictures, such as 96 pixels:
    ``--image.size 96 --image.decode-size 112 --image.channels 3 --encoder.channels 3 --encoder.patch 1 8 8``. A small network
    and small batches, because as many pictures in more steps teach more (``docs/log.md``); crops keep 0.4 of the area or more,
    because a fifth of 28 pixels is a handful of patches; for photographs ``--image.scale 0.2 1``.
    """
    return RunConfig(
        recipe="image-small",
        phases="cold:20000steps, tokenizer:300steps",
        audio=None,
        image=ImageConfig(size=28, decode_size=28, channels=1, scale=(0.4, 1.0)),
        encoder=EncoderConfig(width=128, depth=4, heads=4, patch=(1, 4, 4), channels=1, axes=("height", "width")),
        predictor=PredictorConfig(kind="cross", width=128, depth=2, heads=4),
        masks=MaskConfig(mask_ratio=0.75, predict_ratio=0.5),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=6),
        cold_start=ColdStartConfig(code_dim=16),
        estimator=EstimatorConfig(width=128, depth=2, heads=4),
        renew="head",
        encoder_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        tokenizer_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        train=TrainConfig(batch_size=32),
    )


def image_base() -> RunConfig:
    """The paper's scale: ImageNet-1K, ViT-B, 224 pixels, global batch 1024 over as many processes as there are.

    Command: ``torchrun --nproc-per-node 8 -m bridle pretrain image-base --data IMAGENET/train --out runs/base``. Not run at
    this scale by us.
    """
    width, depth, heads = SIZES["base"]
    return RunConfig(
        recipe="image-base",
        phases="cold:200, tokenizer:50, encoder:200",
        audio=None,
        image=ImageConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, cache_gigabytes=0.0),
        encoder=EncoderConfig(width=width, depth=depth, heads=heads, patch=(1, 16, 16), channels=3, axes=("height", "width")),
        predictor=PredictorConfig(kind="full", width=512, depth=16, heads=16),
        masks=MaskConfig(mask_ratio=0.8),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=256),
        estimator=EstimatorConfig(width=768, depth=3, heads=12),
        encoder_optim=OptimConfig(lr=5e-4, weight_decay=1e-4, warmup_ratio=10 / 200),
        tokenizer_optim=OptimConfig(lr=2e-4, weight_decay=1e-4, warmup_ratio=2 / 50),
        train=TrainConfig(batch_size=1024, num_workers=8, checkpoint_every_steps=1000),
    )


def image_demo() -> RunConfig:
    """Handwritten digits in a minute on 2 cores, on the random tokenizer's codes only; made for ``bridle demo``.

    Command: ``bridle demo --medium image``. Small batches and few codebooks, because the loss on codes needs some hundred
    steps before it falls, and codes that tell shade as well as shape.
    """
    small = image_small()
    return replace(
        small,
        recipe="image-demo",
        phases="cold:1200steps",
        image=ImageConfig(size=24, decode_size=24, channels=1, scale=(0.6, 1.0), flip=False),
        encoder=replace(small.encoder, width=128, depth=4, heads=4),
        masks=MaskConfig(mask_ratio=0.6),
        quantizer=QuantizerConfig(num_codebooks=2, codebook_size=128, code_dim=16, init_sample=16384, kmeans_steps=10),
        cold_start=ColdStartConfig(normalise="set"),
        train=TrainConfig(batch_size=32),
    )
