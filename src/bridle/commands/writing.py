"""What ``bridle tokenize`` and ``bridle embed`` share: the model, the progress bar and the closing lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from bridle.commands.display import console, progress
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.quarantine import BadFile
from bridle.inference import Model, load
from bridle.tables import QUARANTINE_NAME, Progress, Written

SHOWN_FILES = 10

Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where part-00000.parquet and so on go; created if missing.")]
FilesPerPart = Annotated[int, tyro.conf.arg(metavar="COUNT", help="Recordings in a part.")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE", help="Such as cpu or cuda:1; auto: the GPU where there is one.")]

Write = Callable[[Model, Manifest, Path, Progress], Written]
"""One of the writers of :mod:`bridle.tables`, its own settings filled in."""


def write_tables(run: Path, data: Sequence[str], out: Path, device: str, write: Write) -> int:
    """Run a writer over ``data`` with a progress bar, and say what was written; returns the exit status.

    Raises:
        BridleError: as ``load``, ``read_manifest`` and the writer.
    """
    model = load(run, None if device == "auto" else device)
    manifest = read_manifest(list(data), model.config.medium)
    with progress("files") as bar:
        task = bar.add_task(f"model {model.fingerprint}", total=len(manifest))
        written = write(model, manifest, out, lambda done: bar.update(task, completed=done))
    if written.num_kept_parts:
        console().print(f"parts of an earlier call that were kept: {written.num_kept_parts}")
    say_bad(written.bad, f", listed in {out / QUARANTINE_NAME}")
    parts = "1 part" if written.num_parts == 1 else f"{written.num_parts} parts"
    console().print(f"[bold green]done[/] {written.num_rows} rows in {parts}: {escape(str(out))}", soft_wrap=True)
    console().print(
        f"read them with: pyarrow.parquet.read_table({str(out)!r}), or pandas.read_parquet", markup=False, soft_wrap=True
    )
    return 0


def say_bad(bad: Sequence[BadFile], where: str) -> None:
    """Print how many files cannot be read, ``where`` they are listed, and the first of them."""
    if not bad:
        return
    console().print(f"[yellow]unreadable files: {len(bad)}[/]{escape(where)}", soft_wrap=True)
    for file in bad[:SHOWN_FILES]:
        console().print(f"  {file.key}: {file.reason}", markup=False, soft_wrap=True)
    if len(bad) > SHOWN_FILES:
        console().print(f"  and {len(bad) - SHOWN_FILES} more")
