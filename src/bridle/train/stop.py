"""Asking a run to stop, by a signal."""

from __future__ import annotations

import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Remembers the first of SIGTERM, SIGINT and SIGUSR1; a second SIGINT interrupts at once.

    More of the others change nothing: schedulers send several, and none of them may cost the checkpoint that the first asked
    for.

    Attributes:
        signal: the first one, 0 before it.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._interrupts = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the context; does nothing outside the main thread."""
        try:
            before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.signal = self.signal or number
