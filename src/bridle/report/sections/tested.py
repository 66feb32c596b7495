"""The test of a fine-tuned run: its score, its classes, its mistakes, and how far its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.eval.metrics import CALIBRATION_BINS, ClassificationMetrics, TagMetrics
from bridle.finetuning.score import PredictedClip
from bridle.finetuning.tested import RunTest
from bridle.report.grids import Confidence, reliability
from bridle.report.html import Html, Section, element, facts, figure, section, table
from bridle.report.scales import number
from bridle.report.sections.data import bad_table
from bridle.report.sections.probes import confusion_figure, mixed_up
from bridle.report.sections.tags import tag_table
from bridle.wording import count

SHOWN_BINS = 10
"""Of the plot of confidence against accuracy; fewer than of the calibration error, so that they hold more clips."""


def tested_section(tested: RunTest, step: int | None) -> Section:
    """What the test clips say.

    Args:
        tested: the test.
        step: of the weights that validation clips chose; None when the last ones stand.
    """
    measured = tested.measured
    fold = f" of fold '{tested.fold}'" if tested.fold else ""
    were = "was" if len(measured.clips) == 1 else "were"
    lead = f"{count(len(measured.clips), 'labelled clip')}{fold} that {were} not trained on, with the classifier of this run"
    lead += f", which learnt from {count(tested.num_train, 'clip')}. "
    if step is None:
        lead += "The weights are the last ones."
    else:
        lead += f"The weights are those of step {step:,}, "
        lead += f"which {count(tested.num_validation, 'validation clip')} chose; test clips choose nothing."
    parts = [] if measured.metrics is None else _classes(measured.metrics, measured.clips)
    parts += [] if measured.tags is None else _tags(measured.tags)
    if measured.bad:
        parts += [element("h3", "Test clips that cannot be read", class_="after"), bad_table(measured.bad)]
    notes = [element("li", note) for note in tested.notes]
    return section("test", "Test", lead, *parts, *([element("ul", *notes, class_="notes")] if notes else []))


def confidences(clips: Sequence[PredictedClip], bins: int = SHOWN_BINS) -> list[Confidence]:
    """Clips by the probability of their most probable class: mean probability and share that is right, without empty bins."""
    found: dict[int, list[PredictedClip]] = {}
    for clip in clips:
        found.setdefault(min(bins - 1, int(clip.probability * bins)), []).append(clip)
    return [
        Confidence(
            sum(clip.probability for clip in some) / len(some),
            sum(clip.predicted == clip.labels for clip in some) / len(some),
            len(some),
        )
        for _, some in sorted(found.items())
    ]


def _classes(metrics: ClassificationMetrics, clips: Sequence[PredictedClip]) -> list[Html]:
    names = [row.name for row in metrics.classes]
    top = [(f"top-{each.k} accuracy", number(each.accuracy, "%")) for each in metrics.top_k if 1 < each.k < len(names)]
    pairs = [
        ("accuracy", number(metrics.accuracy, "%")),
        *top,
        ("balanced accuracy", number(metrics.balanced_accuracy, "%")),
        ("macro F1", number(metrics.macro_f1, "%")),
        ("negative log-likelihood", f"{number(metrics.negative_log_likelihood)} nats"),
        ("calibration error", number(metrics.calibration_error, "%")),
    ]
    rows = [
        (row.name, f"{row.support:,}", f"{row.predicted:,}", _share(row.recall), _share(row.precision), _share(row.f1))
        for row in metrics.classes
    ]
    calibration = figure(
        "Calibration",
        reliability(confidences(clips), "Share of right clips by the probability of the predicted class"),
        "Test clips by the probability of the class that was predicted, a mark for each tenth that has some, larger for more "
        "clips. On the diagonal a probability means what it says; marks below it were too sure. The calibration error "
        f"above is the mean distance, by {CALIBRATION_BINS} bins.",
    )
    return [
        facts(pairs),
        element("div", confusion_figure(metrics.confusion, names, "classifier"), calibration, class_="figures"),
        element(
            "div",
            element(
                "div",
                element("h3", "Every class", class_="after"),
                table(["class", "clips", "predicted", "recall", "precision", "F1"], rows, label="every class"),
            ),
            element("div", *mixed_up(metrics.confusion, names)),
            class_="columns",
        ),
    ]


def _tags(metrics: TagMetrics) -> list[Html]:
    pairs = [
        ("mean average precision", _share(metrics.mean_average_precision)),
        ("micro mAP", _share(metrics.micro_average_precision)),
        ("mean AUC", "none" if metrics.mean_auc is None else f"{metrics.mean_auc:.3f}"),
        ("d\u2032", "none" if metrics.d_prime is None else f"{metrics.d_prime:.2f}"),
    ]
    return [facts(pairs), element("h3", "Every tag", class_="after"), tag_table(metrics)]


def _share(value: float | None) -> str:
    return "none" if value is None else number(value, "%")
