"""The tokenizer phase: codes from which the encoder's features can be estimated; and joint training of both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bridle.data.batch import Batch, valid_steps
from bridle.errors import ConfigError
from bridle.losses.features import cosine_distance
from bridle.models.encoder import Encoder
from bridle.models.tokenizer import Estimator, Tokenizer
from bridle.objectives.base import Objective, StepOutput
from bridle.objectives.masked import MaskedCodes, fit_codebooks
from bridle.objectives.view import grid_of, whole_view


class TokenizerDistillation(Objective):
    """``1 - cos(stop_grad(standardised Encoder(x)), Estimator(z_q))`` over all patches, plus commitment (method.md, eq. 2).

    Args:
        encoder: frozen; sees every patch.
        tokenizer: trained; its codebooks by moving averages.
        estimator: trained.
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, estimator: Estimator) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.estimator = encoder, tokenizer, estimator
        encoder.requires_grad_(False)
        tokenizer.requires_grad_(True)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses ``feature`` and ``commitment``, summed over valid patches."""
        view = whole_view(batch, self.encoder.config.patch)
        with torch.no_grad():
            target = self.encoder(view.patches, view.every).patches
        quantized = self.tokenizer.quantizer(view.pick(self.tokenizer.vectors(view.patches, view.every)))
        estimate = self.estimator(view.spread(quantized.vectors), view.patches.grid, view.every)
        feature = cosine_distance(estimate, self.estimator.target(target), view.every.valid)
        statistics = {"tokenizer": quantized.statistics}
        if self.estimator.config.target == "standardised":
            statistics["target"] = self.estimator.statistics(view.pick(target))
        return StepOutput({"feature": feature, "commitment": quantized.commitment}, {}, statistics)

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Valid patches."""
        patch = self.encoder.config.patch
        count = int(valid_steps(batch.lengths, patch[0]).sum()) * grid_of(batch, patch).patches_per_step
        return {"feature": count, "commitment": count}

    def weights(self) -> dict[str, float]:
        """1 for the features, the quantizer's weight for the commitment."""
        return {"feature": 1.0, "commitment": self.tokenizer.quantizer.config.commitment_weight}

    def unprepared(self) -> bool:
        """True until the tokenizer's codebooks are fitted."""
        return not bool(self.tokenizer.quantizer.fitted)

    def prepare(self, batches: Iterable[Batch], seed: int) -> None:
        """Fit the tokenizer's codebooks to its vectors."""
        fit_codebooks(self.tokenizer, batches, self.encoder.config.patch, seed)

    def update(self, statistics: dict[str, Tensor]) -> None:
        """Moving averages and revival of the codebooks, moving averages of the features' scale."""
        self.tokenizer.quantizer.update(statistics["tokenizer"])
        if "target" in statistics:
            self.estimator.update(statistics["target"])

    def health(self) -> dict[str, Tensor]:
        """Per level: codes in use, perplexity / K, revived codes, residual energy."""
        return self.tokenizer.quantizer.metrics()


class Joint(Objective):
    """Encoder loss at every step, tokenizer loss at every ``every``-th, in one optimiser.

    Each loss trains its own part: labels and targets carry no gradient.

    Args:
        codes: the encoder's objective, on the same tokenizer.
        distillation: the tokenizer's objective, on the same encoder.
        weight: of the tokenizer's losses.
        every: steps from one tokenizer loss to the next.

    Raises:
        ConfigError: ``every`` below 1.
    """

    varying = True

    def __init__(self, codes: MaskedCodes, distillation: TokenizerDistillation, weight: float = 0.2, every: int = 4) -> None:
        super().__init__()
        if every < 1:
            raise ConfigError(f"joint_every_steps={every} must be 1 or more")
        self.codes, self.distillation = codes, distillation
        self.weight, self.every = weight, every
        codes.encoder.requires_grad_(True)
        distillation.tokenizer.requires_grad_(True)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Losses of both, the tokenizer's at its steps only."""
        first = self.codes(batch, step)
        if step % self.every:
            return first  # type: ignore[no-any-return]
        second = self.distillation(batch, step)
        return StepOutput(first.losses | second.losses, first.metrics, second.statistics)

    def counts(self, batch: Batch, step: int) -> dict[str, int]:
        """Predicted positions and, at its steps, valid patches."""
        own = {} if step % self.every else self.distillation.counts(batch, step)
        return self.codes.counts(batch, step) | own

    def weights(self) -> dict[str, float]:
        """The encoder's weights, and the tokenizer's times ``weight``."""
        return self.codes.weights() | {name: w * self.weight for name, w in self.distillation.weights().items()}

    def unprepared(self) -> bool:
        """True until the codebooks are fitted."""
        return self.distillation.unprepared()

    def prepare(self, batches: Iterable[Batch], seed: int) -> None:
        """Fit the codebooks."""
        self.distillation.prepare(batches, seed)

    def update(self, statistics: dict[str, Tensor]) -> None:
        """Codebooks, at the steps that have statistics."""
        if statistics:
            self.distillation.update(statistics)

    def health(self) -> dict[str, Tensor]:
        """The codebooks' metrics."""
        return self.distillation.health()
