"""The clips that a report looks at: all that were given, some of them drawn, and the one label that each is shown by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridle.data.columns import Columns, subset, value_of, with_cells
from bridle.data.labels import tag_labels
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import Medium
from bridle.errors import ConfigError
from bridle.eval.tags import rarest_tags
from bridle.randomness import permutation
from bridle.report.config import ReportConfig


@dataclass(frozen=True)
class Material:
    """Clips of a report.

    Attributes:
        every: all that were given.
        manifest: those that are looked at.
        labels: of these, to show: the label, of several the rarest; "" where there is none.
        note: that not all are looked at; "" when all are.
    """

    every: Manifest
    manifest: Manifest
    labels: tuple[str, ...]
    note: str = ""


def read_material(config: ReportConfig, medium: Medium) -> Material:
    """The clips of a report.

    Where there are more than ``num_clips``, that many are drawn by the seed: of every official part its share and at least
    one, and within a part alike of every label, so that probes of them can be tested.

    Args:
        config: says which; with data.
        medium: of the run.

    Raises:
        DataError: a source that cannot be read, a column that does not exist (names the nearest) or has no cell.
        ConfigError: a published set of another medium.
    """
    if config.published is None:
        every = read_manifest(list(config.data), medium, path_column=config.path)
    else:
        if config.published.medium is not medium:
            name, theirs = config.published.protocol.name, config.published.medium
            raise ConfigError(f"protocol {name} is of {theirs.nouns}, and the run is of {medium.nouns}")
        every = config.published.manifest
    columns = config.columns
    names = [""] * len(every) if columns is None else _names(every, columns, config.tag_separator)
    if len(every) <= config.num_clips:
        return Material(every, every, tuple(names))
    part = None if columns is None else columns.fold or columns.split
    parts = [""] * len(every) if part is None else [value_of(cell) for cell in every.columns[part]]
    rows = draw_rows(parts, names, config.num_clips, config.seed)
    note = f"{len(rows):,} of the {len(every):,} files, drawn by seed {config.seed}, were looked at (--clips)."
    return Material(every, subset(every, rows), tuple(names[row] for row in rows), note)


def draw_rows(parts: Sequence[str], names: Sequence[str], num: int, seed: int) -> list[int]:
    """About ``num`` rows in their order, fewer than there are.

    Args:
        parts: of every row; each gets its share, and, unless there are more of them than ``num``, at least one row.
        names: of every row; within a part each gets its share.
        num: how many.
        seed: of the draw.
    """
    total = len(parts)
    least = 1 if len(set(parts)) <= num else 0
    place = {row: index for index, row in enumerate(permutation(total, seed, "report").tolist())}
    of_part: dict[str, list[int]] = {}
    for row in sorted(range(total), key=lambda row: (names[row], place[row])):
        of_part.setdefault(parts[row], []).append(row)
    drawn: list[int] = []
    for rows in of_part.values():
        share = max(least, round(num * len(rows) / total))
        drawn += [rows[(2 * index + 1) * len(rows) // (2 * share)] for index in range(share)]
    return sorted(drawn)


def _names(manifest: Manifest, columns: Columns, separator: str | None) -> list[str]:
    with_cells(manifest, columns)  # a wrong column must show before the work
    cells = [value_of(cell) for cell in manifest.columns[columns.label]]
    return cells if separator is None else rarest_tags(tag_labels(cells, separator))
