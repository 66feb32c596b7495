"""How good a fine-tuned run is: what it says of labelled clips, now and then while it learns and in the end."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridle import distributed
from bridle.data.labels import Labels, TagLabels
from bridle.data.manifest import Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError
from bridle.eval.metrics import ClassificationMetrics, TagMetrics, classification_metrics, tag_metrics
from bridle.finetuning.predictions import whole_files
from bridle.inference import Model
from bridle.networks import Networks, model_fingerprint
from bridle.prediction import Prediction
from bridle.run import RunConfig, RunFolder
from bridle.train.weights import write_weights


@dataclass(frozen=True, slots=True)
class PredictedClip:
    """A clip, what it is and what was said of it.

    Attributes:
        key: of the clip.
        labels: its classes.
        predicted: the classes that were said.
        probability: of the most probable class.
    """

    key: str
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: float


@dataclass(frozen=True)
class Measured:
    """What labelled clips say of a fine-tuned run; ``bridle.config.to_dict`` makes it plain data.

    Attributes:
        fingerprint: of the model.
        classes: their names.
        metrics: of one class a clip, else None.
        tags: of several labels a clip, else None.
        clips: those that could be read.
        bad: the others.
    """

    fingerprint: str
    classes: tuple[str, ...]
    metrics: ClassificationMetrics | None
    tags: TagMetrics | None
    clips: tuple[PredictedClip, ...]
    bad: tuple[BadFile, ...]

    @property
    def score(self) -> float:
        """Accuracy, or mean average precision of several labels (0 when no clip has any), in [0, 1]."""
        if self.metrics is not None:
            return self.metrics.accuracy
        assert self.tags is not None
        return self.tags.mean_average_precision or 0.0


def predict_entries(model: Model, manifest: Manifest) -> tuple[dict[int, Tensor], tuple[BadFile, ...]]:
    """Probabilities (C,) of every clip that can be read, by its row, and the files that cannot; ranks share the work.

    Raises:
        RunError: the run is not fine-tuned.
    """
    rows = range(distributed.rank(), len(manifest), distributed.world_size())
    bad: list[BadFile] = []
    found = whole_files(model, [manifest.entries[row] for row in rows], bad)
    own = {rows[index]: chances for index, chances in found.items()}
    gathered = distributed.gather_objects((own, bad))
    merged = {row: chances for part, _ in gathered for row, chances in part.items()}
    return dict(sorted(merged.items())), tuple(file for _, files in gathered for file in files)


def measure(model: Model, manifest: Manifest, labels: Labels) -> Measured:
    """Predict labelled clips and compare. All ranks call it together.

    Raises:
        RunError: the run is not fine-tuned.
        DataError: no clip can be read, or a label is none of the model's classes.
    """
    found, bad = predict_entries(model, manifest)
    if not found:
        raise DataError(f"none of {len(manifest)} labelled clips can be read; first: {bad[0].key} ({bad[0].reason})")
    rows, chances = list(found), torch.stack(list(found.values()))
    several = isinstance(labels, TagLabels)
    clips = tuple(
        PredictedClip(
            manifest.entries[row].key,
            _names(labels, row),
            Prediction(labels.classes, one, several).labels,
            float(one.max()),
        )
        for row, one in zip(rows, chances, strict=True)
    )
    metrics = tags = None
    if isinstance(labels, TagLabels):
        tags = tag_metrics(chances.numpy(), labels.targets[rows].numpy(), labels.classes)
    else:
        metrics = classification_metrics(chances.numpy(), labels.index[rows].numpy(), labels.classes)
    return Measured(model.fingerprint, labels.classes, metrics, tags, clips, bad)


class Validation:
    """Looks at the validation clips now and then, and keeps the weights of the best look in ``chosen.safetensors``.

    Of equal scores the earlier look stays.

    Args:
        config: of the run.
        folder: of the run.
        manifest: validation clips.
        labels: of them.
        every_steps: steps from one look to the next; there is also one at the end.
        device: where to compute.
    """

    name = "validation"
    needed = True

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        manifest: Manifest,
        labels: Labels,
        *,
        every_steps: int,
        device: torch.device,
    ) -> None:
        self.every_steps = every_steps
        self.best_step, self._best = 0, -1.0
        self._config, self._folder, self._manifest, self._labels, self._device = config, folder, manifest, labels, device

    def __call__(self, step: int, networks: Networks) -> dict[str, float]:
        """Score of the clips; writes the weights when it is the best so far."""
        model = Model(self._config, deepcopy(networks), self._device, self._config.train.precision)
        measured = measure(model, self._manifest, self._labels)
        if measured.score > self._best:
            self._best, self.best_step = measured.score, step
            if distributed.rank() == 0:
                weights = networks.state_dict()
                metadata = {"fingerprint": model_fingerprint(self._config, weights)}
                write_weights(self._folder.chosen, weights, step, metadata)
        if measured.metrics is None:
            return {"validation/mean_average_precision": measured.score}
        return {"validation/accuracy": measured.score, "validation/loss": measured.metrics.negative_log_likelihood}

    def state(self) -> dict[str, Any]:
        """Best score and its step."""
        return {"best": self._best, "best_step": self.best_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._best, self.best_step = float(state["best"]), int(state["best_step"])


def _names(labels: Labels, row: int) -> tuple[str, ...]:
    if isinstance(labels, TagLabels):
        return tuple(name for name, present in zip(labels.classes, labels.targets[row].tolist(), strict=True) if present)
    return (labels.classes[int(labels.index[row])],)
