"""The files behind a report: what the doctor says about them, and the quarantine of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bridle.data.manifest import Manifest
from bridle.data.quarantine import BadFile
from bridle.doctor.advice import Finding, advise
from bridle.doctor.plan import make_plan
from bridle.doctor.report import Files, find_problems, readable_manifest, summarise_files
from bridle.doctor.scan import scan_files
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import latest_checkpoint, read_state

NUM_DECODED = 100
_ENDLESS = 2**62  # free space: what a machine has at the moment is no part of a report


@dataclass(frozen=True)
class Examined:
    """What the doctor says about files.

    Attributes:
        files: figures.
        problems: why pretraining on them would stop; none for a fine-tuned run.
        advice: what to do; none for a fine-tuned run.
        is_training_data: they are the files that the run was trained on; None where the run does not tell.
    """

    files: Files
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    is_training_data: bool | None


def examine_files(
    manifest: Manifest, run: Path, settings: RunConfig, seed: int, on_progress: Callable[[str, int, int], None]
) -> Examined:
    """Read every header and decode some files; nothing is timed, and what the machine has free plays no part.

    Args:
        manifest: the files.
        run: whose data they may be.
        settings: of that run.
        seed: of the draw of files that are decoded.
        on_progress: told about progress.

    Raises:
        DataError: no file is readable.
    """
    scan = scan_files(manifest, settings.medium, num_decoded=NUM_DECODED, seed=seed, on_progress=on_progress)
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    if settings.finetune is None:  # the doctor knows plans of pretraining only
        plan = make_plan(readable_manifest(scan), settings)
        problems = find_problems(scan, plan, settings)
        advice = advise(Finding(scan, plan, None, None, _ENDLESS), settings)
    # What a fine-tuned run keeps of its clips holds their labels, too.
    is_same = _is_training_data(run, scan.manifest.fingerprint) if settings.finetune is None else None
    return Examined(summarise_files(scan), problems, advice, is_same)


def read_quarantine(run: Path) -> tuple[BadFile, ...]:
    """The unreadable files of a run; lines that a killed run left in half are passed over."""
    path = RunFolder(run).quarantine
    found = []
    for line in path.read_bytes().decode("utf-8", "surrogateescape").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found.append(BadFile(str(row["key"]), str(row["reason"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return tuple(found)


def _is_training_data(run: Path, fingerprint: str) -> bool | None:
    path = latest_checkpoint(run)
    data = "" if path is None else str(read_state(path).get("data", ""))
    return None if not data else data == fingerprint
