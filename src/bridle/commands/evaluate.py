"""``bridle evaluate RUN MANIFEST --label COLUMN``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import JsonFile, Run, parse, write_json
from bridle.commands.display import console, stages, table
from bridle.commands.writing import Device
from bridle.config import to_dict
from bridle.data.manifest import read_manifest
from bridle.eval.evaluate import RUN, Columns, Evaluation, evaluate_run
from bridle.eval.features import CodeStatistics
from bridle.eval.gain import Gain
from bridle.eval.protocol import ProbeResult
from bridle.inference import load
from bridle.quantize import COLLAPSED_BELOW

_DESCRIPTION = """Judge a run's frozen features by kNN and linear probe on labelled files.
  Beside them stand what needs no training (log-mel statistics, raw pixels), the same encoder before
  training and bags of the run's codes. Layer, pooling and the probes' parameters are chosen without looking
  at test clips. Without --fold and --split there are 5 stratified splits.

examples:
  bridle evaluate runs/first meta.csv --label class --fold fold
  bridle evaluate runs/first meta.csv --label word --group speaker --json evaluation.json
  bridle evaluate runs/pictures pictures/ --label class --split split    # pictures/train/dog/1.jpg
"""

Manifest = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MANIFEST", help="CSV or parquet table of paths and labels, or a folder that says class and split."),
]
Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
PROBE_TITLES = {"knn": ("kNN", "k"), "linear": ("linear", "C")}
"""By a probe's name: its title, and the letter of its parameter."""


@dataclass
class Arguments:
    """Of ``bridle evaluate``."""

    run: Run
    manifest: Manifest
    label: Annotated[str, tyro.conf.arg(metavar="COLUMN", help="Column with the class.")]
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
    json: JsonFile = None
    device: Device = "auto"
    precision: Annotated[
        Literal["fp32", "bf16"], tyro.conf.arg(help="Of the encoder; bf16 is faster where the machine computes in it.")
    ] = "fp32"
    seed: Annotated[int, tyro.conf.arg(help="Of stratified splits.")] = 0


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle evaluate", _DESCRIPTION)
    columns = Columns(parsed.label, parsed.fold, parsed.split, parsed.group)
    model = load(parsed.run, None if parsed.device == "auto" else parsed.device, parsed.precision)
    manifest = read_manifest(parsed.manifest, model.config.medium, path_column=parsed.path)
    with stages() as on_progress:
        evaluation = evaluate_run(model, manifest, columns, layers=parsed.layers, seed=parsed.seed, on_progress=on_progress)
    for part in screen(evaluation, f"{parsed.run} on {parsed.manifest}"):
        console().print(part)
    if parsed.json is not None:
        content = {"run": str(parsed.run), "manifest": str(parsed.manifest), **to_dict(evaluation)}
        write_json(parsed.json, json.dumps(content, indent=1, ensure_ascii=False))
        console().print(f"all numbers and every prediction: {escape(str(parsed.json))}", soft_wrap=True)
    return 0


def screen(evaluation: Evaluation, title: str) -> Iterator[RenderableType]:
    """What the command prints: the table of features, the gains, the table of codes, notes."""
    yield Text(title, style="bold")
    yield Text(f"{len(evaluation.clips)} clips, {len(evaluation.classes)} classes, {evaluation.splits}")
    yield probe_table(evaluation)
    yield gain_table(evaluation.gains)
    yield choice_table(evaluation)
    if evaluation.codes is not None:
        yield code_table(evaluation.codes)
    for note in evaluation.notes:
        yield Text(f"note: {note}", style="yellow")


def probe_table(evaluation: Evaluation) -> Table:
    """Accuracy of each probe on each kind of features; the best of a column stands out, and so does the best row."""
    names = list(evaluation.rows[0].probes)
    best = {name: max(row.probes[name].accuracy for row in evaluation.rows) for name in names}
    made = table("", ["features", *(f"{PROBE_TITLES[name][0]} % (95 %)" for name in names)], [])
    for row in evaluation.rows:
        cells = [
            Text(accuracy(result), style="bold green" if result.accuracy == best[name] else "")
            for name, result in row.probes.items()
        ]
        wins = all(row.probes[name].accuracy == best[name] for name in names)
        made.add_row(Text(row.features, style="bold" if wins or row.features == RUN else ""), *cells)
    return made


def choice_table(evaluation: Evaluation) -> Table:
    """What the splits chose for each probe, without looking at their test parts."""
    headers = [f"{PROBE_TITLES[name][0]}: pooling, {PROBE_TITLES[name][1]}" for name in evaluation.rows[0].probes]
    made = table("chosen inside the training parts", ["features", *headers], [], left=len(headers) + 1)
    for row in evaluation.rows:
        made.add_row(row.features, *(Text(chosen(result), style="dim") for result in row.probes.values()))
    return made


def accuracy(result: ProbeResult) -> str:
    """Per cent with its interval: ``83.8 (79.0-88.5)``."""
    return f"{100 * result.accuracy:.1f} ({100 * result.low:.1f}-{100 * result.high:.1f})"


def chosen(result: ProbeResult) -> str:
    """Features (pooling, layer) and parameters that the splits chose: ``time, 0.1-1``; of one vector there is no choice."""
    poolings = sorted({split.pooling for split in result.splits})
    parameters = sorted({split.parameter for split in result.splits})
    ends = "-".join(f"{parameter:g}" for parameter in dict.fromkeys((parameters[0], parameters[-1])))
    return ends if poolings == ["clip"] else f"{' / '.join(poolings)}, {ends}"


def gain_table(gains: Sequence[Gain]) -> Table:
    """What the run adds to its baselines, in points of accuracy; grey where the interval holds 0."""
    probes = list(dict.fromkeys(gain.probe for gain in gains))
    made = table("", ["gain of this run, points (95 %)", *(PROBE_TITLES[name][0] for name in probes)], [])
    for over in dict.fromkeys(gain.over for gain in gains):
        by_probe = {gain.probe: gain for gain in gains if gain.over == over}
        made.add_row(f"over {over}", *(Text(points(by_probe[name]), style=_gain_style(by_probe[name])) for name in probes))
    return made


def points(gain: Gain) -> str:
    """Points with their interval: ``+9.3 (+5.1 to +13.5)``."""
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (gain.mean, gain.low, gain.high))  # + 0.0: no -0.0
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def code_table(codes: CodeStatistics) -> Table:
    """Health of every level of the codes, in per cent; what shuffling leaves of information is in brackets."""
    report = codes.report
    sizes = f"{len(report.used)} levels of {report.codebook_size}, {report.num_patches:,} patches"
    columns = ["level", "used %", "perplexity/K %", "energy left %", "tells position, bits", "tells level before, %"]
    columns += ["changed since the cold start, %"] if codes.churn else []
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
    return made


def _gain_style(gain: Gain) -> str:
    if not gain.certain:
        return "dim"
    return "bold green" if gain.mean > 0 else "bold red"
