"""``bridle fetch [NAME]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import parse
from bridle.commands.display import console, table
from bridle.fetch import SOURCES, Source, fetch, find_source
from bridle.fetch.fetching import OnProgress
from bridle.paths import check_folder

_DESCRIPTION = """Download a published set, or say how to get it.
  Without NAME: which sets there are. Downloads go on where they broke off, in
  this call or the next, are checked against the published checksum, and are
  unpacked. What is there already is not fetched again. Each set has a licence
  of its own, which is shown first.

examples:
  bridle fetch
  bridle fetch esc-50
  bridle fetch cifar-10 --out /data/cifar-10
"""


@dataclass
class Arguments:
    """Of ``bridle fetch``."""

    name: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME]", help="A set, or a protocol that reads it; all are listed if not given."),
    ] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help="Where the set goes; data/NAME if not given.")] = None
    mirror: Annotated[
        str | None,
        tyro.conf.arg(metavar="URL", help="Take the files, by their names, from this folder on the web; checksums stay."),
    ] = None
    keep_archives: Annotated[bool, tyro.conf.arg(help="Keep archives when they have been unpacked.")] = False


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle fetch", _DESCRIPTION)
    if parsed.name is None:
        console().print(overview())
        console().print("bridle fetch NAME downloads one, or says how to get it")
        return 0
    source = find_source(parsed.name)
    folder = parsed.out or Path("data") / source.name
    for part in introduction(source):
        console().print(part, soft_wrap=True)
    if source.remotes:
        check_folder(folder)
        with _bars() as on_progress:
            done = fetch(
                source, folder, mirror=parsed.mirror or "", keep_archives=parsed.keep_archives, on_progress=on_progress
            )
        for name in done.kept:
            console().print(Text(f"is there already: {folder / name}"), soft_wrap=True)
        for note in done.notes:
            console().print(Text(note), soft_wrap=True)
        console().print(Text.assemble(("done", "bold green"), f" {source.name}: {folder}"), soft_wrap=True)
    for line in source.remaining:
        console().print(line, markup=False, soft_wrap=True)
    console().print(f"read by: {', '.join(source.protocols)}", soft_wrap=True)
    return 0


def overview() -> Table:
    """Every set with what is downloaded of it, and the protocols that read it."""
    rows = ([source.name, describe(source), ", ".join(source.protocols)] for source in SOURCES.values())
    return table("published sets", ["name", "download", "read by"], rows, left=3)


def describe(source: Source) -> str:
    """What of a set is downloaded: ``0.7 GB``, ``lists only``, or nothing, ``by registration``."""
    if not source.remotes:
        return "by registration"
    if all(not remote.folder for remote in source.remotes):
        return "lists only"
    return f"{source.size / 1e9:.1f} GB"


def introduction(source: Source) -> Iterator[Text]:
    """What is shown before anything is downloaded: the set, its licence, and what is to be cited."""
    yield Text(source.about.title, style="bold")
    for word, text in (("licence", source.about.licence), ("home", source.about.home), ("cite", source.about.citation)):
        yield Text.assemble((f"{word}: ", "dim"), text)


@contextmanager
def _bars() -> Iterator[OnProgress]:
    """A bar for each file, drawn when it is first told about."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield on_progress
