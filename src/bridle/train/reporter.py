"""Who is told how training goes."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Who is told about progress; the command line draws it."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        """A phase begins at step ``done`` of ``steps``."""

    def step(self, done: int) -> None:
        """A step is done; cheap."""

    def values(self, values: dict[str, float]) -> None:
        """Newest logged values."""

    def examined(self, step: int, values: dict[str, float]) -> None:
        """What was measured on labelled clips after ``step`` steps of the run."""


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def phase(self, name: str, number: int, total: int, steps: int, done: int) -> None:
        """Ignore."""

    def step(self, done: int) -> None:
        """Ignore."""

    def values(self, values: dict[str, float]) -> None:
        """Ignore."""

    def examined(self, step: int, values: dict[str, float]) -> None:
        """Ignore."""
