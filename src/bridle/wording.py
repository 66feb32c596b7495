"""Numbers and lists in messages."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(names: Sequence[str], number: int) -> str:
    """``a, b, c``, or ``a, b, ...`` of more names than are to be shown."""
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


def count(number: int, noun: str) -> str:
    """``1 clip``, ``2,000 clips``."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
