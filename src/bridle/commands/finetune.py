"""``bridle finetune RUN MANIFEST --label COLUMN --out RUN2``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import RenderableType
from rich.text import Text

from bridle.commands.arguments import recipe_list
from bridle.commands.display import ProgressReporter, console, table
from bridle.commands.published import read_published
from bridle.data.audio import AudioConfig
from bridle.data.columns import Columns
from bridle.data.image import ImageConfig
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import Medium
from bridle.data.video import VideoConfig
from bridle.distributed import process_group, rank, usable_device
from bridle.errors import ConfigError
from bridle.eval.intervals import wilson_interval
from bridle.eval.metrics import ClassificationMetrics, TagMetrics
from bridle.finetuning.folds import cross_validation, finetune_folds, fold_folder
from bridle.finetuning.parts import Part, PartConfig, Untagged, part_clips
from bridle.finetuning.run import Finetuned, finetuned_config
from bridle.objectives.supervised import FinetuneConfig
from bridle.recipes.finetune import FINETUNING, finetuning
from bridle.run import RunConfig, RunFolder
from bridle.train.loop import TrainConfig
from bridle.wording import count

_USAGE = """usage: bridle finetune RUN MANIFEST --label COLUMN --out RUN2 [--recipe NAME]
                       [--resume] [--any-setting VALUE ...]

Train the encoder of a run with labels: a classifier of your own classes.
MANIFEST is a CSV or parquet table, or a folder with one folder for each class
(--label class). Without --fold and --split a fifth of the clips is kept for the
test.

recipes:
{recipes}

'bridle finetune RUN --help' lists every setting with its value.

examples:
  bridle finetune runs/first meta.csv --label class --out runs/classes
  bridle finetune runs/first meta.csv --label class --fold fold --out runs/folds
      # a run for each fold
  bridle finetune runs/first pictures/ --label class --split split \\
      --out runs/classes --epochs 20 --optim.lr 5e-4
  bridle finetune runs/first ESC-50-master --protocol esc-50 --out runs/esc50
  bridle finetune runs/first tags.csv --label tags --multi-label \\
      --separator ";" --out runs/tags
  bridle finetune runs/first meta.csv --label class --out runs/scratch \\
      --from-scratch    # what pretraining is worth
  bridle predict runs/classes recordings/ --out predictions.csv
"""
_DESCRIPTION = "Train the encoder of the run with labels. Examples: bridle finetune --help"
SHOWN_CLASSES, SHOWN_CONFUSIONS = 12, 5

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]


@dataclass
class Arguments:
    """Train the encoder of a run with labels.

    Attributes:
        manifest: CSV or parquet table of paths and labels, or a folder that says class and split.
        out: the run folder to write, or the folder of the folds' runs.
        finetune: how classes are learnt.
        train: batch size and machinery.
        epochs: times that every training clip is seen; the recipe's when not given.
        steps: length in steps instead.
        fold: column with the official fold; each is tested in turn by a run of its own.
        only_fold: make the run of this fold alone.
        split: column that says train, validation or test.
        group: clips with equal values, such as a speaker's, stay on one side.
        path: column with the paths, if its name is not a usual one.
        protocol: MANIFEST is the folder of a published set in its own layout, such as esc-50; labels and splits are the set's.
        test_ratio: share of the clips that is tested when there is neither fold nor split; 0 trains on all.
        validation_ratio: share of the training clips that chooses the epoch.
        clips_per_class: train on at most so many clips of each class, drawn by the seed; 0 for all.
        untagged: with --multi-label: clips with an empty cell are left out, or are of no class (negative).
        from_scratch: begin with weights that were never trained; without layer-wise lr decay if you do not ask for it.
        seed: of new weights, order and augmentation.
        recipe: where the settings come from.
        device: such as cpu or cuda:1; auto: the GPU where there is one.
        resume: continue the run in --out.
    """

    manifest: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")]
    out: Path
    finetune: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
    train: TrainConfig
    epochs: float | None = None
    steps: int | None = None
    fold: Column = None
    only_fold: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    split: Column = None
    group: Column = None
    path: Column = None
    protocol: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    test_ratio: float = 0.2
    validation_ratio: float = 0.0
    clips_per_class: int = 0
    untagged: Untagged = "left_out"
    from_scratch: bool = False
    seed: int = 0
    recipe: str = "small"
    device: str = "auto"
    resume: bool = False


@dataclass
class AudioArguments(Arguments):
    """Of a run of sounds."""

    audio: AudioConfig = field(default_factory=AudioConfig)


@dataclass
class ImageArguments(Arguments):
    """Of a run of pictures."""

    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass
class VideoArguments(Arguments):
    """Of a run of films."""

    video: VideoConfig = field(default_factory=VideoConfig)


_BY_MEDIUM: dict[str, type[Arguments]] = {"audio": AudioArguments, "image": ImageArguments, "video": VideoArguments}


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE.format(recipes=recipe_list(FINETUNING)))
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise ConfigError(f"the run comes first, and {arguments[0]} was found: bridle finetune RUN MANIFEST --label COLUMN ...")
    parsed = _parse(arguments)
    if not parsed.manifest:
        raise ConfigError("there is no MANIFEST; name a table of paths and labels, or a folder with a folder for each class")
    source = Path(arguments[0])
    listed: Manifest | None = None
    if parsed.protocol is not None:
        parsed, listed = with_protocol(parsed, RunFolder(source).read_config().medium)
    config = _config(parsed, source)
    device = None if parsed.device == "auto" else usable_device(parsed.device)
    columns = Columns(parsed.finetune.label, parsed.fold, parsed.split, parsed.group)
    separator = parsed.finetune.separator if parsed.finetune.multi_label else None
    choice = PartConfig(
        columns,
        parsed.only_fold,
        parsed.test_ratio,
        parsed.validation_ratio,
        parsed.clips_per_class,
        parsed.seed,
        separator,
        parsed.untagged,
    )
    with process_group():
        if listed is None:
            listed = read_manifest(parsed.manifest, config.medium, path_column=parsed.path)
        manifest, parts = part_clips(listed, choice)
        with ProgressReporter() as reporter:
            done = finetune_folds(
                config,
                None if parsed.from_scratch else source,
                manifest,
                parts,
                parsed.out,
                resume=parsed.resume,
                device=device,
                reporter=reporter,
            )
        if rank() == 0:
            for part in screen(parsed.out, parts, done):
                console().print(part, soft_wrap=isinstance(part, Text))
            _say_stopped(done, arguments)
    outcome = done[-1].outcome
    return 130 if not outcome.finished and outcome.stop_signal == signal.SIGINT else 0


def _parse(arguments: Sequence[str]) -> Arguments:
    """The arguments, whose defaults are those of the recipe for the run's medium."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--from-scratch", "--from_scratch", action="store_true")
    known, _ = parser.parse_known_args(arguments[1:])
    source = RunFolder(Path(arguments[0])).read_config()
    start = finetuning(known.recipe, source, known.from_scratch)
    assert start.finetune is not None
    kind = _BY_MEDIUM[source.medium.name]
    missing: Any = tyro.MISSING
    clips: dict[str, Any] = {source.medium.name: start.clips}
    default = kind((), missing, start.finetune, start.train, seed=source.seed, recipe=known.recipe, **clips)
    prog = f"bridle finetune {arguments[0]}"
    return tyro.cli(kind, args=list(arguments[1:]), prog=prog, description=_DESCRIPTION, default=default)


