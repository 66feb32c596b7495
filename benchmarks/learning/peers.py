"""What a user would train instead: ViTMAE and VideoMAE of transformers, on the batches that our own runs see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.loaders import build_loader, estimate_normalisation, with_normalisation
from bridle.data.manifest import read_manifest
from bridle.data.sampler import EpochOrder
from bridle.importing import import_weights
from bridle.masking import MaskConfig, draw_masks
from bridle.nn.positions import sine_cosine
from bridle.optim.schedule import warmup_cosine
from bridle.randomness import derive_seed
from bridle.run import RunConfig, RunFolder, clip_grid

MASK_RATIO = {"image": 0.75, "video": 0.9}
"""Those of their papers (arXiv 2111.06377, 2203.12602)."""
WARMUP_RATIO, BETAS, WEIGHT_DECAY = 0.05, (0.9, 0.95), 0.05


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
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "peer"))
        if config.video is None:
            model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**common, mask_ratio=MASK_RATIO["image"]))
            return _with_positions(model, config)
        frames = {"num_frames": config.video.num_frames, "tubelet_size": encoder.patch[0]}
        return transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**common, **frames))


def _with_positions(model: Any, config: RunConfig) -> Any:
    """MAE's sine-cosine tables, which a model made by transformers 5.23 from a configuration has as zeros."""
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


def train(peer: Peer, sources: Sequence[Path], run: Path) -> float:
    """Train and write a run folder of the peer's encoder; returns minutes. What is there is kept.

    A run cannot be resumed: it is short, and its library's state is not ours.
    """
    record = run.parent / f"{run.name}.json"
    if record.exists():
        return float(json.loads(record.read_text())["minutes"])
    model = build(peer.config, peer.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peer.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
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
    record.write_text(json.dumps({"minutes": minutes, "steps": peer.steps, "lr": peer.lr, "losses": shown}))
    return minutes


def _step(model: Any, optimizer: torch.optim.Optimizer, pixels: Tensor, seeds: Tensor, config: RunConfig) -> float:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision != "fp32"):
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
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def seconds_per_step(config: RunConfig, sources: Sequence[Path], steps: tuple[int, int]) -> float:
    """Time between two steps; by the first, all files are in memory."""
    model = build(config, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    seen = []
    for pixels, seeds in batches(config, sources, steps[1]):
        _step(model, optimizer, pixels, seeds, config)
        seen.append(time.perf_counter())
    return (seen[-1] - seen[steps[0] - 1]) / (steps[1] - steps[0])
