"""The whole evaluation of a run: its frozen features beside the baselines that they must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal, get_args

from bridle.data.columns import Columns
from bridle.data.manifest import Manifest
from bridle.errors import ConfigError
from bridle.eval.attentive import AttentiveConfig, attentive_probe
from bridle.eval.batchnorm_head import BatchNormConfig, batchnorm_probe
from bridle.eval.details import Details, detail
from bridle.eval.features import FEATURE_GIGABYTES, Choice, CodeStatistics
from bridle.eval.few_shot import FewShot, few_shot
from bridle.eval.gain import Gain, paired_gain
from bridle.eval.labelled import (
    PROBING,
    RANDOM,
    READING,
    RUN,
    Evaluated,
    Labelled,
    OnProgress,
    Reading,
    read_labelled,
    silent,
)
from bridle.eval.patches import PATCH_GIGABYTES
from bridle.eval.protocol import FeatureSet, Probe, ProbeResult, evaluate, knn_probe, linear_probe
from bridle.eval.retrieval import Retrieval, retrieval
from bridle.inference import Model
from bridle.wording import count

__all__ = [
    "PROBING",
    "RANDOM",
    "READING",
    "RUN",
    "Columns",
    "Evaluation",
    "OnProgress",
    "Plan",
    "ProbeName",
    "Row",
    "evaluate_run",
]

ProbeName = Literal["knn", "linear", "batchnorm", "attentive"]


@dataclass(frozen=True)
class Plan:
    """What :func:`evaluate_run` is asked for.

    Attributes:
        probes: by name, each once.
        concatenate: one vector of all the layers for each pooling, instead of one of each layer.
        shots: see :mod:`bridle.eval.few_shot`; none for no few-shot probes.
        num_draws: of few-shot clips.
        retrieval: see :mod:`bridle.eval.retrieval`.
        details: metrics of the run's best probe (by its inner accuracy), class by class.
        patch_gigabytes: memory that patch features may take; only an attentive probe needs them.
        feature_gigabytes: memory that pooled features may take.

    Raises:
        ConfigError: no probe, an unknown one or one twice; few-shot probes on no clips, with fewer than two draws, or without
            a probe that chooses features.
    """

    probes: tuple[ProbeName, ...] = ("knn", "linear")
    concatenate: bool = False
    shots: tuple[int, ...] = ()
    num_draws: int = 5
    retrieval: bool = False
    details: bool = False
    patch_gigabytes: float = PATCH_GIGABYTES
    feature_gigabytes: float = FEATURE_GIGABYTES

    def __post_init__(self) -> None:
        unknown = [name for name in self.probes if name not in get_args(ProbeName)]
        if unknown or not self.probes or len(set(self.probes)) < len(self.probes):
            given = " ".join(self.probes) or "none"
            raise ConfigError(f"probes are {given}; name one or more of {', '.join(get_args(ProbeName))}, each once")
        least = min(self.shots, default=1)
        if least < 1 or self.num_draws < 2:
            raise ConfigError(f"few-shot probes take {least} clips and {self.num_draws} draws; at least 1 and 2 are needed")
        if self.shots and self.chooser is None:
            raise ConfigError("few-shot probes take the features that knn, linear or batchnorm chose; add one (--probes)")

    @property
    def chooser(self) -> ProbeName | None:
        """The probe whose features few-shot probes take."""
        pooled = [name for name in self.probes if name != "attentive"]
        return "linear" if "linear" in pooled else next(iter(pooled), None)


@dataclass(frozen=True)
class Row:
    """Features by name and what each probe makes of them, by the probe's name.

    Only encoders have patches for an attentive probe. ``few_shot`` and ``retrieval`` are there when they were asked for.
    """

    features: str
    probes: dict[str, ProbeResult]
    few_shot: tuple[FewShot, ...] = ()
    retrieval: Retrieval | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Evaluated):
    """Result of :func:`evaluate_run`; ``bridle.config.to_dict`` makes it plain data.

    Attributes:
        labels: of the clips.
        rows: the medium's baseline, random encoder, this run and, with a tokenizer, bag of codes.
        gains: of this run over the first two, by each probe.
        codes: statistics of the tokenizer's codes.
        details: of the run's best probe, when they were asked for; which is best is decided inside the training parts.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    codes: CodeStatistics | None
    details: Details | None = None


