"""Metrics beside scikit-learn's, with ties, missing classes and single clips."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from bridle.config import from_dict, to_dict
from bridle.errors import DataError
from bridle.eval.metrics import (
    ClassificationMetrics,
    TagMetrics,
    average_precision,
    calibration_error,
    classification_metrics,
    roc_auc,
    tag_metrics,
)


def names(num):
    return [f"class {i}" for i in range(num)]


def drawn_probabilities(num, num_classes, seed, coarse=False):
    """Probabilities that tell the labels a little; coarse ones have many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num)
    logits = random.normal(size=(num, num_classes))
    logits[np.arange(num), labels] += 1.0
    weights = np.ceil(np.exp(logits)) if coarse else np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True), labels


def defined(found, expected, support):
    """``found`` is None exactly where nothing supports a number, and the reference elsewhere."""
    for value, other, count in zip(found, expected, support, strict=True):
        assert (value is None) == (count == 0)
        assert value is None or value == pytest.approx(other, abs=1e-9)


@settings(max_examples=60)
@given(num=st.integers(1, 60), num_classes=st.integers(2, 8), seed=st.integers(0, 10**6), coarse=st.booleans())
def test_classification_equals_scikit_learn(num, num_classes, seed, coarse):
    chances, labels = drawn_probabilities(num, num_classes, seed, coarse)
    found, predicted = classification_metrics(chances, labels, names(num_classes), (1, 2, 5)), chances.argmax(axis=1)
    every = list(range(num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and not there, and of k >= C
        assert found.accuracy == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-6)
        assert found.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(labels, predicted), abs=1e-6)
        assert found.macro_f1 == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-6)
        assert found.negative_log_likelihood == pytest.approx(reference.log_loss(labels, chances, labels=every), abs=1e-6)
        for top in found.top_k:
            # scikit-learn ranks the last of tied classes first, so it is given them in the other order.
            if num_classes > 2:
                expected = reference.top_k_accuracy_score(num_classes - 1 - labels, chances[:, ::-1], k=top.k, labels=every)
                assert top.accuracy == pytest.approx(expected, abs=1e-6)
        table = reference.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0.0)
    assert found.top_k[0].accuracy == found.accuracy
    assert np.array_equal(found.confusion, reference.confusion_matrix(labels, predicted, labels=every))
    rows = found.classes
    assert [row.support for row in rows] == table[3].tolist()
    defined([row.precision for row in rows], table[0], [row.predicted for row in rows])
    defined([row.recall for row in rows], table[1], [row.support for row in rows])
    defined([row.f1 for row in rows], table[2], [row.support + row.predicted for row in rows])
    assert found.without_clips == tuple(names(num_classes)[i] for i in every if i not in labels)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_is_that_of_scikit_learns_curve(seed):
    random = np.random.default_rng(seed)
    confidence = np.concatenate([random.uniform(size=200), np.linspace(0, 1, 16)])  # ends of bins, too
    right = random.uniform(size=216) < confidence**2
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    edges = np.linspace(0, 1, 16)
    sizes = [((low < confidence) & (confidence <= high)).sum() for low, high in itertools.pairwise(edges)]
    sizes[0] += (confidence == 0).sum()
    expected = sum(size * abs(a - b) for size, a, b in zip(sizes, accuracy, mean, strict=True)) / 216
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_known_cases():
    assert calibration_error(np.ones(8), np.ones(8, dtype=bool)) == 0.0
    assert calibration_error(np.ones(8), np.arange(8) < 4) == pytest.approx(0.5)
    assert calibration_error(np.full(4, 0.75), np.arange(4) < 3) == pytest.approx(0.0)
    # Two bins that err in opposite directions do not cancel.
    assert calibration_error(np.array([0.9, 0.5]), np.array([False, True])) == pytest.approx((0.9 + 0.5) / 2)


@settings(max_examples=60)
@given(num=st.integers(1, 50), num_classes=st.integers(1, 5), seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 1000]))
def test_tags_equal_scikit_learn(num, num_classes, seed, levels):
    random = np.random.default_rng(seed)
    targets = random.uniform(size=(num, num_classes)) < random.choice([0.0, 0.1, 0.5, 1.0], size=num_classes)
    scores = random.integers(levels, size=(num, num_classes)) / levels + 0.2 * targets  # few levels, so many ties
    found = tag_metrics(scores, targets, names(num_classes))
    precisions, areas = [], []
    for row, score, target in zip(found.classes, scores.T, targets.T, strict=True):
        assert row.positives == target.sum()
        if target.any():
            precisions.append(reference.average_precision_score(target, score))
            assert row.average_precision == pytest.approx(precisions[-1], abs=1e-6)
        if target.any() and not target.all():
            areas.append(reference.roc_auc_score(target, score))
            assert row.auc == pytest.approx(areas[-1], abs=1e-6)
        assert (row.average_precision is None) == (row.name in found.without_positives) == (not target.any())
        assert (row.auc is None) == (row.name in found.without_positives + found.without_negatives)
    assert found.mean_average_precision == (pytest.approx(np.mean(precisions), abs=1e-6) if precisions else None)
    assert found.mean_auc == (pytest.approx(np.mean(areas), abs=1e-6) if areas else None)
    if targets.any():
        micro = reference.average_precision_score(targets.ravel(), scores.ravel())
        assert found.micro_average_precision == pytest.approx(micro, abs=1e-6)
    if found.mean_auc not in (None, 0.0, 1.0):
        assert found.d_prime == pytest.approx(math.sqrt(2) * stats.norm.ppf(found.mean_auc), abs=1e-6)


