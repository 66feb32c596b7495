"""The whole examination: figures, what stands in the way of training, and what to do, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bridle import distributed
from bridle.data.manifest import Manifest
from bridle.data.medium import Info, MediumName
from bridle.data.quarantine import BadFile, Quarantine
from bridle.doctor.advice import BLANK, Finding, advise
from bridle.doctor.plan import Plan, make_plan
from bridle.doctor.scan import OnProgress, Scan, other_media, scan_files
from bridle.doctor.speed import Speed, estimate_speed
from bridle.errors import TooManyBadFiles
from bridle.files import free_bytes
from bridle.media.audio import AudioInfo
from bridle.media.image import ImageInfo
from bridle.run import RunConfig

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
SECONDS = (0.0, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 300, 1800, 3600)
PIXELS = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Files:
    """Figures of the files.

    Attributes:
        num_files: good and bad. All figures but this one and those of bad files are of files that are readable as far as seen.
        num_bytes: of the files that could be opened.
        total_seconds: of the readable files; 0 for pictures.
        unit: of extents: ``s``, durations; for pictures ``px``, their shorter edge.
        quantiles: of the extents, by the names of ``QUANTILES``.
        histogram: (from, to, number of files) by extent, without empty ends; "to" of the last bin is the largest.
        kinds: by what distinguishes files (such as their sample rate), the number of files of each kind.
        bad: unreadable files; ``bad_reasons`` counts them.
        num_decoded: files that were decoded; ``blank`` and ``cut_short`` are among them, and ``num_broken`` of the bad ones.
        num_copies: files that are copies of another one.
    """

    num_files: int
    num_bytes: int
    total_seconds: float
    unit: str
    quantiles: dict[str, float]
    histogram: tuple[tuple[float, float, int], ...]
    kinds: dict[str, dict[str, int]]
    bad: tuple[BadFile, ...]
    bad_reasons: dict[str, int]
    num_decoded: int
    blank: tuple[str, ...]
    cut_short: tuple[str, ...]
    num_copies: int
    num_broken: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything ``bridle doctor`` says.

    Attributes:
        files: figures of the files.
        plan: of the recipe on the readable files.
        speed: estimate on this machine; None when it was not asked for, or nothing is readable.
        free_disk_bytes: in the current folder; ``free_memory_bytes`` is None where the system does not tell.
        problems: why training would not start or would stop in its first epoch; empty when it would run.
        advice: what to do.
        others: files of other media beside these, which the recipe leaves out, by medium.
    """

    files: Files
    plan: Plan
    speed: Speed | None
    free_disk_bytes: int
    free_memory_bytes: int | None
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    others: dict[MediumName, int] = field(default_factory=dict)


