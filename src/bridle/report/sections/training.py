"""Curves over the steps: losses, accuracy, gradient norm, learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bridle.report.curves import Curves, Series, sampled
from bridle.report.html import Html, Section, element, figure, section, table
from bridle.report.plots import line_plot
from bridle.report.scales import Unit, number

_BY_LEVEL = ("code", "accuracy", "perplexity", "in_use", "residual", "revived")
_SINGLE = ("feature", "commitment", "patch", "gradient_norm", "lr", "skipped")
"""Metrics that have a figure of their own, here or among the codebooks."""
_LOSSES = (("feature", "features"), ("commitment", "commitment"))


def training_section(curves: Curves, log_every_steps: int) -> Section:
    """What was logged while training."""
    figures = [
        curve_figure(
            "Loss of the codes",
            curves.levels("code"),
            curves,
            "Cross-entropy of the codes of masked patches, in nats, one line per level: lower is better. It jumps where a "
            "phase begins, because the codes to be predicted are other ones; compare within a band only.",
        ),
        curve_figure(
            "Accuracy of the codes",
            curves.levels("accuracy"),
            curves,
            "Share of the predicted masked patches whose most probable code is the right one: higher is better. Later "
            "levels describe what the levels before leave over, which is harder to predict.",
            unit="%",
            from_zero=True,
        ),
        curve_figure(
            "Loss of the tokenizer",
            _present(curves, _LOSSES),
            curves,
            "Features: 1 minus the cosine between the encoder's features and what is estimated of them from the codes. "
            "Commitment: squared distance of the vectors to their codes. Both should fall, then level off.",
            from_zero=True,
        ),
        curve_figure(
            "Loss of the patches",
            _present(curves, (("patch", "patches"),)),
            curves,
            "Mean squared error of the normalised values of masked patches: 1 is what predicting the mean gives, lower is "
            "better.",
        ),
        curve_figure(
            "Gradient norm",
            _present(curves, (("gradient_norm", "gradient norm"),)),
            curves,
            "Norm of the gradient before clipping, on a logarithmic axis. It should stay within about a power of ten; "
            "sudden peaks that come back are a sign that the learning rate is too high.",
            unit="log",
        ),
        curve_figure(
            "Learning rate",
            _present(curves, (("lr", "learning rate"),)),
            curves,
            "Every phase warms up and then falls along a cosine; a curve that ends high was stopped before its phase was over.",
            from_zero=True,
        ),
    ]
    figures += [_other_figure(name, curves) for name in curves.values if not _is_drawn(name)]
    skipped = [step for step, value in curves.values.get("skipped", []) if value]
    lead = (
        f"{len(curves.bands)} {'phase' if len(curves.bands) == 1 else 'phases'}, {curves.last_step:,} steps, a line logged "
        f"every {log_every_steps} steps. Bands are phases, and a plot spans those in which its values were logged; rest the "
        "pointer on it for values."
    )
    if skipped:
        lead += f" Logged steps that were skipped because the gradient was not finite: {len(skipped)}, first {skipped[0]}."
    return section("training", "Training", lead, element("div", *(made for made in figures if made), class_="figures"))


def curve_figure(
    title: str, series: Sequence[Series], curves: Curves, reading: str, *, unit: Unit = "", from_zero: bool = False
) -> Html | None:
    """A plot with its numbers; None where nothing was logged."""
    if not series:
        return None
    names = ", ".join(each.name for each in series)
    plot = line_plot(series, curves.bands, f"{title} over the steps of the run: {names}", unit, from_zero=from_zero)
    shown: Unit = "%" if unit == "%" else ""
    rows = [
        (f"{step:,}", *("" if math.isnan(value) else number(value, shown) for value in values))
        for step, values in sampled(series)
    ]
    return figure(title, plot, reading, table(["step", *(each.name for each in series)], rows, label=f"{title} by step"))


def _is_drawn(name: str) -> bool:
    head, _, level = name.partition("/")
    return name in _SINGLE or (head in _BY_LEVEL and level.isdigit())


def _other_figure(name: str, curves: Curves) -> Html | None:
    title = name.replace("/", ": ").replace("_", " ")
    return curve_figure(title, _present(curves, ((name, title),)), curves, f"The metric '{name}' as it was logged.")


def _present(curves: Curves, wanted: Sequence[tuple[str, str]]) -> list[Series]:
    found = (curves.named(name, label, slot) for slot, (name, label) in enumerate(wanted))
    return [series for series in found if series is not None]
