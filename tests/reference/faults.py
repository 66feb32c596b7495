"""What happens to a run in the middle of it."""

from collections.abc import Callable

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
