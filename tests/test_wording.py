"""Numbers and lists in messages."""

from bridle.wording import count, first_of


def test_counting_is_grammatical() -> None:
    assert [count(number, "clip") for number in (0, 1, 2, 2000)] == ["0 clips", "1 clip", "2 clips", "2,000 clips"]


def test_long_lists_are_cut() -> None:
    assert [first_of(["a", "b", "c"], number) for number in (2, 3, 4)] == ["a, b, ...", "a, b, c", "a, b, c"]
