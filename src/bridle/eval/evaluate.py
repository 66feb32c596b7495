"""The whole evaluation of a run: its frozen features beside the baselines that they must beat."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bridle.data.manifest import Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError
from bridle.eval.features import BAG_OF_CODES, CodeStatistics, Collected, collect_features
from bridle.eval.gain import Gain, paired_gain
from bridle.eval.protocol import FeatureSet, ProbeResult, choose_splits, evaluate, knn_probe, linear_probe
from bridle.inference import Model, random_model

RANDOM, RUN = "random encoder", "this run"
READING, PROBING = "reading files", "fitting probes"

OnProgress = Callable[[str, int, int], object]
"""``(stage, done, total)``; the stage is READING or PROBING."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the manifest say what.

    Attributes:
        label: the class of each clip.
        fold: the official fold, left out in turn; or None.
        split: train, validation or test; or None. Not together with ``fold``.
        group: clips of one group are never on both sides of a split; or None.

    Raises:
        DataError: both ``fold`` and ``split``.
    """

    label: str
    fold: str | None = None
    split: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.fold is not None and self.split is not None:
            raise DataError(f"fold '{self.fold}' and split '{self.split}' are both given; name the official one only")

    @property
    def named(self) -> dict[str, str]:
        """Role -> column, of those that are given."""
        roles = {"label": self.label, "fold": self.fold, "split": self.split, "group": self.group}
        return {role: column for role, column in roles.items() if column is not None}


@dataclass(frozen=True)
class Row:
    """Features by name and what each probe makes of them, by the probe's name."""

    features: str
    probes: dict[str, ProbeResult]


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate_run`; ``bridle.config.to_dict`` makes it plain data.

    Attributes:
        fingerprint: of the model.
        recipe: it was made by.
        columns: that were used.
        splits: which clips train and test the probes, in words.
        clips: key of every clip that took part; the test clips of a result are row numbers of it.
        classes: the labels, sorted.
        rows: the medium's baseline, random encoder, this run and, with a tokenizer, bag of codes.
        gains: of this run over the first two, by each probe.
        codes: statistics of the tokenizer's codes.
        notes: what a reader must know to trust the numbers.
        bad: files that could not be read.
    """

    fingerprint: str
    recipe: str
    columns: Columns
    splits: str
    clips: tuple[str, ...]
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    codes: CodeStatistics | None
    notes: tuple[str, ...]
    bad: tuple[BadFile, ...]


def evaluate_run(
    model: Model,
    manifest: Manifest,
    columns: Columns,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Probe a run's frozen features by kNN and linear probe, beside the medium's baseline and the same encoder before training.

    Files that cannot be read, and clips with an empty cell in a column that is used, are left out with a note. Without
    fold and split column there are 5 stratified splits.

    Args:
        model: see :func:`bridle.inference.load`.
        manifest: labelled clips.
        columns: of the manifest.
        layers: of the encoder to choose from, 1 to its depth; None for :func:`bridle.eval.features.default_layers`.
        batch_size: windows per forward pass.
        seed: of stratified splits.
        on_progress: told how far the work is.

    Raises:
        DataError: a column that does not exist (names the nearest), a single class, no readable clip, or splits that
            cannot be made.
        ConfigError: there is no such layer.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    told = on_progress or _silent
    manifest, notes = _with_cells(manifest, columns)
    # A wrong column must not show only after the files were read.
    choose_splits(_feature_set(manifest, columns, {"none": torch.zeros(len(manifest), 1)}), seed)
    collected = _collect(model, manifest, layers, batch_size, seed, told)
    manifest = _subset(manifest, collected.rows)
    names = [model.loader.baseline_name, RANDOM, RUN, BAG_OF_CODES]
    rows = _probe(manifest, columns, collected, [name for name in names if name in collected.features], seed, told)
    if collected.bad:
        first = collected.bad[0]
        notes.append(f"left out: {_count(len(collected.bad), 'unreadable file')}, first {first.key} ({first.reason})")
    notes += dict.fromkeys(note for row in rows for result in row.probes.values() for note in result.notes)
    labels = manifest.columns[columns.label]
    by_name = {row.features: row.probes for row in rows}
    gains = [
        paired_gain(result, by_name[over][name], labels, over)
        for name, result in by_name[RUN].items()
        for over in (model.loader.baseline_name, RANDOM)
    ]
    return Evaluation(
        fingerprint=model.fingerprint,
        recipe=model.config.recipe,
        columns=columns,
        splits=_describe_splits(columns, rows[0]),
        clips=tuple(entry.key for entry in manifest.entries),
        classes=tuple(sorted(set(labels))),
        rows=rows,
        gains=tuple(gains),
        codes=collected.codes,
        notes=tuple(notes),
        bad=collected.bad,
    )


def _collect(
    model: Model, manifest: Manifest, layers: Sequence[int] | None, batch_size: int, seed: int, told: OnProgress
) -> Collected:
    done = 0

    def on_file() -> None:
        nonlocal done
        done += 1
        told(READING, done, len(manifest))

    models = {RUN: model, RANDOM: random_model(model.config, model.device, model.precision)}
    return collect_features(models, manifest, layers=layers, batch_size=batch_size, on_file=on_file, seed=seed)


def _probe(
    manifest: Manifest, columns: Columns, collected: Collected, names: Sequence[str], seed: int, told: OnProgress
) -> tuple[Row, ...]:
    probes = (knn_probe(), linear_probe())
    rows: list[Row] = []
    for name in names:
        results: dict[str, ProbeResult] = {}
        for probe in probes:
            told(PROBING, len(rows) * len(probes) + len(results), len(names) * len(probes))
            results[probe.name] = evaluate(_feature_set(manifest, columns, collected.features[name]), probe, seed)
        rows.append(Row(name, results))
    told(PROBING, len(names) * len(probes), len(names) * len(probes))
    return tuple(rows)


def _feature_set(manifest: Manifest, columns: Columns, pooled: dict[str, torch.Tensor]) -> FeatureSet:
    cells = {role: manifest.columns[column] for role, column in columns.named.items()}
    return FeatureSet(pooled, cells["label"], cells.get("fold"), cells.get("split"), cells.get("group"))


def _with_cells(manifest: Manifest, columns: Columns) -> tuple[Manifest, list[str]]:
    """The clips with a value in every column that is used, and notes about the others."""
    for role, column in columns.named.items():
        if column not in manifest.columns:
            raise DataError(_no_column(role, column, list(manifest.columns)))
    unused = [name for name in ("fold", "split") if name in manifest.columns and name not in columns.named.values()]
    notes = []
    if unused and columns.fold is None and columns.split is None:
        notes.append(
            f"the manifest's column '{unused[0]}' is not used; where it is the official one, ask for --{unused[0]} {unused[0]}"
        )
    kept = list(range(len(manifest)))
    for role, column in columns.named.items():
        filled = [row for row in kept if manifest.columns[column][row].strip()]
        if len(filled) < len(kept):
            notes.append(f"left out: {_count(len(kept) - len(filled), 'clip')} without {role} (column '{column}')")
        kept = filled
    return _subset(manifest, kept), notes


def _no_column(role: str, column: str, names: list[str]) -> str:
    if not names:
        return (
            f"there is no {role} column '{column}': the manifest has no columns; give a CSV or parquet table with one, "
            "or a folder with one folder for each class"
        )
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    without = "" if role == "label" else f"; without --{role}, five parts of the clips are tested in turn"
    return f"there is no {role} column '{column}'; the columns are {', '.join(names)}{hint}{without}"


def _subset(manifest: Manifest, rows: Sequence[int]) -> Manifest:
    columns = {name: [cells[row] for row in rows] for name, cells in manifest.columns.items()}
    return Manifest(tuple(manifest.entries[row] for row in rows), columns, manifest.bad)


def _describe_splits(columns: Columns, row: Row) -> str:
    result = next(iter(row.probes.values()))
    num = len(result.splits)
    if columns.fold is not None:
        text = f"{num} folds of column '{columns.fold}'"
    elif columns.split is not None:
        text = f"the split of column '{columns.split}'"
    else:
        text = f"{num} stratified splits"
    return text + (f", groups of column '{columns.group}' kept together" if columns.group is not None else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _silent(stage: str, done: int, total: int) -> None:
    pass
