"""The evaluation: accuracies beside their baselines, gains, what is mixed up with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bridle.eval.evaluate import RUN, Evaluation
from bridle.eval.gain import Gain
from bridle.eval.protocol import ProbeResult
from bridle.report.grids import matrix
from bridle.report.html import Html, Section, element, figure, join, section, table
from bridle.report.plots import Interval, interval_plot
from bridle.report.scales import number
from bridle.wording import count

SHOWN_PAIRS = 10
TAUGHT_NOTE = (
    "The encoder was trained with labels, so where test clips of these probes were among its training clips, the numbers say "
    "how well it learnt them and not how good its features are for new ones."
)
_TITLES = {"knn": "kNN", "linear": "linear probe"}


def probes_section(evaluation: Evaluation, *, taught: bool) -> Section:
    """Everything that the probes say.

    Args:
        evaluation: of the run.
        taught: the encoder was trained with labels.
    """
    names = list(evaluation.rows[0].probes)
    lead = (
        f"{count(len(evaluation.clips), 'clip')}, {len(evaluation.classes)} classes of column '{evaluation.columns.label}', "
        f"{evaluation.splits}. Features are frozen; layer, pooling and the probes' parameters are chosen without looking at "
        "test clips."
    )
    lead += f" {TAUGHT_NOTE}" if taught else ""
    chosen = names[-1]
    run = next(row for row in evaluation.rows if row.features == RUN)
    counts = confusion(run.probes[chosen], evaluation.labels, evaluation.classes)
    parts = [
        element(
            "div",
            _accuracies(evaluation, names),
            confusion_figure(counts, evaluation.classes, _TITLES.get(chosen, chosen)),
            class_="figures",
        ),
        *mixed_up(counts, evaluation.classes),
        element(
            "details",
            element("summary", "Chosen layers and poolings, and every class"),
            _choices(evaluation),
            _classes(counts, evaluation.classes),
        ),
    ]
    notes = [element("li", note) for note in evaluation.notes]
    return section("probes", "Probes", lead, *parts, *([element("ul", *notes, class_="notes")] if notes else []))


def confusion(result: ProbeResult, labels: Sequence[str], classes: Sequence[str]) -> list[list[int]]:
    """Clips by their label (rows) and what the probe said (columns), over the test parts of all splits."""
    place = {name: index for index, name in enumerate(classes)}
    counts = [[0] * len(classes) for _ in classes]
    for split in result.splits:
        for row, said in zip(split.test_index, split.predictions, strict=True):
            counts[place[labels[row]]][place[said]] += 1
    return counts


def _accuracies(evaluation: Evaluation, names: Sequence[str]) -> Html:
    rows = [
        Interval(_TITLES.get(name, name), row.features, result.accuracy, result.low, result.high, slot)
        for name in names
        for slot, row in enumerate(evaluation.rows)
        for result in (row.probes[name],)
    ]
    numbers = table(
        ["features", *(_TITLES.get(name, name) for name in names)],
        [(row.features, *(_accuracy(row.probes[name]) for name in names)) for row in evaluation.rows],
        label="accuracy of the probes",
    )
    plot = interval_plot(rows, "Accuracy of each probe on this run's features and on the baselines")
    picture = join([plot, _gains(evaluation.gains, names)])
    made = sorted({result.interval for row in evaluation.rows for result in row.probes.values()})
    reading = (
        f"Marks are accuracies on test clips, lines their intervals ({', '.join(made)}). '{RUN}' should lie to the right of "
        "the random encoder, which has the same shape and was never trained. Gains are points of accuracy with their "
        "interval: where it holds 0, the difference may be chance."
    )
    return figure("Accuracy", picture, reading, numbers)


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str], judge: str) -> Html:
    """The confusion matrix (rows are the true classes) of what ``judge`` said."""
    plot = matrix(counts, classes, f"Confusion matrix of the {judge}")
    reading = (
        f"A row is a class, its cells what the {judge} took its clips for: blue on the diagonal is right, orange is wrong, "
        "stronger is a larger share of the row."
    )
    return figure(f"Confusion matrix, {judge}", plot, reading)


def _gains(gains: Sequence[Gain], names: Sequence[str]) -> Html:
    by_key = {(gain.over, gain.probe): gain for gain in gains}
    rows = [
        (f"over {over}", *(_points(by_key[over, name]) if (over, name) in by_key else "" for name in names))
        for over in dict.fromkeys(gain.over for gain in gains)
    ]
    return table(["gain of this run", *(_TITLES.get(name, name) for name in names)], rows, label="gains over the baselines")


def mixed_up(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Html]:
    """The pairs of classes that are mixed up most; nothing when none are."""
    pairs = Counter(
        {
            (truth, said): counts[i][j]
            for i, truth in enumerate(classes)
            for j, said in enumerate(classes)
            if i != j and counts[i][j]
        }
    )
    if not pairs:
        return []
    rows = [(truth, said, f"{count:,}") for (truth, said), count in pairs.most_common(SHOWN_PAIRS)]
    return [
        element("h3", "Mixed up most", class_="after"),
        table(["label", "taken for", "clips"], rows, left=2, label="classes mixed up most"),
    ]


def _classes(counts: list[list[int]], classes: Sequence[str]) -> Html:
    rows = []
    for index, (name, line) in enumerate(zip(classes, counts, strict=True)):
        said = sum(row[index] for row in counts)
        rows.append((name, f"{sum(line):,}", _share(line[index], sum(line)), _share(line[index], said)))
    return table(["class", "clips", "recall", "precision"], rows, label="every class")


def _choices(evaluation: Evaluation) -> Html:
    rows = []
    for row in evaluation.rows:
        for name, result in row.probes.items():
            poolings = " / ".join(sorted({split.pooling for split in result.splits}))
            values = sorted({split.parameter for split in result.splits})
            rows.append((row.features, _TITLES.get(name, name), poolings, " / ".join(f"{value:g}" for value in values)))
    return table(["features", "probe", "pooling", "k or C"], rows, left=4, label="what the splits chose")


def _accuracy(result: ProbeResult) -> str:
    return f"{100 * result.accuracy:.1f} % ({100 * result.low:.1f} to {100 * result.high:.1f})"


def _points(gain: Gain) -> str:
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (gain.mean, gain.low, gain.high))  # + 0.0: no -0.0
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _share(part: int, whole: int) -> str:
    return number(round(part / whole, 3), "%") if whole else "none"
