"""From a run folder to the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bridle import distributed
from bridle.data.manifest import Manifest, read_manifest
from bridle.errors import ConfigError, RunError
from bridle.eval.evaluate import Columns, Evaluation, evaluate_run
from bridle.inference import Model
from bridle.networks import read_networks
from bridle.randomness import permutation
from bridle.report import recorded
from bridle.report.clips import ClipViews
from bridle.report.codes import code_examples
from bridle.report.curves import Curves, read_curves
from bridle.report.examined import examine_files, read_quarantine
from bridle.report.gathering import Churn, Sample, earlier_tokenizers, gather
from bridle.report.html import Section
from bridle.report.masked import masked_example
from bridle.report.neighbours import Projection, agreement, choose_queries, find_neighbours, project, unit_vectors
from bridle.report.page import whole_page
from bridle.report.sections.codebooks import codebooks_section
from bridle.report.sections.data import data_section
from bridle.report.sections.embeddings import embeddings_section
from bridle.report.sections.masked import masked_section
from bridle.report.sections.meaning import meaning_section
from bridle.report.sections.overview import overview, run_name
from bridle.report.sections.probes import probes_section
from bridle.report.sections.settings import settings_section
from bridle.report.sections.training import training_section
from bridle.run import RunConfig, RunFolder
from bridle.summary import RunSummary, summarise
from bridle.train.history import read_history
from bridle.train.metrics import FILE_NAME, read_metrics

NUM_QUERIES, NUM_NEIGHBOURS, NUM_MASKED = 6, 5, 3
GATHERING = "looking at clips"

OnProgress = Callable[[str, int, int], None]
"""``(stage, done, total)``."""


@dataclass(frozen=True)
class ReportConfig:
    """What goes into a report.

    Attributes:
        data: folders, tables or tar shards; empty for a report without data.
        label: column with the class, for the probes and the colours of the map.
        fold: column with the official fold, left out in turn; or None.
        split: column that says train, validation or test; or None.
        group: clips of one group are never on both sides of a split; or None.
        num_clips: of the data that are looked at, drawn by the seed.
        projection: how the map is made, see :func:`bridle.report.neighbours.project`.
        watts: what the machine draws while training, for an estimate of the energy.
        seed: of everything random.

    Raises:
        ConfigError: columns without data, or a number out of range.
    """

    data: tuple[str, ...] = ()
    label: str | None = None
    fold: str | None = None
    split: str | None = None
    group: str | None = None
    num_clips: int = 500
    projection: Projection = "auto"
    watts: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("fold", "split", "group"):
            if getattr(self, name) is not None and self.label is None:
                raise ConfigError(f"{name} is '{getattr(self, name)}' and there is no label; give --label COLUMN too")
        if self.label is not None and not self.data:
            raise ConfigError(f"label is '{self.label}' and there is no data; give --data too")
        if self.num_clips < 2:
            raise ConfigError(f"num_clips is {self.num_clips}; a map needs at least 2")
        if self.watts is not None and not 0 < self.watts < math.inf:
            raise ConfigError(f"watts is {self.watts}; it must be above 0")

    @property
    def columns(self) -> Columns | None:
        """For the evaluation; None without a label."""
        return None if self.label is None else Columns(self.label, self.fold, self.split, self.group)


def build_report(
    run: Path, config: ReportConfig | None = None, *, device: torch.device | None = None, on_progress: OnProgress | None = None
) -> str:
    """The page of a run, finished or not. The run is not changed.

    Args:
        run: its folder.
        config: what goes into the report; everything that needs no data by default.
        device: where to compute; the GPU by default where there is one.
        on_progress: told how far the work is.

    Returns:
        HTML; the same for the same run, data and settings on one machine.

    Raises:
        RunError: it is no run, was written by another version, or nothing was logged and no checkpoint was written.
        DataError: no file can be read, there is no such column, or the labels cannot be probed.
        ConfigError: the map cannot be made as asked for.
    """
    return _Build(run, config or ReportConfig(), device, on_progress or _silent).page()


class _Build:
    """One call of :func:`build_report`."""

    def __init__(self, run: Path, config: ReportConfig, device: torch.device | None, told: OnProgress) -> None:
        folder = RunFolder(run)
        self.run, self.config, self.told = run, config, told
        self.settings: RunConfig = folder.read_config()
        self.curves: Curves = read_curves(read_metrics(run) if (run / FILE_NAME).exists() else [])
        if not self.curves.bands and not folder.weights.exists():
            raise RunError(
                f"{run} holds no metrics and no weights yet: there is nothing to report; let pretrain log its first steps"
            )
        self.summary: RunSummary = summarise(run)
        self.model: Model | None = None
        if folder.weights.exists():
            self.model = Model(self.settings, read_networks(folder, self.settings), device or distributed.default_device())
        self.notes: list[str] = []

    def page(self) -> str:
        """Everything in its order."""
        config, curves = self.config, self.curves
        manifest = read_manifest(list(config.data), self.settings.medium) if config.data else None
        probes: tuple[Section, Evaluation] | None = None
        of_sample: list[Section] = []
        churn: tuple[Churn, ...] = ()
        if manifest is not None and self.model is not None:
            drawn = self._drawn(manifest)
            probes = self._probes(self.model, drawn)
            sample = self._gather(self.model, drawn)
            churn = sample.churn
            of_sample = self._of_sample(self.model, sample)
        self._say_what_is_missing()
        found = [
            training_section(curves, self.settings.train.log_every_steps) if curves.bands else None,
            codebooks_section(self.summary, curves, _usage(self.model), churn, probes[1].codes if probes else None),
            *of_sample,
            probes[0] if probes else None,
            self._data(),
            settings_section(self.summary, self._cost(), read_history(self.run), recorded.versions(), config.watts),
        ]
        sections = [section for section in found if section is not None]
        header = overview(self.summary, curves, probes[1] if probes else None, self.notes, sections)
        return whole_page(f"{run_name(self.summary)}: report of a run", header, sections)

    def _drawn(self, manifest: Manifest) -> Manifest:
        """At most ``num_clips`` files, drawn by the seed, in their order."""
        num, seed = self.config.num_clips, self.config.seed
        if len(manifest) <= num:
            return manifest
        self.notes.append(f"{num:,} of the {len(manifest):,} files, drawn by seed {seed}, were looked at (--clips).")
        rows = permutation(len(manifest), seed, "report")[:num].sort().values.tolist()
        columns = {name: [cells[row] for row in rows] for name, cells in manifest.columns.items()}
        return Manifest(tuple(manifest.entries[row] for row in rows), columns, manifest.bad)

    def _probes(self, model: Model, manifest: Manifest) -> tuple[Section, Evaluation] | None:
        columns = self.config.columns
        if columns is None:
            return None
        evaluation = evaluate_run(model, manifest, columns, seed=self.config.seed, on_progress=self.told)
        return probes_section(evaluation, labels_of(evaluation.clips, manifest, columns.label)), evaluation

    def _gather(self, model: Model, manifest: Manifest) -> Sample:
        labels = [""] * len(manifest) if self.config.label is None else manifest.columns[self.config.label]
        done = 0

        def on_file() -> None:
            nonlocal done
            done += 1
            self.told(GATHERING, done, len(manifest))

        return gather(model, manifest, labels, earlier_tokenizers(self.run, self.settings, model), on_file)

    def _of_sample(self, model: Model, sample: Sample) -> list[Section]:
        """Masked prediction, meaning of the codes, embeddings."""
        seed, views = self.config.seed, ClipViews(model, sample)
        queries = choose_queries(sample.labels, NUM_QUERIES, seed)
        vectors = unit_vectors(sample.embeddings)
        coordinates = project(vectors, self.config.projection, seed)
        near = find_neighbours(vectors, queries, NUM_NEIGHBOURS)
        found = [
            self._masked(model, views, queries[:NUM_MASKED]),
            meaning_section(code_examples(sample), views),
            embeddings_section(sample, coordinates, near, agreement(vectors, sample.labels), views),
        ]
        return [section for section in found if section is not None]

    def _masked(self, model: Model, views: ClipViews, rows: list[int]) -> Section | None:
        """None when no phase has trained the predictor yet."""
        done = [phase.kind for phase, state in zip(self.settings.plan, self.summary.phases, strict=True) if state.steps_done]
        trained = [index for index, kind in enumerate(done) if kind not in ("tokenizer", "supervised")]
        if not trained:
            return None
        kind = done[trained[-1]]
        examples = [masked_example(model, views.window(row), kind, self.config.seed) for row in rows]
        return masked_section(examples, views, kind, moved=kind in ("encoder", "joint") and "tokenizer" in done[trained[-1] :])

    def _data(self) -> Section | None:
        config = self.config
        examined = examine_files(config.data, self.run, self.settings, config.seed, self.told) if config.data else None
        return data_section(examined, read_quarantine(self.run), self.settings.medium)

    def _cost(self) -> recorded.Cost:
        steps = [phase.steps_done for phase in self.summary.phases]
        return recorded.cost(self.run, self.settings, steps, self.config.watts)

    def _say_what_is_missing(self) -> None:
        if self.settings.finetune is not None and self.config.label is not None:
            self.notes.append(
                "This encoder was trained with labels: where it has seen test clips of the probes, their accuracy says nothing."
            )
        if not self.curves.bands:
            self.notes.append("No step was logged, so there are no curves.")
        if self.model is None:
            self.notes.append("There is no checkpoint yet, so whatever needs the networks is left out.")
        elif not self.config.data:
            self.notes.append(
                "Without data there is no masked prediction, no meaning of codes, no map and no probe: give --data, and "
                "--label for probes."
            )
        elif self.config.label is None:
            self.notes.append("Without a label there are no probes and the map has no colours: give --label COLUMN.")


def labels_of(clips: Sequence[str], manifest: Manifest, column: str) -> list[str]:
    """Labels of the clips of an evaluation: some of the manifest's, in its order; keys may occur more than once."""
    labelled = (
        (entry.key, cell) for entry, cell in zip(manifest.entries, manifest.columns[column], strict=True) if cell.strip()
    )
    return [next(label for key, label in labelled if key == clip) for clip in clips]


def _usage(model: Model | None) -> Tensor | None:
    """(R, K) of the tokenizer that stands for the run."""
    tokenizer = None if model is None else model.networks.best_tokenizer
    return None if tokenizer is None else tokenizer.quantizer.ema_usage.detach().cpu()


def _silent(stage: str, done: int, total: int) -> None:
    pass