def with_protocol(parsed: Arguments, medium: Medium) -> tuple[Arguments, Manifest]:
    """The arguments with the columns of a published set, and its clips."""
    assert parsed.protocol is not None
    named = (parsed.finetune.label, parsed.fold, parsed.split, parsed.group)
    data = read_published(parsed.protocol, parsed.manifest, named, medium)
    columns, protocol = data.columns, data.protocol
    labels = replace(parsed.finetune, label=columns.label, multi_label=protocol.multi_label, separator=protocol.separator)
    return replace(parsed, finetune=labels, fold=columns.fold, split=columns.split, group=columns.group), data.manifest


def _config(parsed: Arguments, run: Path) -> RunConfig:
    source = RunFolder(run).read_config()
    if parsed.epochs is not None and parsed.steps is not None:
        raise ConfigError(f"--epochs {parsed.epochs:g} and --steps {parsed.steps} are both given; give one of them")
    for name, length in (("epochs", parsed.epochs), ("steps", parsed.steps)):
        if length is not None and length <= 0:
            raise ConfigError(f"--{name} {length:g} must be more than 0; to measure frozen features use bridle evaluate")
    if not parsed.finetune.label:
        raise ConfigError("there is no column of labels; name it with --label COLUMN")
    phases = finetuning(parsed.recipe, source).phases
    if parsed.epochs is not None:
        phases = f"supervised:{parsed.epochs:g}"
    if parsed.steps is not None:
        phases = f"supervised:{parsed.steps}steps"
    config = finetuned_config(source, parsed.finetune, phases, parsed.recipe)
    return replace(config, seed=parsed.seed, train=parsed.train).with_clips(getattr(parsed, source.medium.name))


