"""What a code stands for: the patches nearest to its entry, and the labels it is found with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from bridle.report.gathering import Sample


@dataclass(frozen=True, slots=True)
class CodeExample:
    """A code of level 0.

    Attributes:
        code: its number.
        share: of the patches that have it.
        places: (file, window, patch) of the nearest patches, nearest first; of different files as far as there are.
        label: the label that it is found with most, "" without labels; ``label_share`` of its patches have it, and
            ``base_share`` of all patches.
    """

    code: int
    share: float
    places: tuple[tuple[int, int, int], ...]
    label: str = ""
    label_share: float = 0.0
    base_share: float = 0.0


def code_examples(sample: Sample, num_codes: int = 12, num_places: int = 6) -> tuple[CodeExample, ...]:
    """The most used codes of level 0 with their nearest patches; none without a tokenizer."""
    if not len(sample.codes):
        return ()
    first = sample.codes[:, 0]
    counts = torch.bincount(first)
    order = counts.argsort(descending=True, stable=True)[:num_codes]
    base = _labels(sample, torch.arange(len(first)))
    return tuple(
        _example(sample, code, int(counts[code]) / len(first), num_places, base) for code in order.tolist() if counts[code]
    )


def _example(sample: Sample, code: int, share: float, num_places: int, base: Counter[str]) -> CodeExample:
    rows = (sample.codes[:, 0] == code).nonzero()[:, 0]
    nearest = rows[sample.distances[rows].argsort(stable=True)]
    seen: set[int] = set()
    of_new_files: list[int] = []
    of_known: list[int] = []
    for row, place in zip(nearest.tolist(), sample.places[nearest, 0].tolist(), strict=True):
        (of_known if place in seen else of_new_files).append(row)
        seen.add(place)
        if len(of_new_files) == num_places:
            break
    chosen = (of_new_files + of_known)[:num_places]
    places = tuple((int(file), int(window), int(patch)) for file, window, patch in sample.places[chosen].tolist())
    labels = _labels(sample, rows)
    if not labels:
        return CodeExample(code, share, places)
    # The label that stands out most, not the one that has most clips.
    label = max(sorted(labels), key=lambda name: labels[name] / base[name])
    return CodeExample(code, share, places, label, labels[label] / labels.total(), base[label] / base.total())


def _labels(sample: Sample, patches: torch.Tensor) -> Counter[str]:
    files = torch.bincount(sample.places[patches, 0], minlength=len(sample)).tolist()
    found: Counter[str] = Counter()
    for file, count in enumerate(files):
        if sample.labels[file] and count:
            found[sample.labels[file]] += count
    return found
