"""The encoder and the tokenizer of a run, or its classifier, as models of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from bridle.data.batch import Batch
from bridle.errors import ConfigError, DataError, RunError
from bridle.export.hf.configuration import INPUT_NAMES, BridleConfig
from bridle.grid import PatchGrid
from bridle.models.classifier import Classifier
from bridle.models.encoder import Encoder, Features
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.nn.block import init_weights
from bridle.objectives.view import WholeView, whole_view
from bridle.run import RunConfig, clip_grid


@dataclass
class BridleOutput(BaseModelOutputWithPooling):
    """What :class:`BridleModel` gives.

    Attributes:
        last_hidden_state: (B, N, D) features of the patches after the last layer, 0 for padding; time first, width fastest.
        pooler_output: (B, D) the summary: the class token's features where the encoder has one, else the mean of the patches
            that are no padding. ``Model.embed`` is always that mean: ``last_hidden_state.sum(1) / patch_mask.sum(1)[:, None]``.
        hidden_states: where asked for, (B, N, D) of every layer; the last has passed the final norm.
        patch_mask: (B, N) bool, False for padding.
    """

    patch_mask: Tensor | None = None


@dataclass
class BridleCodes(ModelOutput):
    """What :meth:`BridleModel.tokenize` gives.

    Attributes:
        codes: (B, N, R) int64, -1 for padding.
        patch_mask: (B, N) bool, False for padding.
    """

    codes: Tensor | None = None
    patch_mask: Tensor | None = None


class _BridlePreTrained(PreTrainedModel):  # type: ignore[no-untyped-call, unused-ignore]
    """What models of a run share: its encoder, and the way from what a feature extractor gives to patches."""

    config_class = BridleConfig
    base_model_prefix = "model"
    config: BridleConfig
    _supports_sdpa = True

    def __init__(self, config: BridleConfig) -> None:
        super().__init__(config)
        run = config.run_config
        self.main_input_name = INPUT_NAMES[run.medium.name]
        self.medium, self.patch, self.channels = run.medium.name, run.encoder.patch, run.encoder.channels
        self.encoder = Encoder(run.encoder)
        self._add(run)
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]

    def _add(self, run: RunConfig) -> None:
        """The other networks."""

    def _view(self, input_values: Tensor | None, pixel_values: Tensor | None, lengths: Tensor | None) -> WholeView:
        given = input_values if self.medium == "audio" else pixel_values
        other = pixel_values if self.medium == "audio" else input_values
        if given is None or other is not None:
            raise DataError(
                f"this is a model of {self.medium}; give {self.main_input_name} of its feature extractor, and no other"
            )
        weight = next(self.encoder.parameters())
        if weight.dtype != torch.float32:
            raise ConfigError(
                f"the weights are {weight.dtype}; load them with dtype=torch.float32, and compute in torch.autocast"
            )
        inputs = self._clips(given)
        count, frames = len(inputs), inputs.shape[2]
        lengths = torch.full((count,), frames) if lengths is None else lengths.cpu()
        if lengths.shape != (count,) or (count and not 1 <= int(lengths.min()) <= int(lengths.max()) <= frames):
            raise DataError(
                f"lengths {lengths.tolist()} do not fit {count} clips of {frames} frames; give one of 1 to {frames} each"
            )
        none = torch.zeros(count, dtype=torch.int64)
        batch = Batch(inputs=inputs, lengths=lengths, seeds=none, indices=none, aspects=torch.ones(count))
        return whole_view(batch, self.patch)

    def _clips(self, given: Tensor) -> Tensor:
        """(B, C, T, H, W) of what transformers calls them."""
        axes = {"audio": 3, "image": 4, "video": 5}[self.medium]
        if given.ndim == axes:
            if self.medium == "audio":
                return given[:, None, :, :, None]
            clips = given[:, :, None] if self.medium == "image" else given.transpose(1, 2)
            if clips.shape[1] == self.channels:
                return clips
        shape = {"audio": "(B, T, F)", "image": "(B, {}, H, W)", "video": "(B, T, {}, H, W)"}[self.medium]
        raise DataError(f"{self.main_input_name} are {tuple(given.shape)}, not {shape.format(self.channels)}")

    def _layers(
        self, view: WholeView, hidden: bool | None, attentions: bool | None
    ) -> tuple[Features, tuple[Tensor, ...] | None]:
        """Features of the last layer, and the patches (B, N, D) of every layer, 0 for padding, where they are asked for."""
        if self.config.output_attentions if attentions is None else attentions:
            raise ConfigError("the encoder does not give its attentions; leave output_attentions out")
        every = self.config.output_hidden_states if hidden is None else hidden
        depth = self.config.num_hidden_layers
        layers = list(self.encoder.at_layers(view.patches, view.every, tuple(range(1, depth + 1)) if every else (depth,)))
        mask = _mask(view)[..., None]
        return layers[-1], tuple(layer.patches * mask for layer in layers) if every else None

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a checkpoint lacks."""
        if isinstance(module, nn.Linear):
            init_weights(module)
        elif isinstance(module, nn.LayerNorm | nn.Conv1d):
            module.reset_parameters()


