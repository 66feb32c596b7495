"""Seconds and memory of listing a folder, and of keeping and reading back what was found, as the folder grows.

    python benchmarks/growth_index.py [--medium image] [--files 100 1000 10000 100000 1000000] [--folder /tmp]

The files are hard links to a few tiny ones, 1000 to a folder, so the disk's cache holds them: what is measured is the work
of the processor. Each row is a process of its own; peak is its largest resident memory, of which the imports are 230 MiB,
and in the row of saving that of the listing before it. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from bridle.data.index import Index, read_index, save_index
from bridle.data.manifest import read_manifest
from bridle.data.medium import MEDIA

LINKS_PER_FILE = 50_000  # file systems have a limit
FILES_PER_FOLDER = 1000


def make_folder(folder: Path, medium: str, count: int) -> None:
    suffix = {"image": "png", "audio": "wav"}[medium]
    (folder / ".originals").mkdir()
    for number in range(count):
        if number % LINKS_PER_FILE == 0:
            original = folder / ".originals" / f"{number}.{suffix}"
            if medium == "image":
                Image.new("L", (4, 4)).save(original)
            else:
                soundfile.write(original, np.zeros(160), 16000)
        if number % FILES_PER_FOLDER == 0:
            place = folder / f"class-{number // FILES_PER_FOLDER:04}"
            place.mkdir()
        os.link(original, place / f"clip-{number:07}.{suffix}")


def measure(folder: Path, medium: str, task: str) -> dict[str, float]:
    """One task of one size, in a process of its own."""
    index = folder / ".index.parquet"
    listed = read_manifest(folder, MEDIA[medium]) if task == "save" else None
    tasks: dict[str, Callable[[], Any]] = {
        "list": lambda: read_manifest(folder, MEDIA[medium]),
        "save": lambda: save_index(Index(listed), index),  # type: ignore[arg-type]
        "read": lambda: read_index(index),
        "read and fingerprint": lambda: read_index(index).manifest.fingerprint,
    }
    start = time.perf_counter()
    tasks[task]()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--medium", choices=("image", "audio"), default="image")
    parser.add_argument("--files", type=int, nargs="+", default=[100, 1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files are made")
    parser.add_argument("--task", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(Path(arguments.task[1]), arguments.medium, arguments.task[0])))
        return
    rows = []
    print(f"{'files':>9} {'task':22} {'seconds':>9} {'per file, us':>13} {'peak, MiB':>10}")
    for count in arguments.files:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            make_folder(Path(name), arguments.medium, count)
            for task in ("list", "save", "read", "read and fingerprint"):
                call = [sys.executable, __file__, "--medium", arguments.medium, "--task", task, name]
                found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
                rows.append({"files": count, "task": task, **found})
                seconds, peak = found["seconds"], found["peak_mib"]
                print(f"{count:9} {task:22} {seconds:9.3f} {1e6 * seconds / count:13.2f} {peak:10.0f}", flush=True)
    print(json.dumps({"benchmark": "growth_index", "medium": arguments.medium, "rows": rows}))


if __name__ == "__main__":
    main()
