"""Recipes that run all the code in seconds."""

from __future__ import annotations

from dataclasses import replace

from bridle.data.audio import AudioConfig
from bridle.data.image import ImageConfig
from bridle.data.video import VideoConfig
from bridle.masking import MaskConfig
from bridle.media.fbank import FbankConfig
from bridle.models.encoder import EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import EstimatorConfig
from bridle.optim.groups import OptimConfig
from bridle.quantize import QuantizerConfig
from bridle.run import RunConfig
from bridle.train.loop import TrainConfig


def audio_debug() -> RunConfig:
    """All phases in seconds on any CPU, to see that things work; learns next to nothing.

    Command: ``bridle pretrain audio-debug --data FOLDER --out runs/debug``.
    """
    return RunConfig(
        recipe="audio-debug",
        phases="cold:12steps, tokenizer:12steps, encoder:12steps, joint:12steps",
        audio=AudioConfig(fbank=FbankConfig(num_mels=64), crop_seconds=2.0),
        encoder=EncoderConfig(width=32, depth=2, heads=2),
        predictor=PredictorConfig(width=32, depth=1, heads=2),
        masks=MaskConfig(num_masks=2),
        quantizer=QuantizerConfig(num_codebooks=2, codebook_size=16, code_dim=16, init_sample=2048, kmeans_steps=5),
        estimator=EstimatorConfig(width=32, depth=1, heads=2),
        encoder_optim=OptimConfig(lr=1e-3),
        tokenizer_optim=OptimConfig(lr=1e-3),
        train=TrainConfig(batch_size=8, log_every_steps=1, checkpoint_every_steps=4),
    )


def image_debug() -> RunConfig:
    """All phases on pictures in seconds on any CPU, to see that things work; learns next to nothing.

    Command: ``bridle pretrain image-debug --data FOLDER --out runs/debug``.
    """
    debug = audio_debug()
    return replace(
        debug,
        recipe="image-debug",
        audio=None,
        image=ImageConfig(size=32, decode_size=36),
        encoder=replace(debug.encoder, patch=(1, 8, 8), channels=3, axes=("height", "width")),
    )


def video_debug() -> RunConfig:
    """All phases on films in seconds on any CPU, to see that things work; learns next to nothing.

    Command: ``bridle pretrain video-debug --data FOLDER --out runs/debug``.
    """
    debug = audio_debug()
    return replace(
        debug,
        recipe="video-debug",
        audio=None,
        video=VideoConfig(size=32, decode_size=36, num_frames=8, stride=2),
        encoder=replace(debug.encoder, patch=(2, 8, 8), channels=3, axes=("time", "height", "width")),
        masks=replace(debug.masks, kind="tube"),
    )
