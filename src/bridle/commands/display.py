"""What a user sees: one console, progress bars, tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

_CONSOLE: list[Console] = []
_WIDE = 110  # columns from which on a long bar leaves room for the values


def console() -> Console:
    """The one console, on standard output."""
    if not _CONSOLE:
        _CONSOLE.append(Console(highlight=False))
    return _CONSOLE[0]


class _PlainTable(Table):
    """Shows strings as they are: names of classes and files may hold brackets, which are markup to rich."""

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        """Add a row."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **style)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and whose other columns are numbers."""
    made = _PlainTable(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    for index, column in enumerate(columns):
        made.add_column(Text(column), justify="left" if index < left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def progress(unit: str) -> Progress:
    """A progress bar with count, rate of ``unit`` and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(),
    )


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a job, drawn when it is first told about: ``on_progress(stage, done, total)``."""
    with progress("") as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield on_progress


class ProgressReporter:
    """Draws the progress of a pretraining: a bar for each phase with loss, codes in use, speed and time left.

    Without a terminal it prints a line now and then instead.
    """

    def __init__(self, every_seconds: float = 15.0) -> None:
        whole = Column(no_wrap=True, overflow="ignore")
        self._bar = Progress(
            TextColumn("[bold]{task.description}", table_column=whole),
            BarColumn(bar_width=24 if console().width >= _WIDE else 8, table_column=whole),
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("left", table_column=whole),
            TimeRemainingColumn(elapsed_when_finished=False, table_column=whole),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console(),
            disable=not console().is_terminal,
            expand=True,
        )
        self._task: TaskID | None = None
        self._notes: set[str] = set()
        self._name, self._steps, self._done = "", 0, 0
        self._every, self._next_line = every_seconds, 0.0

    def __enter__(self) -> ProgressReporter:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """Print one line; a note that several folds have once."""
        if text in self._notes:
            return
        if text.startswith("note: "):
            self._notes.add(text)
        style = {"note": "yellow", "ALARM": "bold red"}.get(text.partition(":")[0], "")
        console().print(Text(text, style=style), soft_wrap=True)

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        """A bar for the phase."""
        self._name, self._steps, self._done, self._next_line = (
            f"phase {number}/{total} {name.split('-', 1)[-1]}",
            steps,
            done,
            0.0,
        )
        self._task = self._bar.add_task(self._name, total=steps, completed=done, note="")

    def step(self, done: int) -> None:
        """Move the bar."""
        self._done = done
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def values(self, values: dict[str, float]) -> None:
        """Show the newest values."""
        note = describe(values)
        if self._task is not None:
            self._bar.update(self._task, note=note)
        if self._bar.disable and (time.monotonic() >= self._next_line or self._done == self._steps):
            console().print(f"{self._name}  {self._done}/{self._steps}  {note}", soft_wrap=True)
            self._next_line = time.monotonic() + self._every

    def examined(self, step: int, values: dict[str, float]) -> None:
        """A line that stays, above the bar."""
        console().print(Text(f"step {step}: {describe(values)}"), soft_wrap=True)


_MEASURED = (
    ("validation/accuracy", "validation accuracy"),
    ("validation/mean_average_precision", "validation mAP"),
    ("probe/knn", "probe kNN"),
    ("probe/linear", "probe linear"),
)


def describe(values: dict[str, float]) -> str:
    """The few values worth a glance: the losses' mean over levels, accuracy (of level 0), codes in use per level, probes."""

    def mean(prefix: str) -> float | None:
        found = [value for name, value in values.items() if name.startswith(prefix)]
        return sum(found) / len(found) if found else None

    parts = []
    for prefix, label in (
        ("code/", "loss"),
        ("patch", "loss"),
        ("class", "loss"),
        ("feature", "feature loss"),
        ("commitment", "commitment"),
    ):
        value = mean(prefix)
        if value is not None:
            parts.append(f"{label} {value:.3f}")
    for name, label in (("accuracy/0", "accuracy"), ("accuracy", "accuracy"), *_MEASURED):
        if name in values:
            parts.append(f"{label} {100 * values[name]:.1f}%")
    in_use = [f"{100 * value:.0f}" for name, value in values.items() if name.startswith("in_use/")]
    if in_use:
        parts.append(f"codes in use {' '.join(in_use)} %")
    if values.get("skipped"):
        parts.append("step skipped: non-finite gradient")
    return "  ".join(parts)
