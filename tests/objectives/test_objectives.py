"""Objectives: what is trained and what is not, counts, padding, labels, shared tokenizer passes."""

import dataclasses

import pytest
import torch
from reference.batches import ENCODER, Parts, batch

from bridle.errors import ConfigError
from bridle.masking import MaskConfig
from bridle.models.predictor import PatchHead
from bridle.models.tokenizer import ColdStartConfig, RandomTokenizer
from bridle.nn.patches import patchify
from bridle.objectives.base import Objective
from bridle.objectives.masked import MaskedCodes, MaskedPatches, labels_at
from bridle.objectives.tokenizer import Joint, TokenizerDistillation
from bridle.objectives.view import draw_view_masks, whole_view
from bridle.quantize import QuantizerConfig

MASKS = MaskConfig(mask_ratio=0.75)


def distillation(parts: Parts) -> TokenizerDistillation:
    objective = TokenizerDistillation(parts.encoder, parts.tokenizer, parts.estimator)
    if objective.unprepared():
        objective.prepare([batch(16, 16, 12, 8, seed=s) for s in range(5, 9)], 0)
    return objective


def make(name: str) -> Objective:
    parts = Parts()
    if name == "codes":
        return parts.masked_codes(MASKS)
    if name == "patches":
        return MaskedPatches(parts.encoder, parts.predictor, PatchHead(16, 16), MASKS)
    tokenizer = distillation(parts)
    if name == "tokenizer":
        return tokenizer
    return Joint(MaskedCodes(parts.encoder, parts.predictor, parts.head, parts.tokenizer, MASKS), tokenizer)


TRAINED = {
    "codes": {"encoder", "predictor", "head"},
    "patches": {"encoder", "predictor", "head"},
    "tokenizer": {"tokenizer", "estimator"},
    "joint": {"encoder", "predictor", "head", "tokenizer", "estimator"},
}


