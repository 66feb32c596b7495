"""Few-shot probes: which clips are drawn, and the accuracy beside scikit-learn's on the same draws."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bridle.errors import DataError
from bridle.eval.few_shot import draw_shots, few_shot
from bridle.eval.intervals import t_interval
from bridle.eval.protocol import FeatureSet, choose_splits, evaluate, knn_probe

KNN = knn_probe((1, 5))


def feature_set(num=120, num_classes=3, **columns):
    random = np.random.default_rng(0)
    coded = np.arange(num) % num_classes
    centres = random.normal(size=(num_classes, 10))
    pooled = {"noise": random.normal(size=(num, 4)), "signal": 0.8 * random.normal(size=(num, 10)) + centres[coded]}
    return FeatureSet(pooled, [chr(97 + i) for i in coded], **columns)


FOLDS = {"folds": [str(i // 3 % 3) for i in range(120)]}


def test_accuracies_are_those_of_scikit_learn_on_the_same_clips():
    features = feature_set(**FOLDS)
    chosen = evaluate(features, KNN)
    coded = np.array([ord(name) - 97 for name in features.labels])
    for result in few_shot(features, chosen, (1, 4, 10), num_draws=3):
        expected = []
        for draw in range(3):
            by_split = []
            for split, own in zip(choose_splits(features), chosen.splits, strict=True):
                rows = features.pooled[own.pooling]
                drawn = draw_shots(coded, split, result.shots, draw)
                scaler = StandardScaler().fit(rows[drawn])
                model = LogisticRegression(C=1.0, tol=1e-7, max_iter=2000).fit(scaler.transform(rows[drawn]), coded[drawn])
                by_split.append(model.score(scaler.transform(rows[split.test_index]), coded[split.test_index]))
            expected.append(np.mean(by_split))
        assert result.draws == pytest.approx(expected, abs=0.005)
        assert result.accuracy == pytest.approx(np.mean(result.draws))
        assert (result.low, result.high) == t_interval(result.draws)
        assert result.short == 0


def test_draws_hold_n_training_clips_of_each_class_and_the_smaller_draws():
    features = feature_set(**FOLDS)
    coded = np.array([ord(name) for name in features.labels])
    for split in choose_splits(features):
        draws = [draw_shots(coded, split, 5, draw) for draw in range(4)]
        assert len({drawn.tobytes() for drawn in draws}) == 4
        for draw, drawn in enumerate(draws):
            assert set(drawn) <= set(split.train_index)
            assert np.unique(coded[drawn], return_counts=True)[1].tolist() == [5, 5, 5]
            assert set(draw_shots(coded, split, 2, draw)) < set(drawn)


def test_test_clips_decide_nothing_but_the_accuracy_and_repeats_are_equal():
    features = feature_set(splits=["test" if i % 4 == 0 else "train" for i in range(120)])
    chosen = evaluate(features, KNN)
    assert few_shot(features, chosen, (2,)) == few_shot(features, chosen, (2,))
    assert few_shot(features, chosen, (2,)) != few_shot(features, chosen, (2,), seed=1)
    labels = ["never seen" if i % 4 == 0 else name for i, name in enumerate(features.labels)]
    assert few_shot(dataclasses.replace(features, labels=labels), chosen, (2,))[0].accuracy == 0.0


def test_classes_with_fewer_clips_give_all_they_have():
    features = feature_set()
    labels = ["rare" if i in (1, 50) else name for i, name in enumerate(features.labels)]
    features = dataclasses.replace(features, labels=labels)
    one, many = few_shot(features, evaluate(features, KNN), (1, 5))
    assert (one.short, many.short) == (0, 1)


def test_more_clips_are_better():
    features = feature_set(**FOLDS)
    one, ten = few_shot(features, evaluate(features, KNN), (1, 10))
    assert ten.accuracy > one.accuracy > 0.4


def test_errors_name_the_value():
    features = feature_set(**FOLDS)
    chosen = evaluate(features, KNN)
    with pytest.raises(DataError, match="0 clips of each class"):
        few_shot(features, chosen, (5, 0))
    with pytest.raises(DataError, match="1 draw of the clips"):
        few_shot(features, chosen, (5,), num_draws=1)
    with pytest.raises(DataError, match="not of these splits"):
        few_shot(feature_set(), chosen, (5,))


def test_features_may_be_tensors():
    features = feature_set(**FOLDS)
    pooled = {name: torch.from_numpy(values) for name, values in features.pooled.items()}
    chosen = evaluate(features, KNN)
    assert few_shot(dataclasses.replace(features, pooled=pooled), chosen, (3,)) == few_shot(features, chosen, (3,))
