"""Plots as inline SVG: lines over the steps of a run, points of a map, intervals, bars. Colours come from the page's style.

Sizes are those of a phone's width; on a wider screen two stand side by side. Each says in words what it shows, and shows
values when the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bridle.report.curves import Band, Series, pieces
from bridle.report.html import Html, element, join
from bridle.report.scales import Scale, Unit, fit, number

WIDTH, HEIGHT = 460, 250
NUM_COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 24, 38
_LETTER = 7.7  # width of a letter of the labels at their largest, on a phone
_STRIPS = 48
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",  # disc
    "M-3.6-3.6h7.2v7.2h-7.2Z",  # square
    "M0-4.8L4.4 3.4H-4.4Z",  # triangle
    "M0-5L5 0L0 5L-5 0Z",  # diamond
)
NUM_SYMBOLS = NUM_COLOURS * len(_SHAPES)


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a map: its class as a number (-1 for none) and what is shown when the pointer rests on it."""

    x: float
    y: float
    kind: int
    title: str


def svg(width: float, height: float, label: str, *parts: str, grows: bool = True) -> Html:
    """A picture of ``width`` x ``height`` units that fills the width it is given, or is at most as wide as its units."""
    box = f"0 0 {width:g} {height:g}"
    most = None if grows else f"max-width: {width:g}px"
    return element("svg", *parts, viewBox=box, role="img", aria_label=label, class_="plot", style=most)


def line_plot(series: Sequence[Series], bands: Sequence[Band], label: str, unit: Unit = "", *, from_zero: bool = False) -> Html:
    """Curves over the phases in which they were logged, with a band for each, and a legend where there is more than one.

    Args:
        series: at least one curve; values above 0 only count on a logarithmic axis.
        bands: the phases of the run, which hold all steps of the curves.
        label: what is shown, in words.
        unit: of the values.
        from_zero: the axis begins at 0.
    """
    bands = _spanned(series, bands)
    across = Scale(float(bands[0].first), float(bands[-1].last), _LEFT, WIDTH - _RIGHT)
    curves = [[_above_zero(piece, unit) for piece in pieces(each, bands)] for each in series]
    shown = [value for curve in curves for piece in curve for _, value in piece]
    up = fit(shown, HEIGHT - _BOTTOM, _TOP, unit, from_zero=from_zero)
    lines = [_curve(curve, across, up, each.slot) for curve, each in zip(curves, series, strict=True)]
    plot = svg(
        WIDTH, HEIGHT, label, *_bands(bands, across), *_axes(across, up, "step"), *lines, *_strips(series, bands, across, up)
    )
    return join([legend([(each.name, each.slot) for each in series]), plot]) if len(series) > 1 else plot


def legend(entries: Sequence[tuple[str, int]]) -> Html:
    """Names beside their colour and shape."""
    keys = (
        element(
            "span",
            element("svg", _symbol(slot, 0, 0), viewBox="-6 -6 12 12", class_="key", aria_hidden="true"),
            element("span", name),
        )
        for name, slot in entries
    )
    return element("div", *keys, class_="legend")


