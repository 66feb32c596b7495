"""Curves over the steps: losses, accuracy, gradient norm, learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bridle.report.curves import Curves, Series, sampled
from bridle.report.html import Html, Section, element, figure, join, section, table
from bridle.report.plots import line_plot
from bridle.report.scales import Unit, number
from bridle.wording import count

_CLASSES = (("class", "training"), ("validation/loss", "validation"))
_RIGHT = (("accuracy", "training"), ("validation/accuracy", "validation"))
_PRECISION = (("validation/mean_average_precision", "validation"),)
_PROBES = (("probe/knn", "kNN"), ("probe/linear", "linear probe"))
_BY_LEVEL = ("code", "accuracy", "perplexity", "in_use", "residual", "revived")
_SINGLE = (
    *("feature", "commitment", "patch", "gradient_norm", "lr", "skipped"),
    *(name for name, _ in (*_CLASSES, *_RIGHT, *_PRECISION, *_PROBES)),
)
"""Metrics that have a figure of their own, here or among the codebooks."""
_LOSSES = (("feature", "features"), ("commitment", "commitment"))


def training_section(curves: Curves, log_every_steps: int) -> Section:
    """What was logged while training."""
    figures = [
        *_supervised(curves),
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
        curve_figure(
            "Probes while training",
            _present(curves, _PROBES),
            curves,
            "Accuracy of kNN and of a linear probe on the frozen features of labelled clips, measured now and then; the run "
            "learnt nothing from these labels. It should rise, and may end below its peak.",
            unit="%",
        ),
    ]
    figures += [_other_figure(name, curves) for name in curves.values if not _is_drawn(name)]
    skipped = [(step, value) for step, value in curves.values.get("skipped", []) if value]
    steps = count(curves.last_step, "step")
    often = "every step" if log_every_steps == 1 else f"every {log_every_steps} steps"
    lead = (
        f"{count(len(curves.bands), 'phase')}, {steps}, a line logged {often}. Bands are phases, and a plot spans those in "
        "which its values were logged; rest the pointer on it for values."
    )
    if skipped:
        total = count(round(sum(value for _, value in skipped)), "step")
        lead += f" Skipped because the gradient was not finite: {total}, the first of them by step {skipped[0][0]}."
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
    numbers = table(["step", *(each.name for each in series)], rows, label=f"{title} by step")
    num_logged = len({step for each in series for step in each.steps})
    if len(rows) < num_logged:
        numbers = join([numbers, element("p", f"{len(rows)} of {num_logged:,} logged steps, evenly spread.", class_="soft")])
    return figure(title, plot, reading, numbers)


def _supervised(curves: Curves) -> list[Html | None]:
    """Of a fine-tuned run."""
    return [
        curve_figure(
            "Loss of the classes",
            _present(curves, _CLASSES),
            curves,
            "Cross-entropy of the classes, in nats: lower is better. Training clips are cropped and changed, and their targets "
            "mixed or smoothed where the settings say so, which keeps their loss up; validation clips are whole and left as "
            "they are. Validation that rises while training falls is overfitting.",
            from_zero=True,
        ),
        curve_figure(
            "Accuracy of the classes",
            _present(curves, _RIGHT),
            curves,
            "Share of clips whose most probable class is theirs: higher is better. Training is measured on clips as they are "
            "learnt from, changed and mixed; where there is validation, the weights of its highest point stand for the run.",
            unit="%",
            from_zero=True,
        ),
        curve_figure(
            "Mean average precision",
            _present(curves, _PRECISION),
            curves,
            "Mean over the labels of the average precision on validation clips: higher is better. The weights of its highest "
            "point stand for the run.",
            unit="%",
            from_zero=True,
        ),
    ]


def _is_drawn(name: str) -> bool:
    head, _, level = name.partition("/")
    return name in _SINGLE or (head in _BY_LEVEL and level.isdigit())


def _other_figure(name: str, curves: Curves) -> Html | None:
    title = name.replace("/", ": ").replace("_", " ")
    return curve_figure(title, _present(curves, ((name, title),)), curves, f"The metric '{name}' as it was logged.")


def _present(curves: Curves, wanted: Sequence[tuple[str, str]]) -> list[Series]:
    found = (curves.named(name, label, slot) for slot, (name, label) in enumerate(wanted))
    return [series for series in found if series is not None]
