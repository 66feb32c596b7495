"""Numbers in messages."""

from bridle.wording import count


def test_counting_is_grammatical() -> None:
    assert [count(number, "clip") for number in (0, 1, 2, 2000)] == ["0 clips", "1 clip", "2 clips", "2,000 clips"]
