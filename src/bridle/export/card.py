"""The model card of an export: ``README.md`` with what is known of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import yaml

from bridle.data.manifest import Manifest
from bridle.run import RunConfig, clip_grid
from bridle.summary import PhaseSummary, RunSummary

_PIPELINES = {"audio": "feature-extraction", "image": "image-feature-extraction", "video": "feature-extraction"}
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
        manifest: the files it was trained on; None where they were not named.
    """

    name: str
    licence: str | None
    library: str
    usage: str
    notes: tuple[str, ...]
    summary: RunSummary
    manifest: Manifest | None


def bridle_version() -> str:
    """Of this package."""
    try:
        return metadata.version("bridle")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


def write_card(card: Card) -> str:
    """The text of ``README.md``."""
    config = card.summary.config
    parts = [
        _front_matter(card),
        f"# {card.name}",
        _introduction(card),
        "## Use",
        card.usage.strip(),
        *(["## To know", "\n".join(f"* {note}" for note in card.notes)] if card.notes else []),
        "## Model",
        _table(("", ""), _model_rows(card)),
        "## Training data",
        _data(config, card.manifest, card.summary),
        "## Training",
        _training(card.summary),
    ]
    if _has_codes(card):
        parts += ["## Codebooks", _codebooks(card.summary)]
    return "\n\n".join(parts) + "\n"


def _has_codes(card: Card) -> bool:
    """Timm has no place for a tokenizer."""
    return bool(card.summary.tokenizer) and card.library != "timm"


def _front_matter(card: Card) -> str:
    medium = card.summary.config.medium.name
    tags = ["bridle", medium, "self-supervised", "embeddings"]
    tags += ["residual-quantization", "tokenizer"] if _has_codes(card) else []
    data: dict[str, Any] = {} if card.licence is None else {"license": card.licence}
    data |= {"library_name": card.library, "pipeline_tag": _PIPELINES[medium], "tags": tags}
    return f"---\n{yaml.safe_dump(data, sort_keys=False).strip()}\n---"


def _introduction(card: Card) -> str:
    codes = " It also turns a clip into discrete codes, a few for each patch." if _has_codes(card) else ""
    config = card.summary.config
    if config.finetune is not None:
        origin = "fine-tuned with labels"
    else:
        origin = "pretrained without labels by masked prediction" if card.summary.step else "trained elsewhere and read"
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
        return f"{config.image.size} x {config.image.size} pixels, {config.image.channels} channels"
    assert config.video is not None
    film = config.video
    return f"{film.num_frames} frames of {film.size} x {film.size} pixels, every {film.stride}. frame, {film.channels} channels"


def _data(config: RunConfig, manifest: Manifest | None, summary: RunSummary) -> str:
    lines = []
    if manifest is not None:
        seconds = sum(entry.duration_seconds for entry in manifest.entries)
        time = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
        of_time = f", {time}" if config.image is None else ""
        lines.append(f"{len(manifest):,} {_CLIPS[config.medium.name]}{of_time}.")
    steps = f"Training took {summary.step:,} steps of {config.train.batch_size} full clips each."
    lines.append(steps if summary.step else "No step was trained here: the weights were imported.")
    if summary.num_quarantined:
        lines.append(f"{summary.num_quarantined} files could not be read and were left out.")
    return " ".join(lines)


def _training(summary: RunSummary) -> str:
    rows = [(phase.name, phase.length, f"{phase.steps_done:,}", _last(phase)) for phase in summary.phases]
    state = "" if summary.finished else "\n\nThe run is not finished: the weights are those of its newest checkpoint."
    return _table(("phase", "length", "steps done", "last logged values"), rows) + state


def _last(phase: PhaseSummary) -> str:
    kept = ("code/", "accuracy/", "patch", "feature", "commitment")
    return ", ".join(f"{name} {value:.4g}" for name, value in phase.values.items() if name.startswith(kept))


def _codebooks(summary: RunSummary) -> str:
    rows = [
        (str(number), f"{100 * level.in_use:.0f} %", f"{level.perplexity:.3f}") for number, level in enumerate(summary.levels)
    ]
    return _table(("level", "codes in use", "perplexity / K"), rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
