"""The head of the page: what run this is, the figures worth a glance, what is wrong, what is left out."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.eval.evaluate import RUN, Evaluation
from bridle.quantize import COLLAPSED_BELOW
from bridle.report.curves import Curves
from bridle.report.html import Html, Section, element
from bridle.report.scales import number
from bridle.summary import RunSummary


def overview(
    summary: RunSummary, curves: Curves, evaluation: Evaluation | None, notes: Sequence[str], sections: Sequence[Section]
) -> Html:
    """Title, tiles, notes, and links to the other parts."""
    tiles = element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), class_="tile")
            for name, value in _tiles(summary, curves, evaluation)
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
    found = [
        f"level {level} has collapsed: perplexity/K is {health.perplexity:.2f}, below {COLLAPSED_BELOW}; use fewer codes "
        "(--quantizer.codebook-size) or more data"
        for level, health in enumerate(summary.levels)
        if health.alarm
    ]
    skipped = sum(value > 0 for _, value in curves.values.get("skipped", []))
    if skipped:
        found.append(f"{skipped} logged steps were skipped because the gradient was not finite")
    return found


def _tiles(summary: RunSummary, curves: Curves, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    state = "finished" if summary.finished else "not finished" if summary.step else "no checkpoint"
    tiles = [
        ("state", state),
        ("steps", f"{max(summary.step, curves.last_step):,}"),
        ("weights of the encoder", _count(summary.parameters["encoder"])),
    ]
    if "accuracy/0" in curves.values:
        tiles.append(("last accuracy of level 0", number(curves.values["accuracy/0"][-1][1], "%")))
    elif "patch" in curves.values:
        tiles.append(("last loss of the patches", number(curves.values["patch"][-1][1])))
    if summary.levels:
        tiles.append(("codes in use, least level", number(min(health.in_use for health in summary.levels), "%")))
    if evaluation is not None:
        run = next(row for row in evaluation.rows if row.features == RUN)
        titles = {"knn": "kNN accuracy", "linear": "linear probe accuracy"}
        tiles += [(titles.get(name, name), number(result.accuracy, "%")) for name, result in run.probes.items()]
    return [*tiles, ("files in quarantine", f"{summary.num_quarantined:,}")]


def _count(value: int) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