def scatter(points: Sequence[Point], label: str) -> Html:
    """Points of a map without axes, those of one class in one colour and shape."""
    width, height = 560.0, 420.0
    across = fit([point.x for point in points], 4, width - 4)
    up = fit([point.y for point in points], height - 4, 4)
    marks = (_symbol(point.kind, across(point.x), up(point.y), point.title) for point in points)
    return svg(width, height, label, element("rect", x=0, y=0, width=width, height=height, class_="field"), *marks)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value in [0, 1] with its interval, in the row ``row`` of a group."""

    group: str
    name: str
    value: float
    low: float
    high: float
    slot: int


def interval_plot(rows: Sequence[Interval], label: str) -> Html:
    """Values with their intervals, a row each, under the name of their group."""
    groups = list(dict.fromkeys(row.group for row in rows))
    height = 34 + 22 * len(rows) + 24 * len(groups)
    across = Scale(0.0, 1.0, 150, WIDTH - 18, "%")
    parts: list[Html] = []
    for tick in across.ticks():
        x = across(tick)
        parts.append(element("line", x1=x, x2=x, y1=8, y2=height - 26, class_="grid"))
        parts.append(_label(across.text(tick), x, height - 10, "middle"))
    y = 4.0
    for group in groups:
        y += 24
        parts.append(_label(group, 4, y - 6, "start", strong=True))
        for row in (row for row in rows if row.group == group):
            y += 22
            middle, colour = y - 11, f"c{row.slot % NUM_COLOURS}"
            line = element("line", x1=across(row.low), x2=across(row.high), y1=middle, y2=middle, class_=f"{colour} thick")
            mark = _symbol(row.slot, across(row.value), middle)
            words = f"{row.name}: {number(row.value, '%')} ({number(row.low, '%')} to {number(row.high, '%')})"
            parts.append(_label(row.name, 142, middle + 4, "end"))
            parts.append(element("g", element("title", words), line, mark))
    return svg(WIDTH, height, label, *parts)


def bar_plot(bars: Sequence[tuple[str, int]], label: str) -> Html:
    """Counts as bars, a row each."""
    height = 8 + 22 * len(bars)
    most = max(count for _, count in bars)
    wide = Scale(0.0, float(max(1, most)), 130, WIDTH - 60)
    parts: list[Html] = []
    for row, (name, count) in enumerate(bars):
        y = 4 + 22 * row
        parts.append(_label(name, 122, y + 15, "end"))
        parts.append(element("rect", x=130, y=y + 3, width=max(1.0, wide(count) - 130), height=16, rx=2, class_="c0 area"))
        parts.append(_label(f"{count:,}", wide(count) + 6, y + 15, "start"))
    return svg(WIDTH, height, label, *parts)


def _spanned(series: Sequence[Series], bands: Sequence[Band]) -> Sequence[Band]:
    """The bands from the first to the last that holds a step of a curve."""
    steps = [step for each in series for step in each.steps]
    held = [index for index, band in enumerate(bands) if any(band.first < step <= band.last for step in steps)]
    return bands[held[0] : held[-1] + 1]


def _curve(curve: Sequence[Sequence[tuple[float, float]]], across: Scale, up: Scale, slot: int) -> Html:
    """The pieces as lines; a piece of a single point as a dot."""
    colour = f"c{slot % NUM_COLOURS}"
    path = ""
    dots = [_symbol(slot, across(piece[0][0]), up(piece[0][1])) for piece in curve if len(piece) == 1]
    for piece in curve:
        path += "".join(
            f"{'M' if index == 0 else 'L'}{across(step):.1f} {up(value):.1f}" for index, (step, value) in enumerate(piece)
        )
    line = element("path", d=path, class_=f"{colour} curve d{slot // NUM_COLOURS}")
    return join([line, *dots])


def _bands(bands: Sequence[Band], across: Scale) -> list[Html]:
    parts = []
    for index, band in enumerate(bands):
        start, end = across(band.first), across(band.last)
        shape = element("rect", x=start, y=_TOP, width=end - start, height=HEIGHT - _TOP - _BOTTOM, class_=f"band b{index % 2}")
        title = element("title", f"phase {band.name}: to step {band.last}")
        fitting = [name for name in (band.name, band.name.partition("-")[0]) if len(name) * _LETTER < end - start - 4]
        label = [_label(fitting[0], (start + end) / 2, _TOP - 8, "middle")] if fitting else []
        parts.append(element("g", title, shape, *label))
    return parts


def _axes(across: Scale, up: Scale, name: str) -> list[Html]:
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(_label(up.text(tick), _LEFT - 6, y + 4, "end"))
    parts += [_label(across.text(tick), across(tick), HEIGHT - _BOTTOM + 16, "middle") for tick in across.ticks(5, whole=True)]
    parts.append(_label(name, (across.start + across.end) / 2, HEIGHT - 4, "middle"))
    return parts


def _strips(series: Sequence[Series], bands: Sequence[Band], across: Scale, up: Scale) -> list[Html]:
    """Invisible columns that show the values of a step when the pointer rests on them."""
    steps = sorted({step for each in series for step in each.steps})
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, _STRIPS - 1))] for i in range(_STRIPS)})
    tables = [dict(zip(each.steps, each.values, strict=True)) for each in series]
    middles = [across(step) for step in chosen]
    edges = [_LEFT, *((a + b) / 2 for a, b in pairwise(middles)), WIDTH - _RIGHT]
    parts = []
    for step, (start, end) in zip(chosen, pairwise(edges), strict=True):
        phase = next((f" ({band.name})" for band in bands if band.first < step <= band.last), "")
        values = [f"{each.name} {up.text(table[step])}" for each, table in zip(series, tables, strict=True) if step in table]
        title = element("title", f"step {step}{phase}: {', '.join(values)}")
        parts.append(element("rect", title, x=start, y=_TOP, width=end - start, height=HEIGHT - _TOP - _BOTTOM, class_="strip"))
    return parts


def _symbol(kind: int, x: float, y: float, title: str = "") -> Html:
    """The mark of a class: colours first, then shapes; grey and small for none and for those beyond ``NUM_SYMBOLS``."""
    known = 0 <= kind < NUM_SYMBOLS
    colour, shape = (f"c{kind % NUM_COLOURS}", _SHAPES[kind // NUM_COLOURS]) if known else ("other", _SHAPES[0])
    inside = [element("title", title)] if title else []
    place = f"translate({x:.1f} {y:.1f})" if x or y else None
    return element("path", *inside, d=shape, transform=place, class_=f"{colour} mark")


def _label(text: str, x: float, y: float, anchor: str, *, strong: bool = False) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_="strong" if strong else None)


def _above_zero(piece: Sequence[tuple[float, float]], unit: Unit) -> list[tuple[float, float]]:
    return [(step, value) for step, value in piece if math.isfinite(value) and (unit != "log" or value > 0)]
