"""What a fine-tuned run folder keeps of its test, and of the weights that stand for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridle.config import from_dict, to_dict
from bridle.errors import ConfigError, RunError
from bridle.files import explain_write_error, write_atomically
from bridle.finetuning.score import Measured
from bridle.run import RunFolder
from bridle.train.weights import read_weights

EVALUATION = "evaluation.json"
"""File in a fine-tuned run with what its test clips say."""


@dataclass(frozen=True)
class RunTest:
    """The test of a fine-tuned run.

    Attributes:
        measured: what the test clips say.
        step: whose weights were tested.
        fold: that was tested; ``""`` where there are none.
        num_train: clips that were learnt from.
        num_validation: clips that chose the step.
        notes: what a reader of the score must know.
        taught_before: the encoder it began with was trained with labels already, maybe with those of test clips.
    """

    measured: Measured
    step: int
    fold: str
    num_train: int
    num_validation: int
    notes: tuple[str, ...]
    taught_before: bool = False

    @property
    def score_name(self) -> str:
        """``accuracy``, or ``mAP`` of clips with several labels."""
        return "accuracy" if self.measured.metrics is not None else "mAP"


def write_evaluation(folder: Path, said: Any) -> None:
    """Write a dataclass, a test or that of several folds, as ``evaluation.json``.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_atomically(folder / EVALUATION, json.dumps(to_dict(said), indent=1) + "\n")
    except OSError as error:
        raise RunError(explain_write_error(error, folder, EVALUATION)) from error


def read_tested(folder: Path) -> RunTest | None:
    """What the test clips of a run said; None where there is no test.

    Raises:
        RunError: the file cannot be read.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return None
    try:
        return from_dict(RunTest, json.loads(path.read_bytes()))
    except (OSError, ValueError, ConfigError) as error:
        raise RunError(f"{path} cannot be read; 'bridle finetune ... --resume' tests the run anew") from error


def chosen_step(run: Path) -> int | None:
    """Step of the weights that validation clips chose; None when none did, or it cannot be read."""
    path = RunFolder(run).chosen
    if not path.is_file():
        return None
    try:
        return int(read_weights(path)[1]["step"])
    except (RunError, KeyError, ValueError):
        return None