def examine(
    sources: Sequence[str | Path],
    config: RunConfig,
    *,
    path_column: str | None = None,
    num_decoded: int | None = 200,
    speed: bool = True,
    device: torch.device | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Examine files for a recipe.

    Args:
        sources: as for ``pretrain``.
        config: the recipe.
        path_column: of tables, as for ``read_manifest``.
        num_decoded: files to decode, None for all.
        speed: time training steps on this machine.
        device: where to train; this process's GPU by default, else the CPU.
        on_progress: told about progress.

    Raises:
        DataError: a source is malformed, or no file is readable.
        ConfigError: the settings do not fit together.
    """
    scan = scan_files(sources, config.medium, path_column=path_column, num_decoded=num_decoded, on_progress=on_progress)
    readable = [entry for entry, _ in scan.readable]
    plan = make_plan(readable_manifest(scan), config)
    measured = None
    if speed and readable:
        measured = estimate_speed(config, plan, readable, device or distributed.default_device(), on_progress=on_progress)
    files, memory, disk = summarise_files(scan), available_memory(), free_bytes(Path.cwd())
    problems = find_problems(scan, plan, config)
    finding = Finding(scan, plan, measured, memory, disk)
    others = other_media(sources, scan, config.medium, path_column)
    return Report(files, plan, measured, disk, memory, problems, advise(finding, config), others)


def readable_manifest(scan: Scan) -> Manifest:
    """The files that a run would train on; all of them when none can be decoded, so that the rest can be told."""
    return Manifest(tuple(entry for entry, _ in scan.readable) or scan.manifest.entries)


def summarise_files(scan: Scan) -> Files:
    """The figures of a scan."""
    infos = [info for _, info in scan.readable] or scan.infos
    extents = [extent(info) for info in infos]
    unit = extents[0][1]
    values = np.array([value for value, _ in extents])
    kinds: dict[str, Counter[str]] = {}
    for info in infos:
        for name, kind in kinds_of(info).items():
            kinds.setdefault(name, Counter())[kind] += 1
    bad = scan.bad
    return Files(
        num_files=scan.manifest.num_files,
        num_bytes=scan.num_bytes,
        total_seconds=sum(entry.duration_seconds for entry, _ in scan.readable),
        unit=unit,
        quantiles={name: float(np.quantile(values, q)) for name, q in QUANTILES.items()},
        histogram=extent_histogram(values.tolist(), SECONDS if unit == "s" else PIXELS),
        kinds={name: dict(counts.most_common()) for name, counts in kinds.items()},
        bad=bad,
        bad_reasons=dict(Counter(file.reason for file in bad).most_common()),
        num_decoded=scan.num_decoded,
        blank=scan.blank,
        cut_short=scan.cut_short,
        num_copies=scan.num_copies,
        num_broken=len(scan.undecodable),
    )


def extent(info: Info) -> tuple[float, str]:
    """How large a file is, and in which unit: its duration, or the shorter edge of a picture."""
    return (min(info.width, info.height), "px") if isinstance(info, ImageInfo) else (info.duration_seconds, "s")


def kinds_of(info: Info) -> dict[str, str]:
    """What distinguishes a file, by name."""
    if isinstance(info, AudioInfo):
        return {"sample rate": f"{info.sample_rate} Hz", "channels": str(info.num_channels), "format": info.format}
    size = {"size": f"{info.width} x {info.height}"}
    if isinstance(info, ImageInfo):
        return {**size, "colours": info.mode, "format": info.format}
    return {**size, "frames per second": f"{info.rate_hz:.4g}", "coding": info.codec, "format": info.format}


def extent_histogram(values: Sequence[float], bounds: Sequence[float]) -> tuple[tuple[float, float, int], ...]:
    """(from, to, count) with ``from <= value < to``; empty bins at both ends are left out."""
    edges = [edge for edge in bounds if edge <= max(values)]
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges)).tolist()
    first = next(i for i, count in enumerate(counts) if count)
    ends = [*edges[1:], max(values)]
    return tuple(zip(edges, ends, counts, strict=True))[first:]


def find_problems(scan: Scan, plan: Plan, config: RunConfig) -> tuple[str, ...]:
    """Why training would not start, or would stop as soon as it has met the files; one line each."""
    problems = []
    limits = (config.train.max_bad_fraction, config.train.max_bad_in_a_row)
    try:
        Quarantine(None, scan.manifest.num_files, *limits, known=scan.bad)
    except TooManyBadFiles as error:
        problems.append(str(error))
    needs_codes = any(phase.kind != "patches" for phase in config.plan)
    if needs_codes and plan.kmeans_sample < config.quantizer.codebook_size:
        problems.append(
            f"the codebooks start from {plan.kmeans_sample} patches, fewer than their {config.quantizer.codebook_size} codes: "
            f"add {config.medium.nouns}, or lower --quantizer.codebook-size"
        )
    if scan.num_decoded and len(scan.blank) == scan.num_decoded - len(scan.undecodable):
        problems.append(f"{_every(scan.num_decoded)} {BLANK[config.medium.name]} or broken: check how they were made")
    return tuple(problems)


def _every(number: int) -> str:
    return "the one decoded file is" if number == 1 else f"all {number} decoded files are"


def available_memory() -> int | None:
    """Bytes that programs can still have, on Linux; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
