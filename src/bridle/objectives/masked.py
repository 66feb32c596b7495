"""The encoder phase: predict the codes of masked patches; and the masked-patch regression baseline."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bridle.data.batch import Batch, valid_steps
from bridle.errors import ConfigError
from bridle.grid import Subset
from bridle.losses.codes import code_scores
from bridle.losses.features import patch_regression
from bridle.masking import MaskConfig, num_masked
from bridle.models.encoder import Encoder
from bridle.models.predictor import CodeHead, PatchHead, Predictor
from bridle.models.tokenizer import CodeSource, RandomTokenizer, Tokenizer
from bridle.nn.patches import PatchSize, normalise_patches
from bridle.objectives.base import Objective, StepOutput
from bridle.objectives.label_store import LabelStore
from bridle.objectives.view import WholeView, draw_view_masks, grid_of, whole_view
from bridle.quantize import sampling_priority


def num_predicted(batch: Batch, patch: PatchSize, masks: MaskConfig) -> int:
    """Positions that are predicted in the whole batch, over all its masks."""
    steps = valid_steps(batch.lengths, patch[0])
    return int(num_masked(masks, grid_of(batch, patch), steps)[1].sum()) * masks.num_masks


def labels_at(tokenizer: CodeSource, view: WholeView, predicted: Subset) -> Tensor:
    """Codes of the predicted positions, from one tokenizer pass per clip: (B', M, R) int64. No gradient."""
    assert predicted.indices is not None
    with torch.no_grad():
        rows = predicted.per_clip(len(view.patches.values))
        vectors = tokenizer.vectors_at(view.patches, view.every, rows)
        codes = tokenizer.quantizer.encode(vectors, check=False)
    return codes.reshape(*predicted.indices.shape, codes.shape[-1])


class MaskedCodes(Objective):
    """Cross-entropy of the codes of masked patches; the labels come from a frozen tokenizer on the whole clip
    (method.md, eq. 1).

    Args:
        encoder: trained.
        predictor: trained.
        head: trained; logits of R levels.
        tokenizer: frozen.
        masks: how to mask.
        level_weights: weight of each level's cross-entropy; empty for 1 each. The total is their weighted mean.

    Attributes:
        labels: codes that are known of clips that are the same in every epoch; None without.

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
        self.labels: LabelStore | None = None
        tokenizer.requires_grad_(False)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses ``code/r`` and metrics ``accuracy/r``, summed over predicted positions."""
        view = whole_view(batch, self.encoder.config.patch)
        masks = draw_view_masks(view, self.masks, batch.seeds, batch.inputs.device)
        if self.labels is not None and self.labels.has(batch.indices):
            codes = self.labels.at(batch.indices, masks.predicted)
        else:
            codes = labels_at(self.tokenizer, view, masks.predicted)
        features = self.encoder(view.patches, masks.visible)
        logits = self.head(self.predictor(features, view.patches.grid, masks.visible, masks.predicted))
        scores = code_scores(logits, codes, masks.predicted.valid)
        losses = {f"code/{r}": loss for r, loss in enumerate(scores.cross_entropy.unbind())}
        return StepOutput(losses, {f"accuracy/{r}": right for r, right in enumerate(scores.right.unbind())})

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

    def health(self) -> dict[str, Tensor]:
        """Per level: codes in use and perplexity / K of the labels' codebooks."""
        values = self.tokenizer.quantizer.metrics()
        return {name: value for name, value in values.items() if name.startswith(("in_use", "perplexity"))}


class MaskedPatches(Objective):
    """Baseline: regress the normalised values of masked patches (MAE, arXiv 2111.06377; AudioMAE, arXiv 2207.06405)."""

    def __init__(self, encoder: Encoder, predictor: Predictor, head: PatchHead, masks: MaskConfig) -> None:
        super().__init__()
        self.encoder, self.predictor, self.head, self.masks = encoder, predictor, head, masks

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Loss ``patch``, summed over predicted positions."""
        view = whole_view(batch, self.encoder.config.patch)
        masks = draw_view_masks(view, self.masks, batch.seeds, batch.inputs.device)
        features = self.encoder(view.patches, masks.visible)
        values = self.head(self.predictor(features, view.patches.grid, masks.visible, masks.predicted))
        target = normalise_patches(masks.predicted.gather(view.patches.values))
        return StepOutput({"patch": patch_regression(values, target, masks.predicted.valid)})

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Predicted positions."""
        return {"patch": num_predicted(batch, self.encoder.config.patch, self.masks)}

    def weights(self) -> dict[str, float]:
        """One loss of weight 1."""
        return {"patch": 1.0}


def fit_codebooks(tokenizer: RandomTokenizer | Tokenizer, batches: Iterable[Batch], patch: PatchSize, seed: int) -> None:
    """K-means start of a tokenizer's codebooks on its vectors of the valid patches of ``batches``, over all ranks.

    A vector's name is (number of the batch, row of the manifest, patch), so which vectors are used does not depend on
    how a batch is shared out. No more than the quantizer's ``init_sample`` are kept on a rank.
    """
    quantizer = tokenizer.quantizer
    device = quantizer.codebooks.device
    sample = torch.empty(0, quantizer.config.code_dim, device=device)
    names = torch.empty(0, dtype=torch.int64, device=device)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            view = whole_view(batch.to(device), patch)
            clip = (number << 32) + batch.indices.to(device)
            name = (clip[:, None] << 16) + torch.arange(view.patches.grid.num_patches, device=device)
            sample = torch.cat([sample, view.pick(tokenizer.vectors(view.patches, view.every))])
            names = torch.cat([names, view.pick(name[..., None])[:, 0]])
            kept = sampling_priority(names, seed).argsort()[: quantizer.config.init_sample]
            sample, names = sample[kept], names[kept]
    quantizer.fit(sample, seed, names)
