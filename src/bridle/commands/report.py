"""``bridle report RUN --out report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from bridle import distributed
from bridle.commands.arguments import Run, parse
from bridle.commands.display import console, stages
from bridle.commands.writing import Device
from bridle.errors import ConfigError
from bridle.files import explain_write_error, write_atomically
from bridle.report.build import ReportConfig, build_report
from bridle.report.neighbours import Projection

_DESCRIPTION = """Make one HTML page of a run, finished or not.
  Training curves, health of the codebooks, settings and cost. With --data also masked prediction, what codes
  mean, a map of the clips and what the doctor says; with --label also the probes of 'bridle evaluate'. The
  page holds everything it shows, loads nothing, and is good on a phone, in the dark and in print.

examples:
  bridle report runs/first
  bridle report runs/first --data meta.csv --label class --fold fold --out first.html
  bridle report runs/pictures --data pictures/ --label class --split split
"""

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]


@dataclass
class Arguments:
    """Of ``bridle report``."""

    run: Run
    out: Annotated[Path, tyro.conf.arg(metavar="FILE", help="Where the page goes; an older one is replaced.")] = Path(
        "report.html"
    )
    data: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(metavar="DATA [DATA ...]", help="Folders, CSV or parquet tables or tar shards; several are joined."),
    ] = None
    label: Annotated[Column, tyro.conf.arg(help="Column with the class.")] = None
    fold: Annotated[Column, tyro.conf.arg(help="Column with the official fold; each is left out in turn.")] = None
    split: Annotated[Column, tyro.conf.arg(help="Column that says train, validation or test.")] = None
    group: Annotated[Column, tyro.conf.arg(help="Equal values, such as a speaker's, stay on one side of a split.")] = None
    clips: Annotated[int, tyro.conf.arg(metavar="COUNT", help="Files that are looked at, drawn by the seed.")] = 500
    projection: Annotated[Projection, tyro.conf.arg(help="Of the map; auto: t-SNE where scikit-learn is installed.")] = "auto"
    watts: Annotated[
        float | None, tyro.conf.arg(metavar="WATTS", help="What the machine draws while training, to estimate the energy.")
    ] = None
    device: Device = "auto"
    seed: Annotated[int, tyro.conf.arg(help="Of the draw, the masks, the map and stratified splits.")] = 0


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle report", _DESCRIPTION)
    config = ReportConfig(
        data=parsed.data or (),
        label=parsed.label,
        fold=parsed.fold,
        split=parsed.split,
        group=parsed.group,
        num_clips=parsed.clips,
        projection=parsed.projection,
        watts=parsed.watts,
        seed=parsed.seed,
    )
    if not parsed.out.parent.is_dir():  # before the work, not after it
        raise ConfigError(
            f"cannot write {parsed.out}: there is no folder {parsed.out.parent}; create it or choose another --out"
        )
    device = distributed.default_device() if parsed.device == "auto" else distributed.usable_device(parsed.device)
    with stages() as on_progress:
        page = build_report(parsed.run, config, device=device, on_progress=on_progress)
    try:
        write_atomically(parsed.out, page)
    except OSError as error:
        raise ConfigError(explain_write_error(error, parsed.out.parent, parsed.out.name)) from error
    size = f"{len(page.encode()) / 1e6:.1f} MB"
    console().print(f"[bold green]done[/] {escape(str(parsed.out))}, {size}: open it in a browser", soft_wrap=True)
    return 0
