"""``bridle export RUN --to TARGET --out FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import Run, parse
from bridle.commands.display import console, table
from bridle.paths import check_folder, check_run, check_sources

if TYPE_CHECKING:
    from bridle.export import Check, Target

_DESCRIPTION = """Write the encoder of a run, and its tokenizer, for another tool.
  hf: transformers, by AutoModel and AutoFeatureExtractor, with codes. onnx:
  ONNX runtimes, with codes. timm: an image encoder as a VisionTransformer. The
  classifier of a fine-tuned run goes along, but for timm. Every number is
  compared with the run before the folder is in place.

examples:
  bridle export runs/first --to hf --out exported/ --licence apache-2.0
  bridle export runs/first --to onnx --out exported/
  bridle export runs/pictures --to timm --out exported/ \\
      --licence cc-by-4.0 --trained-on pictures/
"""


@dataclass
class Arguments:
    """Of ``bridle export``."""

    run: Run
    to: Annotated[str, tyro.conf.arg(metavar="{hf,onnx,timm}", help="The tool it is for.")]
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="The folder to write; it must not exist or be empty.")]
    licence: Annotated[
        str | None,
        tyro.conf.arg(metavar="LICENCE", help="Of the weights, for the model card, such as apache-2.0; hf needs it."),
    ] = None
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME", help="Title of the model card; the run's if not given.")] = None
    trained_on: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="DATA", help="What the run was trained on, as given to pretrain or finetune, to be counted in the card."
        ),
    ] = ()


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle export", _DESCRIPTION)
    check_run(parsed.run)
    check_sources(parsed.trained_on)
    check_folder(parsed.out)
    from bridle.export import TARGETS, export_run

    made = export_run(
        parsed.run,
        parsed.out,
        to=cast("Target", parsed.to),
        licence=parsed.licence,
        name=parsed.name,
        trained_on=parsed.trained_on,
    )
    rows = [_row(check) for check in made.checks]
    columns = ("checked against the run", "codes", "batch", "frames", "largest difference")
    console().print(table("", columns, rows, left=2))
    if made.notes:
        grid = Table.grid(padding=(0, 1))
        for note in made.notes:
            grid.add_row(Text("-", style="yellow"), Text(note))
        console().print(grid)
    files = f" for {TARGETS[made.target]}, in {made.path}: {', '.join(made.files)}"
    console().print(Text.assemble(("done", "bold green"), files), soft_wrap=True)
    return 0


def _row(check: Check) -> tuple[str, ...]:
    batch, frames = (str(check.batch), str(check.frames)) if check.batch else ("", "")
    return (check.what, check.codes, batch, frames, f"{check.difference:.2g}")
