"""Metrics to curves, scales, and the plots made of them."""

import math
import re

import pytest
import torch

from bridle.finetuning.score import PredictedClip
from bridle.report.curves import Band, Curves, Series, pieces, read_curves, sampled
from bridle.report.grids import NAMED_CLASSES, Confidence, matrix, reliability, shade, usage_picture
from bridle.report.neighbours import choose_queries
from bridle.report.plots import NUM_SYMBOLS, Interval, Point, bar_plot, interval_plot, line_plot, scatter
from bridle.report.scales import Scale, fit, number
from bridle.report.sections.tested import confidences
from bridle.report.sections.training import curve_figure

LINES = [
    {"step": 2, "phase": "1-cold", "code/0": 3.0, "code/1": 3.5, "lr": 0.1},
    {"step": 4, "phase": "1-cold", "code/0": 2.0, "code/1": math.nan, "lr": 0.2},
    {"step": 6, "phase": "2-tokenizer", "feature": 1.0, "lr": 0.1},
    {"step": 8, "phase": "3-encoder", "code/0": 2.5, "code/1": 2.6, "lr": 0.1},
]


def test_bands_and_levels():
    curves = read_curves(LINES)
    assert curves.bands == (Band("1-cold", 0, 4), Band("2-tokenizer", 4, 6), Band("3-encoder", 6, 8))
    assert curves.last_step == 8
    first, second = curves.levels("code")
    assert (first.name, first.steps, first.values, first.slot) == ("level 0", (2, 4, 8), (3.0, 2.0, 2.5), 0)
    assert (second.name, second.slot) == ("level 1", 1)
    assert curves.levels("accuracy") == ()
    assert curves.named("nothing", "nothing") is None
    assert read_curves([]).last_step == 0


def test_curves_break_at_phases_and_at_what_is_not_finite():
    curves = read_curves(LINES)
    first, second = curves.levels("code")
    assert pieces(first, curves.bands) == [[(2, 3.0), (4, 2.0)], [(8, 2.5)]]
    assert pieces(second, curves.bands) == [[(2, 3.5)], [(8, 2.6)]]
    lr = curves.named("lr", "lr")
    assert [len(piece) for piece in pieces(lr, curves.bands)] == [2, 1, 1]


def test_thinning_keeps_the_mean():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist()
    (piece,) = pieces(Series("x", tuple(range(1, 1001)), tuple(values)), [Band("1", 0, 1000)], points=100)
    assert len(piece) == 100
    assert sum(value for _, value in piece) / 100 == pytest.approx(sum(values) / 1000)


def test_numbers_of_a_long_curve_say_how_many_they_leave_out():
    def page(num):
        series = Series("loss", tuple(range(1, num + 1)), tuple([0.5] * num), 0)
        return curve_figure("Loss", [series], Curves((Band("1-cold", 0, num),), {}), "Lower is better.")

    assert "16 of 1,000 logged steps, evenly spread" in page(1000)
    assert "logged steps" not in page(16)


def test_sampled_steps_hold_the_ends():
    rows = sampled([Series("a", tuple(range(1, 101)), tuple(map(float, range(100)))), Series("b", (51,), (7.0,))], rows=5)
    assert [step for step, _ in rows] == [1, 26, 51, 75, 100]
    assert rows[2][1] == [50.0, 7.0]
    assert math.isnan(rows[0][1][1])
    assert sampled([]) == []


