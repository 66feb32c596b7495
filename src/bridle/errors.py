"""Every error bridle raises on purpose.

::

    BridleError
    ├── ConfigError            a setting is unknown, of the wrong type or out of range (also a ValueError)
    ├── DataError              something is wrong with the user's data as a whole
    │   ├── DecodeError        one file cannot be read; quarantined while training
    │   ├── TooManyBadFiles    the quarantine's budget is used up
    │   └── WorkerDied         a process that decodes was killed, or hangs
    ├── QuantizerError         a quantizer cannot do its work: NaN input, sample smaller than K (also a ValueError)
    ├── RunError               a run folder or a checkpoint is missing, half written or of another version
    └── TrainingError          training cannot go on: non-finite gradients, ranks that disagree

A message names the value, the limit and the remedy, in one line. The command line prints it without a traceback.
"""

from __future__ import annotations


class BridleError(Exception):
    """Base of all errors that bridle raises on purpose."""


class ConfigError(BridleError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(BridleError):
    """Something is wrong with the user's data as a whole."""


class DecodeError(DataError):
    """One file cannot be read. ``reason`` is a short phrase fit for a table."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.key, self.reason)


class TooManyBadFiles(DataError):
    """More files are unreadable than ``max_bad_fraction`` or ``max_bad_in_a_row`` allow."""


class WorkerDied(DataError):
    """A process that decodes was killed, or hangs."""


class QuantizerError(BridleError, ValueError):
    """A quantizer cannot do its work on this input."""


class RunError(BridleError):
    """A run folder or a checkpoint is missing, half written or of another version."""


class TrainingError(BridleError):
    """Training cannot go on."""
