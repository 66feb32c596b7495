import json

import pytest

from bridle.data.quarantine import BadFile, Quarantine
from bridle.errors import ConfigError, TooManyBadFiles


def bad(*numbers, reason="truncated"):
    return [BadFile(f"clip-{i}.wav", reason) for i in numbers]


def test_each_file_is_written_once(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, num_files=1000)
    quarantine.add(bad(1, 2, 1))
    quarantine.add(bad(2, 3, reason="missing"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in rows] == [
        ("clip-1.wav", "truncated"),
        ("clip-2.wav", "truncated"),
        ("clip-3.wav", "missing"),
    ]
    assert quarantine.files == tuple(BadFile(row["key"], row["reason"]) for row in rows)
    assert len(quarantine) == 3


def test_without_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quarantine = Quarantine(None, num_files=1000)
    quarantine.add(bad(1))
    assert len(quarantine) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("num_files", "fraction", "limit"), [(10, 0.01, 1), (300, 0.01, 3), (399, 0.01, 3), (100, 0.29, 29), (100, 0.0, 0)]
)
def test_budget_is_the_floor_but_at_least_one_file(num_files, fraction, limit):
    quarantine = Quarantine(None, num_files, max_bad_fraction=fraction, max_bad_in_a_row=10**6)
    quarantine.add(bad(*range(limit)))
    with pytest.raises(TooManyBadFiles, match=f"{limit + 1} of {num_files} files.*limit {limit}.*max_bad_fraction"):
        quarantine.add(bad(limit))


def test_a_file_counts_once_towards_the_fraction():
    quarantine = Quarantine(None, num_files=100)
    for _ in range(50):
        quarantine.add(bad(7))
    assert len(quarantine) == 1


def test_message_has_first_files_reasons_list_and_setting(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    with pytest.raises(TooManyBadFiles) as error:
        Quarantine(path, num_files=100).add(bad(*range(5)))
    message = str(error.value)
    assert "5 of 100" in message
    assert "limit 1" in message
    assert "clip-0.wav (truncated); clip-1.wav (truncated); clip-2.wav (truncated), ..." in message
    assert str(path) in message
    assert "max_bad_fraction" in message
    assert "\n" not in message
    assert len(path.read_text().splitlines()) == 5, "the list is written before the run stops"


def test_bad_files_in_a_row_stop_the_run_and_a_good_one_ends_the_row():
    quarantine = Quarantine(None, num_files=10**6, max_bad_in_a_row=10)
    quarantine.add(bad(*range(9)))
    quarantine.ok(0)
    assert len(quarantine) == 9
    quarantine.ok(1)
    quarantine.add(bad(*range(9, 18)))
    with pytest.raises(TooManyBadFiles, match=r"10 files in a row .*max_bad_in_a_row is 10.*clip-18\.wav"):
        quarantine.add(bad(18))


def test_known_files_count_but_are_no_row(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", num_files=400, max_bad_in_a_row=2, known=bad(1, 2, 3))
    quarantine.add(bad(4))
    quarantine.ok(1)
    with pytest.raises(TooManyBadFiles, match="5 of 400"):
        quarantine.add(bad(5))
    with pytest.raises(TooManyBadFiles, match="2 of 10"):
        Quarantine(None, num_files=10, known=bad(1, 2))


def test_resume_goes_on_counting(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, num_files=300).add(bad(1, 2))
    resumed = Quarantine(path, num_files=300)
    assert resumed.files == tuple(bad(1, 2))
    resumed.add(bad(2, 3))
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(TooManyBadFiles):
        resumed.add(bad(4))
    with pytest.raises(TooManyBadFiles):
        Quarantine(path, num_files=300)
    assert len(Quarantine(path, num_files=300, max_bad_fraction=0.1)) == 4


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, num_files=1000).add(bad(1, 2))
    path.write_bytes(path.read_bytes()[:-7])
    resumed = Quarantine(path, num_files=1000)
    assert resumed.files == tuple(bad(1))
    resumed.add(bad(2, 3))
    assert Quarantine(path, num_files=1000).files == tuple(bad(1, 2, 3))


def test_names_of_any_script_and_any_bytes_survive(tmp_path):
    files = (BadFile("日本/ü \u2028\n.wav", "missing"), BadFile("not-utf8-\udcff.wav", "empty file"))
    Quarantine(tmp_path / "q.jsonl", num_files=1000).add(files)
    assert Quarantine(tmp_path / "q.jsonl", num_files=1000).files == files
    assert "日本" in (tmp_path / "q.jsonl").read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize("arguments", [{"max_bad_fraction": -0.1}, {"max_bad_fraction": 1.5}, {"max_bad_in_a_row": 0}])
def test_limits_out_of_range(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Quarantine(None, num_files=10, **arguments)
