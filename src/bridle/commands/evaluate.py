"""``bridle evaluate RUN MANIFEST --label COLUMN``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import JsonFile, Run, parse, write_json
from bridle.commands.display import console, stages, table
from bridle.commands.evaluation_tables import (
    PROBE_TITLES,
    choice,
    detail_tables,
    few_shot_table,
    retrieval_table,
    tag_screen,
)
from bridle.commands.published import read_published
from bridle.commands.writing import Device
from bridle.config import to_dict
from bridle.data.labels import SEPARATOR
from bridle.data.manifest import Manifest, read_manifest
from bridle.errors import ConfigError
from bridle.eval.evaluate import RUN, Columns, Evaluation, Plan, ProbeName, evaluate_run
from bridle.eval.features import FEATURE_GIGABYTES, Choice, CodeStatistics
from bridle.eval.gain import Gain
from bridle.eval.patches import PATCH_GIGABYTES
from bridle.eval.protocol import ProbeResult
from bridle.eval.tags import TagEvaluation, evaluate_tags_run
from bridle.inference import Model, load
from bridle.paths import check_file
from bridle.quantize import COLLAPSED_BELOW

__all__ = ["PROBE_TITLES", "Arguments", "main", "points", "screen"]

_DESCRIPTION = """Judge a run's frozen features by kNN and linear probe on labelled files.
  Beside them stand what needs no training (log-mel statistics, raw pixels),
  the same encoder before training and bags of the run's codes. Layer, pooling
  and the probes' parameters are chosen without looking at test clips. Without
  --fold and --split there are 5 stratified splits. docs/evaluation.md defines
  all numbers.

examples:
  bridle evaluate runs/first meta.csv --label class --fold fold
  bridle evaluate runs/first ESC-50-master --protocol esc-50
  bridle evaluate runs/first meta.csv --label word --group speaker \\
      --json evaluation.json
  bridle evaluate runs/pictures pictures/ --label class --split split
      # of pictures/train/dog/1.jpg and so on
  bridle evaluate runs/first meta.csv --label class --fold fold \\
      --probes knn linear attentive --details
  bridle evaluate runs/first meta.csv --label class --layers 2 4 \\
      --concatenate --few-shot 1 5 10 --retrieval
  bridle evaluate runs/first clips.csv --label tags --split split \\
      --multi-label --separator ';'
