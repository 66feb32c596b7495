"""Labels: names to numbers and back, any number of tags, odd cells, and what is refused."""

import pytest
import torch

from bridle.data.labels import ClassLabels, TagLabels, class_labels, read_labels, tag_labels, take, target_values
from bridle.errors import DataError

CELLS = ["dog", " cat ", "dog", "bee", "cat"]
TAGS = ["dog, cat", "", "bee", " , ", "cat,cat,dog"]


def naive_targets(cells: list[str], classes: tuple[str, ...], separator: str) -> list[list[float]]:
    return [[float(any(name == part.strip() for part in cell.split(separator))) for name in classes] for cell in cells]


def test_classes_are_the_sorted_names_and_every_clip_has_its_own() -> None:
    found = class_labels(CELLS)
    assert found.classes == ("bee", "cat", "dog")
    assert found.index.dtype == torch.int64
    assert [found.classes[number] for number in found.index.tolist()] == [cell.strip() for cell in CELLS]


def test_given_classes_keep_their_order_and_may_have_no_clip() -> None:
    found = class_labels(["b", "a"], ["c", "b", "a"])
    assert (found.classes, found.index.tolist()) == (("c", "b", "a"), [1, 2])
    several = tag_labels(["b", "a,b"], classes=["c", "b", "a"])
    assert several.targets.tolist() == [[False, True, False], [False, True, True]]


def test_tags_equal_a_search_in_every_cell() -> None:
    found = tag_labels(TAGS)
    assert found.classes == ("bee", "cat", "dog")
    assert found.targets.dtype == torch.bool
    assert found.targets.float().tolist() == naive_targets(TAGS, found.classes, ",")
    assert found.targets.sum(1).tolist() == [2, 0, 1, 0, 2]


@pytest.mark.parametrize("separator", [";", "|", " and ", "\t", "."])
def test_separators_are_taken_as_they_are(separator: str) -> None:
    cells = [f"a, b{separator}c", "c", f"{separator}a, b{separator}"]
    found = tag_labels(cells, separator)
    assert found.classes == ("a, b", "c")
    assert found.targets.tolist() == [[True, True], [False, True], [True, False]]


def test_one_class_a_clip_may_hold_the_separator() -> None:
    assert class_labels(["rain, heavy", "rain"]).classes == ("rain", "rain, heavy")


def test_names_of_any_alphabet() -> None:
    names = ["Möwe", "カモメ", "чайка", "🐦", "a b"]
    assert class_labels(names).classes == tuple(sorted(names))
    assert tag_labels([",".join(names), names[1]]).targets.sum(0).tolist() == [
        2 if name == names[1] else 1 for name in sorted(names)
    ]


def test_labels_do_not_depend_on_the_order_of_the_clips() -> None:
    order = [3, 0, 4, 1, 2]
    turned, plain = class_labels([CELLS[row] for row in order]), class_labels(CELLS)
    assert turned.classes == plain.classes
    assert torch.equal(turned.index, plain.index[order])
    assert torch.equal(take(plain, order).index, turned.index)  # type: ignore[union-attr]


def test_taking_clips_keeps_all_classes() -> None:
    one, several = take(class_labels(CELLS), [3, 3]), take(tag_labels(TAGS), [1, 4])
    assert isinstance(one, ClassLabels) and isinstance(several, TagLabels)
    assert (one.classes, one.index.tolist()) == (("bee", "cat", "dog"), [0, 0])
    assert several.classes == ("bee", "cat", "dog")
    assert several.targets.tolist() == [[False] * 3, [False, True, True]]
    assert target_values(take(class_labels(CELLS), [])).shape == (0, 3)
    assert target_values(take(tag_labels(TAGS), [])).shape == (0, 3)


def test_target_values_are_ones_where_a_clip_is_of_a_class() -> None:
    found = target_values(class_labels(CELLS))
    assert found.dtype == torch.float32
    assert found.tolist() == [[float(name == cell.strip()) for name in ("bee", "cat", "dog")] for cell in CELLS]
    assert torch.equal(target_values(tag_labels(TAGS)), torch.tensor(naive_targets(TAGS, ("bee", "cat", "dog"), ",")))


def test_reading_is_by_one_or_by_several() -> None:
    assert isinstance(read_labels(["a,b", "c"], multi_label=False), ClassLabels)
    several = read_labels(["a;b", "c"], multi_label=True, separator=";", classes=["c", "b", "a"])
    assert isinstance(several, TagLabels)
    assert several.targets.tolist() == [[False, True, True], [True, False, False]]


def test_what_is_refused_is_named() -> None:
    with pytest.raises(DataError, match="row 1 has no label; leave the row out"):
        class_labels(["a", "  ", "b"])
    with pytest.raises(DataError, match="label 'bea' is none of the 2 classes; the first are bee, dog"):
        class_labels(["dog", "bea"], ["bee", "dog"])
    with pytest.raises(DataError, match="label 'z' is none of the 2 classes"):
        tag_labels(["a,z"], classes=["a", "b"])
    with pytest.raises(DataError, match="hold 1 class; at least 2 are needed"):
        class_labels(["a", " a"])
    with pytest.raises(DataError, match="hold 0 classes; at least 2 are needed"):
        tag_labels(["", ","])
    with pytest.raises(DataError, match="separator of labels is empty"):
        tag_labels(["a,b"], "")
    for read in (class_labels, tag_labels):
        with pytest.raises(DataError, match="class 'a' is given twice"):
            read(["a", "b"], classes=["a", "b", "a"])
