"""Splits from folds and split columns, and stratified ones."""

from collections import Counter

import numpy as np
import pytest

from bridle.errors import DataError
from bridle.eval.splits import splits_from_folds, splits_from_split, stratified_splits


def test_folds_are_left_out_in_turn_in_the_order_of_numbers():
    splits = splits_from_folds(["10", "9", "2", "9"])
    assert [split.name for split in splits] == ["2", "9", "10"]
    assert splits[1].test_index.tolist() == [1, 3]
    assert splits[1].train_index.tolist() == [0, 2]
    with pytest.raises(DataError, match="1 fold"):
        splits_from_folds(["1", "1"])


def test_validation_joins_training_with_a_note():
    (split,) = splits_from_split(["Train", "val", "test", "dev", "training"])
    assert split.train_index.tolist() == [0, 1, 3, 4]
    assert split.test_index.tolist() == [2]
    assert split.note == "2 validation clips count as training clips"
    assert splits_from_split(["train", "test"])[0].note == ""


@pytest.mark.parametrize(
    ("values", "match"),
    [(["train", "tset"], "'tset' is unknown"), (["train", "val"], "0 of 2"), (["test", "test"], "2 of 2")],
)
def test_splits_without_two_parts_are_errors(values, match):
    with pytest.raises(DataError, match=match):
        splits_from_split(values)


@pytest.mark.parametrize("num", [2, 4, 5])
def test_stratified_splits_partition_the_clips_and_share_every_class(num):
    labels = ["a"] * 23 + ["b"] * 11 + ["c"] * 8
    splits = stratified_splits(labels, num, seed=3)
    tested = np.concatenate([split.test_index for split in splits])
    assert sorted(tested.tolist()) == list(range(42))
    for split in splits:
        assert sorted([*split.train_index.tolist(), *split.test_index.tolist()]) == list(range(42))
        for name, total in Counter(labels).items():
            assert abs(sum(labels[i] == name for i in split.test_index) - total / num) < 1
    sizes = [len(split.test_index) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_stratified_splits_depend_on_the_seed_alone():
    labels = ["a", "b"] * 20
    as_lists = [[split.test_index.tolist() for split in stratified_splits(labels, 4, seed)] for seed in (0, 0, 1)]
    assert as_lists[0] == as_lists[1] != as_lists[2]


def test_groups_stay_together_and_parts_stay_balanced():
    groups = [str(i // 3) for i in range(90)]
    labels = ["ab"[i // 3 % 2] for i in range(90)]
    for split in stratified_splits(labels, 5, seed=0, groups=groups):
        assert not {groups[i] for i in split.train_index} & {groups[i] for i in split.test_index}
        assert Counter(labels[i] for i in split.test_index) == {"a": 9, "b": 9}


def test_more_splits_than_clips_is_an_error():
    with pytest.raises(DataError, match="5 splits need as many clips or groups, and there are 3"):
        stratified_splits(["a", "b", "a"], 5)
    remedy = r"add clips of other groups, name the groups as --fold \(each is left out in turn\), or give no --group"
    with pytest.raises(DataError, match=f"5 splits need as many clips or groups, and there are 2: {remedy}$"):
        stratified_splits(["a", "b"] * 5, 5, groups=["x", "y"] * 5)
