"""The head of the page: what run this is, the figures worth a glance, what is wrong, what is left out."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.eval.evaluate import RUN, Evaluation
from bridle.eval.tags import TagEvaluation
from bridle.report.curves import Curves
from bridle.report.html import Html, Section, element
from bridle.report.scales import number
from bridle.summary import RunSummary
from bridle.wording import count

_SHARES = (
    ("accuracy/0", "last accuracy of level 0"),
    ("accuracy", "last training accuracy"),
    ("validation/accuracy", "last validation accuracy"),
    ("validation/mean_average_precision", "last validation mAP"),
    ("probe/knn", "last kNN while training"),
    ("probe/linear", "last linear probe while training"),
)
"""Metrics that are shares, and the tiles of their last values."""


def overview(
    summary: RunSummary, curves: Curves, scores: Sequence[tuple[str, float]], notes: Sequence[str], sections: Sequence[Section]
) -> Html:
    """Title, tiles, notes, and links to the other parts.

    Args:
        summary: of the run.
        curves: what was logged.
        scores: names and shares in [0, 1] of what tests and probes found, each a tile.
        notes: what a reader must know.
        sections: the other parts.
    """
    tiles = element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), class_="tile")
            for name, value in _tiles(summary, curves, scores)
        ),
        class_="tiles",
    )
    lines = [element("li", text, class_="alarm") for text in alarms(summary, curves)] + [element("li", text) for text in notes]
    config = summary.config
    kind = f"{config.medium.name} run by recipe {config.recipe}, seed {config.seed}"
    return element(
        "header",
        element("h1", run_name(summary)),
        element("p", kind, class_="soft"),
        tiles,
        *([element("ul", *lines, class_="notes")] if lines else []),
        element(
            "nav",
            *(element("a", section.title, href=f"#{section.name}") for section in sections),
            aria_label="parts of the report",
        ),
    )


def run_name(summary: RunSummary) -> str:
    """The last part of the run's path."""
    return summary.path.rstrip("/").rpartition("/")[2] or summary.path


def alarms(summary: RunSummary, curves: Curves) -> list[str]:
    """What is wrong, one line each."""
    found = summary.alarms
    skipped = round(sum(value for _, value in curves.values.get("skipped", [])))
    if skipped:
        found.append(f"{count(skipped, 'step')} skipped because the gradient was not finite")
    return found


def probe_scores(evaluation: Evaluation | TagEvaluation) -> list[tuple[str, float]]:
    """What the probes of the run's features reach, by the names of tiles."""
    if isinstance(evaluation, TagEvaluation):
        return [("batch-norm head mAP", row.result.mean_average_precision) for row in evaluation.rows if row.features == RUN]
    run = next(row for row in evaluation.rows if row.features == RUN)
    titles = {"knn": "kNN accuracy", "linear": "linear probe accuracy"}
    return [(titles.get(name, name), result.accuracy) for name, result in run.probes.items()]


def _tiles(summary: RunSummary, curves: Curves, scores: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    state = "finished" if summary.finished else "not finished" if summary.step else "no checkpoint"
    tiles = [
        ("state", state),
        ("steps", f"{max(summary.step, curves.last_step):,}"),
        ("weights of the encoder", _count(summary.parameters["encoder"])),
    ]
    tiles += [(name, number(value, "%")) for name, value in scores]
    if "accuracy/0" not in curves.values and "patch" in curves.values:
        tiles.append(("last loss of the patches", number(curves.values["patch"][-1][1])))
    if "class" in curves.values:
        tiles.append(("last training loss", number(curves.values["class"][-1][1])))
    tiles += [(title, number(curves.values[name][-1][1], "%")) for name, title in _SHARES if name in curves.values]
    if summary.levels:
        tiles.append(("codes in use, least level", number(min(health.in_use for health in summary.levels), "%")))
    return [*tiles, ("files in quarantine", f"{summary.num_quarantined:,}")]


def _count(value: int) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
