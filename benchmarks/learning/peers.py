"""What a user would train instead: ViTMAE and VideoMAE of transformers, on the batches that our own runs see.

They are built as their papers have them and not always as transformers 5.23 makes them from a configuration: ViTMAE gets its
position tables and the start of its patch projection, which are zeros and six times too small there; VideoMAE keeps the
encoder's last norm; both take the attention that is fastest for them here, and decay weights only. Other weights start as
transformers has them (normal, 0.02), where the published codes have Xavier's: over 120 steps that made no difference.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.config import fingerprint
from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.loaders import build_loader, estimate_normalisation, with_normalisation
from bridle.data.manifest import read_manifest
from bridle.data.sampler import EpochOrder
from bridle.importing import import_weights
from bridle.masking import MaskConfig, draw_masks
from bridle.nn.positions import sine_cosine
from bridle.optim.groups import OptimConfig, build_adamw, clip_gradients
from bridle.optim.schedule import warmup_cosine
from bridle.randomness import derive_seed
from bridle.run import RunConfig, RunFolder, clip_grid
from bridle.train.loop import resolve_precision

MASK_RATIO = {"image": 0.75, "video": 0.9}
"""Those of their papers (arXiv 2111.06377, 2203.12602)."""
WARMUP_RATIO, BETAS, WEIGHT_DECAY, MAX_NORM = 0.05, (0.9, 0.95), 0.05, 1.0


@dataclass(frozen=True)
class Peer:
    """A run of a peer: the recipe whose encoder's size and batches it takes, its learning rate, its length and its seed."""

    config: RunConfig
    lr: float
    steps: int
    seed: int


def build(config: RunConfig, seed: int) -> Any:
    """A model for pretraining of the size of the recipe's encoder and predictor."""
    import transformers

    encoder, predictor = config.encoder, config.predictor
    common = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": round(encoder.width * encoder.mlp_ratio),
        "image_size": config.clip_shape[1],
        "patch_size": encoder.patch[1],
        "num_channels": encoder.channels,
        "decoder_hidden_size": predictor.width,
        "decoder_num_hidden_layers": predictor.depth,
        "decoder_num_attention_heads": predictor.heads,
        "decoder_intermediate_size": 4 * predictor.width,
        "norm_pix_loss": True,
        "attn_implementation": "eager",  # in bf16 on a CPU the fused kernel takes a quarter longer
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "peer"))
        if config.video is None:
            model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**common, mask_ratio=MASK_RATIO["image"]))
            return _started(model, config)
        # With mean pooling, for fine-tuning, the encoder has no last norm.
        frames = {"num_frames": config.video.num_frames, "tubelet_size": encoder.patch[0], "use_mean_pooling": False}
        return transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**common, **frames))


def _started(model: Any, config: RunConfig) -> Any:
    """MAE's tables and first weights, which transformers 5.23 leaves out of a model made from a configuration."""
    projection = model.vit.embeddings.patch_embeddings.projection.weight
    torch.nn.init.xavier_uniform_(projection.data.view(len(projection), -1))
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        positions = sine_cosine(clip_grid(config), table.shape[-1], ("width", "height"))
        table.data.copy_(torch.nn.functional.pad(positions, (0, 0, 1, 0))[None])  # the class token's is 0
    torch.nn.init.normal_(model.vit.embeddings.cls_token, std=0.02)
    torch.nn.init.normal_(model.decoder.mask_token, std=0.02)
    return model


