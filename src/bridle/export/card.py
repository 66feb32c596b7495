"""The model card of an export: ``README.md`` with what is known of the run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bridle.data.manifest import Manifest
from bridle.export.results import cell, markdown_table, metric_names, write_results
from bridle.finetuning.tested import RunTest
from bridle.run import RunConfig, clip_grid
from bridle.summary import PhaseSummary, RunSummary, unfinished
from bridle.wording import count

_PIPELINES = {"audio": "feature-extraction", "image": "image-feature-extraction", "video": "feature-extraction"}
_CLASSIFIES = {"audio": "audio-classification", "image": "image-classification", "video": "video-classification"}
_CLIPS = {"audio": "sounds", "image": "pictures", "video": "films"}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is made of.

    Attributes:
        name: of the model, its title.
        licence: identifier, such as ``apache-2.0``; None to leave it out.
        library: that loads the export.
        usage: how to load it, Markdown.
        notes: what a user must know.
        summary: of the run.
        manifest: the files it was trained on, or its labelled ones, tested ones too; None where they were not named.
        tested: the test clips of a fine-tuned run; None where there are none.
    """

    name: str
    licence: str | None
    library: str
    usage: str
    notes: tuple[str, ...]
    summary: RunSummary
    manifest: Manifest | None
    tested: RunTest | None = None


def bridle_version() -> str:
    """Of this package."""
    try:
        return metadata.version("bridle")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def write_card(card: Card) -> str:
    """The text of ``README.md``."""
    parts = [
        _front_matter(card),
        f"# {card.name}",
        _introduction(card),
        "## Use",
        card.usage.strip(),
        *(["## To know", "\n".join(f"* {note}" for note in card.notes)] if card.notes else []),
        "## Model",
        markdown_table(("", ""), _model_rows(card)),
        *_classes(card),
        "## Training data",
        _data(card),
        "## Training",
        _training(card.summary, card.tested),
    ]
    if _has_codes(card):
        parts += ["## Codebooks", _codebooks(card.summary)]
    return "\n\n".join(parts) + "\n"


def _has_codes(card: Card) -> bool:
    """Timm has no place for a tokenizer."""
    return bool(card.summary.tokenizer) and card.library != "timm"


def _has_classifier(card: Card) -> bool:
    """Nor has it one for a classifier."""
    return card.summary.config.finetune is not None and card.library != "timm"


def _front_matter(card: Card) -> str:
    medium = card.summary.config.medium.name
    tuned = card.summary.config.finetune is not None
    task = _CLASSIFIES[medium] if _has_classifier(card) else _PIPELINES[medium]
    tags = ["bridle", medium, "fine-tuned" if tuned else "self-supervised", "embeddings"]
    tags += ["residual-quantization", "tokenizer"] if _has_codes(card) else []
    data: dict[str, Any] = {} if card.licence is None else {"license": card.licence}
    data |= {"library_name": card.library, "pipeline_tag": task, "tags": tags}
    if card.tested is not None and _has_classifier(card):
        data["metrics"] = metric_names(card.tested)
    return f"---\n{yaml.safe_dump(data, sort_keys=False).strip()}\n---"


def _introduction(card: Card) -> str:
    codes = " It also turns a clip into discrete codes, a few for each patch." if _has_codes(card) else ""
    config = card.summary.config
    origin = "pretrained without labels by masked prediction" if card.summary.step else "trained elsewhere and read"
    if config.finetune is not None:
        origin = "fine-tuned with labels"
        each = "a clip may have several" if config.finetune.multi_label else "a clip has one"
        codes = " Its classifier is not part of this export."
        if _has_classifier(card):
            codes = f" Its classifier knows {len(config.finetune.classes)} classes, of which {each}."
    return f"An encoder of {_CLIPS[config.medium.name]}, {origin} with bridle {bridle_version()}.{codes}"


