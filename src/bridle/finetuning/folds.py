"""One fine-tuned run for each part, and what their tests say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bridle import distributed
from bridle.data.manifest import Manifest
from bridle.errors import RunError
from bridle.eval.intervals import Interval, accuracy_interval, spread_interval
from bridle.finetuning.parts import Part
from bridle.finetuning.run import Finetuned, finetune
from bridle.finetuning.score import Measured
from bridle.finetuning.tested import write_evaluation
from bridle.run import RunConfig
from bridle.train.reporter import Reporter


@dataclass(frozen=True)
class FoldScore:
    """Test score of a fold in [0, 1], and its number of test clips."""

    name: str
    score: float
    num_clips: int


@dataclass(frozen=True)
class CrossValidation:
    """Test scores of all folds.

    Attributes:
        folds: in their order.
        score: their mean.
        interval: of accuracy :func:`~bridle.eval.intervals.accuracy_interval`, of mAP
            :func:`~bridle.eval.intervals.spread_interval`; None where folds do not tell.
    """

    folds: tuple[FoldScore, ...]
    score: float
    interval: Interval | None


def fold_folder(out: Path, part: Part) -> Path:
    """Run folder of a part: ``out`` itself when there is one part only."""
    return out / f"fold-{part.name}" if part.name else out


def finetune_folds(
    config: RunConfig,
    source: str | Path | None,
    manifest: Manifest,
    parts: Sequence[Part],
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> list[Finetuned]:
    """:func:`~bridle.finetuning.run.finetune` for each part, in a folder of its own; ``out/evaluation.json`` joins them.

    With ``resume``, folds that are done stay as they are. Stops early when training is asked to stop.

    Args:
        config: as for ``finetune``, and so are the others.
        source: run to begin with, or None.
        manifest: labelled clips.
        parts: for each run, from :func:`~bridle.finetuning.parts.part_clips`.
        out: folder of the runs; with one part that has no name, the run folder.
        resume: go on with what there is.
        device: where to compute.
        reporter: told about progress.

    Raises:
        RunError: a folder holds a run and ``resume`` is False; and as ``finetune``.
    """
    out = Path(out)
    if (out / "config.yaml").exists() and any(part.name for part in parts):
        raise RunError(f"{out} is a run of its own; choose another --out for the folds")
    done: list[Finetuned] = []
    for part in parts:
        folder = fold_folder(out, part)
        if reporter is not None and part.name:
            reporter.message(f"fold {part.name}: {folder}")
        done.append(finetune(config, source, manifest, part, folder, resume=resume, device=device, reporter=reporter))
        if not done[-1].outcome.finished:
            return done
    tests = [each.test for each in done if each.test is not None]
    if len(parts) > 1 and len(tests) == len(parts) and distributed.rank() == 0:
        write_evaluation(out, cross_validation(parts, tests))
    return done


def cross_validation(parts: Sequence[Part], tests: Sequence[Measured]) -> CrossValidation:
    """Scores of the folds, their mean and its interval."""
    folds = tuple(FoldScore(part.name, test.score, len(test.clips)) for part, test in zip(parts, tests, strict=True))
    scores = [fold.score for fold in folds]
    exclusive = all(test.metrics is not None for test in tests)
    interval = accuracy_interval(scores, [fold.num_clips for fold in folds]) if exclusive else spread_interval(scores)
    return CrossValidation(folds, sum(scores) / len(scores), interval)