def screen(out: Path, parts: Sequence[Part], done: Sequence[Finetuned]) -> Iterator[RenderableType]:
    """What the command prints when it is done: scores, classes, confusions, and what to do next."""
    tests = [each.test for each in done if each.test is not None]
    for part, each in zip(parts, done, strict=False):
        where = fold_folder(out, part)
        if each.outcome.num_bad_files:
            yield Text(
                f"unreadable training files: {each.outcome.num_bad_files}, listed in {where}/quarantine.jsonl", style="yellow"
            )
        if each.test is not None and each.test.bad:
            first = each.test.bad[0]
            total = len(each.test.clips) + len(each.test.bad)
            text = f"not tested: {len(each.test.bad)} of {total} clips cannot be read, first {first.key} ({first.reason})"
            yield Text(f"{where}: {text}" if part.name else text, style="yellow")
    if len(parts) > 1 and len(tests) == len(parts):
        joined = cross_validation(parts, tests)
        made = table("test", ["fold", "clips", "score %"], [])
        for fold in joined.folds:
            made.add_row(fold.name, str(fold.num_clips), f"{100 * fold.score:.1f}")
        interval = joined.interval
        ends = "" if interval is None else f" ({100 * interval.low:.1f}-{100 * interval.high:.1f})"
        made.add_row("mean", "", Text(f"{100 * joined.score:.1f}{ends}", style="bold green"))
        made.caption = None if interval is None else interval.made
        yield made
    elif tests and tests[-1].metrics is not None:
        yield from classification_screen(tests[-1].metrics)
    elif tests and tests[-1].tags is not None:
        yield from tag_screen(tests[-1].tags)
    if done[-1].outcome.finished:
        folder = fold_folder(out, parts[0])
        if done[-1].step != done[-1].outcome.step:
            yield Text(f"the validation clips chose the weights of step {done[-1].step}")
        yield Text.assemble(("done", "bold green"), f" after {count(done[-1].outcome.step, 'step')}: {out}")
        yield Text(f"next: bridle predict {shlex.quote(str(folder))} DATA --out predictions.csv")


def classification_screen(metrics: ClassificationMetrics) -> Iterator[RenderableType]:
    """Scores of one class a clip, its classes from the worst on, and what is most often taken for what."""
    some = (each for each in metrics.top_k if 1 < each.k < len(metrics.classes))
    top = next((f", top {each.k} {100 * each.accuracy:.1f}" for each in some), "")
    low, high = wilson_interval(metrics.accuracy * metrics.num_clips, metrics.num_clips)
    yield Text(
        f"test: {count(metrics.num_clips, 'clip')}, accuracy {100 * metrics.accuracy:.1f} % "
        f"(95 %: {100 * low:.1f}-{100 * high:.1f}){top}, balanced "
        f"{100 * metrics.balanced_accuracy:.1f}, macro F1 {100 * metrics.macro_f1:.1f}, "
        f"calibration error {100 * metrics.calibration_error:.1f}",
        style="bold",
    )
    rows = sorted((row for row in metrics.classes if row.support), key=lambda row: (row.recall or 0.0, row.name))
    title = "classes" if len(rows) <= SHOWN_CLASSES else f"the {SHOWN_CLASSES} classes found least often"
    made = table(title, ["class", "test clips", "precision %", "recall %", "F1 %"], [])
    for row in rows[:SHOWN_CLASSES]:
        made.add_row(row.name, str(row.support), *(_percent(value) for value in (row.precision, row.recall, row.f1)))
    yield made
    names = [row.name for row in metrics.classes]
    wrong = [
        (times, names[truth], names[said])
        for truth, row in enumerate(metrics.confusion)
        for said, times in enumerate(row)
        if truth != said and times
    ]
    if wrong:
        shown = ", ".join(
            f"{truth} for {said} ({times})" for times, truth, said in sorted(wrong, reverse=True)[:SHOWN_CONFUSIONS]
        )
        yield Text(f"most often mistaken: {shown}")
    if metrics.without_clips:
        yield Text(f"no test clip of: {', '.join(metrics.without_clips[:SHOWN_CLASSES])}", style="yellow")


def tag_screen(tags: TagMetrics) -> Iterator[RenderableType]:
    """Scores of several labels a clip, and its classes from the worst on."""
    yield Text(
        f"test: {tags.num_clips} clips, mAP {_percent(tags.mean_average_precision)} %, AUC {_percent(tags.mean_auc)} %",
        style="bold",
    )
    rows = sorted((row for row in tags.classes if row.positives), key=lambda row: (row.average_precision or 0.0, row.name))
    title = "classes" if len(rows) <= SHOWN_CLASSES else f"the {SHOWN_CLASSES} classes found least well"
    made = table(title, ["class", "test clips", "average precision %", "AUC %"], [])
    for row in rows[:SHOWN_CLASSES]:
        made.add_row(row.name, str(row.positives), _percent(row.average_precision), _percent(row.auc))
    yield made
    if tags.without_positives:
        yield Text(f"no test clip of: {', '.join(tags.without_positives[:SHOWN_CLASSES])}", style="yellow")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _say_stopped(done: Sequence[Finetuned], arguments: Sequence[str]) -> None:
    if done[-1].outcome.finished:
        return
    again = shlex.join(argument for argument in arguments if argument != "--resume")
    console().print(f"[bold yellow]stopped[/] after {done[-1].outcome.step} steps; a checkpoint is written. Continue with:")
    console().print(f"  bridle finetune {again} --resume", soft_wrap=True, markup=False)
