"""``bridle tokenize RUN DATA --out CODES``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bridle.commands.arguments import Data, Run, parse
from bridle.commands.writing import (
    FILES_PER_PART,
    Device,
    FilesPerPart,
    MaxRestarts,
    NumProcesses,
    Out,
    PathColumn,
    ShardText,
    write_tables,
)
from bridle.launch import reported

if TYPE_CHECKING:
    from bridle.data.manifest import Manifest
    from bridle.inference import Model
    from bridle.parquet import Progress, Shard, Written

_DESCRIPTION = """Write the discrete codes of every recording, picture or film as parquet.
  Each row is a window of a file; one longer than the clips of the run has
  several. Columns: key (its name in DATA), path (the file), start_seconds,
  grid (patches along time, height or frequency, width), codes (R numbers for
  each patch, time first) and fingerprint of the model. Unreadable files are
  listed and passed over. The same call again continues one that was cut short.

examples:
  bridle tokenize runs/first recordings/ --out codes/
  bridle tokenize runs/first train.csv test.csv --out codes/ --device cpu
  bridle tokenize runs/first recordings/ --out codes/ --num-processes 8
  bridle tokenize runs/first recordings/ --out codes/ --shard 2/4
      # on the second of four machines
"""


@dataclass
class Arguments:
    """Of ``bridle tokenize``."""

    run: Run
    data: Data
    out: Out
    path: PathColumn = None
    files_per_part: FilesPerPart = FILES_PER_PART
    device: Device = "auto"
    shard: ShardText = None
    num_processes: NumProcesses = 1
    max_restarts: MaxRestarts = 3


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    with reported():
        parsed = parse(Arguments, arguments, "bridle tokenize", _DESCRIPTION)
        return write_tables(["tokenize", *arguments], parsed, partial(_write, parsed.files_per_part), needs="tokenizer")


def _write(files_per_part: int, model: Model, manifest: Manifest, out: Path, shard: Shard, progress: Progress) -> Written:
    from bridle.tables import write_codes

    return write_codes(model, manifest, out, files_per_part=files_per_part, shard=shard, progress=progress)