@pytest.mark.parametrize("name", TRAINED)
def test_each_objective_trains_its_own_parts_and_counts_what_it_sums(name: str) -> None:
    objective = make(name).train()
    data = batch(16, 16, 9)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    output = objective(data, 0)
    assert output.losses.keys() <= objective.counts(data, 0).keys()
    assert output.metrics.keys() <= objective.counts(data, 0).keys()
    assert output.losses.keys() == objective.weights().keys()
    sum(output.losses.values()).backward()
    with_gradient = {
        next(part for part in key.split(".") if part in ("encoder", "predictor", "head", "tokenizer", "estimator"))
        for key, parameter in objective.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert with_gradient == TRAINED[name]
    for key, value in objective.state_dict().items():
        assert torch.equal(value, before[key]), f"forward changed {key}"


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("num_masks", [1, 3])
def test_a_batch_equals_its_clips_one_by_one(name: str, num_masks: int) -> None:
    objective = make(name).eval()
    if hasattr(objective, "masks"):
        objective.masks = MaskConfig(mask_ratio=0.75, num_masks=num_masks, predict_ratio=0.5)
    data = batch(16, 10, 7)
    whole, counts = objective(data, 0), objective.counts(data, 0)
    parts = [objective(part, 0) for part in data.split(3)]
    part_counts = [objective.counts(part, 0) for part in data.split(3)]
    for key, value in whole.losses.items():
        torch.testing.assert_close(value, sum(part.losses[key] for part in parts), atol=1e-4, rtol=1e-4)
        assert counts[key] == sum(part[key] for part in part_counts)


@pytest.mark.parametrize("name", TRAINED)
def test_an_empty_share_of_a_batch_is_harmless(name: str) -> None:
    objective = make(name)
    empty = batch()
    assert set(objective.counts(empty, 0).values()) == {0}
    output = objective(empty, 0)
    total = sum(output.losses.values())
    assert float(total.detach()) == 0.0
    total.backward()
    objective.update(output.statistics)


def test_several_masks_share_one_tokenizer_pass() -> None:
    parts = Parts()
    masks = MaskConfig(mask_ratio=0.75, num_masks=4)
    objective = parts.masked_codes(masks)
    data = batch(16, 12)
    calls = []
    original = parts.cold.vectors_at
    parts.cold.vectors_at = lambda *a: calls.append(a) or original(*a)  # type: ignore[method-assign,func-returns-value]
    view = whole_view(data, ENCODER.patch)
    masked = draw_view_masks(view, masks, data.seeds, torch.device("cpu")).predicted
    codes = labels_at(objective.tokenizer, view, masked)
    assert len(calls) == 1
    everything = parts.cold.quantizer.encode(parts.cold.vectors(view.patches, view.every))
    indices = masked.indices
    assert indices is not None
    for row in range(8):
        assert torch.equal(codes[row], everything[row // 4][indices[row]])


def test_cold_start_labels_carry_no_position() -> None:
    """Known error 3: the same patch has the same code wherever it stands."""
    parts = Parts()
    objective = parts.masked_codes(MASKS)
    data = batch(16)
    patches = patchify(data.inputs, ENCODER.patch)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = type(patches)(patches.values[:, order], patches.grid)
    codes = [
        parts.cold.quantizer.encode(parts.cold.vectors(p, whole_view(data, ENCODER.patch).every)) for p in (patches, moved)
    ]
    assert torch.equal(codes[0][:, order], codes[1])
    assert objective.tokenizer is parts.cold


def test_cold_start_codes_of_normalised_patches_ignore_gain() -> None:
    quantizer = QuantizerConfig(num_codebooks=1, codebook_size=4, code_dim=16, init_sample=64)
    values = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    cold = RandomTokenizer(ColdStartConfig(normalise="patch"), ENCODER, quantizer)
    grid_patches = patchify(values.reshape(1, 1, 256, 4, 1), (4, 4, 1))
    every = whole_view(batch(16), ENCODER.patch).every
    a = cold.vectors(grid_patches, every)
    b = cold.vectors(type(grid_patches)(grid_patches.values + 3.0, grid_patches.grid), every)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert torch.allclose(a.norm(dim=-1), torch.full((1, 64), 4.0), atol=1e-2)  # orthogonal: lengths survive


def test_smoothed_cold_start_vectors_are_means_of_cells() -> None:
    quantizer = QuantizerConfig(num_codebooks=1, codebook_size=4, code_dim=4, init_sample=64)
    cold = RandomTokenizer(ColdStartConfig(normalise="set", smooth=2), ENCODER, quantizer)
    inputs = torch.randn(1, 1, 16, 8, 1, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(inputs[..., 0], 2)[..., None]
    every = whole_view(batch(16), ENCODER.patch).every
    expected = patchify(pooled, (2, 2, 1)).values @ cold.projection
    torch.testing.assert_close(cold.vectors(patchify(inputs, ENCODER.patch), every), expected)
    with pytest.raises(ConfigError, match="smooth=3"):
        RandomTokenizer(ColdStartConfig(smooth=3), ENCODER, quantizer)
    picture = dataclasses.replace(ENCODER, patch=(1, 4, 4), axes=("height", "width"))
    cold = RandomTokenizer(ColdStartConfig(normalise="set", smooth=2), picture, quantizer)
    inputs = torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = patchify(torch.nn.functional.avg_pool2d(inputs[:, :, 0], 2)[:, :, None], (1, 2, 2)).values @ cold.projection
    torch.testing.assert_close(cold.vectors(patchify(inputs, picture.patch), every), expected)


def test_level_weights_weigh_levels() -> None:
    objective = Parts().masked_codes(MASKS, level_weights=(3.0, 1.0))
    assert objective.weights() == {"code/0": 0.75, "code/1": 0.25}
    with pytest.raises(ConfigError, match="num_codebooks=2"):
        Parts().masked_codes(MASKS, level_weights=(1.0, 1.0, 1.0))


def test_joint_trains_the_tokenizer_at_its_steps_only() -> None:
    objective = make("joint")
    data = batch(16, 16)
    assert "feature" in objective(data, 4).losses
    assert "feature" not in objective(data, 5).losses
    assert "feature" not in objective.counts(data, 5)


def test_update_changes_codebooks_in_train_mode_only() -> None:
    objective = make("tokenizer")
    data = batch(16, 16, 16)
    quantizer = objective.tokenizer.quantizer  # type: ignore[union-attr]
    statistics = objective(data, 0).statistics
    before = quantizer.codebooks.clone()
    objective.eval().update(statistics)  # type: ignore[operator]
    assert torch.equal(before, quantizer.codebooks)
    objective.train().update(statistics)  # type: ignore[operator]
    assert not torch.equal(before, quantizer.codebooks)
