"""Held-out probabilities are those of the probes that were judged, and the metrics are of them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from bridle.errors import DataError
from bridle.eval.attentive import AttentiveConfig, attentive_probe
from bridle.eval.batchnorm_head import BatchNormConfig, batchnorm_probe
from bridle.eval.details import detail, held_out_probabilities
from bridle.eval.patches import PatchFeatures
from bridle.eval.protocol import FeatureSet, evaluate, knn_probe, linear_probe

PATCHES = PatchFeatures(tuple(torch.randn(4, 8, generator=torch.Generator().manual_seed(i)).half() for i in range(60)))
PROBES = {
    "knn": knn_probe((1, 5)),
    "plain knn": knn_probe((3,), temperature=None),
    "linear": linear_probe((0.1, 1.0)),
    "batchnorm": batchnorm_probe((0.01, 0.1), BatchNormConfig(epochs=10)),
    "attentive": attentive_probe(PATCHES, (0.01,), AttentiveConfig(heads=2, epochs=3, ranking_epochs=1)),
}


def feature_set(patches, **columns):
    random = np.random.default_rng(0)
    coded = np.arange(60) % 3
    pooled = {"signal": 1.5 * random.normal(size=(60, 6)) + random.normal(size=(3, 6))[coded]}
    return FeatureSet({"patches": PATCHES.numbers} if patches else pooled, [f"class {i}" for i in coded], **columns)


@pytest.mark.parametrize("name", PROBES)
def test_the_most_probable_class_is_the_prediction(name):
    features = feature_set(name == "attentive")
    result = evaluate(features, PROBES[name], seed=3)
    chances = held_out_probabilities(features, PROBES[name], result, seed=3)
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-9)
    for split in result.splits:
        assert [f"class {i}" for i in chances[list(split.test_index)].argmax(axis=1)] == list(split.predictions)


def test_metrics_are_over_the_test_clips_only():
    features = feature_set(False, splits=["test" if i % 3 == i // 3 % 3 else "train" for i in range(60)])
    result = evaluate(features, PROBES["linear"])
    found = detail("some features", features, PROBES["linear"], result)
    assert (found.features, found.probe, found.metrics.num_clips) == ("some features", "linear", 20)
    assert found.metrics.accuracy == pytest.approx(result.accuracy)
    truth = [features.labels[i] for i in result.splits[0].test_index]
    assert found.metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, result.splits[0].predictions))
    assert [row.name for row in found.metrics.classes] == ["class 0", "class 1", "class 2"]


def test_a_class_without_training_clips_has_no_chance():
    splits = ["test" if i % 5 == 0 else "train" for i in range(60)]
    labels = ["only here" if i == 0 else f"class {i % 3}" for i in range(60)]
    features = FeatureSet(feature_set(False).pooled, labels, splits=splits)
    result = evaluate(features, PROBES["knn"])
    chances = held_out_probabilities(features, PROBES["knn"], result)
    assert np.isnan(chances[1:5]).all()
    assert (chances[::5, 3] == 0).all()
    metrics = detail("x", features, PROBES["knn"], result).metrics
    assert metrics.classes[3].recall == 0.0


def test_a_result_of_another_probe_or_other_splits_is_refused():
    features = feature_set(False)
    result = evaluate(features, PROBES["knn"])
    with pytest.raises(DataError, match="result of knn is not of linear"):
        held_out_probabilities(features, PROBES["linear"], result)
    with pytest.raises(DataError, match="on these splits"):
        held_out_probabilities(feature_set(False, splits=["test", "train"] * 30), PROBES["knn"], result)
