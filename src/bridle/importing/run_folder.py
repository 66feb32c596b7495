"""Weights of other code bases as a run folder, from which pretraining goes on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from bridle import distributed
from bridle.data.audio import AudioConfig
from bridle.data.loaders import ClipConfig, with_normalisation
from bridle.data.video import VideoConfig
from bridle.errors import ConfigError, RunError
from bridle.importing.importer import Imported, read_encoder
from bridle.importing.sources import Source
from bridle.importing.translate import Medium
from bridle.networks import Networks, model_fingerprint
from bridle.recipes import recipe
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import save_checkpoint
from bridle.train.loop import resolve_precision

_UNKNOWN = {"audio": (-4.4446, 3.3216), "image": (0.5, 0.5), "video": (0.5, 0.5)}
_AUDIO_FRAMES = 1024
"""Length of the clips that AudioMAE, EAT and BEATs are published for; EAT's table of positions may reach much further."""


@dataclass(frozen=True)
class ImportedRun:
    """What :func:`import_weights` wrote.

    Attributes:
        path: the run folder.
        family: what the weights are, e.g. ``ViTMAE``.
        config: of the run.
        notes: in words, what was left out or assumed.
    """

    path: Path
    family: str
    config: RunConfig
    notes: tuple[str, ...]


def import_weights(
    source: Source,
    out: str | Path,
    *,
    config: RunConfig | None = None,
    heads: int | None = None,
    medium: Medium | None = None,
) -> ImportedRun:
    """A run folder that begins with weights trained elsewhere.

    ``bridle.load(out)`` gives their features at once; ``bridle pretrain RECIPE --data DATA --out OUT --resume`` goes on from
    them, with the settings of that call. Predictor, tokenizer and heads are new.

    Args:
        source: see :func:`bridle.importing.read_encoder`.
        out: the run folder, which must not exist or be empty.
        config: settings of the run, such as a recipe; its encoder becomes the imported one, its clips get that one's size and
            normalisation. None for the medium's base recipe.
        heads: number of attention heads, where a bare state dict does not tell; None for that of published models.
        medium: of its clips; None to tell it from the patches.

    Raises:
        RunError: the source cannot be read or represented, or ``out`` holds something.
        ConfigError: the settings do not fit the weights.
    """
    folder = RunFolder(Path(out))
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise RunError(f"{folder.path} exists and is not an empty folder; choose another --out")
    imported = read_encoder(source, heads=heads, medium=medium)
    base = recipe(f"{imported.medium}-base") if config is None else config
    if base.medium.name != imported.medium:
        raise ConfigError(
            f"recipe {base.recipe} is for {base.medium.name}; the weights of {imported.family} are for {imported.medium}"
        )
    clips, notes = _clips(base.clips, imported)
    # One replace: the new patch need not fit the old clips, nor the other way round.
    fields = {base.medium.name: clips, "encoder": imported.config}
    precision = resolve_precision(base.train.precision, distributed.default_device())
    made: RunConfig = dataclasses.replace(base, **fields, train=dataclasses.replace(base.train, precision=precision))  # type: ignore[arg-type]
    networks = Networks(made)
    networks.encoder.load_state_dict(imported.weights)
    weights = networks.state_dict()
    # Which data and how many steps the first call of pretrain decides.
    state = {"phase": 0, "phase_step": 0, "phase_steps": [], "data": ""}
    fingerprint = model_fingerprint(made, weights)
    save_checkpoint(folder.path, 0, weights=weights, optimizer={}, state=state, metadata={"fingerprint": fingerprint})
    folder.write_config(made)  # last: without weights it would be a run that begins at random
    return ImportedRun(folder.path, imported.family, made, (*imported.notes, *notes))


def _clips(clips: ClipConfig, imported: Imported) -> tuple[ClipConfig, list[str]]:
    """Settings of clips as the weights were trained on."""
    frames, height, width = imported.size
    notes = []
    if isinstance(clips, AudioConfig):
        if imported.config.position_grid is None and frames > _AUDIO_FRAMES:
            notes.append(f"clips: {_AUDIO_FRAMES} frames, as published; positions would do for {frames} and more")
            frames = _AUDIO_FRAMES
        asked = imported.fbank
        fbank = dataclasses.replace(clips.fbank, num_mels=height, window=asked.window, full_scale=asked.full_scale)
        clips = dataclasses.replace(clips, fbank=fbank, crop_seconds=frames * fbank.hop_seconds)
    else:
        if height != width:
            raise ConfigError(f"the weights are for clips of {height} x {width} pixels; this front end makes square ones only")
        enlarged = round(height * clips.decode_size / clips.size)
        channels = imported.config.channels
        if isinstance(clips, VideoConfig):
            clips = dataclasses.replace(clips, num_frames=frames)
        clips = dataclasses.replace(clips, size=height, decode_size=enlarged, channels=channels, mean=None, std=None)
    mean, std = imported.mean, imported.std
    if mean is None or std is None:
        low, wide = _UNKNOWN[imported.medium]
        mean, std = (low,) * imported.config.channels, (wide,) * imported.config.channels
        notes.append(
            f"normalisation taken for lack of a better one: mean {low}, deviation {wide}; the first call of pretrain may set it"
        )
    return with_normalisation(clips, mean, std), notes
