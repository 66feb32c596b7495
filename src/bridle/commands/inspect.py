"""``bridle inspect RUN``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import JsonFile, Run, parse, write_json
from bridle.commands.display import console, describe, table
from bridle.config import to_dict
from bridle.data.loaders import ClipConfig
from bridle.finetuning.tested import chosen_step, read_tested
from bridle.objectives.supervised import FinetuneConfig
from bridle.paths import check_file
from bridle.run import RunConfig
from bridle.summary import PhaseSummary, RunSummary, resume_command, summarise
from bridle.wording import count, first_of

_DESCRIPTION = """Show what is in a run folder, finished or not.
  Settings, phases with their steps and newest values, health of the codebooks
  with an alarm where a level has collapsed, size of the networks and of the
  folder, and the command that continues the run. Of a fine-tuned run also what
  its test says and which step's weights stand for it.

examples:
  bridle inspect runs/first
  bridle inspect runs/first --json first.json
"""

_SHOWN_CLASSES = 8


@dataclass
class Arguments:
    """Of ``bridle inspect``."""

    run: Run
    json: JsonFile = None


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle inspect", _DESCRIPTION)
    if parsed.json is not None:
        check_file(parsed.json)
    summary = summarise(parsed.run)
    if parsed.json is not None:
        write_json(parsed.json, json.dumps(to_dict(summary) | _test(summary), indent=1))
    for part in screen(summary):
        console().print(part, soft_wrap=isinstance(part, Text))
    return 0


def screen(summary: RunSummary) -> Iterator[RenderableType]:
    """What the command prints."""
    state = "finished" if summary.finished else "not finished" if summary.step else "no checkpoint yet"
    style = "bold green" if summary.finished else "bold yellow"
    yield Text.assemble(
        (summary.path, "bold"),
        "  ",
        (state, style),
        f", {count(summary.step, 'step')}",
        f"  fingerprint {summary.fingerprint or '-'}",
    )
    yield settings_table(summary.config)
    yield Text("")
    yield phase_table(summary.phases)
    for phase in summary.phases:
        if phase.examined:
            yield Text(f"labelled clips after step {phase.examined_step} of {phase.name}: {describe(phase.examined)}")
    if summary.config.finetune is not None:
        yield Text("\n".join(["", *_finetuned(Path(summary.path)), ""]))
    if summary.levels:
        yield codebook_table(summary)
    for line in summary.alarms:
        yield Text(f"ALARM: {line}", style="bold red")
    yield Text(f"{_sizes(summary)}\n\n{_next(summary)}")


def settings_table(config: RunConfig) -> Table:
    """The settings worth a glance; config.yaml has all."""
    encoder = config.encoder
    rows = {
        "recipe": f"{config.recipe}, seed {config.seed}",
        config.medium.name: _clips(config),
        "normalisation": _normalisation(config.clips),
        "encoder": f"width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}, "
        f"patches of {' x '.join(map(str, encoder.patch))} (time x height x width)",
        **(_pretraining(config) if config.finetune is None else _finetuning(config.finetune)),
    }
    rates = f"{config.encoder_optim.lr:g}, tokenizer's {config.tokenizer_optim.lr:g}"
    rates = rates if config.finetune is None else f"{config.finetune.optim.lr:g}, layer decay {config.finetune.layer_decay:g}"
    rows["training"] = f"batches of {config.train.batch_size} clips, {config.train.precision}, learning rate {rates}"
    made = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        made.add_row(Text(name, style="cyan"), Text(text))
    return made


def _pretraining(config: RunConfig) -> dict[str, str]:
    quantizer, predictor, masks = config.quantizer, config.predictor, config.masks
    return {
        "predictor": f"{predictor.kind}, width {predictor.width}, depth {predictor.depth}",
        "masks": f"{masks.kind}, {100 * masks.mask_ratio:.0f} % masked, {masks.num_masks} per clip",
        "codebooks": f"{quantizer.num_codebooks} x {quantizer.codebook_size} codes of {quantizer.code_dim}",
    }


def _finetuning(config: FinetuneConfig) -> dict[str, str]:
    shown = first_of(config.classes, _SHOWN_CLASSES)
    kind = "tags" if config.multi_label else "classes"
    return {kind: f"{len(config.classes)} of column '{config.label}': {shown}", "pooling": config.pooling}


def _clips(config: RunConfig) -> str:
    """The front end in one line."""
    if config.audio is not None:
        fbank = config.audio.fbank
        return f"{fbank.sample_rate} Hz, {fbank.num_mels} mel bands, crops of {config.audio.crop_seconds:g} s"
    channels, height, width = config.clip_shape
    pixels = f"{height} x {width} pixels, {'colour' if channels == 3 else 'grey'}"
    return (
        pixels
        if config.video is None
        else f"{config.video.num_frames} frames of {pixels}, {config.video.stride} frames of the film apart"
    )


def _normalisation(clips: ClipConfig) -> str:
    if clips.mean is None or clips.std is None:
        return "not estimated yet"
    mean, std = (value if isinstance(value, tuple) else (value,) for value in (clips.mean, clips.std))
    return f"mean {' '.join(f'{x:.3f}' for x in mean)}, deviation {' '.join(f'{x:.3f}' for x in std)}"


def phase_table(phases: Sequence[PhaseSummary]) -> Table:
    """Steps done and left, and the newest values of every phase."""
    made = table("phases", ["phase", "length", "newest values", "done", "left"], [], left=3)
    for phase in phases:
        left = "?" if phase.steps_total is None else str(phase.steps_total - phase.steps_done)
        values = describe(phase.values)
        newest = f"step {phase.last_logged_step}: {values}" if values else "-"
        made.add_row(phase.name, phase.length, newest, str(phase.steps_done), left)
    return made


def _finetuned(run: Path) -> Iterator[str]:
    """The test of a fine-tuned run, and whose weights stand for it."""
    tested, step = read_tested(run), chosen_step(run)
    if tested is None:
        yield "test: none yet, or no clips were kept for it"
    else:
        fold = f" of fold '{tested.fold}'" if tested.fold else ""
        clips = f"{count(len(tested.measured.clips), 'clip')}{fold}"
        yield f"test: {tested.score_name} {100 * tested.measured.score:.1f} % on {clips}"
    yield "weights: the newest" if step is None else f"weights: those of step {step}, which the validation clips chose"


def _test(summary: RunSummary) -> dict[str, Any]:
    """The same as plain data; nothing of a run that is not fine-tuned."""
    if summary.config.finetune is None:
        return {}
    tested, step = read_tested(Path(summary.path)), chosen_step(Path(summary.path))
    test = None
    if tested is not None:
        clips = len(tested.measured.clips)
        test = {
            tested.score_name: tested.measured.score,
            "num_clips": clips,
            "fold": tested.fold,
            "num_train": tested.num_train,
        }
    return {"test": test, "chosen_step": step}


def codebook_table(summary: RunSummary) -> Table:
    """Health of the codebooks."""
    what = "trained tokenizer" if summary.tokenizer == "tokenizer" else "cold-start tokenizer"
    made = table(f"codebooks of the {what}", ["level", "codes in use %", "perplexity / K %", "energy left %"], [])
    for level, health in enumerate(summary.levels):
        residual = "-" if health.residual is None else f"{100 * health.residual:.1f}"
        style = "bold red" if health.alarm else ""
        made.add_row(str(level), f"{100 * health.in_use:.0f}", f"{100 * health.perplexity:.0f}", residual, style=style)
    return made


def _sizes(summary: RunSummary) -> str:
    networks = ", ".join(f"{name} {number:,}" for name, number in summary.parameters.items() if number)
    checkpoints = ", ".join(summary.checkpoints) or "none"
    return (
        f"parameters: {networks}\n"
        f"on disk: {summary.num_bytes / 1e6:.1f} MB; checkpoints: {checkpoints}\n"
        f"unreadable files in quarantine: {summary.num_quarantined}"
    )


def _next(summary: RunSummary) -> str:
    if summary.finished:
        run = shlex.quote(summary.path)
        codes = "tokenize {} DATA --out CODES" if summary.config.finetune is None else "predict {} DATA --out FILE"
        commands = ("evaluate {} DATA --label COLUMN", "embed {} DATA --out VECTORS", codes)
        return "\n".join(["use it:", *(f"  bridle {command.format(run)}" for command in commands)])
    return f"continue it:\n  {resume_command(summary.config, summary.path)}"
