"""Asking a run to stop, by a signal."""

from __future__ import annotations

import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """Remembers SIGTERM and SIGINT; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the context; does nothing outside the main thread."""
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
