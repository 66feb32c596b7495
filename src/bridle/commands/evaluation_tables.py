"""Tables of ``bridle evaluate`` beyond the accuracies: few-shot probes, retrieval, one probe class by class, tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bridle.commands.display import table
from bridle.eval.details import Details
from bridle.eval.evaluate import RUN, Row
from bridle.eval.metrics import ClassificationMetrics
from bridle.eval.tags import TagEvaluation, TagResult

PROBE_TITLES = {
    "knn": ("kNN", "k"),
    "linear": ("linear", "C"),
    "batchnorm": ("batch-norm head", "learning rate"),
    "attentive": ("attentive", "learning rate"),
}
"""By a probe's name: its title, and the name of its parameter."""
_MATRIX_CLASSES, _CONFUSIONS = 12, 15  # from more classes on, the confusions that occur most often are listed instead


def few_shot_table(rows: Sequence[Row]) -> Table:
    """Accuracy with a few clips of each class, and how much the draw of them matters."""
    shots = [shot.shots for shot in rows[0].few_shot]
    best = [max(row.few_shot[i].accuracy for row in rows) for i in range(len(shots))]
    headers = [f"{num} of each class % (95 %)" for num in shots]
    made = table("few-shot linear probe", ["features", *headers], [])
    for row in rows:
        cells = [
            Text(_interval(shot.accuracy, shot.low, shot.high), style="bold green" if shot.accuracy == top else "")
            for shot, top in zip(row.few_shot, best, strict=True)
        ]
        made.add_row(Text(row.features, style="bold" if row.features == RUN else ""), *cells)
    made.caption = f"in brackets: over {len(rows[0].few_shot[0].draws)} draws of the clips"
    return made


def retrieval_table(rows: Sequence[Row]) -> Table:
    """Mean average precision and recall of the search for clips of the same class."""
    found = [(row.features, row.retrieval) for row in rows if row.retrieval is not None]
    first = found[0][1]
    title = f"retrieval of the same class, {first.num_queries} queries"
    made = table(title, ["features", "mAP %", *(f"recall@{at.k} %" for at in first.recall), "pooling"], [])
    made.columns[-1].justify = "left"
    best = max(result.mean_average_precision for _, result in found)
    for name, result in found:
        style = "bold green" if result.mean_average_precision == best else ""
        poolings = " / ".join(sorted({pooling for pooling in result.poolings if pooling != "clip"}))
        shares = [f"{100 * at.share:.1f}" for at in result.recall]
        mean = Text(f"{100 * result.mean_average_precision:.1f}", style=style)
        made.add_row(Text(name, style="bold" if name == RUN else ""), mean, *shares, Text(poolings, style="dim"))
    return made


def detail_tables(details: Details) -> Iterator[RenderableType]:
    """Metrics of one probe: all together, class by class, and what is taken for what."""
    metrics = details.metrics
    yield Text(f"{PROBE_TITLES[details.probe][0]} on {details.features}, all test clips", style="bold")
    yield Text(", ".join(_summary(metrics)))
    made = table("", ["class", "clips", "predicted", "precision %", "recall %", "F1 %"], [])
    for row in metrics.classes:
        made.add_row(row.name, str(row.support), str(row.predicted), *map(_percent, (row.precision, row.recall, row.f1)))
    yield made
    yield confusion_table(metrics)


def confusion_table(metrics: ClassificationMetrics) -> Table:
    """The confusion matrix, or of many classes the confusions that occur most often."""
    names = [row.name for row in metrics.classes]
    if len(names) <= _MATRIX_CLASSES:
        # Numbers fit where names of columns would be cut off.
        made = table("confusions", ["class, taken for number", *map(str, range(1, len(names) + 1))], [])
        for i, row in enumerate(metrics.confusion):
            cells = [Text(str(n) if n else ".", style="bold" if i == j else "red" if n else "dim") for j, n in enumerate(row)]
            made.add_row(f"{i + 1} {names[i]}", *cells)
        return made
    wrong = [
        (num, names[i], names[j]) for i, row in enumerate(metrics.confusion) for j, num in enumerate(row) if num and i != j
    ]
    worst = sorted(wrong, key=lambda each: (-each[0], each[1:]))[:_CONFUSIONS]
    rows = [(name, other, str(num)) for num, name, other in worst]
    return table("the most frequent confusions", ["class", "taken for", "clips"], rows, left=2)


def tag_screen(evaluation: TagEvaluation, title: str, details: bool) -> Iterator[RenderableType]:
    """What the command prints of clips with several tags."""
    yield Text(title, style="bold")
    yield Text(f"{len(evaluation.clips)} clips, {len(evaluation.classes)} tags, {evaluation.splits}")
    made = table("", ["features", "batch-norm head, mAP % (95 %)", "mean AUC", "micro mAP %"], [])
    best = max(row.result.mean_average_precision for row in evaluation.rows)
    for row in evaluation.rows:
        style = "bold green" if row.result.mean_average_precision == best else ""
        metrics = row.result.metrics
        area = "-" if metrics.mean_auc is None else f"{metrics.mean_auc:.3f}"
        mean = Text(_tag_mean(row.result), style=style)
        name = Text(row.features, style="bold" if row.features == RUN else "")
        made.add_row(name, mean, area, _percent(metrics.micro_average_precision))
    yield made
    chosen = table("chosen inside the training parts", ["features", "pooling, learning rate"], [], left=2)
    for row in evaluation.rows:
        chosen.add_row(
            row.features, Text(choice([(split.pooling, split.parameter) for split in row.result.splits]), style="dim")
        )
    yield chosen
    if details:
        yield tag_table(next(row.result for row in evaluation.rows if row.features == RUN))
    for note in evaluation.notes:
        yield Text(f"note: {note}", style="yellow")


def tag_table(result: TagResult) -> Table:
    """Average precision and AUC of every tag."""
    made = table(f"tags of {RUN}, all test clips", ["tag", "clips", "average precision %", "AUC"], [])
    for row in result.metrics.classes:
        area = "-" if row.auc is None else f"{row.auc:.3f}"
        made.add_row(row.name, str(row.positives), _percent(row.average_precision), area)
    return made


def choice(pairs: Sequence[tuple[str, float]]) -> str:
    """Features and parameters that the splits chose: ``time, 0.1-1``; of one vector there is no choice of features."""
    poolings = sorted({pooling for pooling, _ in pairs})
    parameters = sorted({parameter for _, parameter in pairs})
    ends = "-".join(f"{parameter:g}" for parameter in dict.fromkeys((parameters[0], parameters[-1])))
    return ends if poolings == ["clip"] else f"{' / '.join(poolings)}, {ends}"


def _summary(metrics: ClassificationMetrics) -> Iterator[str]:
    yield f"{metrics.num_clips} clips: accuracy {_percent(metrics.accuracy)} %"
    for top in metrics.top_k:
        if 1 < top.k < len(metrics.classes):
            yield f"top-{top.k} {_percent(top.accuracy)} %"
    yield f"balanced accuracy {_percent(metrics.balanced_accuracy)} %"
    yield f"macro F1 {_percent(metrics.macro_f1)} %"
    yield f"negative log-likelihood {metrics.negative_log_likelihood:.2f}"
    yield f"calibration error {_percent(metrics.calibration_error)} %"
    if metrics.without_clips:
        yield f"{len(metrics.without_clips)} classes without test clips"


def _tag_mean(result: TagResult) -> str:
    if result.low is None or result.high is None:
        return f"{100 * result.mean_average_precision:.1f}"
    return _interval(result.mean_average_precision, result.low, result.high)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
