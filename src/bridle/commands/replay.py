"""``bridle replay RUN FAULT [--data DATA ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text

from bridle.commands.arguments import Run, parse
from bridle.commands.display import ProgressReporter, console, table
from bridle.commands.writing import Device
from bridle.files import as_utf8
from bridle.paths import check_run

if TYPE_CHECKING:
    from bridle.replaying import Replayed

_SHOWN_CLIPS = 20
_DESCRIPTION = """Do a step again that was skipped because its gradient was not finite.
  Each such step that begins a row is written down in RUN/faults/step-NUMBER:
  its batch, and the weights it shows on. Says which loss and which gradients
  are not finite, and how large the clips' values are. Nothing in RUN changes.
  Where the fault did not show on the weights of the time it was written down,
  the steps before it are repeated from a checkpoint; on a CPU that is exact.
  Exit status: 0 when the fault shows again, 1 when not.

examples:
  bridle replay runs/first step-00000123
  bridle replay runs/first step-00000123 --data recordings/   # moved since
"""

Fault = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FAULT", help="Folder below RUN/faults, or its name.")]
Sources = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="DATA", help="What the run learns from, if it was moved since the run began.")
]


@dataclass
class Arguments:
    """Of ``bridle replay``."""

    run: Run
    fault: Fault
    data: Sources | None = None
    device: Device = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle replay", _DESCRIPTION)
    check_run(parsed.run)
    from bridle.distributed import default_device, usable_device
    from bridle.replaying import replay

    device = default_device() if parsed.device == "auto" else usable_device(parsed.device)
    with ProgressReporter() as reporter:
        replayed = replay(parsed.run, parsed.fault, parsed.data or (), device=device, reporter=reporter)
    _say(replayed)
    return 0 if replayed.found.shown else 1


def _say(replayed: Replayed) -> None:
    fault = replayed.fault
    repeated = f", {replayed.num_repeated} steps repeated before it" if replayed.num_repeated else ""
    console().print(
        Text(f"step {fault.step}, on the weights after step {replayed.weights_step}{repeated}: {replayed.found}"),
        soft_wrap=True,
    )
    rows = [(as_utf8(key), f"{size:.4g}") for key, size in zip(fault.keys, replayed.largest_input, strict=False)]
    console().print(table("clips of the batch", ("key", "largest value"), rows[:_SHOWN_CLIPS]))
    if len(rows) > _SHOWN_CLIPS:
        console().print(f"and {len(rows) - _SHOWN_CLIPS} more")
    if not replayed.found.shown:
        console().print("the fault does not show on these weights", style="yellow")
