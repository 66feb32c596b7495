"""Retrieval against scikit-learn's average precision, kNN with one neighbour, and a plain loop."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler, normalize

from bridle.errors import DataError
from bridle.eval.protocol import FeatureSet, evaluate, knn_probe
from bridle.eval.retrieval import average_precisions, retrieval


def feature_set(num=90, num_classes=3, **columns):
    random = np.random.default_rng(0)
    coded = np.arange(num) % num_classes
    centres = random.normal(size=(num_classes, 8))
    pooled = {"noise": random.normal(size=(num, 4)), "signal": 1.5 * random.normal(size=(num, 8)) + centres[coded]}
    return FeatureSet(pooled, [chr(97 + i) for i in coded], **columns)


def by_loop(features, queries, gallery_of, k):
    """Mean average precision and recall@k of ``signal``, a query at a time."""
    precisions, hits = [], []
    for query in queries:
        whole, kept = gallery_of(query)
        rows = features.pooled["signal"]
        scaler = StandardScaler().fit(rows[whole])
        similarity = normalize(scaler.transform(rows[kept])) @ normalize(scaler.transform(rows[[query]]))[0]
        same = np.array([features.labels[i] == features.labels[query] for i in kept])
        precisions.append(average_precision_score(same, similarity))
        hits.append(same[np.argsort(-similarity)[:k]].any())
    return np.mean(precisions), np.mean(hits)


def test_average_precision_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    relevant = torch.rand(20, 30, generator=generator) < 0.2
    allowed = torch.rand(20, 30, generator=generator) < 0.8
    relevant[3] = False
    precision, hits = average_precisions(similarity, relevant, allowed, (1, 4, 99))
    for row in range(20):
        kept = allowed[row].numpy()
        target, score = relevant[row].numpy()[kept], similarity[row].numpy()[kept]
        if not target.any():
            assert precision[row].isnan()
            continue
        assert precision[row].item() == pytest.approx(average_precision_score(target, score), abs=1e-9)
        ranked = target[np.argsort(-score)]
        assert hits[row].tolist() == [ranked[:1].any(), ranked[:4].any(), True]
    assert precision[3].isnan()
    assert not hits[3].any()


def test_folds_are_galleries_and_one_neighbour_is_knn():
    features = feature_set(folds=[str(i // 3 % 5) for i in range(90)])
    found = retrieval(features)
    fold = np.array(features.folds)
    gallery = lambda query: (np.flatnonzero(fold != fold[query]),) * 2  # noqa: E731
    expected = by_loop(features, range(90), gallery, 5)
    assert (found.mean_average_precision, found.recall[1].share) == pytest.approx(expected, abs=1e-6)
    assert (found.num_queries, found.num_alone, set(found.poolings)) == (90, 0, {"signal"})
    only = dataclasses.replace(features, pooled={"signal": features.pooled["signal"]})
    assert found.recall[0].share == pytest.approx(evaluate(only, knn_probe((1,))).accuracy)


@pytest.mark.parametrize("grouped", [False, True])
def test_without_official_parts_every_clip_is_asked_for_once_among_the_others(grouped):
    features = feature_set(groups=[str(i // 6) for i in range(90)] if grouped else None)
    groups = np.array(features.groups if grouped else range(90))
    found = retrieval(features)
    expected = by_loop(features, range(90), lambda query: (np.arange(90), np.flatnonzero(groups != groups[query])), 10)
    assert (found.mean_average_precision, found.recall[2].share) == pytest.approx(expected, abs=1e-6)
    assert found.num_queries == 90


def test_clips_of_the_same_group_are_no_answer():
    features = feature_set()
    values = np.repeat(np.random.default_rng(1).normal(size=(45, 8)), 2, axis=0)  # twins, alike but for their group
    twins = FeatureSet({"clip": values}, [str(i // 2 % 3) for i in range(90)], groups=[str(i // 2) for i in range(90)])
    assert retrieval(twins).recall[0].share < 0.7
    assert retrieval(dataclasses.replace(twins, groups=None)).recall[0].share == 1.0
    assert retrieval(features).recall[0].share < 1.0


def test_choice_of_the_pooling_never_sees_test_clips():
    features = feature_set(splits=["test" if i % 5 == 0 else "train" for i in range(90)])
    pooled = {name: values.copy() for name, values in features.pooled.items()}
    pooled["noise"][::5] = np.eye(4)[[i % 3 for i in range(0, 90, 5)]]
    assert retrieval(dataclasses.replace(features, pooled=pooled)).poolings == ("signal",)


def test_clips_without_another_of_their_class_are_left_out():
    features = feature_set()
    labels = ["once" if i == 7 else name for i, name in enumerate(features.labels)]
    found = retrieval(dataclasses.replace(features, labels=labels))
    assert (found.num_queries, found.num_alone) == (89, 1)
    alone = FeatureSet({"clip": np.random.default_rng(0).normal(size=(10, 2))}, [str(i) for i in range(10)])
    with pytest.raises(DataError, match="none of 10 queries has a clip of its class"):
        retrieval(alone)


def test_recall_at_zero_is_an_error():
    with pytest.raises(DataError, match="at k = 0"):
        retrieval(feature_set(), (0, 5))
