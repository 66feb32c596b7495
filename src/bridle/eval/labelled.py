"""A labelled set as an evaluation sees it: which clips take part, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bridle.data.columns import Columns, check_repeated, subset, with_cells
from bridle.data.manifest import Manifest
from bridle.data.quarantine import BadFile
from bridle.eval.features import BAG_OF_CODES, Choice, Collected, collect_features
from bridle.eval.protocol import FeatureSet, choose_splits
from bridle.inference import Model, random_model
from bridle.wording import count

RANDOM, RUN = "random encoder", "this run"
READING, PROBING = "reading files", "fitting probes"

OnProgress = Callable[[str, int, int], object]
"""``(stage, done, total)``; the stage is READING or PROBING."""

Stratify = Callable[[Sequence[str]], Sequence[str]]
"""Cells of the label column -> one name for each clip, of which all parts get equal shares where there are no official ones."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What every evaluation of a run says.

    Attributes:
        fingerprint: of the model.
        recipe: it was made by.
        columns: that were used.
        splits: which clips train and test the probes, in words.
        clips: key of every clip that took part; the test clips of a result are row numbers of it.
        classes: the labels, sorted.
        notes: what a reader must know to trust the numbers.
        bad: files that could not be read.
    """

    fingerprint: str
    recipe: str
    columns: Columns
    splits: str
    clips: tuple[str, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    bad: tuple[BadFile, ...]


@dataclass(frozen=True)
class Labelled:
    """Clips that take part, and their features.

    Attributes:
        manifest: of these clips only.
        columns: of it.
        collected: a row of features for each of its clips.
        names: one for each clip, by which it is stratified.
        splits: which clips train and test the probes, in words.
        notes: what was left out.
    """

    manifest: Manifest
    columns: Columns
    collected: Collected
    names: Sequence[str]
    splits: str
    notes: tuple[str, ...]

    def feature_set(self, pooled: dict[str, torch.Tensor]) -> FeatureSet:
        """Some features of the clips with what their columns say."""
        return _feature_set(self.manifest, self.columns, self.names, pooled)

    def rows(self, model: Model) -> list[str]:
        """Names of the features there are, in the order in which they are shown."""
        names = (model.loader.baseline_name, RANDOM, RUN, BAG_OF_CODES)
        return [name for name in names if name in self.collected.features]

    def evaluated(self, model: Model, classes: Sequence[str], notes: Iterable[str]) -> Evaluated:
        """What is said of the evaluation whatever the probes are; ``notes`` come behind what was left out."""
        return Evaluated(
            fingerprint=model.fingerprint,
            recipe=model.config.recipe,
            columns=self.columns,
            splits=self.splits,
            clips=tuple(entry.key for entry in self.manifest.entries),
            classes=tuple(classes),
            notes=(*self.notes, *notes),
            bad=self.collected.bad,
        )


@dataclass(frozen=True)
class Reading:
    """How a labelled set is read.

    Attributes:
        choice: what is kept of the encoders.
        batch_size: windows per forward pass.
        seed: of stratified splits.
        stratify: see :data:`Stratify`.
    """

    choice: Choice
    batch_size: int
    seed: int
    stratify: Stratify = list


def read_labelled(model: Model, manifest: Manifest, columns: Columns, reading: Reading, told: OnProgress) -> Labelled:
    """Features of a run and of the same encoder before training, of all clips that can be read and have their cells.

    Cells that are empty or say ``nan`` are missing: their clips are left out, with a note.

    Args:
        model: the run's.
        manifest: labelled clips.
        columns: of the manifest.
        reading: how.
        told: how many files were read.

    Raises:
        DataError: a column that does not exist (names the nearest), a single class, no readable clip, or splits that
            cannot be made.
        ConfigError: there is no such layer.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    reading.choice.layers_of(model.depth)
    manifest, notes = with_cells(manifest, columns)
    # A wrong column must not show only after the files were read.
    names = reading.stratify(manifest.columns[columns.label])
    check_repeated(names, columns.label)
    choose_splits(_feature_set(manifest, columns, names, {"none": torch.zeros(len(manifest), 1)}), reading.seed)
    done = 0

    def on_file() -> None:
        nonlocal done
        done += 1
        told(READING, done, len(manifest))

    models = {RUN: model, RANDOM: random_model(model.config, model.device, model.precision)}
    collected = collect_features(
        models, manifest, batch_size=reading.batch_size, on_file=on_file, seed=reading.seed, choice=reading.choice
    )
    manifest = subset(manifest, collected.rows)
    if collected.bad:
        first = collected.bad[0]
        notes.append(f"left out: {count(len(collected.bad), 'unreadable file')}, first {first.key} ({first.reason})")
    names = reading.stratify(manifest.columns[columns.label])
    num = len(choose_splits(_feature_set(manifest, columns, names, {"none": torch.zeros(len(manifest), 1)}), reading.seed))
    return Labelled(manifest, columns, collected, names, _describe_splits(columns, num), tuple(notes))


def silent(stage: str, done: int, total: int) -> None:
    """An :data:`OnProgress` that tells nobody."""


def _feature_set(manifest: Manifest, columns: Columns, names: Sequence[str], pooled: dict[str, torch.Tensor]) -> FeatureSet:
    cells = {role: manifest.columns[column] for role, column in columns.named.items()}
    return FeatureSet(pooled, names, cells.get("fold"), cells.get("split"), cells.get("group"))


def _describe_splits(columns: Columns, num: int) -> str:
    if columns.fold is not None:
        text = f"{num} folds of column '{columns.fold}'"
    elif columns.split is not None:
        text = f"the split of column '{columns.split}'"
    else:
        text = f"{num} stratified splits"
    return text + (f", groups of column '{columns.group}' kept together" if columns.group is not None else "")