@pytest.mark.parametrize(
    ("low", "high", "unit", "expected"),
    [
        (0, 1, "", [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 7532, "", [0, 2000, 4000, 6000]),
        (2.13, 2.71, "", [2.2, 2.4, 2.6]),
        (-0.3, 0.4, "", [-0.2, 0, 0.2, 0.4]),
        (1e-4, 30, "log", [1e-4, 1e-3, 1e-2, 1e-1, 1, 10]),
        (0.4, 2.5, "log", [0.5, 1, 1.5, 2, 2.5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, unit, expected):
    assert Scale(low, high, 0, 100, unit).ticks() == pytest.approx(expected)


def test_steps_have_whole_ticks():
    assert Scale(0, 1, 0, 100).ticks(5, whole=True) == [0, 1]
    assert Scale(0, 10, 0, 100).ticks(5, whole=True) == [0, 5, 10]
    assert Scale(0, 40, 0, 100).ticks(5, whole=True) == [0, 10, 20, 30, 40]
    for last in range(1, 200):
        ticks = Scale(0, last, 0, 100).ticks(5, whole=True)
        assert 2 <= len(ticks) <= 5
        assert all(float(tick).is_integer() for tick in ticks)


def test_a_single_point_is_a_mark():
    series = Series("a", (1,), (0.5,))
    plot = line_plot([series], [Band("1", 0, 1)], "x", "%", from_zero=True)
    (place,) = re.findall(r'translate\(([\d.]+) ([\d.]+)\)" class="c0 mark"', plot)
    assert 0 < float(place[0]) <= 460
    assert 0 < float(place[1]) < 250
    assert "0.25" not in plot  # there is no quarter of a step
    assert "mark" not in line_plot([Series("a", (1, 2), (0.5, 0.6))], [Band("1", 0, 2)], "x")


def test_scale_places():
    assert Scale(0, 10, 100, 0)(2.5) == 75
    assert Scale(0.01, 100, 0, 100, "log")(1) == pytest.approx(50)
    assert fit([], 0, 1) == Scale(0.0, 1.0, 0, 1)
    same = fit([5.0, 5.0, math.nan], 0, 1)
    assert same.low < 5 < same.high
    assert fit([-1, 0], 0, 1, "log").unit == ""
    assert fit([0.2, 0.4], 0, 1, from_zero=True).low == 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "%", "50\u202f%"),
        (0.12345, "%", "12.3\u202f%"),
        (1e-5, "%", "under 0.1\u202f%"),
        (0.0, "%", "0\u202f%"),
        (1234567.0, "", "1.23e+06"),
        (12345.0, "", "12,345"),
        (0.00025, "", "0.00025"),
        (2.71828, "", "2.718"),
        (math.inf, "", "not finite"),
    ],
)
def test_numbers(value, unit, text):
    assert number(value, unit) == text


def test_lines_stay_inside_and_say_their_values():
    curves = read_curves(LINES)
    plot = line_plot(curves.levels("code"), curves.bands, "loss")
    for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", plot):
        assert 0 <= float(x) <= 460
        assert 0 <= float(y) <= 250
    assert "step 2 (1-cold): level 0 3, level 1 3.5" in plot
    assert plot.count('class="band') == 3
    assert 'role="img"' in plot
    assert 'aria-label="loss"' in plot
    assert line_plot(curves.levels("code"), curves.bands, "loss", "log").count("<path") == plot.count("<path")


def test_a_plot_spans_the_phases_that_have_its_values():
    curves = read_curves([*LINES[:2], {"step": 6, "phase": "2-tokenizer", "feature": 1.0}, *LINES[3:]])
    plot = line_plot([curves.named("feature", "features")], curves.bands, "loss")
    assert plot.count('class="band') == 1
    assert "2-tokenizer" in plot
    assert "1-cold" not in plot


def test_nothing_finite_still_gives_a_plot():
    plot = line_plot([Series("a", (1, 2), (math.nan, math.inf))], [Band("1", 0, 2)], "x", "log")
    assert "nan" not in plot.replace("not finite", "")


def test_symbols_tell_classes_apart():
    marks = [
        re.search(
            r'<path d="([^"]+)".*?class="([^"]+)"', scatter([Point(0, 0, kind, "t"), Point(1, 1, kind, "t")], "map")
        ).groups()
        for kind in range(NUM_SYMBOLS)
    ]
    assert len(set(marks)) == NUM_SYMBOLS
    assert "other" in scatter([Point(0, 0, NUM_SYMBOLS, "t")], "map")


def test_matrix_counts():
    plot = matrix([[3, 1], [0, 0]], ["a", "<b>"], "confusion")
    assert "a, said to be &lt;b&gt;: 1 of 4" in plot
    assert "&lt;b&gt;, said to be &lt;b&gt;: 0 of 0" in plot
    many = [str(i) for i in range(NAMED_CLASSES + 1)]
    assert "<text" not in matrix([[1] * len(many)] * len(many), many, "confusion")


def test_usage_picture_has_every_code_once():
    usage = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    plot = usage_picture(usage, "usage")
    assert plot.count("Z") == usage.numel()
    unused = re.search(r'd="([^"]*)" class="u0"', plot)
    assert unused[1].count("Z") == 2
    assert [shade(value) for value in (0, 0.1, 0.5, 1, 2, 4)] == [0, 1, 2, 3, 4, 5]


def test_reliability_places_groups_by_probability_and_share():
    plot = reliability([Confidence(0.0, 1.0, 4), Confidence(0.5, 0.5, 1)], "calibration")
    circles = [tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', plot)]
    (x0, y0, r0), (x1, y1, r1) = circles
    assert x0 < x1
    assert y0 < y1  # upwards is smaller
    assert r0 > r1
    assert "4 clips, probability 0\u202f%: 100\u202f% right" in plot


def test_confidence_groups():
    def clip(probability, right):
        return PredictedClip("k", ("a",), ("a",) if right else ("b",), probability)

    groups = confidences([clip(0.55, True), clip(0.58, False), clip(1.0, True), clip(0.91, True)])
    assert [(group.num, group.right) for group in groups] == [(2, 0.5), (2, 1.0)]
    assert [group.said for group in groups] == pytest.approx([0.565, 0.955])


def test_intervals_and_bars():
    plot = interval_plot([Interval("kNN", "this run", 0.5, 0.4, 0.6, 0)], "accuracy")
    assert "this run: 50\u202f% (40\u202f% to 60\u202f%)" in plot
    assert "1,200" in bar_plot([("a", 1200), ("b", 0)], "bars")


def test_queries_are_of_different_labels():
    labels = ["a"] * 10 + ["b", "c", ""]
    chosen = choose_queries(labels, 4, seed=0)
    assert chosen == choose_queries(labels, 4, seed=0)
    assert {labels[row] for row in chosen} >= {"a", "b", "c"}
    assert len(set(choose_queries(labels, 20, seed=0))) == len(labels)
