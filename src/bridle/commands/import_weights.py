"""``bridle import SOURCE --out RUN``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text

from bridle.commands.arguments import parse
from bridle.commands.display import console
from bridle.importing import import_weights
from bridle.recipes import recipe

_DESCRIPTION = """Begin a run with weights that were trained elsewhere.
  Reads the encoder of ViT, ViTMAE, VideoMAE and DINOv2 (transformers), MAE,
  AudioMAE, EAT and BEATs. The run gives their features at once, and
  pretraining goes on from them by the recipe. Says what could not be taken
  over.

examples:
  bridle import vit-mae-base/ --out runs/mae
  bridle import mae_pretrain_vit_base.pth --out runs/mae --recipe image-base
  bridle pretrain image-base --data pictures/ --out runs/mae --resume
"""


@dataclass
class Arguments:
    """Of ``bridle import``."""

    source: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="SOURCE", help="Folder with config.json and model.safetensors, a .safetensors file, or a .pth file."
        ),
    ]
    out: Annotated[Path, tyro.conf.arg(metavar="RUN", help="The run folder to write.")]
    recipe: Annotated[
        str | None, tyro.conf.arg(metavar="RECIPE", help="Settings of the run; the medium's base recipe if not given.")
    ] = None
    heads: Annotated[int | None, tyro.conf.arg(help="Attention heads, where the source does not tell.")] = None
    medium: Annotated[Literal["audio", "image", "video"] | None, tyro.conf.arg(help="Of the clips, to be told if unclear.")] = (
        None
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle import", _DESCRIPTION)
    config = None if parsed.recipe is None else recipe(parsed.recipe)
    made = import_weights(parsed.source, parsed.out, config=config, heads=parsed.heads, medium=parsed.medium)
    encoder = made.config.encoder
    console().print(
        f"[bold green]done[/] {made.family}: width {encoder.width}, depth {encoder.depth}, patches of "
        f"{' x '.join(map(str, encoder.patch))}, in {parsed.out}",
        soft_wrap=True,
    )
    if made.notes:
        grid = Table.grid(padding=(0, 1))
        for note in made.notes:
            grid.add_row(Text("-", style="yellow"), Text(note))
        console().print(grid)
    command = f"bridle pretrain {made.config.recipe} --data DATA --out {shlex.quote(str(parsed.out))} --resume"
    console().print(f"next: {command}", markup=False, soft_wrap=True)
    console().print(
        "This first call may set everything but the encoder; on a small machine, such as "
        "--train.batch-size 32 --train.num-workers 2 --predictor.depth 2."
    )
    return 0
