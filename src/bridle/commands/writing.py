"""What ``bridle tokenize``, ``bridle embed`` and ``bridle predict`` share: the model, the bar and the closing lines.

torch is imported only when a command is known to have something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import tyro
from rich.text import Text

from bridle.commands.display import console, progress
from bridle.paths import check_folder, check_run, check_sources

if TYPE_CHECKING:
    from bridle.data.manifest import Manifest
    from bridle.data.quarantine import BadFile
    from bridle.inference import Model
    from bridle.tables import Progress, Written

SHOWN_FILES = 10
FILES_PER_PART = 1000

Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where part-00000.parquet and so on go; created if missing.")]
FilesPerPart = Annotated[int, tyro.conf.arg(metavar="COUNT", help="Files in a part.")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE", help="Such as cpu or cuda:1; auto: the GPU where there is one.")]
PathColumn = Annotated[
    str | None,
    tyro.conf.arg(metavar="COLUMN", help="Column of a table with the paths, if its name is not a usual one."),
]

Write = Callable[["Model", "Manifest", Path, "Progress"], "Written"]
"""One of the writers of :mod:`bridle.tables`, its own settings filled in."""


class Request(Protocol):
    """Arguments that the three commands share."""

    run: Path
    data: tuple[str, ...]
    out: Path
    path: str | None
    device: str


def write_tables(request: Request, write: Write, needs: str = "") -> int:
    """Run a writer over the data with a progress bar, and say what was written; returns the exit status.

    Args:
        request: what the user asked for.
        write: the writer.
        needs: as for :func:`read_all`.

    Raises:
        BridleError: as :func:`read_all` and the writer, or ``out`` cannot be a folder.
    """
    out = request.out
    check_folder(out)
    model, manifest = read_all(request, needs)
    from bridle.tables import QUARANTINE_NAME
    from bridle.wording import count

    with progress("files") as bar:
        task = bar.add_task(f"model {model.fingerprint}", total=len(manifest))
        written = write(model, manifest, out, lambda done: bar.update(task, completed=done))
    if written.num_kept_parts:
        console().print(f"parts of an earlier call that were kept: {written.num_kept_parts}")
    say_bad(written.bad, f", listed in {out / QUARANTINE_NAME}")
    say_done(f"{count(written.num_rows, 'row')} in {count(written.num_parts, 'part')}", out)
    console().print(
        f"read them with: pyarrow.parquet.read_table({str(out)!r}), or pandas.read_parquet", markup=False, soft_wrap=True
    )
    return 0


def read_all(request: Request, needs: str = "") -> tuple[Model, Manifest]:
    """The model of a run and the files; what is quickly known to be wrong is said before anything is loaded.

    Args:
        request: what the user asked for.
        needs: the part of the model, ``classifier`` or ``tokenizer``, without which there is nothing to do.

    Raises:
        RunError: it is no run, or has no weights or not that part.
        DataError: nothing can be read.
        ConfigError: there is no such device.
    """
    check_run(request.run)
    check_sources(request.data)
    from bridle.data.manifest import read_manifest
    from bridle.inference import load

    model = load(request.run, None if request.device == "auto" else request.device)
    if needs:
        getattr(model, needs)  # raises where there is none
    say_unfinished(request.run, model)
    return model, read_manifest(list(request.data), model.config.medium, path_column=request.path)


def say_unfinished(run: Path, model: Model) -> None:
    """A yellow line when training has not come to its end."""
    from bridle.summary import unfinished

    if line := unfinished(run, model.config):
        console().print(Text(line, style="yellow"), soft_wrap=True)


def say_bad(bad: Sequence[BadFile], where: str) -> None:
    """Print how many files cannot be read, ``where`` they are listed, and the first of them."""
    if not bad:
        return
    console().print(Text.assemble((f"unreadable files: {len(bad)}", "yellow"), where), soft_wrap=True)
    for file in bad[:SHOWN_FILES]:
        console().print(Text(f"  {file.key}: {file.reason}"), soft_wrap=True)
    if len(bad) > SHOWN_FILES:
        console().print(f"  and {len(bad) - SHOWN_FILES} more")


def say_done(what: str, where: Path) -> None:
    """The closing line of a command."""
    console().print(Text.assemble(("done", "bold green"), f" {what}: {where}"), soft_wrap=True)