def _model_rows(card: Card) -> list[tuple[str, str]]:
    summary, config = card.summary, card.summary.config
    encoder, grid = config.encoder, clip_grid(config)
    rows = [
        ("encoder", f"ViT, width {encoder.width}, depth {encoder.depth}, {encoder.heads} heads"),
        ("parameters of the encoder", f"{summary.parameters['encoder']:,}"),
        ("clip", _clip(config)),
        ("patch (time, height, width)", " x ".join(map(str, encoder.patch))),
        ("grid of patches of a full clip", " x ".join(map(str, grid.shape))),
    ]
    if _has_codes(card):
        quantizer = config.quantizer
        kind = "trained" if summary.tokenizer == "tokenizer" else "random, of the cold start"
        rows += [
            ("tokenizer", kind),
            ("codes of a patch", f"{quantizer.num_codebooks}, each one of {quantizer.codebook_size}"),
        ]
    return [*rows, ("fingerprint", f"`{summary.fingerprint}`"), ("recipe", f"`{config.recipe}`, seed {config.seed}")]


def _clip(config: RunConfig) -> str:
    if config.audio is not None:
        fbank = config.audio.fbank
        return f"{config.audio.crop_seconds:g} s of sound at {fbank.sample_rate} Hz, {fbank.num_mels} mel bands"
    if config.image is not None:
        return f"{config.image.size} x {config.image.size} pixels, {count(config.image.channels, 'channel')}"
    assert config.video is not None
    film = config.video
    size, channels = f"{film.size} x {film.size} pixels", count(film.channels, "channel")
    return f"{film.num_frames} frames of {size}, every {film.stride}. frame, {channels}"


def _classes(card: Card) -> list[str]:
    """Names of a fine-tuned run's classes, and what the test clips say."""
    finetune = card.summary.config.finetune
    if finetune is None:
        return []
    names = ", ".join(cell(name) for name in finetune.classes)
    parts = ["## Classes", f"{len(finetune.classes)}, of the column {cell(finetune.label)}: {names}."]
    if card.tested is None:
        return [*parts, "## Test", "No test clips were measured."]
    alone = [] if _has_classifier(card) else ["Measured with the classifier, which is not part of this export."]
    return [*parts, "## Test", *alone, write_results(card.tested)]


def _data(card: Card) -> str:
    summary, config, manifest = card.summary, card.summary.config, card.manifest
    lines = []
    if manifest is not None:
        seconds = float(manifest.durations.sum())
        time = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
        of_time = f", {time}" if config.image is None else ""
        labelled = "labelled " if config.finetune is not None else ""
        noun = _CLIPS[config.medium.name]
        lines.append(f"{len(manifest):,} {labelled}{noun if len(manifest) != 1 else noun[:-1]}{of_time}.")
        if card.tested is not None:
            parts = [f"{card.tested.num_train:,} trained it", f"{len(card.tested.measured.clips):,} tested it"]
            if card.tested.num_validation:
                parts.insert(1, f"{card.tested.num_validation:,} chose its weights")
            lines.append(f"Of them {', '.join(parts)}.")
    steps = "1 step" if summary.step == 1 else f"{summary.step:,} steps"
    steps = f"Training took {steps} of {config.train.batch_size} full clips each."
    lines.append(steps if summary.step else "No step was trained here: the weights were imported.")
    if summary.num_quarantined:
        lines.append(f"{count(summary.num_quarantined, 'unreadable file')} could not be used.")
    return " ".join(lines)


def _training(summary: RunSummary, tested: RunTest | None) -> str:
    rows = [(phase.name, phase.length, f"{phase.steps_done:,}", _last(phase)) for phase in summary.phases]
    line = unfinished(Path(summary.path), summary.config)
    if line is None and tested is not None and tested.step != summary.step:
        line = f"the weights are those of step {tested.step:,}, which the validation clips chose"
    state = "" if line is None else f"\n\n{line[0].upper()}{line[1:]}."
    return markdown_table(("phase", "length", "steps done", "last logged values"), rows) + state


def _last(phase: PhaseSummary) -> str:
    shown = phase.values | phase.examined
    kept = ("code/", "accuracy", "class", "validation/", "patch", "feature", "commitment")
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if name.startswith(kept))


def _codebooks(summary: RunSummary) -> str:
    rows = [
        (str(number), f"{100 * level.in_use:.0f} %", f"{100 * level.perplexity:.0f} %")
        for number, level in enumerate(summary.levels)
    ]
    return markdown_table(("level", "codes in use", "perplexity / K"), rows)
