"""``bridle demo``: the whole way on a small sound set, by the commands that a user would type."""

from __future__ import annotations

import importlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import parse, write_json
from bridle.commands.display import console
from bridle.commands.evaluate import PROBE_TITLES, points
from bridle.config import from_dict
from bridle.demo import ESC50, Sounds, find_sounds, steps_in
from bridle.doctor.speed import Speed
from bridle.errors import ConfigError, RunError
from bridle.eval.evaluate import RANDOM, RUN, Evaluation
from bridle.eval.features import BAG_OF_CODES, CodeStatistics
from bridle.eval.gain import Gain

RECIPE, MARK = "audio-demo", "demo.json"
_BAR_WIDTH, _PICTURE_WIDTH = 18, 100
_DESCRIPTION = """The whole way on a small sound set: look at the data, pretrain, evaluate, tokenize, embed.
  The sounds are those of --data, else ESC-10 from the web where it can be had, else a synthetic set. A
  second demo in the same folder replaces the first one's results and keeps its sounds.

examples:
  bridle demo
  bridle demo --offline --minutes 1
  bridle demo --data recordings/ --out demo-of-mine
"""


@dataclass
class Arguments:
    """Of ``bridle demo``."""

    data: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help="Labelled recordings: a CSV with paths and classes, or a folder for each class."),
    ] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where everything goes.")] = Path("demo")
    minutes: Annotated[float, tyro.conf.arg(help="Of pretraining, about.")] = 3.0
    steps: Annotated[int | None, tyro.conf.arg(help="Of pretraining, instead of --minutes.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Of the synthetic sounds and of the run.")] = 0
    offline: Annotated[bool, tyro.conf.arg(help="Download nothing.")] = False
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg", help="Save the last screen as a picture.")] = None


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle demo", _DESCRIPTION)
    if parsed.minutes <= 0 or (parsed.steps is not None and parsed.steps < 1):
        raise ConfigError(f"minutes is {parsed.minutes} and steps {parsed.steps}; both must be above 0")
    begin, out = time.monotonic(), parsed.out
    _clear(out)
    sounds = _find_sounds(parsed)
    data, run = str(sounds.manifest), str(out / "run")
    protocol = [f"--{sounds.protocol}", sounds.protocol] if sounds.protocol else []
    status = _step(1, "Look at the data", ["doctor", data, "--recipe", RECIPE, "--json", str(out / "doctor.json")])
    if status:
        return status
    steps = parsed.steps or steps_in(60 * parsed.minutes, from_dict(Speed, _read_json(out / "doctor.json")["speed"]))
    phases = ["--phases", f"cold:{steps}steps", "--seed", str(parsed.seed)]
    for number, title, command in (
        (2, "Pretrain, without labels", ["pretrain", RECIPE, "--data", data, "--out", run, *phases]),
        (3, "Judge it", ["evaluate", run, data, "--label", "class", *protocol, "--json", str(out / "evaluation.json")]),
        (4, "Write codes", ["tokenize", run, data, "--out", str(out / "codes")]),
        (5, "Write embeddings", ["embed", run, data, "--out", str(out / "embeddings")]),
    ):
        status = _step(number, title, command)
        if status:
            return status
    content = _read_json(out / "evaluation.json")
    evaluation = from_dict(Evaluation, {key: value for key, value in content.items() if key not in ("run", "manifest")})
    seconds = time.monotonic() - begin
    write_json(out / MARK, json.dumps({"sounds": sounds.title, "steps": steps, "seconds": round(seconds, 1)}, indent=1))
    final = screen(evaluation, sounds, out, steps, seconds)
    console().print()
    console().print(final)
    if parsed.picture is not None:
        save_picture(final, parsed.picture)
    return 0


def screen(evaluation: Evaluation, sounds: Sounds, out: Path, steps: int, seconds: float) -> RenderableType:
    """The last screen: the encoder beside what it must beat, its codes, where the files are, what to do next."""
    parts: list[RenderableType] = [
        Text(f"{sounds.title}: {len(evaluation.clips)} clips, {len(evaluation.classes)} classes", style="bold"),
        Text(f"{steps} steps of pretraining without labels; probes by {evaluation.splits}\n", style="dim"),
        accuracy_bars(evaluation),
        Text(""),
        gain_grid(evaluation.gains),
    ]
    if any(gain.mean <= 0 for gain in evaluation.gains if gain.over == RANDOM):
        parts.append(Text("This run did not pay here: give it more --minutes, or more sounds.", style="yellow"))
    if evaluation.codes is not None:
        parts.append(Text(f"\n{_describe_codes(evaluation.codes)}"))
    grid = Table.grid(padding=(0, 2))
    for name, text in (
        ("run", "encoder, tokenizer, settings and metrics"),
        ("codes", "discrete codes of every clip, parquet"),
        ("embeddings", "a vector for every clip, parquet"),
        ("evaluation.json", "all numbers and every prediction"),
    ):
        grid.add_row(Text(str(out / name), style="cyan"), Text(text))
    commands = [
        f"bridle inspect {shlex.quote(str(out / 'run'))}",
        "bridle pretrain audio-small --data YOUR/RECORDINGS --out runs/first",
    ]
    following = [Text(f"  {command}", style="bold") for command in commands]
    title = f"bridle demo, {seconds / 60:.1f} minutes in all"
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


def in_words(gains: Sequence[Gain]) -> Text:
    """What several probes say together."""
    if all(gain.mean > 0 for gain in gains):
        certain = all(gain.certain for gain in gains)
        return Text("clearly better", "bold green") if certain else Text("better, but not beyond doubt", "green")
    if all(gain.mean < 0 for gain in gains):
        certain = all(gain.certain for gain in gains)
        return Text("clearly worse", "bold red") if certain else Text("no better", "yellow")
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
    return f"codes: {len(report.used)} levels of {report.codebook_size}, {100 * used:.0f} % in use, perplexity/K {levels} %"


def _clear(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else.

    Raises:
        RunError: the folder holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise RunError(f"{out} exists and is not the folder of an earlier demo; choose another --out")
    for name in ("run", "codes", "embeddings"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("doctor.json", "evaluation.json"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARK, "{}")


def _find_sounds(parsed: Arguments) -> Sounds:
    console().print("[bold]bridle demo[/]: an encoder of your own, from sounds without labels\n")
    console().print("looking for sounds ...", style="dim")
    bar = Progress(TextColumn("downloading ESC-50"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console())
    tasks: list[TaskID] = []

    def on_bytes(done: int, total: int) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task("", total=total or None))
        bar.update(tasks[0], completed=done)

    archive = None if parsed.offline else ESC50
    try:
        sounds = find_sounds(parsed.data, parsed.out / "sounds", seed=parsed.seed, archive=archive, on_bytes=on_bytes)
    finally:
        if tasks:
            bar.stop()
    console().print(Text.assemble(("sounds: ", "bold"), sounds.title, (f"\nbecause {sounds.reason}", "dim")))
    return sounds


def _step(number: int, title: str, command: list[str]) -> int:
    """Say what comes and which command it is, then run that command."""
    console().print()
    console().rule(f"[bold cyan]{number}[/] {title}", align="left", style="cyan")
    console().print(Text(f"$ bridle {shlex.join(command)}", style="bold"), soft_wrap=True)
    return int(importlib.import_module(f"bridle.commands.{command[0]}").main(command[1:]))


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
