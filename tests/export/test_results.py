"""What a model card says of the test clips of a run with several labels a clip."""

import numpy as np

from bridle.data.quarantine import BadFile
from bridle.eval.metrics import tag_metrics
from bridle.export.results import cell, metric_names, write_results
from bridle.finetuning.score import Measured, PredictedClip
from bridle.finetuning.tested import RunTest


def test_several_labels() -> None:
    chances = np.array([[0.9, 0.2, 0.1], [0.4, 0.8, 0.3], [0.6, 0.7, 0.2]])
    targets = np.array([[True, False, False], [False, True, False], [False, True, False]])
    tags = tag_metrics(chances, targets, ("a", "b", "none"))
    clips = tuple(PredictedClip(f"{row}.wav", ("a",), ("a",), 0.9) for row in range(3))
    measured = Measured("x", ("a", "b", "none"), None, tags, clips, (BadFile("4.wav", "missing"),))
    tested = RunTest(measured, step=7, fold="", num_train=3, num_validation=0, notes=())
    text = write_results(tested)
    assert text.startswith("3 test clips, which neither trained nor chose anything. 1 file could not be read.")
    assert tags.mean_average_precision is not None
    assert f"| mean average precision | {100 * tags.mean_average_precision:.1f} |" in text
    assert "| none | 0 | - | - |" in text, "what is not defined is no number"
    assert metric_names(tested) == ["mean_average_precision", "roc_auc"]


def test_a_name_cannot_end_its_cell() -> None:
    assert cell("a|b\n c\\") == r"a\|b c\\"