def batches(config: RunConfig, sources: Sequence[Path], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels (B, C, T, H, W), seeds (B,)) of every step: exactly those that a run of this configuration is trained on."""
    manifest = read_manifest(sources, config.medium)
    found = estimate_normalisation(manifest, config.clips, seed=config.seed)
    loader = build_loader(with_normalisation(config.clips, found.mean, found.std))
    data = ClipDataset(manifest, loader, config.seed)
    patch = config.encoder.patch
    order = EpochOrder(data.lengths(), config.train.batch_size, loader.crop_frames, patch[0], config.seed)
    stream = batch_loader(data, order, start_step=0, num_steps=steps, rank=0, world_size=1, num_workers=0, patch=patch)
    for batch in stream:
        yield loader.finish(batch, augment=True).inputs, batch.seeds


def optimizer_of(model: Any, lr: float) -> torch.optim.Optimizer:
    """AdamW as MAE has it: biases, norms and tokens do not decay."""
    return build_adamw(model, OptimConfig(lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY))


def train(peer: Peer, sources: Sequence[Path], run: Path) -> float:
    """Train and write a run folder of the peer's encoder; returns minutes. What is there is kept, and refused if it differs.

    A run cannot be resumed: it is short, and its library's state is not ours.
    """
    record, settings = run.parent / f"{run.name}.json", fingerprint(peer)
    if record.exists():
        kept = json.loads(record.read_text())
        if kept["settings"] != settings:
            raise SystemExit(f"{run} was trained with other settings; remove it and {record.name}, or choose another --out")
        return float(kept["minutes"])
    shutil.rmtree(run, ignore_errors=True)  # of a call that was cut off
    model = build(peer.config, peer.seed)
    model.train()
    optimizer = optimizer_of(model, peer.lr)
    start, losses = time.perf_counter(), []
    for step, (pixels, seeds) in enumerate(batches(peer.config, sources, peer.steps)):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, total_steps=peer.steps, warmup_steps=round(WARMUP_RATIO * peer.steps), peak=peer.lr
            )
        losses.append(_step(model, optimizer, pixels, seeds, peer.config))
    minutes = (time.perf_counter() - start) / 60
    made = import_weights(model.vit if hasattr(model, "vit") else model.videomae, run, config=peer.config)
    found = estimate_normalisation(read_manifest(sources, peer.config.medium), peer.config.clips, seed=peer.config.seed)
    RunFolder(run).write_config(made.config.with_clips(with_normalisation(peer.config.clips, found.mean, found.std)))
    shown = losses[:: max(1, len(losses) // 50)]
    record.write_text(json.dumps({"settings": settings, "minutes": minutes, "steps": peer.steps, "losses": shown}))
    return minutes


def _step(model: Any, optimizer: torch.optim.Optimizer, pixels: Tensor, seeds: Tensor, config: RunConfig) -> float:
    optimizer.zero_grad(set_to_none=True)
    is_bf16 = resolve_precision(config.train.precision, torch.device("cpu")) == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        if config.video is None:
            noise = torch.rand(
                len(pixels), clip_grid(config).num_patches, generator=torch.Generator().manual_seed(int(seeds[0]))
            )
            loss = model(pixel_values=pixels[:, :, 0], noise=noise).loss
        else:
            grid = clip_grid(config)
            masks = draw_masks(
                MaskConfig(kind="tube", mask_ratio=MASK_RATIO["video"]), grid, torch.full((len(pixels),), grid.time), seeds
            )
            hidden = torch.ones(len(pixels), grid.num_patches, dtype=torch.bool)
            assert masks.visible.indices is not None
            hidden.scatter_(1, masks.visible.indices, False)
            loss = model(pixel_values=pixels.transpose(1, 2), bool_masked_pos=hidden).loss
    loss.backward()
    clip_gradients(model.parameters(), MAX_NORM)
    optimizer.step()
    return float(loss.detach())


def seconds_per_step(config: RunConfig, sources: Sequence[Path], steps: tuple[int, int]) -> float:
    """Time between two steps."""
    model = build(config, 0)
    model.train()
    optimizer = optimizer_of(model, 0.0)
    seen = []
    for pixels, seeds in batches(config, sources, steps[1]):
        _step(model, optimizer, pixels, seeds, config)
        seen.append(time.perf_counter())
    return (seen[-1] - seen[steps[0] - 1]) / (steps[1] - steps[0])
