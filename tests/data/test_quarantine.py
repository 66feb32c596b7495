import errno
import json
import os
from pathlib import Path

import pytest

from bridle.data.manifest import Entry
from bridle.data.quarantine import BadFile, Quarantine
from bridle.errors import ConfigError, DecodeError, RunError, TooManyBadFiles


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
    quarantine.add([])
    assert len(quarantine) == 9
    quarantine.add(bad(*range(20, 40)), num_good=1)
    quarantine.add(bad(*range(9, 18)))
    with pytest.raises(TooManyBadFiles, match=r"10 files in a row .*max_bad_in_a_row is 10.*clip-18\.wav"):
        quarantine.add(bad(18))


def test_known_files_count_but_are_no_row(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", num_files=400, max_bad_in_a_row=2, known=bad(1, 2, 3))
    quarantine.add(bad(4))
    quarantine.add([], num_good=1)
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


def found_in(path):
    return [(row["key"], row["found"]) for row in map(json.loads, path.read_text().splitlines())]


def test_files_that_left_the_data_set_no_longer_count(tmp_path):
    path = tmp_path / "q.jsonl"
    with pytest.raises(TooManyBadFiles):
        Quarantine(path, num_files=100).add(bad(1, 2, 3))
    with pytest.raises(TooManyBadFiles, match=r"3 of 100 .* remove them, or repair them and delete the list"):
        Quarantine(path, num_files=100, keys=["clip-1.wav", "clip-2.wav", "clip-3.wav"])
    cleaned = Quarantine(path, num_files=98, keys=["clip-0.wav", "clip-2.wav"])
    assert cleaned.files == tuple(bad(2))
    assert found_in(path) == [("clip-2.wav", "decoding")]


def test_a_header_that_is_readable_again_no_longer_counts(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, num_files=300, known=bad(1, 2), keys=["clip-5.wav"]).add(bad(5))
    assert found_in(path) == [("clip-1.wav", "listing"), ("clip-2.wav", "listing"), ("clip-5.wav", "decoding")]
    repaired = Quarantine(path, num_files=300, known=bad(2), keys=["clip-1.wav", "clip-5.wav"])
    assert repaired.files == tuple(bad(2, 5))
    assert found_in(path) == [("clip-2.wav", "listing"), ("clip-5.wav", "decoding")]
    repaired.add(bad(1))
    assert Quarantine(path, num_files=300, known=bad(2), keys=["clip-1.wav", "clip-5.wav"]).files == tuple(bad(2, 5, 1))


def test_an_unchanged_list_is_not_written_again(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, num_files=300, known=bad(1)).add(bad(2))
    before = path.stat().st_ino
    Quarantine(path, num_files=300, known=bad(1))
    assert path.stat().st_ino == before
    assert len(path.read_text().splitlines()) == 2


def test_ranks_with_the_same_calls_hold_equal_state(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path, num_files=300).add(bad(1))
    ranks = [Quarantine(path, 300, known=bad(9), keys=["clip-1.wav"], writes=rank == 0) for rank in (0, 1)]
    for rank in ranks:
        rank.add(bad(4))
    assert ranks[0].files == ranks[1].files == tuple(bad(9, 1, 4))
    assert len(found_in(path)) == 3, "one rank writes"
    for rank in ranks:
        with pytest.raises(TooManyBadFiles, match="4 of 300"):
            rank.add(bad(6))


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "mount it writable")])
def test_a_list_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, code, remedy):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    quarantine = Quarantine(tmp_path / "q.jsonl", num_files=300)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", fail)
        broken.setattr(Path, "write_bytes", fail)
        for write in (lambda: quarantine.add(bad(1)), lambda: Quarantine(tmp_path / "new.jsonl", 300, known=bad(1))):
            with pytest.raises(RunError, match=rf"cannot write \w+\.jsonl to {tmp_path}: .*{remedy}") as error:
                write()
            assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*: Is a directory; make it readable, or delete it"):
        Quarantine(tmp_path, num_files=300)


def test_bad_file_of_an_entry_and_its_error():
    entry = Entry("a.wav", "/data/a.wav")
    assert BadFile.of(entry, DecodeError("other", "truncated")) == BadFile("a.wav", "truncated")
    assert BadFile.of(entry, FileNotFoundError(2, "No such file")) == BadFile("a.wav", "No such file")
    assert BadFile.of(entry, OSError("odd")) == BadFile("a.wav", "odd")


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
