"""``bridle demo``: the whole way on a small set of sounds, pictures or films, by the commands that a user would type."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from bridle.commands.arguments import parse, write_json
from bridle.commands.demo_screen import Story, save_picture, screen
from bridle.commands.display import console
from bridle.config import from_dict
from bridle.data.medium import MediumName
from bridle.demo.digits import find_films, find_pictures
from bridle.demo.labelled import LabelledSet, steps_in
from bridle.demo.sounds import ESC50, find_sounds
from bridle.doctor.speed import Speed
from bridle.errors import ConfigError, RunError
from bridle.eval.evaluate import Evaluation
from bridle.recipes import recipe

MARK = "demo.json"
_DESCRIPTION = """The whole way on a small set: doctor, pretrain, evaluate, tokenize, embed.
  Sounds are those of --data, else ESC-10 from the web where it can be had,
  else a synthetic set. Pictures are handwritten digits that scikit-learn
  carries, films are those digits moving. A second demo in the same folder
  replaces the first one's results and keeps its data.

examples:
  bridle demo
  bridle demo --medium image
  bridle demo --medium video --minutes 5
  bridle demo --offline --minutes 1
  bridle demo --data recordings/ --out demo-of-mine
"""


@dataclass(frozen=True)
class Course:
    """What differs from medium to medium.

    Attributes:
        nouns: what several files are called, also the name of the folder with the data.
        recipe: of the pretraining.
        minutes: of pretraining, about, if not said otherwise; None for the recipe's own number of steps.
        out: where everything goes, if not said otherwise.
        find: gets the data into a folder.
    """

    nouns: str
    recipe: str
    minutes: float | None
    out: str
    find: Callable[[Arguments, Path], LabelledSet]

    @property
    def following(self) -> str:
        """The command with which a user would go on."""
        return f"bridle pretrain {self.recipe.replace('demo', 'small')} --data YOUR/{self.nouns.upper()} --out runs/first"


@dataclass
class Arguments:
    """Of ``bridle demo``."""

    medium: Annotated[MediumName, tyro.conf.arg(help="Sounds, pictures or films.")] = "audio"
    data: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help="Labelled recordings: a CSV with paths and classes, or a folder for each class."),
    ] = None
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help="Where everything goes; if not given, demo, demo-image or demo-video."),
    ] = None
    minutes: Annotated[
        float | None,
        tyro.conf.arg(help="Of pretraining, about; if not given, 3 for sounds, and the recipe's steps for pictures and films."),
    ] = None
    steps: Annotated[int | None, tyro.conf.arg(help="Of pretraining, instead of --minutes.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Of the data, where it is made or drawn, and of the run.")] = 0
    offline: Annotated[bool, tyro.conf.arg(help="Download nothing.")] = False
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg", help="Save the last screen as a picture.")] = None


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle demo", _DESCRIPTION)
    course = COURSES[parsed.medium]
    minutes = course.minutes if parsed.minutes is None else parsed.minutes
    if (minutes is not None and minutes <= 0) or (parsed.steps is not None and parsed.steps < 1):
        raise ConfigError(f"minutes is {minutes} and steps {parsed.steps}; both must be above 0")
    if parsed.data is not None and parsed.medium != "audio":
        raise ConfigError(f"--data {parsed.data} is for sounds; on your own {course.nouns} try: {course.following}")
    begin, out = time.monotonic(), parsed.out or Path(course.out)
    _clear(out)
    data = _find(parsed, course, out)
    single = len(data.labels) == 1
    results = {label: out / ("evaluation.json" if single else f"evaluation-{label}.json") for label in data.labels}
    source, doctor = str(data.source), str(out / "doctor.json")
    status = _step(1, "Look at the data", ["doctor", source, "--recipe", course.recipe, "--json", doctor])
    if status:
        return status
    steps = parsed.steps or _plan(course, minutes, out / "doctor.json")
    phases = ["--phases", f"cold:{steps}steps", "--seed", str(parsed.seed)]
    for number, (title, command) in enumerate(_commands(data, course.recipe, phases, out, results), start=2):
        status = _step(number, title, command)
        if status:
            return status
    seconds = time.monotonic() - begin
    mark = {"medium": parsed.medium, "data": data.title, "steps": steps, "seconds": round(seconds, 1)}
    write_json(out / MARK, json.dumps(mark, indent=1))
    evaluations = {path: _read_evaluation(path) for path in results.values()}
    final = screen(evaluations, Story(data.title, course.nouns, out, steps, seconds, course.following))
    console().print()
    console().print(final)
    if parsed.picture is not None:
        save_picture(final, parsed.picture)
    return 0


def _plan(course: Course, minutes: float | None, doctor: Path) -> int:
    """Steps of pretraining: as many as fit, by the doctor's estimate, or the recipe's."""
    if minutes is not None:
        return steps_in(60 * minutes, from_dict(Speed, _read_json(doctor)["speed"]))
    (phase,) = recipe(course.recipe).plan
    return phase.total_steps(1)


def _commands(
    data: LabelledSet, name: str, phases: list[str], out: Path, results: dict[str, Path]
) -> Iterator[tuple[str, list[str]]]:
    """The steps after the doctor's, as title and command; ``results`` are the evaluations' files by label."""
    source, run = str(data.source), str(out / "run")
    protocol = [f"--{data.protocol}", data.protocol] if data.protocol else []
    yield "Pretrain, without labels", ["pretrain", name, "--data", source, "--out", run, *phases]
    for label, path in results.items():
        title = "Judge it" if len(results) == 1 else f"Judge it by {label}"
        yield title, ["evaluate", run, source, "--label", label, *protocol, "--json", str(path)]
    yield "Write codes", ["tokenize", run, source, "--out", str(out / "codes")]
    yield "Write embeddings", ["embed", run, source, "--out", str(out / "embeddings")]


def _clear(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else.

    Raises:
        RunError: the folder holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise RunError(f"{out} exists and is not the folder of an earlier demo; choose another --out")
    for name in ("run", "codes", "embeddings"):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in (out / "doctor.json", *out.glob("evaluation*.json")):
        path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARK, "{}")


def _find(parsed: Arguments, course: Course, out: Path) -> LabelledSet:
    console().print(f"[bold]bridle demo[/]: an encoder of your own, from {course.nouns} without labels\n")
    console().print(f"looking for {course.nouns} ...", style="dim")
    found = course.find(parsed, out / course.nouns)
    console().print(Text.assemble((f"{course.nouns}: ", "bold"), found.title, (f"\nbecause {found.reason}", "dim")))
    return found


def _find_sounds(parsed: Arguments, folder: Path) -> LabelledSet:
    bar = Progress(TextColumn("downloading ESC-50"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console())
    tasks: list[TaskID] = []

    def on_bytes(done: int, total: int) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task("", total=total or None))
        bar.update(tasks[0], completed=done)

    archive = None if parsed.offline else ESC50
    try:
        return find_sounds(parsed.data, folder, seed=parsed.seed, archive=archive, on_bytes=on_bytes)
    finally:
        if tasks:
            bar.stop()


COURSES: MappingProxyType[MediumName, Course] = MappingProxyType(
    {
        "audio": Course("sounds", "audio-demo", 3.0, "demo", _find_sounds),
        "image": Course("pictures", "image-demo", None, "demo-image", lambda own, folder: find_pictures(folder, seed=own.seed)),
        "video": Course("films", "video-demo", None, "demo-video", lambda own, folder: find_films(folder, seed=own.seed)),
    }
)


def _step(number: int, title: str, command: list[str]) -> int:
    """Say what comes and which command it is, then run that command."""
    console().print()
    console().rule(f"[bold cyan]{number}[/] {title}", align="left", style="cyan")
    console().print(Text(f"$ bridle {shlex.join(command)}", style="bold"), soft_wrap=True)
    return int(importlib.import_module(f"bridle.commands.{command[0]}").main(command[1:]))


def _read_evaluation(path: Path) -> Evaluation:
    content = _read_json(path)
    return from_dict(Evaluation, {key: value for key, value in content.items() if key not in ("run", "manifest")})


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
