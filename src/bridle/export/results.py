"""What the test clips of a fine-tuned run say, as Markdown for its model card."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridle.finetuning.score import Measured
from bridle.finetuning.tested import RunTest
from bridle.wording import count


def write_results(tested: RunTest) -> str:
    """Which clips were tested, the metrics, and a row for each class."""
    measured = tested.measured
    fold = f" of fold {cell(tested.fold)}" if tested.fold else ""
    which = f"{count(len(measured.clips), 'test clip')}{fold}, which neither trained nor chose anything."
    if measured.bad:
        which += f" {count(len(measured.bad), 'file')} could not be read."
    if tested.taught_before:
        which += " The encoder had been trained with labels before, and may know them from there."
    return "\n\n".join([which, *_of_classes(measured), *_of_tags(measured)])


def metric_names(tested: RunTest) -> list[str]:
    """As the Hub calls them."""
    return ["accuracy", "f1"] if tested.measured.metrics is not None else ["mean_average_precision", "roc_auc"]


def _of_classes(measured: Measured) -> list[str]:
    metrics = measured.metrics
    if metrics is None:
        return []
    numbers = [
        ("accuracy", _percent(metrics.accuracy)),
        *((f"top {top.k}", _percent(top.accuracy)) for top in metrics.top_k if top.k > 1),
        ("balanced accuracy", _percent(metrics.balanced_accuracy)),
        ("macro F1", _percent(metrics.macro_f1)),
        ("calibration error", _percent(metrics.calibration_error)),
    ]
    rows = [
        (cell(row.name), str(row.support), _percent(row.precision), _percent(row.recall), _percent(row.f1))
        for row in metrics.classes
    ]
    heads = ("class", "test clips", "precision %", "recall %", "F1 %")
    return [markdown_table(("", "%"), numbers), markdown_table(heads, rows)]


def _of_tags(measured: Measured) -> list[str]:
    tags = measured.tags
    if tags is None:
        return []
    numbers = [
        ("mean average precision", _percent(tags.mean_average_precision)),
        ("average precision over all pairs", _percent(tags.micro_average_precision)),
        ("mean area under the ROC curve", _percent(tags.mean_auc)),
    ]
    rows = [(cell(row.name), str(row.positives), _percent(row.average_precision), _percent(row.auc)) for row in tags.classes]
    heads = ("class", "test clips", "average precision %", "area under the ROC curve %")
    return [markdown_table(("", "%"), numbers), markdown_table(heads, rows)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def cell(text: str) -> str:
    """A name as it stands in a table: on one line, without marks of Markdown."""
    return re.sub(r"([\\|_*`<>])", r"\\\1", " ".join(text.split()))


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; its cells hold no bare ``|``."""
    lines = [heads, ["---" for _ in heads], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
