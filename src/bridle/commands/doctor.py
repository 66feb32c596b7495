"""``bridle doctor DATA``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import Data, JsonFile, parse, write_json
from bridle.commands.display import console, stages, table
from bridle.config import to_dict
from bridle.data.manifest import likely_medium
from bridle.data.medium import MEDIA
from bridle.doctor.advice import BLANK
from bridle.doctor.plan import Plan
from bridle.doctor.report import Files, Report, examine
from bridle.doctor.speed import Speed
from bridle.paths import check_file
from bridle.recipes import recipe
from bridle.run import RunConfig
from bridle.wording import count

SHOWN_FILES = 10
SHOWN_KINDS = 4
_BAR_WIDTH = 40
_DESCRIPTION = """Examine recordings, pictures or films before training.
  Reads every header and decodes some files, puts them in the recipe's order,
  and times a few real training steps on this machine. Says what is broken, how
  long training takes and what to do. The exit status is 0 when training would
  start and 1 when it would not.

examples:
  bridle doctor recordings/
  bridle doctor pictures/ --recipe image-small
  bridle doctor recordings/ more.csv --recipe audio-base --no-speed
  bridle doctor recordings/ --all --json report.json
"""


@dataclass
class Arguments:
    """Of ``bridle doctor``."""

    data: Data
    recipe: Annotated[
        str | None, tyro.conf.arg(metavar="RECIPE", help="The recipe to train by; the small one of what is there if not given.")
    ] = None
    path: Annotated[
        str | None, tyro.conf.arg(metavar="COLUMN", help="Column with the paths of a table, if its name is not a usual one.")
    ] = None
    decode: Annotated[int, tyro.conf.arg(metavar="COUNT", help="Files to decode, drawn at random.")] = 200
    all: Annotated[bool, tyro.conf.arg(help="Decode every file, so that every broken one is found.")] = False
    speed: Annotated[bool, tyro.conf.arg(help="Time training steps on this machine.")] = True
    json: JsonFile = None


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle doctor", _DESCRIPTION)
    if parsed.json is not None:
        check_file(parsed.json)
    config = recipe(parsed.recipe or f"{likely_medium(parsed.data, parsed.path).name}-small")
    with stages() as on_progress:
        report = examine(
            parsed.data,
            config,
            path_column=parsed.path,
            num_decoded=None if parsed.all else parsed.decode,
            speed=parsed.speed,
            on_progress=on_progress,
        )
    if parsed.json is not None:
        write_json(parsed.json, json.dumps(to_dict(report), indent=1))
    for part in screen(report, config):
        console().print(part, soft_wrap=isinstance(part, str))
    _verdict(report, parsed, config.recipe)
    return 1 if report.problems else 0


def screen(report: Report, config: RunConfig) -> Iterator[RenderableType]:
    """What the command prints, but for the verdict."""
    files = report.files
    yield Text("")
    yield Text(f"{_headline(files, config)}{_size(files.num_bytes)}", style="bold")
    for name, number in report.others.items():
        yield Text(f"beside them: {count(number, MEDIA[name].noun)}, left out (recipes {name}-...)")
    yield kinds_table(files, BLANK[config.medium.name])
    yield extents_table(files)
    if files.bad:
        yield bad_table(files)
    yield Text("")
    yield plan_grid(report, config)
    if report.speed is not None:
        yield Text("")
        yield speed_table(report.speed)
        yield Text(_speed_line(report.speed))
    if report.advice:
        yield Text("\nwhat to do", style="bold")
        grid = Table.grid(padding=(0, 1))
        for line in report.advice:
            grid.add_row(Text("-", style="yellow"), Text(line))
        yield grid


def _headline(files: Files, config: RunConfig) -> str:
    medium, good = config.medium, files.num_files - len(files.bad)
    many = count(files.num_files, medium.noun)
    time = f"{_duration(files.total_seconds)}, " if files.total_seconds else ""
    if files.num_files == 1:
        return f"{many}, {'readable' if good else 'not readable'} as far as seen, {time}"
    return f"{many}, {good:,} readable as far as seen, {time}"


def kinds_table(files: Files, blank: str) -> Table:
    """What distinguishes the files, the most frequent first; decoded files; quantiles of the extents."""
    made = Table.grid(padding=(0, 2))
    for name, counts in files.kinds.items():
        shown = [f"{text}: {count:,}" for text, count in list(counts.items())[:SHOWN_KINDS]]
        rest = sum(list(counts.values())[SHOWN_KINDS:])
        made.add_row(Text(name, style="cyan"), Text("   ".join(shown + ([f"others: {rest:,}"] if rest else []))))
    faults = {"broken": files.num_broken, blank: len(files.blank), "cut short": len(files.cut_short)}
    found = f"{count(files.num_decoded, 'file')}, of which " + ", ".join(f"{number:,} {how}" for how, number in faults.items())
    made.add_row(Text("decoded", style="cyan"), Text(found))
    quantiles = "   ".join(f"{name}: {_extent(value, files.unit)}" for name, value in files.quantiles.items())
    made.add_row(Text("durations" if files.unit == "s" else "shorter edge", style="cyan"), Text(quantiles))
    return made


def extents_table(files: Files) -> Table:
    """A bar for every range of extents."""
    made = Table.grid(padding=(0, 1))
    most = max(number for _, _, number in files.histogram)
    for start, end, number in files.histogram:
        bar = "█" * round(_BAR_WIDTH * number / most) or ("▏" if number else "")
        label = " - ".join(dict.fromkeys((_extent(start, files.unit), _extent(end, files.unit))))
        made.add_row(Text(label, justify="right", style="cyan"), Text(bar, style="green"), Text(f"{number:,}", justify="right"))
    return made


def bad_table(files: Files) -> Table:
    """The reasons with their counts, then the first files."""
    made = table(f"\nunreadable: {len(files.bad):,}", ["reason", "first files", "files"], [], left=2)
    shown = files.bad[:SHOWN_FILES]
    for reason, number in files.bad_reasons.items():
        keys = [file.key for file in shown if file.reason == reason]
        more = ["..."] if number > len(keys) else []
        made.add_row(Text(reason), Text("\n".join(keys + more)), f"{number:,}")
    return made


def plan_grid(report: Report, config: RunConfig) -> Table:
    """What the recipe makes of the files."""
    plan, levels, size = report.plan, config.quantizer.num_codebooks, config.quantizer.codebook_size
    memory = "" if report.free_memory_bytes is None else f"; {_size(report.free_memory_bytes)} are free"
    rows = {
        "recipe": f"{plan.recipe}: {plan.num_parameters / 1e6:.1f} million parameters, {config.phases}",
        "an epoch": f"{_clips(plan, config)}, {count(plan.steps_per_epoch, 'step')}, {100 * plan.padding_ratio:.1f} % padding",
        "codebooks": f"{levels} x {size} codes from {plan.num_patches:,} patches an epoch",
        "memory": f"{_size(plan.memory_bytes)} for weights and optimiser, "
        f"{_size(min(plan.cache_bytes, plan.cache_limit_bytes))} for decoded files{memory}",
        "disk": f"{_size(plan.disk_bytes)} for checkpoints; {_size(report.free_disk_bytes)} are free here",
    }
    made = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        made.add_row(Text(name, style="cyan"), Text(text))
    return made


def _clips(plan: Plan, config: RunConfig) -> str:
    if not config.medium.timed:
        return count(plan.num_clips, config.medium.noun)
    clips = count(plan.num_clips, "clip")
    return f"{clips} of up to {plan.crop_seconds:.3g} s, {100 * plan.seen_ratio:.0f} % of the time"


def speed_table(speed: Speed) -> Table:
    """The estimate, a row per phase."""
    made = table("estimated time", ["phase", "length", "steps", "a step", "an epoch", "the phase"], [], left=2)
    for phase in speed.phases:
        times = (_duration(value) for value in (phase.step_seconds, phase.epoch_seconds, phase.seconds))
        made.add_row(phase.kind, phase.length, f"{phase.num_steps:,}", *times)
    return made


def _speed_line(speed: Speed) -> str:
    sizes = list(dict.fromkeys(phase.num_timed_clips for phase in speed.phases))
    clips = f"{', '.join(map(str, sizes))} {'clip' if sizes == [1] else 'clips'}"
    where = f"{speed.device}, {speed.precision}, timed on batches of {clips}"
    first, later = _duration(speed.read_seconds), _duration(speed.reread_seconds)
    return f"in all about {_duration(speed.seconds)} ({where}); reading takes {first} in the first epoch, {later} in later ones"


def _verdict(report: Report, parsed: Arguments, name: str) -> None:
    console().print()
    if not report.problems:
        data = " ".join(shlex.quote(source) for source in parsed.data)
        console().print("[bold green]ready to train[/]" + (", better after what is said above" if report.advice else ""))
        console().print(f"  bridle pretrain {name} --data {data} --out runs/first", markup=False, soft_wrap=True)
    for problem in report.problems:
        console().print(Text.assemble(("training would not start: ", "bold red"), problem), soft_wrap=True)


def _extent(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit != "s" or value < 120 else _duration(value)


def _duration(seconds: float) -> str:
    """Two figures of a length of time in the unit that fits."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.0f} kB"
