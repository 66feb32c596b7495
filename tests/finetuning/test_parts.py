"""Which clips train, choose and test: every rule against the columns themselves, and what is told of what is missing."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bridle.data.columns import Columns
from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError
from bridle.finetuning.parts import Part, PartConfig, part_clips

LABELS = ["a"] * 30 + ["b"] * 20 + ["c"] * 10


def manifest(labels: list[str], **columns: list[str]) -> Manifest:
    """Clips whose keys need not be unique."""
    return Manifest(tuple(Entry("same.wav", f"/{row}.wav") for row in range(len(labels))), {"label": labels, **columns})


def parts_of(labels: list[str], config: PartConfig, **columns: list[str]) -> tuple[Manifest, list[Part]]:
    found, parts = part_clips(manifest(labels, **columns), config)
    for part in parts:
        for rows in (part.train, part.validation, part.test):
            assert list(rows) == sorted(set(rows))
        assert not set(part.train) & set(part.validation)
        assert not set(part.train) & set(part.test)
        assert not set(part.validation) & set(part.test)
    return found, parts


def one_part(labels: list[str], config: PartConfig, **columns: list[str]) -> Part:
    (part,) = parts_of(labels, config, **columns)[1]
    assert part.name == ""
    return part


def test_without_fold_or_split_a_fifth_of_every_class_is_tested() -> None:
    part = one_part(LABELS, PartConfig(Columns("label")))
    assert len(part.train) + len(part.test) == 60 and part.validation == ()
    assert Counter(LABELS[row] for row in part.test) == {"a": 6, "b": 4, "c": 2}
    assert part.notes == ("20 % of the clips, drawn by class, are tested; there is neither fold nor split",)
    assert part == one_part(LABELS, PartConfig(Columns("label")))
    assert part.test != one_part(LABELS, PartConfig(Columns("label"), seed=1)).test


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.35, 0.4, 0.5])
def test_a_share_is_the_one_that_was_asked_for(ratio: float) -> None:
    labels = ["a"] * 200 + ["b"] * 100
    part = one_part(labels, PartConfig(Columns("label"), test_ratio=ratio, validation_ratio=ratio))
    assert len(part.test) == pytest.approx(300 * ratio, abs=3)
    assert len(part.validation) == pytest.approx((300 - len(part.test)) * ratio, abs=3)
    for rows in (part.test, part.validation, part.train):
        assert sum(labels[row] == "a" for row in rows) / len(rows) == pytest.approx(2 / 3, abs=0.05)


def test_few_clips_are_parted_as_well_as_can_be() -> None:
    part = one_part(["a", "b"] * 3, PartConfig(Columns("label"), test_ratio=0.3))
    assert (len(part.train), len(part.test)) == (4, 2)


def test_no_test_clips_when_none_are_wanted() -> None:
    part = one_part(LABELS, PartConfig(Columns("label"), test_ratio=0.0))
    assert part == Part("", tuple(range(60)), (), ())
    chosen = one_part(LABELS, PartConfig(Columns("label"), test_ratio=0.0, validation_ratio=0.1))
    assert Counter(LABELS[row] for row in chosen.validation) == {"a": 3, "b": 2, "c": 1}


def test_a_split_is_taken_as_it_is() -> None:
    split = [("train", "Val", "test", "training", "dev", "TEST")[row % 6] for row in range(60)]
    part = one_part(LABELS, PartConfig(Columns("label", split="split"), validation_ratio=0.5), split=split)
    assert part.train == tuple(row for row in range(60) if row % 3 == 0)
    assert part.validation == tuple(row for row in range(60) if row % 3 == 1)  # its own, whatever the ratio
    assert part.test == tuple(row for row in range(60) if row % 3 == 2)
    only = one_part(LABELS, PartConfig(Columns("label", split="split")), split=["train", "test"] * 30)
    assert only.validation == ()


def test_each_fold_is_tested_in_turn_or_one_alone() -> None:
    folds = [str(row % 11) for row in range(60)]
    _, parts = parts_of(LABELS, PartConfig(Columns("label", fold="fold"), validation_ratio=0.2), fold=folds)
    assert [part.name for part in parts] == [str(fold) for fold in range(11)]
    for part in parts:
        assert part.test == tuple(row for row in range(60) if folds[row] == part.name)
        assert sorted(part.train + part.validation) == [row for row in range(60) if folds[row] != part.name]
    config = PartConfig(Columns("label", fold="fold"), validation_ratio=0.2, fold="10")
    assert parts_of(LABELS, config, fold=folds)[1] == [parts[10]]


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_stay_on_one_side(seed: int) -> None:
    groups = [f"speaker {row // 3}" for row in range(60)]
    part = one_part(
        LABELS, PartConfig(Columns("label", group="group"), validation_ratio=0.2, test_ratio=0.3, seed=seed), group=groups
    )
    sides = [{groups[row] for row in rows} for rows in (part.train, part.validation, part.test)]
    assert all(sides)
    assert sum(len(side) for side in sides) == 20


@pytest.mark.parametrize(
    ("split", "where"),
    [
        (["train", "test", "train", "test"], "the training and the test clips"),
        (["train", "val", "train", "test"], "the training and the validation clips"),
        (["train", "train", "val", "test"], "the validation and the test clips"),
    ],
)
def test_groups_on_both_sides_of_an_official_split_are_refused(split: list[str], where: str) -> None:
    groups = {"training and the test": "xxyz", "training and the validation": "xxyz", "validation and the test": "xyzz"}
    group = list(groups[where.removeprefix("the ").removesuffix(" clips")])
    with pytest.raises(DataError, match=f"group '.' is among {where}; correct the split or the groups"):
        parts_of(list("abab"), PartConfig(Columns("label", split="split", group="group")), split=split, group=group)
    fold = PartConfig(Columns("label", fold="fold", group="group"))
    with pytest.raises(DataError, match="group 'x' is among the training and the test clips"):
        parts_of(list("abab"), fold, fold=list("1212"), group=list("xxyz"))


def test_at_most_so_many_clips_of_each_class_train() -> None:
    config = PartConfig(Columns("label"), clips_per_class=12)
    part, whole = one_part(LABELS, config), one_part(LABELS, PartConfig(Columns("label")))
    assert Counter(LABELS[row] for row in part.train) == {"a": 12, "b": 12, "c": 8}  # of c there are no more
    assert set(part.train) < set(whole.train) and part.test == whole.test
    other = one_part(LABELS, PartConfig(Columns("label"), clips_per_class=12, seed=5))
    assert other.train != part.train
    fewer = one_part(LABELS, PartConfig(Columns("label"), clips_per_class=3))
    assert set(fewer.train) < set(part.train)  # fewer clips are some of the more


def test_clips_of_several_labels_count_for_each() -> None:
    tags = ["a,b", "a", "b", "b , c", "c", ","] * 20
    config = PartConfig(Columns("label"), clips_per_class=4, separator=",", test_ratio=0.0)
    part = one_part(tags, config)
    counts = Counter(name.strip() for row in part.train for name in tags[row].split(",") if name.strip())
    assert set(counts) == {"a", "b", "c"} and max(counts.values()) <= 4 and min(counts.values()) >= 3


def test_labels_that_no_training_clip_has_are_told() -> None:
    labels, folds = ["a", "a", "b", "b", "z"], ["1", "2", "1", "2", "2"]
    _, parts = parts_of(labels, PartConfig(Columns("label", fold="fold")), fold=folds)
    assert [part.notes for part in parts] == [(), ("fold 2: 1 test clip with labels that no training clip has, first 'z'",)]
    for seed in range(5):
        once = one_part([*LABELS, "only"], PartConfig(Columns("label"), validation_ratio=0.2, seed=seed))
        assert 60 in once.train


def test_several_labels_are_told_apart_and_blanks_do_not_count() -> None:
    tags, split = ["a", "b", "c ", "a,b", " c", "b,z , y"], ["train"] * 3 + ["test"] * 3
    config = PartConfig(Columns("label", split="split"), separator=",")
    assert one_part(tags, config, split=split).notes == ("1 test clip with labels that no training clip has, first 'y'",)
    names = [" a", "b", "a", "b "]
    plain = PartConfig(Columns("label", split="split"))
    assert one_part(names, plain, split=["train", "train", "test", "test"]).notes == ()


def test_clips_without_label_are_left_out_and_counted() -> None:
    labels = ["a", "", "b", " ", "a", "b"] * 5
    found, (part,) = parts_of(labels, PartConfig(Columns("label")))
    assert len(found) == 20 and sorted(part.train + part.test) == list(range(20))
    assert [entry.path for entry in found.entries][:3] == ["/0.wav", "/2.wav", "/4.wav"]
    assert part.notes[0] == "left out: 10 clips without label (column 'label')"


def test_blanks_around_cells_and_the_word_nan_are_no_values() -> None:
    labels, split = ["a ", "b", " a", "NaN", "b"], ["train", "train ", "test", "test", " nan "]
    found, (part,) = parts_of(labels, PartConfig(Columns("label", split="split")), split=split)
    assert found.columns["label"] == ["a", "b", "a"] and found.columns["split"] == ["train", "train", "test"]
    assert (part.train, part.test) == ((0, 1), (2,))
    assert part.notes == ("left out: 1 clip without label (column 'label')", "left out: 1 clip without split (column 'split')")


def test_clips_without_any_of_several_labels_may_stay_as_clips_of_no_class() -> None:
    tags = ["a", "b", "", "a,b", "", "nan"] * 5
    left_out, _ = parts_of(tags, PartConfig(Columns("label"), separator=","))
    kept, (part,) = parts_of(tags, PartConfig(Columns("label"), separator=",", untagged="negative"))
    assert (len(left_out), len(kept)) == (15, 30) and not any("left out" in note for note in part.notes)
    assert kept.columns["label"] == ["a", "b", "", "a,b", "", ""] * 5
    assert {"", "a", "b", "a,b"} == {kept.columns["label"][row] for row in part.train}


def test_clips_of_no_class_count_as_one_class_where_few_are_wanted() -> None:
    tags = ["a"] * 20 + ["b"] * 20 + [""] * 400
    part = one_part(tags, PartConfig(Columns("label"), separator=",", untagged="negative", clips_per_class=2))
    assert sorted(tags[row] for row in part.train) == ["", "", "a", "a", "b", "b"]


def test_unreadable_files_are_told() -> None:
    clips = replace(manifest(LABELS), bad=(BadFile("torn.wav", "no sound"), BadFile("empty.wav", "empty")))
    found, (part,) = part_clips(clips, PartConfig(Columns("label")))
    assert found.bad == clips.bad and part.notes[0] == "left out: 2 unreadable files, first torn.wav (no sound)"


def test_labels_that_only_validation_clips_have_are_told() -> None:
    labels, split = ["a", "b", "z", "a", "b"], ["train", "train", "valid", "valid", "test"]
    part = one_part(labels, PartConfig(Columns("label", split="split")), split=split)
    assert part.notes == ("1 validation clip with labels that no training clip has, first 'z'",)


def test_too_few_groups_for_a_share_are_told_with_a_share_that_works() -> None:
    labels, groups = ["a", "b"] * 8, [str(row // 4) for row in range(16)]
    with pytest.raises(DataError, match=r"4 groups in column 'who' cannot give a share of 0\.2 .*take a share of 0\.25"):
        parts_of(labels, PartConfig(Columns("label", group="who")), who=groups)
    part = one_part(labels, PartConfig(Columns("label", group="who"), test_ratio=0.25), who=groups)
    assert len(part.test) == 4
    with pytest.raises(DataError, match=r"1 group in .* a share of 0\.5 of the clips; name the parts with --split or --fold"):
        parts_of(labels, PartConfig(Columns("label", group="who"), test_ratio=0.5), who=["one"] * 16)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"untagged": "negative"}, "untagged=negative is for clips of several labels: add --multi-label"),
        ({"test_ratio": 0.6}, "test_ratio=0.6 must lie between 0 and 0.5"),
        ({"validation_ratio": -0.1}, "validation_ratio=-0.1 must lie between 0 and 0.5"),
        ({"clips_per_class": -1}, "clips_per_class=-1 must be at least 1, or 0 for all clips"),
        ({"fold": "1"}, "fold '1' is asked for, and no column of folds is named: add --fold COLUMN"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PartConfig(Columns("label"), **settings)


def test_what_cannot_be_parted_is_named() -> None:
    folds = PartConfig(Columns("label", fold="fold"), fold="9")
    with pytest.raises(DataError, match="there is no fold '9' in column 'fold'; there are 1, 2"):
        parts_of(["a", "b", "a", "b"], folds, fold=["1", "2"] * 2)
    with pytest.raises(DataError, match=r"no label column 'lable'.*did you mean 'label'"):
        parts_of(["a", "b", "a", "b"], PartConfig(Columns("lable")))
    with pytest.raises(DataError, match="split 'tset' is unknown"):
        parts_of(["a", "b", "a", "b"], PartConfig(Columns("label", split="split")), split=["train", "tset"] * 2)
    with pytest.raises(DataError, match="no clip is left to train on; use other splits"):
        parts_of(["a", "b", "a", "b"], PartConfig(Columns("label", split="split")), split=["val", "test"] * 2)
    with pytest.raises(DataError, match="5 splits need as many clips or groups, and there are 3"):
        parts_of(["a", "b", "a"], PartConfig(Columns("label")))


def test_labels_of_which_none_occurs_twice_are_refused() -> None:
    with pytest.raises(DataError, match="every one of the 6 clips has a label of its own in column 'label'; name the column"):
        parts_of(list("abcdef"), PartConfig(Columns("label")))
    assert len(one_part(list("abcdea"), PartConfig(Columns("label"), test_ratio=0)).train) == 6
