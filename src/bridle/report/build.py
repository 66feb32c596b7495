"""From a run folder to the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bridle import distributed
from bridle.errors import DataError, RunError
from bridle.eval.evaluate import Evaluation, evaluate_run
from bridle.eval.tags import TagEvaluation, evaluate_tags_run
from bridle.finetuning.tested import chosen_step, read_tested
from bridle.inference import Model
from bridle.networks import read_networks
from bridle.report import recorded
from bridle.report.clips import ClipViews
from bridle.report.codes import code_examples
from bridle.report.config import ReportConfig
from bridle.report.curves import Curves, read_curves
from bridle.report.examined import examine_files, read_quarantine
from bridle.report.gathering import Churn, Sample, earlier_tokenizers, gather
from bridle.report.html import Section
from bridle.report.masked import masked_example
from bridle.report.material import Material, read_material
from bridle.report.neighbours import agreement, choose_queries, find_neighbours, project, unit_vectors
from bridle.report.page import whole_page
from bridle.report.sections.codebooks import codebooks_section
from bridle.report.sections.data import data_section
from bridle.report.sections.embeddings import embeddings_section
from bridle.report.sections.masked import masked_section
from bridle.report.sections.meaning import meaning_section
from bridle.report.sections.overview import overview, probe_scores, run_name
from bridle.report.sections.probes import probes_section
from bridle.report.sections.settings import settings_section
from bridle.report.sections.tags import tags_section
from bridle.report.sections.tested import tested_section
from bridle.report.sections.training import training_section
from bridle.run import RunConfig, RunFolder
from bridle.summary import RunSummary, summarise
from bridle.train.history import read_history
from bridle.train.metrics import FILE_NAME, read_metrics

NUM_QUERIES, NUM_NEIGHBOURS, NUM_MASKED = 6, 5, 3
GATHERING = "looking at clips"
_NEEDS_DATA = "no masked prediction, no meaning of codes, no map and no probe"

_Evaluated = Evaluation | TagEvaluation
OnProgress = Callable[[str, int, int], None]
"""``(stage, done, total)``."""


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
        curves, config = self.curves, self.config
        material = read_material(config, self.settings.medium) if config.has_data else None
        tested = self._tested()
        probes: tuple[Section, _Evaluated] | None = None
        of_sample: list[Section] = []
        churn: tuple[Churn, ...] = ()
        if material is not None and self.model is not None:
            self.notes += [material.note] if material.note else []
            probes = self._probes(self.model, material)
            sample = self._gather(self.model, material)
            churn = sample.churn
            of_sample = self._of_sample(self.model, sample)
        self._say_what_is_missing()
        statistics = probes[1].codes if probes and isinstance(probes[1], Evaluation) else None
        found = [
            tested[0] if tested else None,
            training_section(curves, self.settings.train.log_every_steps) if curves.bands else None,
            codebooks_section(self.summary, curves, _usage(self.model), churn, statistics),
            *of_sample,
            probes[0] if probes else None,
            self._data(material),
            settings_section(self.summary, self._cost(), read_history(self.run), recorded.versions(), config.watts),
        ]
        sections = [section for section in found if section is not None]
        scores = tested[1] if tested else []
        if probes and self.settings.finetune is None:  # else the encoder may know the probes' test clips
            scores = probe_scores(probes[1])
        header = overview(self.summary, curves, scores, self.notes, sections)
        return whole_page(f"{run_name(self.summary)}: report of a run", header, sections)

    def _tested(self) -> tuple[Section, list[tuple[str, float]]] | None:
        """The test of a fine-tuned run and its score; a note where it has none."""
        if self.settings.finetune is None:
            return None
        step = chosen_step(self.run)
        try:
            tested = read_tested(self.run)
            none = "There is no test: the run is not finished, or kept no clips for it."
        except RunError as error:
            tested, none = None, f"There is no test: {error}."
        if tested is None:
            self.notes.append(none)
            if step is not None:
                self.notes.append(f"The weights are those of step {step:,}, which validation clips chose.")
            return None
        return tested_section(tested, step), [(f"test {tested.score_name}", tested.measured.score)]

    def _probes(self, model: Model, material: Material) -> tuple[Section, _Evaluated] | None:
        columns, separator = self.config.columns, self.config.tag_separator
        if columns is None:
            return None
        taught, seed = self.settings.finetune is not None, self.config.seed
        try:
            if separator is not None:
                tags = evaluate_tags_run(
                    model, material.manifest, columns, separator=separator, seed=seed, on_progress=self.told
                )
                return tags_section(tags, taught=taught), tags
            evaluation = evaluate_run(model, material.manifest, columns, seed=seed, on_progress=self.told)
            return probes_section(evaluation, taught=taught), evaluation
        except DataError as error:
            if not material.note:
                raise
            self.notes.append(f"There are no probes of the drawn files: {error}; look at more files (--clips).")
            return None

    def _gather(self, model: Model, material: Material) -> Sample:
        manifest, done = material.manifest, 0

        def on_file() -> None:
            nonlocal done
            done += 1
            self.told(GATHERING, done, len(manifest))

        others = earlier_tokenizers(self.run, self.settings, model)
        sample = gather(model, manifest, material.labels, others, on_file)
        return replace(sample, several=self.config.tag_separator is not None)

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

    def _data(self, material: Material | None) -> Section | None:
        examined = None
        if material is not None:
            examined = examine_files(material.every, self.run, self.settings, self.config.seed, self.told)
        return data_section(examined, read_quarantine(self.run), self.settings.medium)

    def _cost(self) -> recorded.Cost:
        steps = [phase.steps_done for phase in self.summary.phases]
        return recorded.cost(self.run, self.settings, steps, self.config.watts)

    def _say_what_is_missing(self) -> None:
        if not self.curves.bands:
            self.notes.append("No step was logged, so there are no curves.")
        if self.model is None:
            self.notes.append("There is no checkpoint yet, so whatever needs the networks is left out.")
        elif not self.config.has_data:
            missing = "no map and no probe" if self.settings.finetune is not None else _NEEDS_DATA
            self.notes.append(f"Without data there is {missing}: give --data, and --label for probes.")
        elif self.config.columns is None:
            self.notes.append("Without a label there are no probes and the map has no colours: give --label COLUMN.")


def _usage(model: Model | None) -> Tensor | None:
    """(R, K) of the tokenizer that stands for the run."""
    tokenizer = None if model is None else model.networks.best_tokenizer
    return None if tokenizer is None else tokenizer.quantizer.ema_usage.detach().cpu()


def _silent(stage: str, done: int, total: int) -> None:
    pass
