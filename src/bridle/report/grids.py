"""Pictures made of cells as inline SVG: a confusion matrix, and how often the codes of each level are used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bridle.report.html import Html, element
from bridle.report.plots import svg
from bridle.report.scales import Scale, number
from bridle.wording import count

NAMED_CLASSES = 24
"""Classes up to which a confusion matrix has room for their names and counts."""
USAGE_BOUNDS = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Between the shades of the usage picture, as multiples of uniform usage."""
USAGE_NAMES = ("under 0.1", "0.1 to 0.5", "0.5 to 1", "1 to 2", "2 to 4", "over 4")
STRONGEST = 0.5
"""Opacity of a cell that holds its whole row; more would make its count hard to read."""
_COLUMNS, _CELL, _GAP = 64, 10.0, 1.5
_SIDE = 440.0
_RELIABILITY = 440.0


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], label: str) -> Html:
    """A square of counts, rows the truth and columns what was said; a cell is as strong as its share of its row."""
    size = len(names)
    named = size <= NAMED_CLASSES
    margin = min(130.0, 7.0 + 6.2 * max(map(len, names))) if named else 8.0
    cell = (_SIDE - margin) / size
    parts = []
    for row, (truth, line) in enumerate(zip(names, counts, strict=True)):
        total = max(1, sum(line))
        y = margin + row * cell
        if named:
            parts.append(element("text", _short(truth), x=margin - 5, y=y + cell / 2 + 4, text_anchor="end"))
            x = margin + (row + 0.5) * cell + 4
            turn = f"translate({x:.1f} {margin - 5:.1f}) rotate(-90)"
            parts.append(element("text", _short(truth), transform=turn, text_anchor="start"))
        for column, (said, number_of) in enumerate(zip(names, line, strict=True)):
            if not number_of and row != column:
                continue
            x, share = margin + column * cell, number_of / total
            words = f"{truth}, said to be {said}: {number_of} of {sum(line)}"
            shape = element(
                "rect",
                x=x,
                y=y,
                width=cell - 1,
                height=cell - 1,
                fill_opacity=0.06 + (STRONGEST - 0.06) * share,
                class_="c0 area" if row == column else "c1 area",
            )
            number = [
                element(
                    "text",
                    str(number_of),
                    x=x + cell / 2,
                    y=y + cell / 2 + 4,
                    text_anchor="middle",
                    class_="strong",
                )
            ]
            parts.append(element("g", element("title", words), shape, *(number if named and cell > 14 else [])))
    return svg(_SIDE, _SIDE, label, *parts)


@dataclass(frozen=True, slots=True)
class Confidence:
    """Some clips: the mean probability of what was said of them, the share of them that is right, how many they are."""

    said: float
    right: float
    num: int


def reliability(groups: Sequence[Confidence], label: str) -> Html:
    """What was said against what is right, both from 0 to 1, a mark for each group of clips, beside the diagonal."""
    low, high = 46.0, _RELIABILITY - 12
    across, up = Scale(0.0, 1.0, low, high, "%"), Scale(0.0, 1.0, high - 30, 8, "%")
    parts: list[Html] = []
    for tick in across.ticks():
        x, y = across(tick), up(tick)
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_="grid"))
        parts.append(element("text", up.text(tick), x=low - 6, y=y + 4, text_anchor="end"))
        parts.append(element("text", across.text(tick), x=x, y=up.start + 18, text_anchor="middle"))
    parts.append(element("line", x1=low, y1=up(0), x2=high, y2=up(1), class_="c7 d1"))
    most = max((group.num for group in groups), default=1)
    for group in groups:
        words = f"{count(group.num, 'clip')}, probability {number(group.said, '%')}: {number(group.right, '%')} right"
        radius = 3 + 6 * math.sqrt(group.num / most)
        title = element("title", words)
        parts.append(element("circle", title, cx=across(group.said), cy=up(group.right), r=radius, class_="c0 mark"))
    parts.append(element("text", "probability", x=(low + high) / 2, y=up.start + 36, text_anchor="middle"))
    return svg(_RELIABILITY, _RELIABILITY, label, *parts)


def usage_picture(usage: Tensor, label: str) -> Html:
    """Every code as a square, the most used of a level first, in six shades by :data:`USAGE_BOUNDS`.

    Args:
        usage: (R, K) share of the vectors that choose a code.
        label: what is shown, in words.
    """
    levels, size = usage.shape
    columns = min(_COLUMNS, size)
    rows = math.ceil(size / columns)
    unit = min(24.0, _COLUMNS * _CELL / columns)
    block = rows * unit + 22
    relative = (usage / usage.sum(1, keepdim=True).clamp(min=1e-12) * size).sort(dim=1, descending=True).values.tolist()
    parts = []
    for level, values in enumerate(relative):
        top = level * block + 16
        parts.append(element("text", f"level {level}", x=0, y=top - 4))
        paths = [""] * len(USAGE_NAMES)
        for code, value in enumerate(values):
            x, y = (code % columns) * unit, top + (code // columns) * unit
            side = unit - _GAP
            paths[shade(value)] += f"M{x:g} {y:g}h{side:g}v{side:g}h-{side:g}Z"
        for kind, path in enumerate(paths):
            if path:
                parts.append(element("path", element("title", f"{USAGE_NAMES[kind]} of uniform"), d=path, class_=f"u{kind}"))
    return svg(columns * unit, levels * block, label, *parts, grows=False)


def usage_legend() -> Html:
    """The six shades."""
    keys = (
        element(
            "span",
            element(
                "svg",
                element("rect", x=0, y=0, width=12, height=12, class_=f"u{kind}"),
                viewBox="0 0 12 12",
                class_="key",
                aria_hidden="true",
            ),
            element("span", name),
        )
        for kind, name in enumerate(USAGE_NAMES)
    )
    return element("div", *keys, class_="legend")


def shade(relative: float) -> int:
    """Which of the six shades a usage, as a multiple of uniform, has."""
    return sum(relative >= bound for bound in USAGE_BOUNDS)


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"
