"""Masked prediction on a few clips."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.phases import PhaseKind
from bridle.report.clips import ClipViews
from bridle.report.html import Html, Section, element, figure, join, section
from bridle.report.masked import EXPLAINED, MaskedExample
from bridle.report.pictures import picture_uri
from bridle.report.plots import svg
from bridle.report.scales import number


def masked_section(examples: Sequence[MaskedExample], views: ClipViews, kind: PhaseKind, *, moved: bool) -> Section:
    """Input, mask and result of each example.

    Args:
        examples: at least one.
        views: shows clips.
        kind: of the phase that trained the predictor.
        moved: the tokenizer was trained after that.
    """
    masks = views.model.config.masks
    sources = {"cold": "the cold start's random tokenizer", "patches": "the patches themselves"}
    labels = sources.get(kind, "the trained tokenizer")
    lead = (
        f"{number(masks.mask_ratio, '%')} of the patches are masked ({masks.kind}), {number(masks.predict_ratio, '%')} of "
        f"those are predicted; the labels come from {labels}."
    )
    if moved:
        lead += " The tokenizer was trained further after the predictor, so its codes are not quite those that were learnt."
    figures = [_figure(index, example, views, kind) for index, example in enumerate(examples)]
    return section("masked", "Masked prediction", lead, element("div", *figures, class_="figures"))


def _figure(index: int, example: MaskedExample, views: ClipViews, kind: PhaseKind) -> Html:
    height, width = example.picture.pixels.shape[:2]
    key = views.sample.entries[example.row].key
    name = f"clip-{index}"
    crisp = "pixels" if max(height, width) <= 160 else None
    source = element("image", id=name, href=picture_uri(example.picture.pixels), width=width, height=height, class_=crisp)
    again, grey = element("use", href=f"#{name}"), element("use", href=f"#{name}", class_="grey")
    pictures = [
        ("input", svg(width, height, f"input {key}", source)),
        ("what the encoder sees", svg(width, height, f"{key} under its mask", again, _covers(example))),
        ("where the prediction is right", svg(width, height, f"right and wrong in {key}", grey, *_marks(example))),
    ]
    body = join(element("div", element("p", words), picture) for words, picture in pictures)
    shape = "masked" if width > 3.2 * height else "masked side"
    names = ["patches"] if kind == "patches" else [f"level {level}" for level in range(len(example.right))]
    shares = ", ".join(f"{name} {number(share, '%')}" for name, share in zip(names, example.right, strict=True))
    right = "its most probable code of level 0 is the right one"
    if kind == "patches":
        right = f"at least {number(EXPLAINED, '%')} of its variance is explained"
    reading = (
        f"In the last picture a predicted patch is blue where {right}, orange with a cross where not; flat grey ones are "
        f"masked and not predicted, and what is left without colour is seen. Right in this clip: {shares}."
    )
    return figure(key, join([element("div", body, class_=shape), views.player(example.row)]), reading, wide=True)


def _covers(example: MaskedExample) -> Html:
    """All masked patches in one path."""
    boxes = (box for box, state in zip(example.picture.boxes, example.states, strict=True) if state != "visible")
    return element("path", d="".join(f"M{x} {y}h{w}v{h}h-{w}Z" for x, y, w, h in boxes), class_="cover")


def _marks(example: MaskedExample) -> list[Html]:
    parts = []
    for (x, y, width, height), state, words in zip(example.picture.boxes, example.states, example.words, strict=True):
        if state == "visible":
            continue
        title = [element("title", words)] if words else []
        kind = {"hidden": "veil", "right": "hit", "wrong": "miss"}[state]
        parts.append(element("rect", *title, x=x, y=y, width=width, height=height, class_=kind))
        if state == "wrong":
            a, b = 0.3, 0.7
            path = f"M{x + a * width:g} {y + a * height:g}L{x + b * width:g} {y + b * height:g}"
            path += f"M{x + b * width:g} {y + a * height:g}L{x + a * width:g} {y + b * height:g}"
            parts.append(element("path", d=path, class_="cross"))
    return parts
