"""The map of the embeddings, and the nearest neighbours of some clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from bridle.report.clips import ClipViews
from bridle.report.gathering import POOLINGS, Sample
from bridle.report.html import Html, Section, element, figure, join, section
from bridle.report.neighbours import Neighbours
from bridle.report.plots import NUM_SYMBOLS, Point, legend, scatter
from bridle.report.scales import number
from bridle.wording import count


def embeddings_section(
    sample: Sample,
    coordinates: tuple[Tensor, str],
    neighbours: Sequence[Neighbours],
    agreement: float | None,
    views: ClipViews,
) -> Section:
    """Map and neighbours.

    Args:
        sample: the clips.
        coordinates: (n, 2) and the method that made them.
        neighbours: of some clips.
        agreement: share of nearest neighbours with the same label; None without labels.
        views: shows clips.
    """
    config = views.model.config
    noun, pooling = config.medium.noun, POOLINGS[config.medium.name]
    lead = f"{count(len(sample), noun)}: the last layer of the encoder, pooled as '{pooling}'. "
    taught = config.finetune is not None
    lead += "The encoder was trained with labels." if taught else "No label was used to make the vectors."
    if agreement is not None:
        share = f"{'rarest ' if sample.several else ''}label"
        lead += f" Of the 5 nearest neighbours, {number(agreement, '%')} have the {share} of their clip."
    parts = _map(sample, coordinates, taught=taught), _neighbours(sample, neighbours, views)
    return section("embeddings", "Embeddings", lead, *parts)


def _map(sample: Sample, coordinates: tuple[Tensor, str], *, taught: bool) -> Html:
    counts = Counter(label for label in sample.labels if label)
    names = sorted(sorted(counts), key=lambda name: -counts[name])[:NUM_SYMBOLS]
    kinds = {name: kind for kind, name in enumerate(sorted(names))}
    points = [
        Point(x, y, kinds.get(label, -1 if counts else 0), f"{label}: {entry.key}" if label else entry.key)
        for (x, y), label, entry in zip(coordinates[0].tolist(), sample.labels, sample.entries, strict=True)
    ]
    method = coordinates[1]
    what = "coloured by label" if counts else "without labels"
    plot = scatter(points, f"Map of {count(len(points), 'clip')} by {method}, {what}")
    keys = [legend([*kinds.items(), *([("other", -1)] if len(kinds) < len(counts) else [])])] if counts else []
    reading = "A mark is a clip, at its first two principal components: the two directions in which clips differ most."
    if method == "t-SNE":
        reading = (
            "A mark is a clip. Neighbours on the map are alike to the encoder; distances between far groups and sizes of "
            "groups mean little."
        )
    if counts:
        reading += f" A mark's colour and shape are {'the rarest of its labels' if sample.several else 'its label'}"
        reading += "." if taught else ", which played no part in its place."
    if taught:
        reading += (
            " The encoder was trained with labels, and training clips may be on the map: groups show what it was taught, not "
            "what it found by itself."
        )
    picture = element("div", *keys, element("div", plot, class_="map"))
    return element("div", figure(f"Map of the clips ({method})", picture, reading, wide=True), class_="figures")


def _neighbours(sample: Sample, neighbours: Sequence[Neighbours], views: ClipViews) -> Html:
    rows = [_row(sample, near, views) for near in neighbours]
    labelled = any(sample.labels)
    reading = "The clip on the left and those whose embeddings are most similar to its own, with their cosine similarity." + (
        " A solid blue line means the same label, a dashed orange one another label." if labelled else ""
    )
    if labelled and sample.several:
        reading += " Of several labels of a clip the rarest is shown and compared."
    return element("div", figure("Nearest neighbours", join(rows), reading, wide=True), class_="figures")


def _row(sample: Sample, near: Neighbours, views: ClipViews) -> Html:
    own = sample.labels[near.query]
    cards = [_card(sample, near.query, "query", "clip", views)]
    for row, similarity in zip(near.found, near.similarity, strict=True):
        kind = ("same" if sample.labels[row] == own else "differs") if own and sample.labels[row] else ""
        cards.append(_card(sample, row, kind, f"similarity {similarity:.2f}", views))
    return element(
        "div", element("div", *cards, class_="cards", tabindex="0", role="group", aria_label="neighbours"), class_="row"
    )


def _card(sample: Sample, row: int, kind: str, words: str, views: ClipViews) -> Html:
    label = [element("strong", sample.labels[row]), element("br")] if sample.labels[row] else []
    said = element("div", *label, words, element("span", sample.entries[row].key, class_="name"))
    return element("div", views.thumbnail(row), said, views.player(row), class_=f"card {kind}".rstrip())
