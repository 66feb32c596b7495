"""What ``bridle tokenize``, ``bridle embed`` and ``bridle predict`` share: the model, the bar and the closing lines.

torch is imported only when a command is known to have something to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import tyro
from rich.text import Text

from bridle.commands.display import console, progress
from bridle.errors import ConfigError
from bridle.launch import check_gpus, launch, launched, wants_launch
from bridle.paths import check_folder, check_run, check_sources
from bridle.wording import count

if TYPE_CHECKING:
    from bridle.data.manifest import Manifest
    from bridle.data.quarantine import BadFile
    from bridle.inference import Model
    from bridle.parquet import Progress, Shard, Written

SHOWN_FILES = 10
FILES_PER_PART = 1000

Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where part-00000.parquet and so on go; created if missing.")]
FilesPerPart = Annotated[int, tyro.conf.arg(metavar="COUNT", help="Files in a part.")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE", help="Such as cpu or cuda:1; auto: the GPU where there is one.")]
PathColumn = Annotated[
    str | None,
    tyro.conf.arg(metavar="COLUMN", help="Column of a table with the paths, if its name is not a usual one."),
]

ShardText = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="I/N",
        help="Write only the I-th of N shares of the parts, I from 1 to N: for N machines that share the folder, or whose "
        "folders are put together later. Each continues its own share; the one that finishes last lists the unreadable files.",
    ),
]
NumProcesses = Annotated[
    int, tyro.conf.arg(metavar="N", help="Processes on this machine, one for each GPU; each writes parts of its own.")
]
MaxRestarts = Annotated[
    int, tyro.conf.arg(metavar="N", help="How often the processes start again when one of several was killed.")
]

Write = Callable[["Model", "Manifest", Path, "Shard", "Progress"], "Written"]
"""One of the writers of :mod:`bridle.tables`, its own settings filled in."""


class Request(Protocol):
    """Arguments that the three commands share."""

    run: Path
    data: tuple[str, ...]
    out: Path
    path: str | None
    device: str


class TableRequest(Request, Protocol):
    """Arguments of the two that write parts."""

    files_per_part: int
    shard: str | None
    num_processes: int
    max_restarts: int


def write_tables(call: Sequence[str], request: TableRequest, write: Write, needs: str = "") -> int:
    """Run a writer over the data with a progress bar, and say what was written; returns the exit status.

    Args:
        call: the arguments of ``bridle``, for more processes of the same.
        request: what the user asked for.
        write: the writer.
        needs: as for :func:`read_all`.

    Raises:
        BridleError: as :func:`read_all` and the writer, or ``out`` cannot be a folder.
    """
    check_folder(request.out)
    index, num_shards = read_shard(request.shard)
    if wants_launch(request.num_processes):
        return _launch(call, request)
    model, manifest = read_all(request, needs)
    from bridle.parquet import WHOLE, Shard

    shard = Shard(index, num_shards)
    files = shard.parts(len(manifest), request.files_per_part).values()
    num_parts = len(WHOLE.parts(len(manifest), request.files_per_part))
    first = os.environ.get("RANK", "0") == "0"
    if num_parts < num_shards and first:
        fewer = max(1, len(manifest) // num_shards)
        note = f"note: {count(num_parts, 'part')} for {num_shards} shards; --files-per-part {fewer} gives each its share"
        console().print(Text(note, style="yellow"), soft_wrap=True)
    with progress("files") as bar:
        bar.disable = not first
        name = f"model {model.fingerprint}" + (f", {shard}" if num_shards > 1 else "")
        task = bar.add_task(name, total=sum(map(len, files)))
        written = write(model, manifest, request.out, shard, lambda done: bar.update(task, completed=done))
    if not launched():
        _say_written(request.out, written, "" if num_shards == 1 else f" ({shard})")
    return 0


def read_shard(text: str | None) -> tuple[int, int]:
    """Index from 0 and number of the shards: ``I/N`` counts from 1; the ranks of a machine share its shard.

    Raises:
        ConfigError: it is not ``I/N``, or I is not between 1 and N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", "1/1" if text is None else text)
    index, number = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= number:
        raise ConfigError(f"--shard {text} must be I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4 on four machines")
    return index - 1 + number * int(os.environ.get("RANK", "0")), number * int(os.environ.get("WORLD_SIZE", "1"))


def _launch(call: Sequence[str], request: TableRequest) -> int:
    """Write in several processes; what is known to be wrong is said before they start."""
    check_run(request.run)
    check_sources(request.data)
    if request.device == "auto":
        check_gpus(request.num_processes)
    ended = launch(call, request.num_processes, request.max_restarts)
    if ended.signal:
        console().print("[bold yellow]stopped[/]; the parts that are written are kept, and the same call goes on")
    else:
        from bridle.parquet import read_written

        _say_written(request.out, read_written(request.out), "" if request.shard is None else f" (shard {request.shard})")
    return ended.status


def _say_written(out: Path, written: Written, share: str) -> None:
    from bridle.parquet import QUARANTINE_NAME

    if written.num_kept_parts:
        console().print(f"parts of an earlier call that were kept: {written.num_kept_parts}")
    if written.num_missing_parts:
        say_bad(written.bad, "")
        parts = f"parts {written.num_parts} of {written.num_parts + written.num_missing_parts}"
        say_done(f"{parts}{share}; the others are not all there yet", out)
        return
    say_bad(written.bad, f", listed in {out / QUARANTINE_NAME}")
    say_done(f"{count(written.num_rows, 'row')} in {count(written.num_parts, 'part')}", out)
    console().print(
        f"read them with: pyarrow.parquet.read_table({str(out)!r}), or pandas.read_parquet", markup=False, soft_wrap=True
    )


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
