"""``bridle shard DATA --out SHARDS``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from bridle.commands.arguments import Data, parse
from bridle.commands.display import console, progress
from bridle.commands.writing import PathColumn, say_bad, say_done
from bridle.data.manifest import likely_medium, read_manifest
from bridle.data.medium import MEDIA, MediumName
from bridle.data.sharding import QUARANTINE_NAME, write_shards
from bridle.errors import ConfigError
from bridle.paths import check_folder
from bridle.wording import count

_DESCRIPTION = """Pack many files into few: tar shards, and an index of them.
  Disks and object stores read few large files faster than many small ones.
  shard-00000.tar and so on hold the files as they are and, beside each, its
  columns (the class and split its folders say, or those of a table) as .json:
  the format of WebDataset. index.parquet says where each file lies, so
  that a run on the folder starts at once. Give the folder, or where it was
  uploaded to, to any command as DATA. Unreadable files are listed and passed
  over. The same call again continues one that was cut short.

examples:
  bridle shard recordings/ --out shards/
  bridle shard train.csv test.csv --out shards/ --shard-megabytes 1000
  bridle shard pictures/ --out shards/ --medium image \\
      --clips-per-shard 10000
  bridle pretrain audio-small --data shards/ --out runs/first
"""


@dataclass
class Arguments:
    """Of ``bridle shard``."""

    data: Data
    out: Annotated[
        Path, tyro.conf.arg(metavar="FOLDER", help="Where shards and index go; created if missing, outside of DATA.")
    ]
    medium: Annotated[MediumName | None, tyro.conf.arg(help="What is looked for; what most files look like, if not given.")] = (
        None
    )
    path: PathColumn = None
    shard_megabytes: Annotated[
        float, tyro.conf.arg(metavar="MB", help="A shard is closed before it becomes larger; a larger file has its own.")
    ] = 500.0
    clips_per_shard: Annotated[int | None, tyro.conf.arg(metavar="COUNT", help="Or before it has more files; any number.")] = (
        None
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle shard", _DESCRIPTION)
    _check_out(parsed.out, parsed.data)
    medium = MEDIA[parsed.medium] if parsed.medium else likely_medium(parsed.data, parsed.path)
    manifest = read_manifest(list(parsed.data), medium, path_column=parsed.path, probe=False)
    with progress("files") as bar:
        task = bar.add_task(medium.nouns, total=len(manifest))
        done = write_shards(
            manifest,
            medium,
            parsed.out,
            shard_bytes=round(parsed.shard_megabytes * 1e6),
            clips_per_shard=parsed.clips_per_shard,
            progress=lambda number: bar.update(task, completed=number),
        )
        bar.update(task, completed=len(manifest))
    if done.num_kept_shards:
        console().print(f"shards of an earlier call that were kept: {done.num_kept_shards}")
    say_bad(done.bad, f", listed in {parsed.out / QUARANTINE_NAME}")
    size = f"{done.num_bytes / 1e6:.1f} MB"
    say_done(f"{count(done.num_clips, medium.noun)} in {count(done.num_shards, 'shard')}, {size}", parsed.out)
    folder = shlex.quote(str(parsed.out))
    console().print(Text(f"next: bridle pretrain {medium.name}-small --data {folder} --out runs/first"), soft_wrap=True)
    return 0


def _check_out(out: Path, data: Sequence[str]) -> None:
    """Refuse a folder that cannot be written to, or that the next call would read as data."""
    if re.match(r"[a-z0-9]+:/", str(out)):
        raise ConfigError(f"--out {out} is a URL; write to a local folder, and copy it there")
    check_folder(out)
    for source in data:
        if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
            raise ConfigError(f"--out {out} lies in {source}, which is read; choose a folder outside of it")
