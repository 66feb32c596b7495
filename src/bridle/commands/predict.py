"""``bridle predict RUN DATA --out FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bridle.commands.arguments import Data, Run, parse
from bridle.commands.display import progress
from bridle.commands.writing import Device, PathColumn, read_all, say_bad, say_done
from bridle.paths import TABLE_SUFFIXES, check_file

_DESCRIPTION = """Write the classes of every recording, picture or film by a fine-tuned run.
  A row for each file: key (its name in DATA), path (the file), prediction,
  probability, and a column p_NAME for each class. A long file's probabilities
  are the mean over its windows. Unreadable files are listed and passed over.

examples:
  bridle predict runs/classes recordings/ --out predictions.csv
  bridle predict runs/classes pictures/ more.csv --out predictions.parquet
"""


@dataclass
class Arguments:
    """Of ``bridle predict``."""

    run: Run
    data: Data
    out: Annotated[Path, tyro.conf.arg(metavar="FILE", help="A .csv or .parquet file to write; an old one is replaced.")]
    path: PathColumn = None
    separator: Annotated[str, tyro.conf.arg(help="Between the labels of a file, where it may have several.")] = ";"
    device: Device = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle predict", _DESCRIPTION)
    check_file(parsed.out, TABLE_SUFFIXES)
    model, manifest = read_all(parsed, needs="classifier")
    from bridle.finetuning.predictions import write_predictions
    from bridle.wording import count

    with progress("files") as bar:
        task = bar.add_task(f"model {model.fingerprint}", total=len(manifest))
        predicted = write_predictions(
            model, manifest, parsed.out, separator=parsed.separator, progress=lambda done: bar.update(task, completed=done)
        )
    say_bad(predicted.bad, "")
    say_done(count(predicted.num_rows, "file"), parsed.out)
    return 0
