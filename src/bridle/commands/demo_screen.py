"""The last screen of ``bridle demo``."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bridle.commands.evaluate import PROBE_TITLES, points
from bridle.errors import ConfigError
from bridle.eval.evaluate import RANDOM, RUN, Evaluation
from bridle.eval.features import BAG_OF_CODES, CodeStatistics
from bridle.eval.gain import Gain

_BAR_WIDTH, _PICTURE_WIDTH = 18, 100
_CEILING = 0.99  # of the random encoder: from here on nothing is left to be gained


@dataclass(frozen=True)
class Story:
    """What the screen tells beside the evaluations.

    Attributes:
        title: of the data.
        nouns: what several files are called.
        out: folder of everything.
        steps: of pretraining.
        seconds: in all.
        following: the command with which a user would go on.
    """

    title: str
    nouns: str
    out: Path
    steps: int
    seconds: float
    following: str


def screen(evaluations: Mapping[Path, Evaluation], story: Story) -> RenderableType:
    """The last screen: the encoder beside what it must beat, its codes, where the files are, what to do next.

    Args:
        evaluations: one for each column of labels, by the file it was read from.
        story: the rest.
    """
    first = next(iter(evaluations.values()))
    parts: list[RenderableType] = [
        Text(f"{story.title}: {len(first.clips)} {story.nouns}", style="bold"),
        Text(f"{story.steps} steps of pretraining without labels; probes by {first.splits}", style="dim"),
    ]
    for evaluation in evaluations.values():
        parts += [
            Text(f"\n{len(evaluation.classes)} classes of '{evaluation.columns.label}'", style="bold"),
            accuracy_bars(evaluation),
            Text(""),
            gain_grid(evaluation.gains),
        ]
        if not any(gain.mean > 0 and gain.certain for gain in evaluation.gains if gain.over == RANDOM):
            parts.append(Text(without_gain(evaluation, story.nouns), style="yellow"))
    if first.codes is not None:
        parts.append(Text(f"\n{_describe_codes(first.codes)}"))
    grid = Table.grid(padding=(0, 2))
    for path, text in (
        (story.out / "run", "encoder, tokenizer, settings and metrics"),
        (story.out / "codes", f"discrete codes of all {story.nouns}, parquet"),
        (story.out / "embeddings", f"a vector for each of the {story.nouns}, parquet"),
        *((path, "all numbers and every prediction") for path in evaluations),
    ):
        grid.add_row(Text(str(path), style="cyan"), Text(text))
    commands = (f"bridle inspect {shlex.quote(str(story.out / 'run'))}", story.following)
    following = [Text(f"  {command}", style="bold") for command in commands]
    title = f"bridle demo, {story.seconds / 60:.1f} minutes in all"
    return Panel(Group(*parts, Text(""), grid, Text("\nnext:"), *following), title=title, border_style="cyan", expand=False)


def accuracy_bars(evaluation: Evaluation) -> Table:
    """Accuracy in per cent of every kind of features by every probe, as number and bar."""
    names = list(evaluation.rows[0].probes)
    made = Table(box=None, header_style="bold cyan", pad_edge=False)
    made.add_column("")
    for name in names:
        made.add_column(f"{PROBE_TITLES[name][0]} %", justify="right")
        made.add_column("", width=_BAR_WIDTH)
    titles = {RUN: "pretrained encoder", BAG_OF_CODES: "its codes, counted"}
    for row in evaluation.rows:
        style = "bold green" if row.features == RUN else ""
        cells = []
        for result in row.probes.values():
            filled = round(_BAR_WIDTH * result.accuracy)
            bar = Text.assemble(("█" * filled, style or "cyan"), ("░" * (_BAR_WIDTH - filled), "dim"))
            cells += [Text(f"{100 * result.accuracy:.1f}", style=style), bar]
        made.add_row(Text(titles.get(row.features, row.features), style=style), *cells)
    return made


def gain_grid(gains: Sequence[Gain]) -> Table:
    """What pretraining gained, in points and in words that claim no more than the intervals do."""
    made = Table(box=None, header_style="bold cyan", pad_edge=False)
    made.add_column("gain over")
    for probe in dict.fromkeys(gain.probe for gain in gains):
        made.add_column(f"{PROBE_TITLES[probe][0]}, points (95 %)")
    made.add_column("")
    for over in sorted({gain.over for gain in gains}, key=lambda name: name != RANDOM):
        cells = [gain for gain in gains if gain.over == over]
        made.add_row(over, *(points(gain) for gain in cells), in_words(cells))
    return made


def without_gain(evaluation: Evaluation, nouns: str) -> str:
    """What to say when no probe surely finds the pretrained encoder better than the random one."""
    gains = [gain for gain in evaluation.gains if gain.over == RANDOM]
    if any(gain.mean < 0 and gain.certain for gain in gains):
        return f"This run did not pay here: give it more --minutes, or more {nouns}."
    if all(result.accuracy >= _CEILING for row in evaluation.rows if row.features == RANDOM for result in row.probes.values()):
        return "There was nothing to gain here: the random encoder tells them, too."
    return f"Whether this run paid here is not certain: give it more --minutes, or more {nouns}."


def in_words(gains: Sequence[Gain]) -> Text:
    """What several probes say together."""
    if all(gain.mean > 0 for gain in gains):
        certain = all(gain.certain for gain in gains)
        return Text("clearly better", "bold green") if certain else Text("better, but not beyond doubt", "green")
    if all(gain.mean < 0 for gain in gains):
        certain = all(gain.certain for gain in gains)
        return Text("clearly worse", "bold red") if certain else Text("no better", "yellow")
    better = [gain.probe for gain in gains if gain.mean > 0 and gain.certain]
    if better and not any(gain.mean < 0 and gain.certain for gain in gains):
        return Text(f"clearly better by {' and '.join(PROBE_TITLES[probe][0] for probe in better)} only", "green")
    return Text("no better by every probe", "yellow")


def save_picture(final: RenderableType, path: Path) -> None:
    """Save the last screen as SVG.

    Raises:
        ConfigError: the file cannot be written.
    """
    recorder = Console(record=True, width=_PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    recorder.print(final)
    try:
        recorder.save_svg(str(path), title="bridle demo")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file in a folder that exists") from error


def _describe_codes(codes: CodeStatistics) -> str:
    report = codes.report
    used = sum(report.used) / len(report.used)
    levels = " ".join(f"{100 * value:.0f}" for value in report.perplexity)
    return f"codes: {len(report.used)} levels of {report.codebook_size}, {100 * used:.0f} % in use, perplexity / K {levels} %"
