"""What goes into a report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bridle.data.columns import Columns
from bridle.data.protocols import ProtocolData
from bridle.errors import ConfigError
from bridle.report.neighbours import Projection

_ROLES = ("fold", "split", "group")


@dataclass(frozen=True)
class ReportConfig:
    """What goes into a report.

    Attributes:
        data: folders, tables or tar shards; empty for a report without data.
        label: column with the class, for the probes and the colours of the map.
        fold: column with the official fold, left out in turn; or None.
        split: column that says train, validation or test; or None.
        group: clips of one group are never on both sides of a split; or None.
        path: column with the paths of a table; None for the usual ones.
        separator: between the labels of a cell that holds any number of them; None where a clip has one.
        published: a set that says its files, labels and splits itself, instead of all of these; or None.
        num_clips: of the data that are looked at, drawn by the seed.
        projection: how the map is made, see :func:`bridle.report.neighbours.project`.
        watts: what the machine draws while training, for an estimate of the energy.
        seed: of everything random.

    Raises:
        ConfigError: columns without data, or beside a published set, or a number out of range.
        DataError: both ``fold`` and ``split``.
    """

    data: tuple[str, ...] = ()
    label: str | None = None
    fold: str | None = None
    split: str | None = None
    group: str | None = None
    path: str | None = None
    separator: str | None = None
    published: ProtocolData | None = None
    num_clips: int = 500
    projection: Projection = "auto"
    watts: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        named = [name for name in ("data", "label", *_ROLES, "path", "separator") if getattr(self, name)]
        if self.published is not None and named:
            raise ConfigError(f"{named[0]} is given beside a published set, which says it itself; leave one of them out")
        for name in (*_ROLES, "separator"):
            if getattr(self, name) is not None and self.label is None:
                raise ConfigError(f"{name} is '{getattr(self, name)}' and there is no label; give --label COLUMN too")
        for name in ("label", "path"):
            if getattr(self, name) is not None and not self.data:
                raise ConfigError(f"{name} is '{getattr(self, name)}' and there is no data; give --data too")
        if self.num_clips < 2:
            raise ConfigError(f"num_clips is {self.num_clips}; a map needs at least 2")
        if self.watts is not None and not 0 < self.watts < math.inf:
            raise ConfigError(f"watts is {self.watts}; it must be above 0")
        _ = self.columns  # which fold and split exclude each other in

    @property
    def has_data(self) -> bool:
        """Whether there are clips to look at."""
        return bool(self.data) or self.published is not None

    @property
    def columns(self) -> Columns | None:
        """Of the labels; None without any."""
        if self.published is not None:
            return self.published.columns
        return None if self.label is None else Columns(self.label, self.fold, self.split, self.group)

    @property
    def tag_separator(self) -> str | None:
        """Between the labels of a cell; None where a clip has one label, or none."""
        return self.separator if self.published is None else self.published.protocol.separator or None
