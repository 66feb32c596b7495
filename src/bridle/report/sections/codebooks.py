"""Health of the codebooks: over the steps, at the end, and how much codes changed from one tokenizer to the next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bridle.eval.features import CodeStatistics
from bridle.quantize import COLLAPSED_BELOW
from bridle.report.curves import Curves
from bridle.report.gathering import Churn
from bridle.report.grids import usage_legend, usage_picture
from bridle.report.html import Html, Section, element, figure, join, section, table
from bridle.report.scales import number
from bridle.report.sections.training import curve_figure
from bridle.summary import RunSummary
from bridle.wording import count


def codebooks_section(
    summary: RunSummary, curves: Curves, usage: Tensor | None, churn: Sequence[Churn], statistics: CodeStatistics | None
) -> Section | None:
    """Everything about the codebooks; None where nothing is known.

    Args:
        summary: of the run.
        curves: what was logged.
        usage: (R, K) usage of the codes of the tokenizer that stands for the run; None before the first checkpoint.
        churn: other tokenizers against that one.
        statistics: of the codes of labelled clips; None without an evaluation.
    """
    figures = [
        curve_figure(
            "Perplexity",
            curves.levels("perplexity"),
            curves,
            "How many codes are in effective use, as a share of all: 100 % means all alike, and below "
            f"{number(COLLAPSED_BELOW, '%')} a level has collapsed. In phases that only predict codes the codebooks stand "
            "still, so the lines are level.",
            unit="%",
            from_zero=True,
        ),
        curve_figure(
            "Codes in use",
            curves.levels("in_use"),
            curves,
            "Share of the codes that are chosen at least a tenth as often as if all were chosen alike: it should stay near "
            "100 %.",
            unit="%",
            from_zero=True,
        ),
        curve_figure(
            "Energy left",
            curves.levels("residual"),
            curves,
            "Share of the vectors' energy that is left after a level: every level should lie clearly below the one before, "
            "else it adds nothing.",
            unit="%",
            from_zero=True,
        ),
        curve_figure(
            "Revived codes",
            curves.levels("revived"),
            curves,
            "Codes that had hardly been used and were moved to a busy place, in the last step before a line was logged. "
            "Some at the start of a tokenizer phase are usual; many to the end mean that there are more codes than the data "
            "fill.",
            from_zero=True,
        ),
        _usage_figure(usage) if usage is not None else None,
    ]
    shown = [made for made in figures if made is not None]
    if not shown:
        return None
    kinds = {"tokenizer": "trained tokenizer", "cold": "cold start's random tokenizer"}
    lead = f"{count(summary.config.quantizer.num_codebooks, 'level')} of {summary.config.quantizer.codebook_size} codes. " + (
        f"The codes of this run are those of its {kinds[summary.tokenizer]}." if summary.tokenizer else "No checkpoint yet."
    )
    tables: list[Html] = []
    if summary.levels:
        heading = element("h3", "At the newest checkpoint", class_="after")
        tables.append(element("div", heading, _levels_table(summary)))
    if churn:
        tables.append(element("div", *_churn(churn)))
    if statistics is not None:
        tables.append(element("div", *_statistics(statistics), class_="whole"))
    pictures = element("div", *shown, class_="figures")
    return section("codebooks", "Codebooks", lead, pictures, element("div", *tables, class_="columns"))


def _usage_figure(usage: Tensor) -> Html:
    picture = join([usage_legend(), usage_picture(usage, "Usage of every code, the most used first, by level")])
    reading = (
        "A square is a code, the most used first; shades are usage as a multiple of uniform. A healthy level is a smooth "
        "passage of blues; much orange is codes that hardly occur."
    )
    return figure("Usage of the codes", picture, reading, wide=True)


def _levels_table(summary: RunSummary) -> Html:
    rows = [
        (
            f"level {level}" + (" (collapsed)" if health.alarm else ""),
            number(health.in_use, "%"),
            number(health.perplexity, "%"),
            "not logged" if health.residual is None else number(health.residual, "%"),
        )
        for level, health in enumerate(summary.levels)
    ]
    return table(["level", "codes in use", "perplexity / K", "energy left"], rows, label="codebooks at the newest checkpoint")


def _churn(churn: Sequence[Churn]) -> list[Html]:
    levels = len(churn[0].levels)
    rows = [(f"since {each.name}", *(number(value, "%") for value in each.levels)) for each in churn]
    return [
        element("h3", "How much the codes changed", class_="after"),
        table(["tokenizer", *(f"level {level}" for level in range(levels))], rows, label="label churn"),
        element(
            "p",
            "0 % would be the same codes under other numbers, 100 % codes that tell nothing about each other. A trained "
            "tokenizer should differ much from the cold start; between late checkpoints a high number means that it has not "
            "settled.",
            class_="soft",
        ),
    ]


def _statistics(statistics: CodeStatistics) -> list[Html]:
    report = statistics.report
    rows = [
        (
            f"level {level}",
            number(report.used[level], "%"),
            number(report.perplexity[level], "%"),
            number(statistics.residual[level], "%"),
            f"{report.position_bits[level]:.2f} ({report.position_floor_bits[level]:.2f})",
            f"{100 * report.shared[level]:.0f} % ({100 * report.shared_floor[level]:.0f} %)" if level else "",
        )
        for level in range(len(report.used))
    ]
    headers = ["level", "used", "perplexity / K", "energy left", "tells position, bits", "tells level before"]
    return [
        element("h3", f"On the given clips: {report.num_patches:,} patches", class_="after"),
        table(headers, rows, label="codes of the given clips"),
        element(
            "p",
            "In brackets: the same after shuffling, which is chance. What a level tells about the one before is wasted.",
            class_="soft",
        ),
    ]
