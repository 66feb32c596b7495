"""Fine-tuning from start to finish: labels, the run, its test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bridle import distributed
from bridle.data.audio import AudioLoader
from bridle.data.columns import subset
from bridle.data.dataset import ClipDataset
from bridle.data.labels import Labels, read_labels, take, target_values
from bridle.data.loaders import build_loader
from bridle.data.manifest import Manifest
from bridle.data.mixtures import MixedSounds
from bridle.data.quarantine import Quarantine
from bridle.data.sampler import WeightedOrder
from bridle.engine.parts import Outcome, Parts, epoch_order
from bridle.engine.training import Training
from bridle.errors import ConfigError, RunError
from bridle.finetuning.parts import Part
from bridle.finetuning.score import Measured, Validation, measure
from bridle.finetuning.tested import RunTest, write_evaluation
from bridle.inference import load
from bridle.mixing import Blend
from bridle.networks import Networks, read_networks
from bridle.objectives.base import Objective
from bridle.objectives.supervised import FinetuneConfig, Supervised, Targets, balanced_weights
from bridle.phases import Phase
from bridle.run import RunConfig, RunFolder
from bridle.settings import check_folder, resolve
from bridle.train.checkpoint import latest_checkpoint
from bridle.train.reporter import Reporter, Silent
from bridle.wording import first_of

SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Finetuned:
    """How a call of :func:`finetune` ended.

    Attributes:
        outcome: of the training.
        test: what the test clips say; None when there are none, or training was stopped.
        step: whose weights stand for the run: the last, or the one that the validation clips chose.
    """

    outcome: Outcome
    test: Measured | None
    step: int


def finetune(
    config: RunConfig,
    source: str | Path | None,
    manifest: Manifest,
    part: Part,
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Finetuned:
    """Train the encoder of a run with labels and write the run folder ``out``.

    Args:
        config: of the new run, from :func:`finetuned_config`; its classes are taken from the manifest.
        source: run folder whose encoder it begins with; None for one that was never trained.
        manifest: labelled clips.
        part: which of them train, choose and test, see :func:`~bridle.finetuning.parts.part_clips`.
        out: run folder.
        resume: continue the run in ``out`` from its newest whole checkpoint; start it when there is none.
        device: defaults to this process's GPU, else the CPU.
        reporter: told about progress.

    Raises:
        ConfigError: settings that do not fit each other, the medium or the run that is resumed.
        RunError: ``source`` is no run or of another encoder; ``out`` holds a run and ``resume`` is False, was made from other
            clips or labels, or cannot be written.
        DataError: labels of a single class, or no clip can be read.
        TooManyBadFiles: of all files that were listed, or of those that train.
        TrainingError: gradients stay non-finite.
    """
    assert config.finetune is not None
    reporter = reporter if reporter is not None and distributed.rank() == 0 else Silent()
    device = device or distributed.default_device()
    folder = RunFolder(Path(out))
    check_folder(folder, resume)
    settings = config.finetune
    Quarantine(None, manifest.num_files, config.train.max_bad_fraction, known=manifest.bad)  # refuses too many of them
    labels = read_labels(manifest.columns[settings.label], settings.multi_label, settings.separator)
    config = replace(config, finetune=replace(settings, classes=labels.classes))
    train = replace(subset(manifest, part.train), bad=())  # which are of all parts
    kind = "tags" if settings.multi_label else "classes"
    clips = f"{len(train)} clips train, {len(part.validation)} validate, {len(part.test)} test"
    reporter.message(f"{clips}; {len(labels.classes)} {kind}: {first_of(labels.classes, SHOWN_CLASSES)}")
    notes = part.notes
    taught_before = source is not None and RunFolder(Path(source)).read_config().finetune is not None
    if taught_before:
        known = f"{source} was fine-tuned with labels already; its encoder may know clips that are tested here"
        notes = (*notes, known)
    for note in notes:
        reporter.message(f"note: {note}")
    config = resolve(config, train, folder, device)
    if distributed.rank() == 0 and latest_checkpoint(folder.path) is None:
        folder.chosen.unlink(missing_ok=True)  # of a call that was killed before its first checkpoint
    networks = Networks(config)
    if source is not None:
        start_from(networks, Path(source), config)
    digest = _digest(manifest, manifest.columns[settings.label], part)
    parts = _parts(config, train, take(labels, part.train), digest, networks, folder, device, reporter)
    examinations = []
    if part.validation:
        chosen_by = subset(manifest, part.validation), take(labels, part.validation)
        epochs = parts.order.steps_per_epoch * settings.validate_every_epochs
        examinations.append(Validation(config, folder, *chosen_by, every_steps=epochs, device=device))
    outcome = Training(parts, examinations).execute()
    distributed.barrier()
    if not outcome.finished:
        return Finetuned(outcome, None, outcome.step)
    step = examinations[0].best_step if examinations else outcome.step
    if not part.test:
        return Finetuned(outcome, None, step)
    model = load(folder.path, device)
    measured = measure(model, subset(manifest, part.test), take(labels, part.test))
    if distributed.rank() == 0:
        tested = RunTest(measured, step, part.name, len(part.train), len(part.validation), notes, taught_before)
        write_evaluation(folder.path, tested)
    return Finetuned(outcome, measured, step)


def finetuned_config(source: RunConfig, settings: FinetuneConfig, phases: str, recipe: str) -> RunConfig:
    """The configuration of a fine-tuned run: front end, encoder and seed of ``source``, all else new.

    Raises:
        ConfigError: settings that do not fit the medium.
    """
    if source.audio is None and settings.mixup_domain == "waveform" and settings.mixup:
        raise ConfigError(f"mixup_domain=waveform is for sound, not {source.medium.nouns}; take batch")
    if source.audio is not None and settings.cutmix:
        raise ConfigError(f"cutmix={settings.cutmix} is for pixels; sound has mixup")
    return replace(source, recipe=recipe, phases=phases, finetune=settings)


def start_from(networks: Networks, source: Path, config: RunConfig) -> None:
    """Give the networks the encoder of a run.

    Raises:
        RunError: it is no run, has no weights, or its encoder is another one.
    """
    folder = RunFolder(source)
    theirs = folder.read_config()
    if theirs.encoder != config.encoder:
        raise RunError(f"the encoder of {source} is not the one of this run; leave the encoder's settings as they were")
    networks.encoder.load_state_dict(read_networks(folder, theirs).encoder.state_dict())


def _parts(
    config: RunConfig,
    train: Manifest,
    labels: Labels,
    digest: str,
    networks: Networks,
    folder: RunFolder,
    device: torch.device,
    reporter: Reporter,
) -> Parts:
    settings = config.finetune
    assert settings is not None
    loader = build_loader(config.clips)
    dataset = ClipDataset(train, loader, config.seed)
    if settings.waveforms is not None:
        assert isinstance(loader, AudioLoader)
        dataset = MixedSounds(train, loader, config.seed, settings.waveforms)
    order = epoch_order(dataset, config)
    values = target_values(labels)
    if settings.sampling == "balanced":
        counts = values.sum(0).clamp(min=1)
        drawn = (values / counts).sum(1)
        drawn = torch.where(drawn > 0, drawn, 1 / counts.max())  # of no class: as often as a clip of the largest
        order = WeightedOrder(order, drawn, settings.clips_per_epoch)
    weights = torch.ones(values.shape[1])
    if settings.class_weights == "balanced":
        weights = balanced_weights(values, settings.exclusive)
    blend: Blend = "values" if config.audio is None else "powers"
    scale = 1.0 if config.audio is None else 2 * (config.audio.std or 1.0)  # log-mel is divided by twice the deviation

    def build(networks: Networks, phase: Phase) -> Objective:
        assert networks.classifier is not None
        return Supervised(networks.encoder, networks.classifier, settings, Targets(values, weights), blend, scale).to(device)

    return Parts(config, folder, train, dataset, order, networks, build, digest, device, reporter)


def _digest(manifest: Manifest, cells: Sequence[str], part: Part) -> str:
    """Changes with any clip, any label, and what a clip is for."""
    said = json.dumps([manifest.fingerprint, list(cells), part.train, part.validation, part.test])
    return hashlib.sha256(said.encode()).hexdigest()[:16]
