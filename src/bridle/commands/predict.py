"""``bridle predict RUN DATA --out FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from bridle.commands.arguments import Data, Run, parse
from bridle.commands.display import console, progress
from bridle.commands.writing import Device, say_bad
from bridle.data.manifest import read_manifest
from bridle.finetuning.predictions import check_table, write_predictions
from bridle.inference import load

_DESCRIPTION = """Write the classes of every recording, picture or film, by a run of 'bridle finetune'.
  A row for each file: path, prediction, probability, and a column p_NAME for each class. A long file's
  probabilities are the mean over its windows. Unreadable files are listed and passed over.

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
    separator: Annotated[str, tyro.conf.arg(help="Between the labels of a file, where it may have several.")] = ";"
    device: Device = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle predict", _DESCRIPTION)
    check_table(parsed.out)
    model = load(parsed.run, None if parsed.device == "auto" else parsed.device)
    model.classifier  # noqa: B018 - before anything is read
    manifest = read_manifest(list(parsed.data), model.config.medium)
    with progress("files") as bar:
        task = bar.add_task(f"model {model.fingerprint}", total=len(manifest))
        predicted = write_predictions(
            model, manifest, parsed.out, separator=parsed.separator, progress=lambda done: bar.update(task, completed=done)
        )
    say_bad(predicted.bad, "")
    console().print(f"[bold green]done[/] {predicted.num_rows} files: {escape(str(parsed.out))}", soft_wrap=True)
    return 0
