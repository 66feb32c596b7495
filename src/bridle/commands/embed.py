"""``bridle embed RUN DATA --out VECTORS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

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
from bridle.nn.pooling import Pooling
from bridle.tables import write_embeddings

_DESCRIPTION = """Write an embedding of every recording, picture or film as parquet.
  Each row is a window of a file; one longer than the clips of the run has
  several. Columns: key (its name in DATA), path (the file), start_seconds,
  embedding (float32) and fingerprint of the model. Unreadable files are listed
  and passed over. The same call again continues one that was cut short.

examples:
  bridle embed runs/first recordings/ --out vectors/
  bridle embed runs/first recordings/ --out vectors/ \\
      --pooling statistics --layer 3
  bridle embed runs/first train.csv test.csv --out vectors/ --device cpu
  bridle embed runs/first recordings/ --out vectors/ --num-processes 8
  bridle embed runs/first recordings/ --out vectors/ --shard 2/4
      # on the second of four machines
"""


@dataclass
class Arguments:
    """Of ``bridle embed``."""

    run: Run
    data: Data
    out: Out
    path: PathColumn = None
    pooling: Annotated[
        Pooling,
        tyro.conf.arg(
            help="mean over all patches; time: over time only, which keeps a vector for each frequency band or place; grid: a "
            "mean for each quarter of the picture. With statistics, the deviation over time is added. grid motion: how much "
            "features change from step to step, 0 for a window of one; parts: in each eighth of the window. grid trajectory: "
            "the path of the window's features in 8 pieces of equal length, of each how much they change and where they are. "
            "`bridle evaluate` shows what suits a task."
        ),
    ] = "mean"
    layer: Annotated[int | None, tyro.conf.arg(metavar="N", help="Layer of the encoder, from 1; the last if not given.")] = None
    files_per_part: FilesPerPart = FILES_PER_PART
    device: Device = "auto"
    shard: ShardText = None
    num_processes: NumProcesses = 1
    max_restarts: MaxRestarts = 3


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    with reported():
        parsed = parse(Arguments, arguments, "bridle embed", _DESCRIPTION)
        return write_tables(
            ["embed", *arguments],
            parsed,
            lambda model, manifest, out, shard, progress: write_embeddings(
                model,
                manifest,
                out,
                pooling=parsed.pooling,
                layer=parsed.layer,
                files_per_part=parsed.files_per_part,
                shard=shard,
                progress=progress,
            ),
        )