"""

ManifestPath = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MANIFEST", help="CSV or parquet table of paths and labels, or a folder that says class and split."),
]
Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
_TAG_PROBE: ProbeName = "batchnorm"


@dataclass
class Arguments:
    """Of ``bridle evaluate``."""

    run: Run
    manifest: ManifestPath
    label: Annotated[Column, tyro.conf.arg(help="Column with the class.")] = None
    protocol: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="MANIFEST is the folder of a published set in its own layout, such as esc-50, which says labels and splits.",
        ),
    ] = None
    fold: Annotated[Column, tyro.conf.arg(help="Column with the official fold; each is left out in turn.")] = None
    split: Annotated[Column, tyro.conf.arg(help="Column that says train, validation or test.")] = None
    group: Annotated[Column, tyro.conf.arg(help="Equal values, such as a speaker's, stay on one side of a split.")] = None
    path: Annotated[Column, tyro.conf.arg(help="Column with the paths, if its name is not a usual one.")] = None
    layers: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(
            metavar="N [N ...]",
            help="Layers of the encoder to choose from, 1 to its depth; the one three quarters up and the last if not given.",
        ),
    ] = None
    concatenate: Annotated[bool, tyro.conf.arg(help="Join the layers to one vector instead of choosing among them.")] = False
    probes: Annotated[
        tuple[ProbeName, ...],
        tyro.conf.arg(
            metavar="NAME [NAME ...]",
            help="knn, linear, batchnorm (linear layer behind a batch norm, by SGD), attentive (a learned query attends to "
            "the patches of the highest layer); knn and linear if not given, batchnorm with --multi-label.",
        ),
    ] = ()
    few_shot: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="N [N ...]", help="Also linear probes on N training clips of each class.")
    ] = ()
    shots_seeds: Annotated[int, tyro.conf.arg(help="How often --few-shot draws clips.")] = 5
    retrieval: Annotated[
        bool, tyro.conf.arg(help="Also the search for clips of the same class: mAP, and recall at 1, 5 and 10.")
    ] = False
    details: Annotated[bool, tyro.conf.arg(help="Also the most promising probe class by class, and its confusions.")] = False
    multi_label: Annotated[bool, tyro.conf.arg(help="Cells of the label column hold any number of tags; mAP is measured.")] = (
        False
    )
    separator: Annotated[str, tyro.conf.arg(help="Stands between the tags of a cell.")] = SEPARATOR
    patch_gigabytes: Annotated[float, tyro.conf.arg(help="Memory that the attentive probe's patch features may take.")] = (
        PATCH_GIGABYTES
    )
    feature_gigabytes: Annotated[float, tyro.conf.arg(help="Memory that pooled features may take.")] = FEATURE_GIGABYTES
    json: JsonFile = None
    device: Device = "auto"
    precision: Annotated[
        Literal["fp32", "bf16"], tyro.conf.arg(help="Of the encoder; bf16 is faster where the machine computes in it.")
    ] = "fp32"
    seed: Annotated[int, tyro.conf.arg(help="Of stratified splits, few-shot draws, and probes trained step by step.")] = 0


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle evaluate", _DESCRIPTION)
    if parsed.json is not None:
        check_file(parsed.json)  # before minutes of computing
    model = load(parsed.run, None if parsed.device == "auto" else parsed.device, parsed.precision)
    if model.config.finetune is not None:
        learnt = f"{parsed.run} was trained with labels ('{model.config.finetune.label}')"
        console().print(
            Text(f"note: {learnt}: clips that it learnt from make these numbers too good; 'bridle inspect' shows its own test"),
            style="yellow",
            soft_wrap=True,
        )
    if parsed.protocol is not None:
        named = (parsed.label, parsed.fold, parsed.split, parsed.group)
        data = read_published(parsed.protocol, (str(parsed.manifest),), named, model.config.medium)
        manifest, columns = data.manifest, data.columns
        parsed = replace(parsed, multi_label=data.protocol.multi_label, separator=data.protocol.separator)
    else:
        if parsed.label is None:
            raise ConfigError("there is no column of labels; name it with --label COLUMN")
        manifest = read_manifest(parsed.manifest, model.config.medium, path_column=parsed.path)
        columns = Columns(parsed.label, parsed.fold, parsed.split, parsed.group)
    title = f"{parsed.run} on {parsed.manifest}"
    if parsed.multi_label:
        tags = _tags(parsed, model, manifest, columns)
        _show(tag_screen(tags, title, parsed.details), parsed, to_dict(tags), "all numbers")
    else:
        evaluation = _classes(parsed, model, manifest, columns)
        _show(screen(evaluation, title, parsed.details), parsed, to_dict(evaluation), "all numbers and every prediction")
    return 0


def _classes(parsed: Arguments, model: Model, manifest: Manifest, columns: Columns) -> Evaluation:
    plan = Plan(
        probes=parsed.probes or ("knn", "linear"),
        concatenate=parsed.concatenate,
        shots=parsed.few_shot,
        num_draws=parsed.shots_seeds,
        retrieval=parsed.retrieval,
        details=parsed.details or parsed.json is not None,
        patch_gigabytes=parsed.patch_gigabytes,
        feature_gigabytes=parsed.feature_gigabytes,
    )
    with stages() as on_progress:
        return evaluate_run(
            model, manifest, columns, layers=parsed.layers, seed=parsed.seed, on_progress=on_progress, plan=plan
        )


def _tags(parsed: Arguments, model: Model, manifest: Manifest, columns: Columns) -> TagEvaluation:
    others: list[str] = [name for name in parsed.probes if name != _TAG_PROBE]
    others += [f"--{name}" for name, asked in (("few-shot", parsed.few_shot), ("retrieval", parsed.retrieval)) if asked]
    if others:
        raise ConfigError(
            f"'{others[0]}' is for one class per clip; with --multi-label the probe is {_TAG_PROBE}, so leave it out"
        )
    chosen = Choice(parsed.layers, parsed.concatenate, feature_gigabytes=parsed.feature_gigabytes)
    with stages() as on_progress:
        return evaluate_tags_run(
            model, manifest, columns, separator=parsed.separator, choice=chosen, seed=parsed.seed, on_progress=on_progress
        )


def _show(parts: Iterator[RenderableType], parsed: Arguments, numbers: dict[str, Any], what: str) -> None:
    if parsed.json is not None:
        content = {"run": str(parsed.run), "manifest": str(parsed.manifest), **numbers}
        write_json(parsed.json, json.dumps(content, indent=1))
    for part in parts:
        console().print(part)
    if parsed.json is not None:
        console().print(f"{what}: {escape(str(parsed.json))}", soft_wrap=True)


def screen(evaluation: Evaluation, title: str, details: bool = False) -> Iterator[RenderableType]:
    """What the command prints: the table of features, the gains, what else was asked for, the table of codes, notes."""
    yield Text(title, style="bold")
    yield Text(f"{len(evaluation.clips)} clips, {len(evaluation.classes)} classes, {evaluation.splits}")
    yield probe_table(evaluation)
    yield gain_table(evaluation.gains)
    yield choice_table(evaluation)
    if evaluation.rows[0].few_shot:
        yield few_shot_table(evaluation.rows)
    if evaluation.rows[0].retrieval is not None:
        yield retrieval_table(evaluation.rows)
    if details and evaluation.details is not None:
        yield from detail_tables(evaluation.details)
    if evaluation.codes is not None:
        yield code_table(evaluation.codes)
    for note in evaluation.notes:
        yield Text(f"note: {note}", style="yellow")


def probe_table(evaluation: Evaluation) -> Table:
    """Accuracy of each probe on each kind of features; the best of a column stands out, and so does the best row."""
    names = _probes(evaluation)
    best = {name: max(row.probes[name].accuracy for row in evaluation.rows if name in row.probes) for name in names}
    made = table("", ["features", *(f"{PROBE_TITLES[name][0]} % (95 %)" for name in names)], [])
    for row in evaluation.rows:
        wins = {name: name in row.probes and row.probes[name].accuracy == best[name] for name in names}
        cells = [
            Text(accuracy(row.probes[name]), style="bold green" if wins[name] else "") if name in row.probes else Text("-")
            for name in names
        ]
        made.add_row(Text(row.features, style="bold" if all(wins.values()) or row.features == RUN else ""), *cells)
    return made


def choice_table(evaluation: Evaluation) -> Table:
    """What the splits chose for each probe, without looking at their test parts."""
    names = _probes(evaluation)
    headers = [f"{PROBE_TITLES[name][0]}: pooling, {PROBE_TITLES[name][1]}" for name in names]
    made = table("chosen inside the training parts", ["features", *headers], [], left=len(headers) + 1)
    for row in evaluation.rows:
        cells = [Text(chosen(row.probes[name]) if name in row.probes else "-", style="dim") for name in names]
        made.add_row(row.features, *cells)
    return made


def _probes(evaluation: Evaluation) -> list[str]:
    """Names of the probes; not all features have all of them."""
    return list(dict.fromkeys(name for row in evaluation.rows for name in row.probes))


def accuracy(result: ProbeResult) -> str:
    """Per cent with its interval: ``83.8 (79.0-88.5)``."""
    return f"{100 * result.accuracy:.1f} ({100 * result.low:.1f}-{100 * result.high:.1f})"


def chosen(result: ProbeResult) -> str:
    """Features (pooling, layer) and parameters that the splits chose, see :func:`choice`."""
    return choice([(split.pooling, split.parameter) for split in result.splits])


def gain_table(gains: Sequence[Gain]) -> Table:
    """What the run adds to its baselines, in points of accuracy; grey where the interval holds 0."""
    probes = list(dict.fromkeys(gain.probe for gain in gains))
    made = table("", ["gain of this run, points (95 %)", *(PROBE_TITLES[name][0] for name in probes)], [])
    for over in dict.fromkeys(gain.over for gain in gains):
        by_probe = {gain.probe: gain for gain in gains if gain.over == over}
        cells = [
            Text(points(by_probe[name]), style=_gain_style(by_probe[name])) if name in by_probe else Text("-")
            for name in probes
        ]
        made.add_row(f"over {over}", *cells)
    return made


def points(gain: Gain) -> str:
    """Points with their interval: ``+9.3 (+5.1 to +13.5)``."""
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (gain.mean, gain.low, gain.high))  # + 0.0: no -0.0
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def code_table(codes: CodeStatistics) -> Table:
    """Health of every level of the codes, in per cent; what shuffling leaves of information is in brackets."""
    report = codes.report
    sizes = f"{len(report.used)} levels of {report.codebook_size}, {report.num_patches:,} patches"
    # Headers in lines: all columns fit 80 characters.
    columns = ["level", "used %", "perplexity\n/ K %", "energy\nleft %", "tells\nposition,\nbits", "tells level\nbefore, %"]
    columns += ["changed %"] if codes.churn else []
    made = table(f"codes of the {codes.tokenizer} tokenizer: {sizes}", columns, [])
    for level, share in enumerate(report.perplexity):
        position = f"{report.position_bits[level]:.2f} ({report.position_floor_bits[level]:.2f})"
        before = f"{100 * report.shared[level]:.0f} ({100 * report.shared_floor[level]:.0f})" if level else ""
        made.add_row(
            str(level),
            f"{100 * report.used[level]:.0f}",
            Text(f"{100 * share:.0f}", style="bold red" if share < COLLAPSED_BELOW else ""),
            f"{100 * codes.residual[level]:.1f}",
            position,
            before,
            *([f"{100 * codes.churn[level]:.0f}"] if codes.churn else []),
        )
    made.caption = "in brackets: the same after shuffling, which is chance"
    made.caption += "; changed: since the cold start" if codes.churn else ""
    return made


def _gain_style(gain: Gain) -> str:
    if not gain.certain:
        return "dim"
    return "bold green" if gain.mean > 0 else "bold red"
