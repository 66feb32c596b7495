"""``bridle report RUN --out report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from bridle import distributed
from bridle.commands.arguments import Run, parse
from bridle.commands.display import console, stages
from bridle.commands.published import read_published
from bridle.commands.writing import Device
from bridle.data.labels import SEPARATOR
from bridle.errors import ConfigError
from bridle.files import explain_write_error, write_atomically
from bridle.paths import check_file
from bridle.report.build import build_report
from bridle.report.config import ReportConfig
from bridle.report.neighbours import Projection
from bridle.run import RunFolder

_DESCRIPTION = """Make one HTML page of a run, finished or not.
  Training curves, health of the codebooks, settings and cost; of a fine-tuned
  run what its test clips say. With --data also masked prediction, what codes
  mean, a map of the clips and what the doctor says; with --label also the
  probes of 'bridle evaluate'. The page holds everything it shows, loads
  nothing, and is good on a phone, in the dark and in print.

examples:
  bridle report runs/first
  bridle report runs/first --data meta.csv --label class --fold fold \\
      --out first.html
  bridle report runs/pictures --data pictures/ --label class --split split
  bridle report runs/first --data ESC-50-master --protocol esc-50
  bridle report runs/first --data clips.csv --label tags \\
      --multi-label --separator ';'
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
    protocol: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="DATA is the folder of a published set in its own layout, such as esc-50, which says labels and splits.",
        ),
    ] = None
    fold: Annotated[Column, tyro.conf.arg(help="Column with the official fold; each is left out in turn.")] = None
    split: Annotated[Column, tyro.conf.arg(help="Column that says train, validation or test.")] = None
    group: Annotated[Column, tyro.conf.arg(help="Equal values, such as a speaker's, stay on one side of a split.")] = None
    path: Annotated[Column, tyro.conf.arg(help="Column with the paths, if its name is not a usual one.")] = None
    multi_label: Annotated[bool, tyro.conf.arg(help="Cells of the label column hold any number of tags; mAP is measured.")] = (
        False
    )
    separator: Annotated[str, tyro.conf.arg(help="Stands between the tags of a cell.")] = SEPARATOR
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
    config = _config(parsed)
    check_file(parsed.out)  # before the work, not after it
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


def _config(parsed: Arguments) -> ReportConfig:
    config = ReportConfig(num_clips=parsed.clips, projection=parsed.projection, watts=parsed.watts, seed=parsed.seed)
    if parsed.protocol is not None:
        medium = RunFolder(parsed.run).read_config().medium
        named = (parsed.label, parsed.fold, parsed.split, parsed.group, parsed.path)
        return replace(config, published=read_published(parsed.protocol, parsed.data or (), named, medium))
    return replace(
        config,
        data=parsed.data or (),
        label=parsed.label,
        fold=parsed.fold,
        split=parsed.split,
        group=parsed.group,
        path=parsed.path,
        separator=parsed.separator if parsed.multi_label else None,
    )
