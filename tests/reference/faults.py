"""What happens to a run in the middle of it, and all that it leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridle.train.checkpoint import latest_checkpoint, load_checkpoint
from bridle.train.reporter import Silent


class After(Silent):
    """Does something after a number of steps."""

    def __init__(self, num_steps: int, act: Callable[[], object]) -> None:
        self.left, self.act = num_steps, act

    def step(self, done: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def die() -> None:
    """Stop like a kill: an exception between two steps, no goodbye."""
    raise SystemExit("killed")


def state(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Weights, optimiser, position and logged lines of a run's newest checkpoint."""
    path = latest_checkpoint(run)
    assert path is not None
    checkpoint = load_checkpoint(path)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.weights, checkpoint.optimizer, checkpoint.state, metrics
