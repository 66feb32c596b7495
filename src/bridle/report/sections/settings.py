"""Settings, how to go on, versions, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridle.config import to_yaml
from bridle.report.html import Html, Section, element, facts, section, table
from bridle.report.recorded import Cost
from bridle.report.sections.data import duration
from bridle.run import RunConfig
from bridle.summary import RunSummary, resume_command
from bridle.train.history import Call

_NOT = "not recorded"
_UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))


def settings_section(
    summary: RunSummary, cost: Cost, calls: Sequence[Call], versions: Mapping[str, str], watts: float | None
) -> Section:
    """Everything that made the run, as far as its folder tells."""
    config = summary.config
    parts = [
        facts(_settings(config)),
        element("h3", "Phases", class_="after"),
        _phases(summary),
        element("h3", "Cost", class_="after"),
        facts(_cost(cost, watts)),
        element("h3", "Size", class_="after"),
        facts(_size(summary)),
        *_going_on(summary),
        element("h3", "The calls that trained it", class_="after"),
        _calls(calls),
        element("h3", "This page was made with", class_="after"),
        facts(versions.items()),
        element("details", element("summary", "All settings (config.yaml)"), element("pre", element("code", to_yaml(config)))),
    ]
    return section(
        "settings",
        "Settings and cost",
        "What the run was made with, as far as its folder tells.",
        *parts,
    )


def _going_on(summary: RunSummary) -> list[Html]:
    if summary.config.finetune is not None:
        return []
    title, words = "The command that goes on from here", "DATA stands for the data of the run."
    if summary.finished:
        title = "The command that trains it further"
        words += " Every phase is done: add others behind them with --phases."
    return [
        element("h3", title, class_="after"),
        element("pre", element("code", resume_command(summary.config, summary.path)), class_="command"),
        element("p", words, class_="soft"),
    ]


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    encoder, quantizer, predictor, masks = config.encoder, config.quantizer, config.predictor, config.masks
    channels, height, width = config.clip_shape
    if config.audio is not None:
        clips = f"{config.audio.fbank.sample_rate} Hz, {height} mel bands, crops of {config.audio.crop_seconds:g} s"
    else:
        frames = f"{config.video.num_frames} frames of " if config.video is not None else ""
        clips = f"{frames}{height} x {width} pixels, {'colour' if channels == 3 else 'grey'}"
    patch = " x ".join(map(str, encoder.patch))
    shared = [
        ("recipe", f"{config.recipe}, seed {config.seed}"),
        (config.medium.name, clips),
        (
            "encoder",
            f"width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}, patches of {patch} (time x height x width)",
        ),
    ]
    batches = f"batches of {config.train.batch_size} clips, {config.train.precision}, learning rate"
    if config.finetune is not None:
        classes = f"{len(config.finetune.classes)} classes, pooling '{config.finetune.pooling}'"
        return [*shared, ("classifier", classes), ("training", f"{batches} {config.finetune.optim.lr:g}")]
    return [
        *shared,
        ("predictor", f"{predictor.kind}, width {predictor.width}, depth {predictor.depth}"),
        ("masks", f"{masks.kind}, {100 * masks.mask_ratio:g} % masked, {masks.num_masks} per clip"),
        ("codebooks", f"{quantizer.num_codebooks} x {quantizer.codebook_size} codes of {quantizer.code_dim}"),
        ("training", f"{batches} {config.encoder_optim.lr:g}, tokenizer's {config.tokenizer_optim.lr:g}"),
    ]


def _phases(summary: RunSummary) -> Html:
    rows = [
        (phase.name, phase.length, f"{phase.steps_done:,}", "?" if phase.steps_total is None else f"{phase.steps_total:,}")
        for phase in summary.phases
    ]
    return table(["phase", "length", "steps done", "of"], rows, left=2, label="phases")


def _calls(calls: Sequence[Call]) -> Html:
    if not calls:
        return element("p", "Their commands, machines and versions are not recorded in this run.", class_="soft")
    rows = [
        (
            f"{each.first_step:,} to {each.last_step:,}",
            each.command,
            each.device if each.num_processes == 1 else f"{each.num_processes} x {each.device}",
            ", ".join(f"{name} {value}" for name, value in each.versions.items()),
            duration(each.seconds),
        )
        for each in calls
    ]
    return table(["steps", "command", "on", "versions", "time"], rows, left=4, label="calls that trained the run")


def _cost(cost: Cost, watts: float | None) -> list[tuple[str, str]]:
    operations = "not counted" if cost.operations is None else "none yet"
    if cost.operations:
        operations = f"{_operations(cost.operations)} in matrix products, if every clip were full"
    energy = _NOT
    if cost.kilowatt_hours is not None:
        energy = f"about {cost.kilowatt_hours:.3g} kWh at {watts:g} W"
    elif cost.seconds is not None:
        energy = f"{_NOT}; --watts gives an estimate from the time"
    time = _NOT if cost.seconds is None else duration(cost.seconds)
    if cost.seconds is not None and cost.at_least:
        time = f"at least {time}: a call that was killed counts up to the last value it logged"
        energy = energy.replace("about", "at least", 1)
    return [
        ("time", time),
        ("computation", operations),
        ("energy", energy),
    ]


def _size(summary: RunSummary) -> list[tuple[str, str]]:
    networks = ", ".join(f"{name} {count:,}" for name, count in summary.parameters.items() if count)
    return [
        ("parameters", networks),
        ("on disk", f"{summary.num_bytes / 1e6:.1f} MB"),
        ("checkpoints", ", ".join(summary.checkpoints) or "none"),
        ("fingerprint", summary.fingerprint or "none yet"),
    ]


def _operations(count: float) -> str:
    name, size = next((unit for unit in _UNITS if count >= unit[1]), _UNITS[-1])
    return f"{count / size:.3g} {name}"
