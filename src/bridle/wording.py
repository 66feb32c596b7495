"""Numbers in messages."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """``1 clip``, ``2,000 clips``."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
