"""Masked prediction on real clips: what the encoder saw, and where the predictor was right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bridle.inference import Model, Window
from bridle.masking import Masks
from bridle.nn.patches import normalise_patches
from bridle.objectives.masked import labels_at
from bridle.objectives.view import WholeView, draw_view_masks, whole_view
from bridle.phases import PhaseKind
from bridle.randomness import derive_seed
from bridle.report.pictures import Picture, draw

State = Literal["visible", "hidden", "right", "wrong"]
"""Of a patch: seen by the encoder; masked and not predicted; predicted, rightly or not."""
EXPLAINED = 0.5
"""Share of a patch's variance that masked-patch regression must explain to be called right."""


@dataclass(frozen=True, eq=False)
class MaskedExample:
    """One window under one mask.

    Attributes:
        row: its file.
        picture: what it looks like.
        states: of every patch, in the order of the grid.
        words: of every patch, what was right and what was predicted; "" where nothing was.
        right: share of the predicted patches that are right, per level; of patches one number.
    """

    row: int
    picture: Picture
    states: tuple[State, ...]
    words: tuple[str, ...]
    right: tuple[float, ...]


@torch.inference_mode()
def masked_example(model: Model, window: Window, kind: PhaseKind, seed: int) -> MaskedExample:
    """Mask a window as training does, and predict.

    Args:
        model: of the run.
        window: of a file.
        kind: the phase that trained the predictor last; decides whose codes it predicts. Not ``tokenizer``.
        seed: of the mask.
    """
    view = whole_view(model.batch([window]), model.config.encoder.patch)
    masks_of_one = replace(model.config.masks, num_masks=1)
    seeds = torch.tensor([derive_seed(seed, "report mask", window.index)])
    predictor = model.networks.predictor
    assert predictor is not None
    masks = draw_view_masks(view, masks_of_one, seeds, model.device)
    with model.autocast():
        features = model.networks.encoder(view.patches, masks.visible)
        predicted = predictor(features, view.patches.grid, masks.visible, masks.predicted)
        hits, words = (
            _patches(model, view, masks, predicted) if kind == "patches" else _codes(model, view, masks, predicted, kind)
        )
    picture = draw(window.inputs, model.config)
    states: list[State] = ["hidden"] * picture.grid.num_patches
    said = [""] * picture.grid.num_patches
    assert masks.visible.indices is not None
    assert masks.predicted.indices is not None
    for patch in masks.visible.indices[0].tolist():
        states[patch] = "visible"
    for patch, hit, word in zip(masks.predicted.indices[0].tolist(), hits[:, 0].tolist(), words, strict=True):
        states[patch] = "right" if hit else "wrong"
        said[patch] = word
    return MaskedExample(window.index, picture, tuple(states), tuple(said), tuple(hits.float().mean(0).tolist()))


def _codes(model: Model, view: WholeView, masks: Masks, predicted: Tensor, kind: PhaseKind) -> tuple[Tensor, list[str]]:
    """(M, R) whether the most probable code is the tokenizer's; and words about level 0."""
    tokenizer = model.networks.cold if kind == "cold" else model.networks.tokenizer
    assert tokenizer is not None
    assert model.networks.head is not None
    codes = labels_at(tokenizer, view, masks.predicted)[0].cpu()
    probabilities = model.networks.head(predicted)[0].float().softmax(-1).cpu()
    best = probabilities.argmax(-1)
    words = [
        f"code {right}, predicted {said} with {100 * share:.0f} %"
        for right, said, share in zip(
            codes[:, 0].tolist(), best[:, 0].tolist(), probabilities[:, 0].amax(-1).tolist(), strict=True
        )
    ]
    return best == codes, words


def _patches(model: Model, view: WholeView, masks: Masks, predicted: Tensor) -> tuple[Tensor, list[str]]:
    """(M, 1) whether at least ``EXPLAINED`` of a normalised patch's variance is explained."""
    assert model.networks.patch_head is not None
    target = normalise_patches(masks.predicted.gather(view.patches.values))[0].float().cpu()
    error = (model.networks.patch_head(predicted)[0].float().cpu() - target).square().mean(-1)
    explained = 1 - error / target.square().mean(-1).clamp(min=1e-6)
    return (explained >= EXPLAINED)[:, None], [f"{100 * max(0.0, share):.0f} % explained" for share in explained.tolist()]
