"""Floating-point operations: the closed form against torch's own counter on the objectives themselves."""

from dataclasses import replace

import pytest
import torch

from bridle.data.batch import Sample, collate
from bridle.flops import Flops, PatchCounts, masked_codes, masked_patches, measure, tokenizer_distillation
from bridle.masking import MaskConfig, num_masked
from bridle.models.encoder import EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.networks import Networks, build_objective
from bridle.randomness import generator
from bridle.recipes import recipe
from bridle.run import RunConfig, clip_grid

PHASES = "cold:1, tokenizer:1, encoder:1, joint:1, patches:1"


def patch_counts(config: RunConfig) -> PatchCounts:
    grid = clip_grid(config)
    masked, predicted = (int(count) for count in num_masked(config.masks, grid, torch.tensor([grid.time])))
    return PatchCounts(grid.num_patches, grid.num_patches - masked, predicted, config.masks.num_masks)


def counted(config: RunConfig) -> dict[str, Flops]:
    counts = patch_counts(config)
    parts = {
        "cold": masked_codes(config, counts, cold=True),
        "encoder": masked_codes(config, counts, cold=False),
        "tokenizer": tokenizer_distillation(config, counts),
        "patches": masked_patches(config, counts),
    }
    return {kind: sum(by_part.values(), Flops()) for kind, by_part in parts.items()}


def measured(config: RunConfig, clips: int = 1) -> dict[str, Flops]:
    networks = Networks(config)
    for tokenizer in (networks.cold, networks.tokenizer):
        assert tokenizer is not None
        dim = tokenizer.quantizer.config.code_dim
        tokenizer.quantizer.fit(torch.randn(64, dim, generator=generator("flops")), seed=0)
    (time, _, _), (channels, height, width) = clip_grid(config).shape, config.clip_shape
    clip = torch.zeros(channels, time * config.encoder.patch[0], height, width)
    batch = collate([Sample(clip, clip.shape[1], i, i) for i in range(clips)], config.encoder.patch)
    found = {}
    for phase in config.plan:
        objective = build_objective(phase, networks, config).train()
        found[phase.kind] = measure(lambda o=objective: torch.stack(list(o(batch, 0).losses.values())))
    return found


@pytest.mark.parametrize("name", ["audio-debug", "image-debug", "video-debug"])
@pytest.mark.parametrize(
    ("predictor", "masks"),
    [
        (PredictorConfig(kind="cross", width=24, depth=2, heads=2), {"num_masks": 1}),
        (PredictorConfig(kind="full", width=24, depth=2, heads=2), {"num_masks": 3, "mask_ratio": 0.6, "predict_ratio": 0.5}),
        (PredictorConfig(kind="full", width=24, depth=1, heads=2, window=1), {"num_masks": 2, "mask_ratio": 0.9}),
    ],
    ids=["cross", "full", "window"],
)
def test_closed_form_is_what_torch_counts(name, predictor, masks):
    config = recipe(name)
    config = replace(config, phases=PHASES, predictor=predictor, masks=replace(config.masks, **masks))
    own, torchs = counted(config), measured(config)
    assert own == {kind: torchs[kind] for kind in own}
    # A joint step with the tokenizer's loss is both steps, labels included.
    assert torchs["joint"] == torchs["encoder"] + torchs["tokenizer"]


def test_other_shapes_of_encoder_and_tokenizers():
    config = recipe("audio-debug")
    config = replace(
        config,
        phases=PHASES,
        encoder=replace(config.encoder, width=48, depth=3, mlp_ratio=1.3, class_token=False),
        quantizer=replace(config.quantizer, num_codebooks=3, code_dim=5),
        cold_start=replace(config.cold_start, code_dim=40, smooth=2),
        estimator=replace(config.estimator, width=16, depth=2),
    )
    own, torchs = counted(config), measured(config)
    assert own == {kind: torchs[kind] for kind in own}


@pytest.mark.parametrize("kernel", [(8, 4), (5, 1)])
def test_an_encoder_with_the_parts_of_beats(kernel):
    config = recipe("audio-debug")
    encoder = replace(
        config.encoder,
        positions="convolved",
        position_kernel=kernel,
        relative_positions=(8, 20),
        embed_width=12,
        class_token=False,
        block_norm="deep",
    )
    config = replace(config, phases=PHASES, encoder=encoder)
    own, torchs = counted(config), measured(config)
    assert {kind: flops.forward for kind, flops in own.items()} == {kind: torchs[kind].forward for kind in own}
    if kernel[1] == 1:  # torch counts the gradient of a grouped kernel as if every channel saw all others
        assert own == {kind: torchs[kind] for kind in own}


def test_a_batch_costs_as_much_as_its_clips():
    config = replace(recipe("audio-debug"), phases=PHASES)
    one, three = measured(config), measured(config, clips=3)
    assert three == {kind: flops * 3 for kind, flops in one.items()}


def test_one_block_by_hand():
    """A block of width d on n tokens: 24 n d^2 in its linear layers and 4 n^2 d in attention (MLP ratio 4)."""
    sizes = replace(
        recipe("image-debug"),
        encoder=EncoderConfig(width=8, depth=1, heads=2, patch=(1, 8, 8), channels=3, axes=("height", "width")),
        predictor=PredictorConfig(kind="full", width=4, depth=1, heads=1),
        masks=MaskConfig(mask_ratio=0.75),
    )
    parts = masked_patches(sizes, PatchCounts(every=16, visible=4, predicted=12))
    embed, block = 2 * 4 * 192 * 8, 24 * 5 * 8**2 + 4 * 5**2 * 8
    assert parts["encoder, visible patches"] == Flops(embed + block, embed + 2 * block)
    predictor = 2 * 5 * 8 * 4 + 24 * 17 * 4**2 + 4 * 17**2 * 4 + 2 * 12 * 4 * 192
    assert parts["predictor and head"] == Flops(predictor, 2 * predictor)
