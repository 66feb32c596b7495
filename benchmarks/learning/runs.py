"""Shared by the benchmarks that train: a run that resumes, its minutes, its probes; and means with intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bridle.config import fingerprint, to_dict
from bridle.data.manifest import read_manifest
from bridle.eval.evaluate import RUN, Columns, evaluate_run
from bridle.eval.features import collect_features
from bridle.eval.intervals import student_half_width
from bridle.eval.protocol import FeatureSet, ProbeResult, evaluate, knn_probe, linear_probe
from bridle.inference import Model, load
from bridle.pretraining import pretrain
from bridle.run import RunConfig
from bridle.train.loop import Precision
from bridle.train.reporter import Silent


@dataclass(frozen=True)
class LabelledSet:
    """A labelled set below the data folder."""

    name: str
    manifest: str
    columns: Columns
    path_column: str | None = "file"


SETS = (
    LabelledSet("esc10", "esc10/meta.csv", Columns(label="class", fold="fold")),
    LabelledSet("fsdd, one speaker out", "fsdd/meta.csv", Columns(label="label", fold="speaker")),
    LabelledSet("grid digit", "grid_s1/meta.csv", Columns(label="digit", split="suggested_split"), "audio"),
    LabelledSet("grid letter", "grid_s1/meta.csv", Columns(label="letter", split="suggested_split"), "audio"),
)
UNLABELLED = ("esc10/audio", "fsdd/audio", "grid_s1/audio")


class Clock(Silent):
    """Notes when each step of the last phase is done."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def step(self, done: int) -> None:
        self.seen[done] = time.perf_counter()


def seconds_per_step(config: RunConfig, sources: Sequence[Path], between: tuple[int, int]) -> float:
    """Mean time of the steps between those two of the last phase, which should end there."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config, sources, Path(folder) / "run", reporter=clock)
    return (clock.seen[between[1]] - clock.seen[between[0]]) / (between[1] - between[0])


def with_one_codebook(config: RunConfig, size: int = 1024) -> RunConfig:
    """The same run with plain vector quantization."""
    quantizer = dataclasses.replace(config.quantizer, num_codebooks=1, codebook_size=size)
    return dataclasses.replace(config, quantizer=quantizer, level_weights=())


def train(config: RunConfig, sources: Sequence[Path], run: Path) -> float:
    """Train the run through ``config.phases``, resuming what is there; returns the wall-clock minutes of all calls so far.

    A run whose recorded stages hold these phases is left as it is, also when it went on since. A run of other settings is
    refused, so that no table holds numbers of an older recipe.
    """
    record = run.parent / f"{run.name}.json"
    settings = fingerprint(dataclasses.replace(config, phases="cold:1"))
    kept = json.loads(record.read_text()) if record.exists() else {"settings": settings, "seconds": 0.0, "stages": {}}
    if kept["settings"] != settings:
        raise SystemExit(f"{run} was trained with other settings; remove it and {record.name}, or choose another --out")
    if config.phases not in kept["stages"]:
        start, finished = time.perf_counter(), False
        try:
            finished = pretrain(config, sources, run, resume=True).finished
        finally:
            kept["seconds"] += time.perf_counter() - start
            if finished:
                kept["stages"][config.phases] = kept["seconds"] / 60
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(kept))
        if not finished:
            raise SystemExit(f"{run} was asked to stop; run the same command again to go on")
    return float(kept["stages"][config.phases])


def _kept(kind: str, run: Path, labelled: LabelledSet, phases: str) -> Path:
    words = f"{kind} {labelled.name} {phases}".replace(",", "").replace(":", "").replace("=", "")
    return run / f"{words.replace(' ', '-')}.json"


def load_after(run: Path, phases: str, precision: Precision = "fp32") -> Model:
    """The model of a run that has not gone on since ``phases``."""
    model = load(run, precision=precision)
    if model.config.phases != phases:
        raise SystemExit(f"{run} has gone on to {model.config.phases}; its features after {phases} were not kept")
    return model


def probes(run: Path, data: Path, labelled: LabelledSet, phases: str) -> dict[str, dict[str, float]]:
    """Accuracy in percent by features and probe of the run after ``phases``, kept beside the run."""
    kept = _kept("probes", run, labelled, phases)
    if not kept.exists():
        model = load_after(run, phases)
        manifest = read_manifest(data / labelled.manifest, model.config.medium, path_column=labelled.path_column)
        kept.write_text(json.dumps(to_dict(evaluate_run(model, manifest, labelled.columns, batch_size=64))))
    rows = json.loads(kept.read_text())["rows"]
    return {row["features"]: {name: 100 * probe["accuracy"] for name, probe in row["probes"].items()} for row in rows}


def own_probes(run: Path, data: Path, labelled: LabelledSet, phases: str) -> dict[str, float]:
    """Accuracy in percent of the run's features alone after ``phases``, by probe, kept beside the run."""
    kept = _kept("own", run, labelled, phases)
    if not kept.exists():
        judged = probe_models({RUN: load_after(run, phases)}, data, [labelled], [RUN])[labelled.name, RUN]
        kept.write_text(json.dumps({name: 100 * result.accuracy for name, result in judged.items()}))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def probe_models(
    models: Mapping[str, Model], data: Path, sets: Sequence[LabelledSet], names: Sequence[str] | None = None
) -> dict[tuple[str, str], dict[str, ProbeResult]]:
    """Results of both probes, by set and name of the features: all there are, or ``names``.

    A manifest is read once for all its sets.
    """
    first = next(iter(models.values()))
    found: dict[tuple[str, str], dict[str, ProbeResult]] = {}
    for source in dict.fromkeys((labelled.manifest, labelled.path_column) for labelled in sets):
        manifest = read_manifest(data / source[0], first.config.medium, path_column=source[1])
        collected = collect_features(models, manifest, batch_size=64)
        assert not collected.bad, f"unreadable files: {collected.bad[0]}"
        for labelled in sets:
            if (labelled.manifest, labelled.path_column) != source:
                continue
            cells = {role: manifest.columns[column] for role, column in labelled.columns.named.items()}
            for name in collected.features if names is None else names:
                features = FeatureSet(collected.features[name], cells["label"], cells.get("fold"), cells.get("split"))
                found[labelled.name, name] = {probe.name: evaluate(features, probe) for probe in (knn_probe(), linear_probe())}
    return found


def mean_text(values: list[float]) -> str:
    """Mean and, of two values and more, half of its 95 % interval by Student's t."""
    width = f" ± {student_half_width(values):4.1f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):5.1f}{width}"


def product_rate() -> float:
    """TFLOP/s of a bf16 1600 x 384 x 1536 matrix product on all threads: what this machine is worth."""
    a, b = torch.randn(1600, 384).bfloat16(), torch.randn(384, 1536).bfloat16()
    best = math.inf
    for _ in range(50):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1600 * 384 * 1536 / best / 1e12


def machine() -> dict[str, str | int | float]:
    """Facts that belong beside every number."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16 TFLOP/s": round(product_rate(), 2),
    }
