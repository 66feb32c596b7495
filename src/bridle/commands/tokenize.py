"""``bridle tokenize RUN DATA --out CODES``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridle.commands.arguments import Data, Run, parse
from bridle.commands.writing import Device, FilesPerPart, Out, write_tables
from bridle.tables import FILES_PER_PART, write_codes

_DESCRIPTION = """Write the discrete codes of every recording, picture or film as parquet.
  Each row is a window of a file; one longer than the clips of the run has several. Columns: path,
  start_seconds, grid (patches along time, height or frequency, width), codes (R numbers for each patch,
  time first) and fingerprint of the model. Unreadable files are listed and passed over. The same call again
  continues one that was cut short.

examples:
  bridle tokenize runs/first recordings/ --out codes/
  bridle tokenize runs/first train.csv test.csv --out codes/ --device cpu
"""


@dataclass
class Arguments:
    """Of ``bridle tokenize``."""

    run: Run
    data: Data
    out: Out
    files_per_part: FilesPerPart = FILES_PER_PART
    device: Device = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(Arguments, arguments, "bridle tokenize", _DESCRIPTION)
    return write_tables(
        parsed.run,
        parsed.data,
        parsed.out,
        parsed.device,
        lambda model, manifest, out, progress: write_codes(
            model, manifest, out, files_per_part=parsed.files_per_part, progress=progress
        ),
    )
