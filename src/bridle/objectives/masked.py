"""The encoder phase: predict the codes of hidden patches; and the masked-patch regression baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.batch import Batch, valid_steps
from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.losses.codes import code_accuracy, code_cross_entropy
from bridle.losses.features import patch_regression
from bridle.masking import MaskConfig, Masks, draw_masks, num_masked
from bridle.models.encoder import Encoder
from bridle.models.predictor import CodeHead, PatchHead, Predictor
from bridle.models.tokenizer import CodeSource, RandomTokenizer, Tokenizer
from bridle.nn.patches import Patches, PatchSize, normalise_patches, patchify
from bridle.objectives.base import Objective, StepOutput


@dataclass(frozen=True, slots=True)
class MaskedView:
    """One batch cut and masked: what every masked objective starts from."""

    patches: Patches
    every: Subset
    masks: Masks


def grid_of(batch: Batch, patch: PatchSize) -> PatchGrid:
    """The grid of a padded batch."""
    time, height, width = (size // unit for size, unit in zip(batch.inputs.shape[2:], patch, strict=True))
    return PatchGrid(time, height, width)


def masked_view(batch: Batch, patch: PatchSize, masks: MaskConfig) -> MaskedView:
    """Cut the batch and draw its masks, on the batch's device."""
    device = batch.inputs.device
    steps = valid_steps(batch.lengths, patch[0])
    patches = patchify(batch.inputs, patch)
    every = Subset.every(patches.grid, steps).to(device)
    return MaskedView(patches, every, draw_masks(masks, patches.grid, steps, batch.seeds).to(device))


def num_predicted(batch: Batch, patch: PatchSize, masks: MaskConfig) -> int:
    """Positions that are predicted in the whole batch, over all its masks."""
    steps = valid_steps(batch.lengths, patch[0])
    return int(num_masked(masks, grid_of(batch, patch), steps)[1].sum()) * masks.num_masks


def labels_at(tokenizer: CodeSource, view: MaskedView) -> Tensor:
    """Codes of the predicted positions, from one tokenizer pass per clip: (B', M, R) int64. No gradient."""
    indices = view.masks.masked.indices
    assert indices is not None
    with torch.no_grad():
        rows = view.masks.masked.per_clip(len(view.patches.values))
        vectors = tokenizer.vectors_at(view.patches, view.every, rows)
        codes = tokenizer.quantizer.encode(vectors, check=False)
    return codes.reshape(*indices.shape, codes.shape[-1])


class MaskedCodes(Objective):
    """Cross-entropy of the codes of hidden patches; the labels come from a frozen tokenizer on the whole clip
    (method.md, eq. 1).

    Args:
        encoder: trained.
        predictor: trained.
        head: trained; logits of R levels.
        tokenizer: frozen.
        masks: how to mask.
        level_weights: weight of each level's cross-entropy; empty for 1 each. The total is their weighted mean.

    Raises:
        ConfigError: the number of weights is not the number of levels.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        head: CodeHead,
        tokenizer: RandomTokenizer | Tokenizer,
        masks: MaskConfig,
        level_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        levels = head.num_codebooks
        if level_weights and len(level_weights) != levels:
            raise ConfigError(f"level_weights has {len(level_weights)} values; the tokenizer has num_codebooks={levels}")
        self.encoder, self.predictor, self.head, self.tokenizer = encoder, predictor, head, tokenizer
        self.masks = masks
        self.level_weights = level_weights or (1.0,) * levels
        tokenizer.requires_grad_(False)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses ``code/r`` and metrics ``accuracy/r``, summed over predicted positions."""
        view = masked_view(batch, self.encoder.config.patch, self.masks)
        codes = labels_at(self.tokenizer, view)
        features = self.encoder(view.patches, view.masks.visible)
        logits = self.head(self.predictor(features, view.patches.grid, view.masks.visible, view.masks.masked))
        valid = view.masks.masked.valid
        losses = code_cross_entropy(logits, codes, valid)
        with torch.no_grad():
            right = code_accuracy(logits, codes, valid)
        return StepOutput(
            {f"code/{r}": losses[r] for r in range(len(losses))}, {f"accuracy/{r}": right[r] for r in range(len(right))}
        )

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Predicted positions, for every level."""
        count = num_predicted(batch, self.encoder.config.patch, self.masks)
        return {f"{name}/{r}": count for name in ("code", "accuracy") for r in range(len(self.level_weights))}

    def weights(self) -> dict[str, float]:
        """The levels' weights, divided by their sum."""
        total = sum(self.level_weights)
        return {f"code/{r}": weight / total for r, weight in enumerate(self.level_weights)}

    def unprepared(self) -> bool:
        """True until the tokenizer's codebooks are fitted."""
        return not bool(self.tokenizer.quantizer.fitted)

    def prepare(self, batches: Iterable[Batch], seed: int) -> None:
        """Fit the tokenizer's codebooks to its vectors."""
        fit_codebooks(self.tokenizer, batches, self.encoder.config.patch, seed)


class MaskedPatches(Objective):
    """Baseline: regress the normalised values of hidden patches (MAE, arXiv 2111.06377; AudioMAE, arXiv 2207.06405)."""

    def __init__(self, encoder: Encoder, predictor: Predictor, head: PatchHead, masks: MaskConfig) -> None:
        super().__init__()
        self.encoder, self.predictor, self.head, self.masks = encoder, predictor, head, masks

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Loss ``patch``, summed over predicted positions."""
        view = masked_view(batch, self.encoder.config.patch, self.masks)
        features = self.encoder(view.patches, view.masks.visible)
        predicted = self.head(self.predictor(features, view.patches.grid, view.masks.visible, view.masks.masked))
        target = normalise_patches(view.masks.masked.gather(view.patches.values))
        return StepOutput({"patch": patch_regression(predicted, target, view.masks.masked.valid)})

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Predicted positions."""
        return {"patch": num_predicted(batch, self.encoder.config.patch, self.masks)}

    def weights(self) -> dict[str, float]:
        """One loss of weight 1."""
        return {"patch": 1.0}


def fit_codebooks(tokenizer: RandomTokenizer | Tokenizer, batches: Iterable[Batch], patch: PatchSize, seed: int) -> None:
    """K-means start of a tokenizer's codebooks on its vectors of the valid patches of ``batches``, over all ranks."""
    sample: list[Tensor] = []
    order: list[Tensor] = []
    device = next(iter(tokenizer.quantizer.buffers())).device
    with torch.no_grad():
        for number, batch in enumerate(batches):
            patches = patchify(batch.inputs.to(device), patch)
            every = Subset.every(patches.grid, valid_steps(batch.lengths, patch[0])).to(device)
            vectors = tokenizer.vectors(patches, every)
            clip = (number << 32) + batch.indices.to(device)
            key = (clip[:, None] << 16) + torch.arange(patches.grid.num_patches, device=device)
            kept = torch.ones_like(key, dtype=torch.bool) if every.valid is None else every.valid
            sample.append(vectors[kept])
            order.append(key[kept])
    tokenizer.quantizer.fit(torch.cat(sample), seed, torch.cat(order))
