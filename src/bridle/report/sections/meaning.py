"""What the most used codes of level 0 stand for."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.report.clips import ClipViews
from bridle.report.codes import CodeExample
from bridle.report.html import Html, Section, element, figure, section
from bridle.report.scales import number
from bridle.wording import count


def meaning_section(examples: Sequence[CodeExample], views: ClipViews) -> Section | None:
    """The nearest patches of each code; None without codes."""
    if not examples:
        return None
    clips = count(len(views.sample), views.model.config.medium.noun)
    lead = (
        f"The most used codes of level 0 ({len(examples)}) on {clips}, and the patches "
        "whose vectors lie nearest to each. Later levels describe what level 0 leaves over, so they mean little by "
        "themselves."
    )
    reading = (
        "The patch is inside the frame, its neighbours around it, and grey is where the clip ends; all frames of one code "
        "should hold the same thing."
    )
    if views.model.config.audio is not None:
        reading += " Time runs to the right and pitch upwards; the player plays the moments of the patches in turn, all bands."
    if any(example.label for example in examples):
        reading += " The label is the one that stands out most."
        reading += " Of several labels of a clip the rarest counts." if views.sample.several else ""
    cards = element("div", *(_card(example, views) for example in examples), class_="strips")
    shown = element("div", figure("Nearest patches", cards, reading, wide=True), class_="figures")
    return section("codes", "What a code means", lead, shown)


def _card(example: CodeExample, views: ClipViews) -> Html:
    words = f", {number(example.share, '%')} of the patches"
    if example.label:
        words += f"; {example.label}: {number(example.label_share, '%')} of them, {number(example.base_share, '%')} of all"
    tiles = (views.tile(*place) for place in example.places)
    player = views.moments(example.places, f"listen to code {example.code}")
    return element(
        "div",
        element("h4", f"code {example.code}", element("span", words)),
        element("div", *tiles, class_="tiles-of"),
        *([player] if player is not None else []),
        class_="code",
    )
