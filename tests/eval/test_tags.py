"""Clips of several tags: how they are dealt, the head's mAP beside scikit-learn's regressions, nothing chosen on test clips."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from bridle.data.labels import TagLabels, tag_labels
from bridle.errors import DataError
from bridle.eval import tags as tags_module
from bridle.eval.batchnorm_head import BatchNormConfig
from bridle.eval.intervals import t_interval
from bridle.eval.protocol import FeatureSet
from bridle.eval.tags import evaluate_tags, mean_average_precision, rarest_tags

RATES, SHORT = (0.01, 0.1), BatchNormConfig(epochs=20)


def tagged(num=120, num_tags=4, **columns):
    """A pooling of noise and one with signal; every fifth clip has no tag."""
    random = np.random.default_rng(0)
    targets = random.uniform(size=(num, num_tags)) < [0.5, 0.3, 0.3, 0.2]
    targets[::5] = False
    signal = random.normal(size=(num, 10)) + targets @ random.normal(size=(num_tags, 10))
    labels = TagLabels(tuple(f"tag {i}" for i in range(num_tags)), torch.from_numpy(targets))
    return FeatureSet({"noise": random.normal(size=(num, 5)), "signal": signal}, rarest_tags(labels), **columns), labels


SPLIT = {"splits": ["test" if i % 3 == 0 else "train" for i in range(120)]}


def test_the_rarest_tag_stands_for_a_clip():
    labels = tag_labels(["dog,bark", "dog", "dog", ",", "bark,cat"])
    assert rarest_tags(labels) == ["bark", "dog", "dog", "", "cat"]


def test_one_split_is_near_scikit_learns_regression_of_each_tag():
    features, labels = tagged(**SPLIT)
    result = evaluate_tags(features, labels, SHORT, RATES)
    (split,) = result.splits
    test = list(split.test_index)
    train = [i for i in range(120) if i not in test]
    rows, targets = features.pooled["signal"], labels.targets.numpy()
    models = [LogisticRegression().fit(rows[train], targets[train, tag]) for tag in range(4)]
    expected = np.mean(
        [average_precision_score(targets[test, tag], model.decision_function(rows[test])) for tag, model in enumerate(models)]
    )
    assert (split.name, split.pooling, split.num_train, len(test)) == ("test", "signal", 80, 40)
    assert result.mean_average_precision == pytest.approx(expected, abs=0.05)
    assert result.metrics.mean_average_precision == pytest.approx(result.mean_average_precision)
    assert (result.low, result.high, result.metrics.num_clips) == (None, None, 40)


def test_without_official_parts_there_are_five_and_an_interval():
    features, labels = tagged()
    result = evaluate_tags(features, labels, SHORT, RATES)
    means = [split.mean_average_precision for split in result.splits]
    assert len(means) == 5
    assert (result.low, result.high) == t_interval(means)
    assert sorted(i for split in result.splits for i in split.test_index) == list(range(120))
    assert result.mean_average_precision > 0.6
    assert result == evaluate_tags(features, labels, SHORT, RATES)


def test_choices_never_see_test_clips():
    features, labels = tagged(**SPLIT)
    clean = evaluate_tags(features, labels, SHORT, RATES).splits[0]
    targets, pooled = labels.targets.clone(), {name: values.copy() for name, values in features.pooled.items()}
    targets[::3] = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    pooled["noise"][::3, :4] = 10 * targets[::3].numpy()
    poisoned = evaluate_tags(
        dataclasses.replace(features, pooled=pooled), dataclasses.replace(labels, targets=targets), SHORT, RATES
    ).splits[0]
    fields = ("pooling", "parameter", "inner_mean_average_precision", "num_train", "test_index")
    assert [getattr(poisoned, name) for name in fields] == [getattr(clean, name) for name in fields]


def test_tags_without_test_or_training_clips_do_not_stop_it():
    features, labels = tagged(**SPLIT)
    targets = labels.targets.clone()
    targets[::3, 0], targets[1::3, 1], targets[2::3, 1] = False, False, False  # one never tested, one never trained
    result = evaluate_tags(features, dataclasses.replace(labels, targets=targets), SHORT, RATES)
    assert result.metrics.without_positives == ("tag 0",)
    assert result.metrics.classes[1].average_precision is not None


def test_parts_without_any_tag_are_errors():
    features, labels = tagged(**SPLIT)
    for part, match in ((slice(0, None, 3), "no test clip of split 'test' has a tag"), (slice(None), "no training clip")):
        targets = labels.targets.clone()
        targets[part] = False
        with pytest.raises(DataError, match=match):
            evaluate_tags(features, dataclasses.replace(labels, targets=targets), SHORT, RATES)
    with pytest.raises(DataError, match="tags of 119 clips and features of 120"):
        evaluate_tags(features, dataclasses.replace(labels, targets=labels.targets[1:]), SHORT, RATES)


def test_mean_over_the_tags_that_occur():
    scores, targets = np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[True, False], [False, False]])
    assert mean_average_precision(scores, targets) == 1.0
    assert mean_average_precision(scores, ~np.ones((2, 2), dtype=bool)) is None


def test_a_training_part_that_outer_splits_share_is_fitted_once(monkeypatch):
    fitted = []
    known = tags_module.batchnorm_logits

    def logits(train, targets, queries, rates, *others):
        if len(rates) > 1:
            fitted.append(train.numpy().tobytes())
        return known(train, targets, queries, rates, *others)

    monkeypatch.setattr(tags_module, "batchnorm_logits", logits)
    features, labels = tagged(folds=[str(i % 4) for i in range(120)])
    evaluate_tags(features, labels, SHORT, RATES)
    assert (
        len(fitted) == len(set(fitted)) == 2 * 6
    )  # poolings times pairs of folds, of which an outer and an inner one are left out
