"""Recipes for sound."""

from __future__ import annotations

from dataclasses import replace

from bridle.data.audio import AudioConfig
from bridle.masking import MaskConfig
from bridle.models.encoder import SIZES, EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, EstimatorConfig
from bridle.optim.groups import OptimConfig
from bridle.quantize import QuantizerConfig
from bridle.run import RunConfig
from bridle.train.loop import TrainConfig


def audio_small() -> RunConfig:
    """A few thousand clips of a few seconds on a laptop: about half an hour on 2 cores.

    Command: ``bridle pretrain audio-small --data FOLDER --out runs/small``. A small network and small batches, because the
    loss on codes needs some hundred steps before it falls, and deeper networks need more of them. Measured on 105 minutes
    of esc10, fsdd and grid_s1, mean of three seeds: esc10 linear 88.1, kNN 82.9, where a random encoder gives 82.8 and 71.6,
    log-mel statistics 78.8 and 67.2 (``docs/results/2026-11-21-audio-small-seeds.md``). A second round can be added
    (``--resume --phases "cold:7500steps, tokenizer:300steps, encoder:1000steps lr=2e-4"``); in the one run that was made esc10
    went from 90.3 and 84.7 to 88.5 and 85.2, where 1.7 points are chance (``docs/log.md``).
    """
    return RunConfig(
        recipe="audio-small",
        phases="cold:7500steps, tokenizer:300steps",
        audio=AudioConfig(crop_seconds=5.0),
        encoder=EncoderConfig(width=128, depth=4, heads=4),
        predictor=PredictorConfig(kind="cross", width=128, depth=2, heads=4),
        masks=MaskConfig(mask_ratio=0.8, predict_ratio=0.5),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=6),
        cold_start=ColdStartConfig(code_dim=256),
        estimator=EstimatorConfig(width=128, depth=2, heads=4),
        renew="head",
        encoder_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        tokenizer_optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        train=TrainConfig(batch_size=32),
    )


def audio_base() -> RunConfig:
    """The paper's scale: AudioSet-2M, ViT-B, 10 s clips, global batch 1024 over as many processes as there are.

    Command: ``torchrun --nproc-per-node 8 -m bridle pretrain audio-base --data AUDIOSET --out runs/base``. The
    published scripts used 64 GPUs. Not run at this scale by us.
    """
    width, depth, heads = SIZES["base"]
    return RunConfig(
        recipe="audio-base",
        phases="cold:140, tokenizer:31, encoder:140",
        audio=AudioConfig(crop_seconds=10.24, mean=-4.4446, std=3.3216, cache_gigabytes=0.0),
        encoder=EncoderConfig(width=width, depth=depth, heads=heads),
        predictor=PredictorConfig(kind="full", width=512, depth=16, heads=16, window=4),
        masks=MaskConfig(mask_ratio=0.8),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=256),
        estimator=EstimatorConfig(width=768, depth=3, heads=12),
        encoder_optim=OptimConfig(lr=5e-4, weight_decay=1e-4, warmup_ratio=10 / 140),
        tokenizer_optim=OptimConfig(lr=2e-4, weight_decay=1e-4, warmup_ratio=2 / 31),
        train=TrainConfig(batch_size=1024, num_workers=8, checkpoint_every_steps=1000),
    )


def audio_demo() -> RunConfig:
    """A few hundred short clips in minutes on 2 cores, on the random tokenizer's codes only; made for ``bridle demo``.

    Command: ``bridle demo``, which sets ``phases`` to as many steps as fit into its time. The networks and
    batches of ``audio-small``. Seen on esc10 (5 folds, seed 0, 3.9 minutes in all on 2
    idle cores): linear 88.8 and kNN 83.5, where the random encoder gives 81.0 and 70.0 (``docs/results/2026-11-21-demo.md``).
    """
    quantizer = QuantizerConfig(num_codebooks=4, codebook_size=256, code_dim=256, init_sample=16384, kmeans_steps=10)
    return replace(audio_small(), recipe="audio-demo", phases="cold:800steps", quantizer=quantizer)