def evaluate_run(
    model: Model,
    manifest: Manifest,
    columns: Columns,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    plan: Plan | None = None,
) -> Evaluation:
    """Probe a run's frozen features, beside the medium's baseline and the same encoder before training.

    Files that cannot be read, and clips with an empty cell in a column that is used, are left out with a note. Without
    fold and split column there are 5 stratified splits.

    Args:
        model: see :func:`bridle.inference.load`.
        manifest: labelled clips.
        columns: of the manifest.
        layers: of the encoder to choose from, 1 to its depth; None for :func:`bridle.eval.features.default_layers`. An
            attentive probe takes the patches of the highest.
        batch_size: windows per forward pass.
        seed: of stratified splits, draws and probes that are trained step by step.
        on_progress: told how far the work is.
        plan: which probes, and what else; None for kNN and linear probe.

    Raises:
        DataError: a column that does not exist (names the nearest), a single class, no readable clip, splits that
            cannot be made, or features that need too much memory.
        ConfigError: there is no such layer, it is named twice, or it cannot be concatenated.
        QuantizerError: the tokenizer's vectors are not finite.
    """
    asked = plan or Plan()
    told = on_progress or silent
    choice = Choice(
        layers=None if layers is None else tuple(layers),
        concatenate=asked.concatenate,
        patch_gigabytes=asked.patch_gigabytes if "attentive" in asked.probes else None,
        feature_gigabytes=asked.feature_gigabytes,
    )
    labelled = read_labelled(model, manifest, columns, Reading(choice, batch_size, seed), told)
    probed = {name: list(_probes(labelled, name, model, choice, asked, seed)) for name in labelled.rows(model)}
    rows = _rows(labelled, probed, asked, seed, told)
    by_name = {row.features: row.probes for row in rows}
    gains = [
        paired_gain(result, by_name[over][name], labelled.names, over)
        for name, result in by_name[RUN].items()
        for over in (model.loader.baseline_name, RANDOM)
        if name in by_name.get(over, {})
    ]
    return Evaluation(
        **vars(labelled.evaluated(model, sorted(set(labelled.names)), _notes(rows))),
        labels=tuple(labelled.names),
        rows=rows,
        gains=tuple(gains),
        codes=labelled.collected.codes,
        details=_details(probed[RUN], by_name[RUN], seed) if asked.details else None,
    )


_Task = tuple[FeatureSet, Probe]


def _probes(labelled: Labelled, name: str, model: Model, choice: Choice, plan: Plan, seed: int) -> Iterator[_Task]:
    """The probes that suit the features called ``name``, with the features that each takes."""
    pooled: dict[str, Callable[[], Probe]] = {
        "knn": knn_probe,
        "linear": linear_probe,
        "batchnorm": partial(batchnorm_probe, config=BatchNormConfig(seed=seed, device=model.device)),
    }
    highest = max(choice.layers_of(model.depth))
    title = "patches" if highest == model.depth else f"patches of layer {highest}"
    config = AttentiveConfig(heads=model.config.encoder.heads, seed=seed, device=model.device)
    for wanted in plan.probes:
        if wanted in pooled:
            yield labelled.feature_set(labelled.collected.features[name]), pooled[wanted]()
        elif name in labelled.collected.patches:
            patches = labelled.collected.patches[name]
            yield labelled.feature_set({title: patches.numbers}), attentive_probe(patches, config=config)


def _rows(labelled: Labelled, probed: dict[str, list[_Task]], plan: Plan, seed: int, told: OnProgress) -> tuple[Row, ...]:
    total = sum(len(tasks) + bool(plan.shots) + plan.retrieval for tasks in probed.values())
    done = 0

    def step() -> None:
        nonlocal done
        told(PROBING, done, total)
        done += 1

    rows: list[Row] = []
    for name, tasks in probed.items():
        features = labelled.feature_set(labelled.collected.features[name])
        results: dict[str, ProbeResult] = {}
        for own, probe in tasks:
            step()
            results[probe.name] = evaluate(own, probe, seed)
        shots: tuple[FewShot, ...] = ()
        if plan.shots and plan.chooser is not None:
            step()
            shots = few_shot(features, results[plan.chooser], plan.shots, plan.num_draws, seed)
        found = None
        if plan.retrieval:
            step()
            found = retrieval(features, seed=seed)
        if results or found:
            rows.append(Row(name, results, shots, found))
    step()
    return tuple(rows)


def _details(tasks: Sequence[_Task], results: dict[str, ProbeResult], seed: int) -> Details:
    best = max(results.values(), key=_inner_accuracy)
    (task,) = (task for task in tasks if task[1].name == best.probe)
    return detail(RUN, *task, best, seed=seed)


def _inner_accuracy(result: ProbeResult) -> float:
    """What a probe promised before it saw a test clip."""
    return fmean(split.inner_accuracy for split in result.splits)


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    yield from dict.fromkeys(note for row in rows for result in row.probes.values() for note in result.notes)
    for shot in rows[0].few_shot:
        if shot.short:
            yield f"few-shot {shot.shots}: {shot.short} classes have fewer training clips in some split; all of those are taken"
    found = rows[0].retrieval
    if found is not None and found.num_alone:
        yield f"retrieval leaves out {count(found.num_alone, 'clip')} without another of the same class to be found"