class BridleModel(_BridlePreTrained):  # type: ignore[no-untyped-call, unused-ignore]
    """The encoder of a run, and its tokenizer where it has one. Gradients flow through :meth:`forward`."""

    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = [r"^classifier\."]  # noqa: RUF012 - as transformers has it

    def _add(self, run: RunConfig) -> None:
        self.tokenizer: Tokenizer | RandomTokenizer | None = None
        if self.config.tokenizer == "tokenizer":
            self.tokenizer = Tokenizer(run.encoder, run.quantizer)
        elif self.config.tokenizer == "cold":
            with torch.device("cpu"):  # its projection is computed, also where transformers builds a model without numbers
                self.tokenizer = RandomTokenizer(run.cold_start, run.encoder, run.quantizer)

    @can_return_tuple  # type: ignore[untyped-decorator, unused-ignore]
    def forward(
        self,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        lengths: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BridleOutput:
        """Features of a batch of clips as the feature extractor gives them.

        Args:
            input_values: audio, (B, T, F) normalised log-mel.
            pixel_values: images (B, C, H, W) or films (B, T, C, H, W), normalised.
            lengths: (B,) valid frames of sounds and films; None when there is no padding.
            output_hidden_states: also give every layer; None for what the configuration says.
            output_attentions: is refused, for the encoder does not give them.

        ``return_dict=False`` gives a tuple, as with every model of transformers.

        Raises:
            DataError: the input of another medium, of another shape, or ``lengths`` that do not fit it.
            ConfigError: the weights are not float32, or attentions are asked for.
        """
        view = self._view(input_values, pixel_values, lengths)
        features, hidden = self._layers(view, output_hidden_states, output_attentions)
        mask = _mask(view)
        return BridleOutput(
            last_hidden_state=features.patches * mask[..., None],  # type: ignore[arg-type, unused-ignore]
            pooler_output=features.summary,  # type: ignore[arg-type, unused-ignore]
            hidden_states=hidden,  # type: ignore[arg-type, unused-ignore]
            patch_mask=mask,
        )

    @torch.no_grad()
    def tokenize(
        self, input_values: Tensor | None = None, pixel_values: Tensor | None = None, lengths: Tensor | None = None
    ) -> BridleCodes:
        """Codes of every patch; arguments as for :meth:`forward`.

        Raises:
            RunError: the run had no tokenizer.
            DataError: as for :meth:`forward`.
            ConfigError: as for :meth:`forward`.
        """
        if self.tokenizer is None:
            raise RunError("this model has no tokenizer: its run had no cold or tokenizer phase; export one that had")
        view = self._view(input_values, pixel_values, lengths)
        codes = self.tokenizer.quantizer.encode(self.tokenizer.vectors(view.patches, view.every))
        mask = _mask(view)
        return BridleCodes(codes=torch.where(mask[..., None], codes, -1), patch_mask=mask)


class BridleForClassification(_BridlePreTrained):  # type: ignore[no-untyped-call, unused-ignore]
    """The encoder and the classifier of a fine-tuned run; ``config.id2label`` names the classes.

    Raises:
        RunError: the run was not fine-tuned.
    """

    def _add(self, run: RunConfig) -> None:
        finetune = run.finetune
        if finetune is None:
            raise RunError("this model has no classifier: its run was not fine-tuned; load it by AutoModel")
        grid = PatchGrid(*(self.config.grid or clip_grid(run).shape))
        self.classifier = Classifier(finetune.pooling, run.encoder.width, grid, len(finetune.classes))
        self.exclusive, self.multi_label = finetune.exclusive, finetune.multi_label

    @can_return_tuple  # type: ignore[untyped-decorator, unused-ignore]
    def forward(
        self,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        lengths: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (B, C): their softmax is the probabilities of one class a clip, their sigmoid those of several labels.

        Args:
            input_values: as for :class:`BridleModel`, and so are the next two.
            pixel_values: images or films.
            lengths: (B,) valid frames.
            labels: (B,) int64 classes, or (B, C) floats of several labels; with them there is a ``loss``, mean cross-entropy.
            output_hidden_states: as for :class:`BridleModel`, and so is the next.
            output_attentions: is refused.

        Raises:
            DataError: as for :class:`BridleModel`.
            ConfigError: as for :class:`BridleModel`.
        """
        view = self._view(input_values, pixel_values, lengths)
        features, hidden = self._layers(view, output_hidden_states, output_attentions)
        logits = self.classifier(features.patches, view.patches.grid, view.steps)
        if not self.exclusive and not self.multi_label:
            logits = nn.functional.logsigmoid(logits)
        loss = None
        if labels is not None and self.multi_label:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)  # type: ignore[arg-type, unused-ignore]


def _mask(view: WholeView) -> Tensor:
    if view.every.valid is not None:
        return view.every.valid
    values: Any = view.patches.values
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