def test_areas_by_counting_pairs():
    scores, targets = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[targets] for n in scores[~targets]]
    assert roc_auc(scores, targets) == pytest.approx(np.mean(pairs))
    assert average_precision(scores, targets) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_order_of_clips_and_monotone_scores_change_nothing():
    random = np.random.default_rng(0)
    scores, targets = random.normal(size=(40, 3)).round(1), random.uniform(size=(40, 3)) < 0.3
    expected = to_dict(tag_metrics(scores, targets, names(3)))
    order = random.permutation(40)
    for moved in (tag_metrics(scores[order], targets[order], names(3)), tag_metrics(7 * scores - 3, targets, names(3))):
        found = to_dict(moved)
        for key in ("mean_average_precision", "mean_auc"):
            assert found[key] == pytest.approx(expected[key], abs=1e-12)


def test_a_missing_class_all_scores_equal_and_a_single_clip():
    missing = classification_metrics(np.eye(3)[[0, 2, 2]], np.array([0, 2, 0]), names(3))
    assert missing.without_clips == ("class 1",)
    assert missing.balanced_accuracy == pytest.approx((0.5 + 1.0) / 2)
    assert (missing.classes[1].precision, missing.classes[1].recall, missing.classes[1].f1) == (None, None, None)
    equal = classification_metrics(np.full((4, 4), 0.25), np.arange(4), names(4), (1, 2, 9))
    assert [top.accuracy for top in equal.top_k] == [0.25, 0.5, 1.0]
    assert (equal.accuracy, equal.calibration_error) == (0.25, 0.0)
    single = classification_metrics(np.array([[0.2, 0.8]]), np.array([1]), names(2))
    assert (single.accuracy, single.macro_f1, single.calibration_error) == (1.0, 1.0, pytest.approx(0.2))
    tags = tag_metrics(np.zeros((1, 2)), np.array([[True, False]]), names(2))
    assert (tags.mean_average_precision, tags.mean_auc, tags.d_prime) == (1.0, None, None)
    nothing = tag_metrics(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool), names(2))
    assert (nothing.mean_average_precision, nothing.micro_average_precision) == (None, None)
    assert nothing.without_positives == ("class 0", "class 1")


def test_results_are_plain_data_without_nan():
    chances, labels = drawn_probabilities(20, 4, 0)
    for kind, found in (
        (ClassificationMetrics, classification_metrics(chances.astype(np.float32), labels, names(4))),
        (TagMetrics, tag_metrics(chances, np.zeros((20, 4), dtype=bool), names(4))),
    ):
        assert from_dict(kind, json.loads(json.dumps(to_dict(found), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("chances", "labels", "top_k", "match"),
    [
        (np.ones((0, 2)), np.zeros(0, dtype=int), (1,), r"shape \(0, 2\)"),
        (np.ones((2, 3)) / 3, np.zeros(2, dtype=int), (1,), r"it must be \(clips, 2\)"),
        (np.ones((2, 2)) / 2, np.zeros(3, dtype=int), (1,), r"it must be \(2,\) integers"),
        (np.ones((2, 2)) / 2, np.zeros(2), (1,), "float64"),
        (np.ones((2, 2)) / 2, np.array([0, 2]), (1,), "labels run from 0 to 2"),
        (np.array([[0.5, 0.5], [np.nan, 1.0]]), np.zeros(2, dtype=int), (1,), "in 1 rows, first 1"),
        (np.array([[0.5, 0.5], [2.0, -3.0]]), np.zeros(2, dtype=int), (1,), "row 1 holds no probabilities"),
        (np.array([[0.5, 0.5], [1.5, -0.5]]), np.zeros(2, dtype=int), (1,), "row 1 holds no probabilities"),
        (np.ones((2, 2)) / 2, np.zeros(2, dtype=int), (0,), "k = 0; it must be at least 1"),
    ],
)
def test_errors_name_the_value(chances, labels, top_k, match):
    with pytest.raises(DataError, match=match):
        classification_metrics(chances, labels, names(2), top_k)


def test_errors_of_tags():
    with pytest.raises(DataError, match=r"targets have shape \(3, 2\) and type int64; it must be \(3, 2\) bool"):
        tag_metrics(np.ones((3, 2)), np.ones((3, 2), dtype=np.int64), names(2))
    with pytest.raises(DataError, match="NaN or infinity in 1 rows, first 2"):
        tag_metrics(np.array([[0.0, 1], [0, 1], [np.inf, 1]]), np.ones((3, 2), dtype=bool), names(2))
