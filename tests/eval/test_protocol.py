"""Nested choices that never see a test clip, intervals and errors of the evaluation protocol."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats

from bridle.config import to_dict
from bridle.errors import DataError
from bridle.eval.intervals import accuracy_interval, spread_interval, t_interval, wilson_interval
from bridle.eval.knn import knn_predictions
from bridle.eval.linear_probe import linear_predictions, linear_probabilities
from bridle.eval.protocol import (
    FeatureSet,
    Probe,
    choose_splits,
    evaluate,
    inner_splits,
    knn_probe,
    linear_probe,
)
from bridle.eval.splits import Split

LINEAR = linear_probe((1e-3, 1.0))
KNN = knn_probe((1, 5, 20))


def feature_set(num=100, num_classes=4, seed=0, **columns):
    """A pooling of noise and one with signal, and labels ``a``, ``b``, ... in turn."""
    random = np.random.default_rng(seed)
    coded = np.arange(num) % num_classes
    centres = random.normal(size=(num_classes, 12))
    pooled = {
        "noise": random.normal(size=(num, 6)),
        "signal": 1.2 * random.normal(size=(num, 12)) + centres[coded],
    }
    return FeatureSet({k: v.astype(np.float32) for k, v in pooled.items()}, [chr(97 + i) for i in coded], **columns)


def folds_of(num, num_folds):
    return [str(1 + i // 4 % num_folds) for i in range(num)]


def columns_of(kind, num=100):
    if kind == "folds":
        return {"folds": folds_of(num, 5)}
    if kind == "two folds":
        return {"folds": folds_of(num, 2)}
    if kind == "split":
        return {"splits": ["test" if i % 5 == 0 else "train" for i in range(num)]}
    return {"groups": [str(i // 2) for i in range(num)]} if kind == "groups" else {}


def test_inner_folds_are_the_remaining_folds():
    features = feature_set(folds=folds_of(100, 5))
    for split in choose_splits(features):
        inner = inner_splits(features, split)
        left_out = [{features.folds[i] for i in part.test_index} for part in inner]
        assert sorted(map(sorted, left_out)) == sorted([name] for name in set("12345") - {split.name})
        for part in inner:
            assert sorted([*part.train_index, *part.test_index]) == split.train_index.tolist()


def test_many_folds_are_joined_but_never_cut():
    features = feature_set(num=120, folds=folds_of(120, 30))
    inner = inner_splits(features, choose_splits(features)[0])
    assert len(inner) == 10
    for part in inner:
        assert not {features.folds[i] for i in part.train_index} & {features.folds[i] for i in part.test_index}


@pytest.mark.parametrize("kind", ["two folds", "split", "stratified", "groups"])
def test_other_inner_splits_are_stratified_parts_of_the_training_rows(kind):
    features = feature_set(**columns_of(kind))
    for split in choose_splits(features, seed=1):
        inner = inner_splits(features, split, seed=1)
        assert len(inner) == 4
        assert sorted(np.concatenate([part.test_index for part in inner])) == split.train_index.tolist()
        if kind == "groups":
            for part in [split, *inner]:
                groups = [{features.groups[i] for i in index} for index in (part.train_index, part.test_index)]
                assert not groups[0] & groups[1]


@pytest.mark.parametrize("kind", ["folds", "two folds", "split", "stratified", "groups"])
@pytest.mark.parametrize("probe", [LINEAR, KNN], ids=["linear", "knn"])
def test_result_is_consistent_and_repeatable(kind, probe):
    features = feature_set(**columns_of(kind))
    result = evaluate(features, probe, seed=2)
    assert result == evaluate(features, probe, seed=2)
    assert result.probe == probe.name
    assert result.accuracy == pytest.approx(np.mean([split.accuracy for split in result.splits]))
    assert 0 <= result.low <= result.accuracy <= result.high <= 1
    for split in result.splits:
        right = [name == features.labels[i] for name, i in zip(split.predictions, split.test_index, strict=True)]
        assert split.accuracy == pytest.approx(np.mean(right))
        assert split.parameter in probe.grid
        assert split.num_train + len(split.test_index) == 100
    assert result.accuracy > 0.6
    assert {split.pooling for split in result.splits} == {"signal"}
    assert json.loads(json.dumps(to_dict(result)))["splits"][0]["predictions"] == list(result.splits[0].predictions)


@pytest.mark.parametrize("kind", ["folds", "split"])
@pytest.mark.parametrize("probe", [LINEAR, KNN], ids=["linear", "knn"])
def test_choices_never_see_the_test_rows(kind, probe):
    features = feature_set(**columns_of(kind))
    clean = evaluate(features, probe)
    for chosen, split in list(zip(clean.splits, choose_splits(features), strict=True))[:2]:
        random = np.random.default_rng(7)
        labels = list(features.labels)
        pooled = {name: values.copy() for name, values in features.pooled.items()}
        for row in split.test_index:
            labels[row] = random.choice(["a", "b", "never seen"])
        for values in pooled.values():
            values[split.test_index] = 1e4 * random.normal(size=(len(split.test_index), values.shape[1]))
        pooled["noise"][split.test_index, 0] = [ord(labels[row][0]) for row in split.test_index]
        poisoned = evaluate(dataclasses.replace(features, pooled=pooled, labels=labels), probe)
        again = next(result for result in poisoned.splits if result.name == chosen.name)
        fields = ("pooling", "parameter", "inner_accuracy", "num_train", "test_index")
        assert [getattr(again, name) for name in fields] == [getattr(chosen, name) for name in fields]


def test_choice_is_the_best_mean_inner_accuracy_by_a_loop():
    features = feature_set(**columns_of("folds"))
    for result, split in zip(evaluate(features, KNN).splits, choose_splits(features), strict=True):
        coded = torch.tensor([ord(name) for name in features.labels])
        table = {}
        for pooling, values in features.pooled.items():
            rows = torch.from_numpy(values)
            for k in KNN.grid:
                scores = []
                for fold in sorted(set(features.folds) - {split.name}):
                    inside = np.array([i in set(split.train_index.tolist()) for i in range(100)])
                    held = np.array([name == fold for name in features.folds])
                    predicted = knn_predictions(rows[inside & ~held], coded[inside & ~held], rows[held], [k])[0]
                    scores.append((predicted == coded[held]).double().mean().item())
                table[pooling, k] = np.mean(scores)
        assert result.inner_accuracy == pytest.approx(max(table.values()))
        assert table[result.pooling, result.parameter] == pytest.approx(max(table.values()))


@pytest.mark.parametrize("probe", [LINEAR, KNN], ids=["linear", "knn"])
def test_permuted_rows_and_scaled_features_give_the_same_accuracies(probe):
    features = feature_set(**columns_of("folds"))
    order = np.random.default_rng(1).permutation(100)
    moved = FeatureSet(
        {name: torch.from_numpy(8 * values[order] + 4) for name, values in features.pooled.items()},
        [features.labels[i] for i in order],
        folds=[features.folds[i] for i in order],
    )
    expected, result = evaluate(features, probe), evaluate(moved, probe)
    assert [split.accuracy for split in result.splits] == [split.accuracy for split in expected.splits]
    assert [split.parameter for split in result.splits] == [split.parameter for split in expected.splits]


def test_classes_without_training_clips_are_wrong_and_noted():
    features = feature_set(**columns_of("split"))
    labels = ["only here" if i == 0 else name for i, name in enumerate(features.labels)]
    result = evaluate(dataclasses.replace(features, labels=labels), LINEAR)
    assert result.notes == (
        "split 'test': 1 test clip of classes without training clips (1, first 'only here') count as wrong; "
        "add clips of these classes, or leave them out",
    )
    assert result.splits[0].predictions[0] != "only here"


def test_labels_that_occur_once_are_wrong_and_noted():
    features = feature_set()
    labels = ["once", *features.labels[1:]]
    result = evaluate(dataclasses.replace(features, labels=labels), KNN)
    assert len(result.notes) == 1
    (split,) = [split for split in result.splits if 0 in split.test_index]
    assert split.predictions[split.test_index.index(0)] != "once"


def test_notes_of_splits_reach_the_result():
    splits = [("test", "train", "validation", "train")[i // 4 % 4] for i in range(100)]
    result = evaluate(feature_set(splits=splits), LINEAR)
    assert result.notes == ("split 'test': 24 validation clips count as training clips",)
    assert result.interval == "95 % Wilson interval over 28 test clips"


def test_intervals_equal_scipy():
    random = np.random.default_rng(0)
    for num in [2, 3, 5, 11, 12, 15, 40, 200]:
        values = random.uniform(0.4, 0.6, size=num)
        low, high = t_interval(values)
        expected = stats.t.interval(0.95, num - 1, loc=values.mean(), scale=stats.sem(values))
        assert (low, high) == pytest.approx(np.clip(expected, 0, 1), abs=1e-4)
    for right, total in [(0, 5), (5, 5), (3, 7), (300, 400)]:
        expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_interval_is_over_folds_from_three_on():
    assert "Student interval over 5 splits" in evaluate(feature_set(**columns_of("folds")), KNN).interval
    assert "Wilson interval over 100 test clips" in evaluate(feature_set(**columns_of("two folds")), KNN).interval


def test_folds_that_are_equally_accurate_do_not_tell_how_sure_their_mean_is():
    sure = accuracy_interval([1.0] * 5, [4] * 5)
    assert (sure.low, sure.high) == wilson_interval(20, 20)
    assert sure.low < 0.85
    assert sure.made == "95 % Wilson interval over 20 test clips"
    varied = accuracy_interval([0.5, 1.0, 0.75], [4] * 3)
    assert (varied.low, varied.high) == t_interval([0.5, 1.0, 0.75])
    uneven = accuracy_interval([0.9, 0.5], [10, 90])
    assert (uneven.low, uneven.high) == wilson_interval(70, 100)
    assert uneven.low < 0.7 < uneven.high
    assert spread_interval([0.8] * 5) is None
    assert spread_interval([0.8, 0.9]) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pooled": {}}, "0 poolings"),
        ({"pooled": {"mean": np.zeros((99, 3))}}, r"'mean' have shape \(99, 3\)"),
        ({"pooled": {"mean": np.zeros(100)}}, "shape"),
        ({"pooled": {"mean": np.full((100, 2), np.nan)}}, "NaN or infinity in 100 clips, first 0"),
        ({"pooled": {"mean": np.full((100, 2), np.inf)}}, "NaN or infinity"),
        ({"labels": ["a"] * 100}, "1 class"),
        ({"folds": ["1", "2"]}, "folds has 2 values for 100 clips"),
        ({"folds": ["1"] * 100, "splits": ["train"] * 100}, "both given"),
    ],
)
def test_unusable_feature_sets_are_errors(change, match):
    with pytest.raises(DataError, match=match):
        dataclasses.replace(feature_set(), **change)


def test_a_group_on_both_sides_of_an_official_split_is_an_error():
    features = feature_set(**columns_of("split"), groups=["shared" if i < 2 else str(i) for i in range(100)])
    with pytest.raises(DataError, match="group 'shared' is on both sides of split 'test'"):
        evaluate(features, KNN)


def test_training_parts_of_one_class_are_errors():
    features = feature_set(num_classes=2)
    by_class = dataclasses.replace(features, folds=["1" if name == "a" else "2" for name in features.labels])
    with pytest.raises(DataError, match="split '1' has the single class 'b'"):
        evaluate(by_class, LINEAR)
    three = feature_set(num=99, num_classes=3)
    three = dataclasses.replace(three, folds=list(three.labels))
    with pytest.raises(DataError, match="every inner split trains on a single class"):
        evaluate(three, LINEAR)


def test_inner_splits_of_a_training_part_of_one_clip_are_an_error():
    with pytest.raises(DataError, match="1 splits need as many clips or groups, and there are 1"):
        inner_splits(feature_set(), Split("x", np.array([3]), np.arange(4, 100)))


def test_ranking_trains_on_few_clips_and_the_chosen_probe_on_all() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [str(i % 3) for i in range(240)]
    rows = torch.randn(240, 6, generator=generator) + torch.tensor([int(label) for label in labels])[:, None]
    seen: dict[str, list[tuple[int, float]]] = {"select": [], "predict": []}

    def record(kind: str):
        def predict(train, labels, queries, grid):
            seen[kind].append((len(train), round(max(grid), 3)))
            return linear_predictions(train, labels, queries, grid)

        return predict

    probe = Probe("linear", (0.1, 1.0), record("predict"), record("select"), linear_probabilities, num_ranking=50)
    features = FeatureSet({"clip": rows}, labels)
    result = evaluate(features, probe)
    assert set(seen["select"]) == {(50, round(144 / 50, 3))}  # C weighs the sum over clips: fewer of them, a larger C
    assert seen["predict"] == [(split.num_train, split.parameter) for split in result.splits]
    assert {split.num_train for split in result.splits} == {192}
    assert evaluate(features, probe) == result
    assert result.accuracy > 0.5
    seen["select"].clear()
    evaluate(features, dataclasses.replace(probe, num_ranking=31))
    assert set(seen["select"]) == {(36, 4.0)}, "never less than a quarter of 144"


def test_a_training_part_that_outer_splits_share_is_ranked_once() -> None:
    features, fitted = feature_set(folds=folds_of(100, 5)), []

    def select(train, labels, queries, grid):
        fitted.append((train.numpy().tobytes(), len(queries)))
        return knn_predictions(train, labels, queries, grid)

    result = evaluate(features, dataclasses.replace(KNN, select=select))
    assert len(fitted) == len(set(fitted)) == 2 * 10  # two poolings, ten pairs of left-out folds
    assert {num for _, num in fitted} == {40}  # both of the pair
    assert result == evaluate(features, KNN)
