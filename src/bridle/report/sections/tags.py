"""The evaluation of clips with several labels: mean average precision beside its baselines, and every tag."""

from __future__ import annotations

from bridle.eval.evaluate import RUN
from bridle.eval.metrics import TagMetrics
from bridle.eval.tags import TagEvaluation, TagResult
from bridle.report.html import Html, Section, element, figure, section, table
from bridle.report.plots import Interval, interval_plot
from bridle.report.scales import number
from bridle.report.sections.probes import TAUGHT_NOTE
from bridle.wording import count


def tags_section(evaluation: TagEvaluation, *, taught: bool) -> Section:
    """Everything that the batch-norm head says.

    Args:
        evaluation: of the run.
        taught: the encoder was trained with labels.
    """
    lead = (
        f"{count(len(evaluation.clips), 'clip')}, {len(evaluation.classes)} tags of column '{evaluation.columns.label}', "
        f"{evaluation.splits}. Features are frozen; layer, pooling and learning rate are chosen without looking at test clips."
    )
    lead += f" {TAUGHT_NOTE}" if taught else ""
    run = next(row for row in evaluation.rows if row.features == RUN)
    notes = [element("li", note) for note in evaluation.notes]
    return section(
        "probes",
        "Probes",
        lead,
        element("div", _means(evaluation), class_="figures"),
        element("h3", "Every tag, by this run's features", class_="after"),
        tag_table(run.result.metrics),
        *([element("ul", *notes, class_="notes")] if notes else []),
    )


def tag_table(metrics: TagMetrics) -> Html:
    """Average precision and AUC of every tag, the most frequent first."""
    rows = [
        (row.name, f"{row.positives:,}", _share(row.average_precision), "none" if row.auc is None else f"{row.auc:.3f}")
        for row in sorted(metrics.classes, key=lambda row: -row.positives)
    ]
    return table(["tag", "clips", "average precision", "AUC"], rows, label="every tag")


def _means(evaluation: TagEvaluation) -> Html:
    rows = [
        Interval(
            "batch-norm head",
            row.features,
            row.result.mean_average_precision,
            row.result.mean_average_precision if row.result.low is None else max(0.0, row.result.low),
            row.result.mean_average_precision if row.result.high is None else min(1.0, row.result.high),
            slot,
        )
        for slot, row in enumerate(evaluation.rows)
    ]
    plot = interval_plot(rows, "Mean average precision of this run's features and of the baselines")
    numbers = table(
        ["features", "mAP", "micro mAP", "mean AUC"],
        [
            (
                row.features,
                _mean(row.result),
                _share(row.result.metrics.micro_average_precision),
                "none" if row.result.metrics.mean_auc is None else f"{row.result.metrics.mean_auc:.3f}",
            )
            for row in evaluation.rows
        ],
        label="mean average precision of the features",
    )
    reading = (
        "Marks are the mean over tags of the average precision on test clips"
        + (", lines its 95 % intervals over splits" if evaluation.rows[0].result.low is not None else "")
        + f". '{RUN}' should lie to the right of the random encoder, which has the same shape and was never trained."
    )
    return figure("Mean average precision", plot, reading, numbers)


def _mean(result: TagResult) -> str:
    mean = f"{100 * result.mean_average_precision:.1f} %"
    if result.low is None or result.high is None:
        return mean
    return f"{mean} ({100 * result.low:.1f} to {100 * result.high:.1f})"


def _share(value: float | None) -> str:
    return "none" if value is None else number(value, "%")
