"""Downloads from a real server on this machine: whole, broken off, changed in between, refused, with a wrong checksum."""

import hashlib
import json
import threading

import numpy as np
import pytest
from reference.web_server import Served

from bridle.errors import DataError
from bridle.fetch import download as module
from bridle.fetch.download import Limits, download

BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(250_000)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
QUICK = Limits(wait_seconds=0.001)
ONCE = Limits(tries=1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checksum", [SHA256, MD5, ""])
def test_whole_file(tmp_path, site, checksum):
    site.files["/a.zip"] = Served(BODY)
    told = []
    received = download(f"{site.url}/a.zip", tmp_path / "new" / "a.zip", checksum, on_bytes=lambda *sizes: told.append(sizes))
    assert (tmp_path / "new" / "a.zip").read_bytes() == BODY
    assert (received.size, f"sha256:{received.sha256}") == (len(BODY), SHA256)
    assert told[0] == (0, len(BODY)) and told[-1] == (len(BODY), len(BODY))
    assert names(tmp_path / "new") == ["a.zip"]
    assert site.requests == [("/a.zip", None, None)]


@pytest.mark.parametrize("checksum", [SHA256, ""])
def test_broken_connection_goes_on_where_it_stopped(tmp_path, site, checksum):
    site.files["/a"] = Served(BODY, cuts=[100_000, 50_000, 0])
    download(f"{site.url}/a", tmp_path / "a", checksum, limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert site.requests == [
        ("/a", None, None),
        ("/a", "bytes=100000-", '"1"'),
        ("/a", "bytes=150000-", '"1"'),
        ("/a", "bytes=150000-", '"1"'),
    ]
    assert names(tmp_path) == ["a"]


def test_next_call_goes_on_too(tmp_path, site):
    site.files["/a"] = Served(BODY, cuts=[100_000])
    with pytest.raises(DataError, match=r"127.0.0.1 broke off after 100000 of 300000 bytes; try again later"):
        download(f"{site.url}/a", tmp_path / "a", limits=ONCE)
    assert names(tmp_path) == ["a.part", "a.part.json"]
    told = []
    download(f"{site.url}/a", tmp_path / "a", limits=ONCE, on_bytes=lambda *sizes: told.append(sizes))
    assert (tmp_path / "a").read_bytes() == BODY
    assert site.requests[1] == ("/a", "bytes=100000-", '"1"')
    assert told[0] == (100_000, 300_000)


def test_call_that_is_interrupted_is_gone_on_with(tmp_path, site):
    site.files["/a"] = Served(BODY * 10)

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{site.url}/a", tmp_path / "a", on_bytes=stop)
    size = (tmp_path / "a.part").stat().st_size
    assert 0 < size < len(BODY) * 10
    download(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY * 10
    assert site.requests[1][1] == f"bytes={size}-"


@pytest.mark.parametrize(("etag", "modified"), [('"1"', ""), ("", "Mon, 02 Nov 2026 10:00:00 GMT")])
def test_file_that_changed_in_between_is_taken_anew(tmp_path, site, etag, modified):
    site.files["/a"] = Served(BODY, etag, modified, cuts=[100_000])
    with pytest.raises(DataError, match="broke off"):
        download(f"{site.url}/a", tmp_path / "a", limits=ONCE)
    site.files["/a"] = Served(OTHER, etag and '"2"', modified and "Tue, 03 Nov 2026 10:00:00 GMT")
    download(f"{site.url}/a", tmp_path / "a", limits=ONCE)
    assert (tmp_path / "a").read_bytes() == OTHER
    assert site.requests[1] == ("/a", "bytes=100000-", etag or modified)


def test_file_that_cannot_be_told_to_be_the_same_is_taken_anew(tmp_path, site):
    site.files["/a"] = Served(BODY, 'W/"1"', cuts=[100_000])
    download(f"{site.url}/a", tmp_path / "a", limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert site.requests == [("/a", None, None)] * 2


def test_with_a_checksum_it_need_not_be_told(tmp_path, site):
    site.files["/a"] = Served(BODY, "", cuts=[100_000])
    download(f"{site.url}/a", tmp_path / "a", SHA256, limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert site.requests == [("/a", None, None), ("/a", "bytes=100000-", None)]


def test_server_that_knows_no_parts(tmp_path, site):
    site.files["/a"] = Served(BODY, ranges=False, cuts=[100_000])
    download(f"{site.url}/a", tmp_path / "a", SHA256, limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(site.requests) == 2


def test_part_of_another_place_is_not_gone_on_with(tmp_path, site):
    site.files |= {"/a": Served(BODY, cuts=[100_000]), "/b": Served(OTHER)}
    with pytest.raises(DataError, match="broke off"):
        download(f"{site.url}/a", tmp_path / "x", limits=ONCE)
    download(f"{site.url}/b", tmp_path / "x", limits=ONCE)
    assert (tmp_path / "x").read_bytes() == OTHER
    (tmp_path / "y.part").write_bytes(BODY[:1000])
    (tmp_path / "y.part.json").write_text("no json")
    download(f"{site.url}/b", tmp_path / "y", limits=ONCE)
    assert (tmp_path / "y").read_bytes() == OTHER


def test_wrong_part_is_asked_for_again(tmp_path, site):
    site.files["/a"] = Served(BODY, cuts=[100_000], shift=5)
    download(f"{site.url}/a", tmp_path / "a", limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [part for _, part, _ in site.requests] == [None, "bytes=100000-", None]


def test_whole_part_is_not_asked_for_again(tmp_path, site):
    site.files["/a"] = Served(BODY)
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.json").write_text(json.dumps({"url": f"{site.url}/a", "validator": '"1"'}))
    download(f"{site.url}/a", tmp_path / "a", SHA256)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [part for _, part, _ in site.requests] == ["bytes=300000-"]


def test_part_longer_than_the_file_is_thrown_away(tmp_path, site):
    site.files["/a"] = Served(BODY)
    (tmp_path / "a.part").write_bytes(BODY + b"x")
    (tmp_path / "a.part.json").write_text(json.dumps({"url": f"{site.url}/a", "validator": '"1"'}))
    download(f"{site.url}/a", tmp_path / "a", limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY


def test_file_of_unknown_length(tmp_path, site):
    site.files["/a"] = Served(BODY, chunked=True, cuts=[1000])
    told = []
    download(f"{site.url}/a", tmp_path / "a", limits=QUICK, on_bytes=lambda *sizes: told.append(sizes))
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(site.requests) == 2
    assert {total for _, total in told} == {0}


def test_wrong_checksum_leaves_nothing(tmp_path, site):
    site.files["/a"] = Served(OTHER)
    for checksum in (SHA256, MD5):
        kind, _, expected = checksum.partition(":")
        with pytest.raises(DataError, match=rf"{kind} of http.*/a is [0-9a-f]+, not {expected}; it is not the file"):
            download(f"{site.url}/a", tmp_path / "a", checksum)
        assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_file_that_is_not_there_is_asked_for_once(tmp_path, site, status):
    site.files["/a"] = Served(BODY, statuses=[status])
    with pytest.raises(DataError, match=rf"127.0.0.1 answers {status} \(.+\) for http.*/a"):
        download(f"{site.url}/a", tmp_path / "a", limits=QUICK)
    assert len(site.requests) == 1
    assert names(tmp_path) == []


def test_server_that_is_busy_is_asked_again(tmp_path, site):
    site.files["/a"] = Served(BODY, statuses=[503, 429, 500])
    download(f"{site.url}/a", tmp_path / "a", limits=QUICK)
    assert (tmp_path / "a").read_bytes() == BODY
    site.files["/b"] = Served(BODY, statuses=[503] * 9)
    with pytest.raises(DataError, match=r"answers 503 \(.+\) for .*; try again later"):
        download(f"{site.url}/b", tmp_path / "b", limits=QUICK)
    assert len(site.files["/b"].statuses) == 9 - QUICK.tries


def test_tries_count_anew_when_something_comes(tmp_path, site):
    site.files["/a"] = Served(BODY, cuts=[10_000] * 20)
    download(f"{site.url}/a", tmp_path / "a", limits=Limits(tries=2, wait_seconds=0.0))
    assert (tmp_path / "a").read_bytes() == BODY
    site.files["/b"] = Served(BODY, ranges=False, cuts=[10_000] * 20)
    with pytest.raises(DataError, match="broke off after 10000 of 300000 bytes"):  # always the same ones
        download(f"{site.url}/b", tmp_path / "b", limits=Limits(tries=3, wait_seconds=0.0))
    assert len(site.files["/b"].cuts) == 20 - 3


def test_waits_grow_and_end_when_something_comes(tmp_path, site, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    site.files["/a"] = Served(BODY, statuses=[503, 503, 0, 503, 503], cuts=[1000])
    download(f"{site.url}/a", tmp_path / "a", limits=Limits(wait_seconds=1.0))
    assert waits == [1.0, 2.0, 1.0, 2.0, 4.0]


def test_host_that_is_not_there(tmp_path, site):
    with pytest.raises(DataError, match=r"127.0.0.1 cannot be reached: .*; try again later"):
        download("http://127.0.0.1:9/a", tmp_path / "a", limits=QUICK)
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/a", "a.zip"):
        with pytest.raises(DataError, match="is no http or https address"):
            download(address, tmp_path / "a")


def test_host_that_never_answers_is_given_up(tmp_path, site):
    release = threading.Event()
    site.files["/a"] = Served(BODY)
    site.finish_request = lambda *arguments: release.wait()
    try:
        with pytest.raises(DataError, match=r"127.0.0.1 did not answer within 0.05 s; try again later"):
            download(f"{site.url}/a", tmp_path / "a", limits=Limits(answer_seconds=0.05, tries=2, wait_seconds=0.0))
    finally:
        release.set()


def test_limits(tmp_path, site):
    site.files["/a"] = Served(BODY)
    with pytest.raises(DataError, match="has 300000 bytes or more; the limit is 1000"):
        download(f"{site.url}/a", tmp_path / "a", limits=Limits(max_bytes=1000))
    with pytest.raises(DataError, match="which is too slow"):
        download(f"{site.url}/a", tmp_path / "a", limits=Limits(max_seconds=-1.0))
    download(f"{site.url}/a", tmp_path / "a")


def test_no_room_is_said_before_the_disk_is_full(tmp_path, site, monkeypatch):
    site.files["/a"] = Served(BODY)
    monkeypatch.setattr(module, "free_bytes", lambda path: 200_000)
    with pytest.raises(DataError, match=r"needs 0 MB in .*, where 0 MB are free; free disk space"):
        download(f"{site.url}/a", tmp_path / "a")
    (tmp_path / "a.part").write_bytes(BODY[:150_000])
    (tmp_path / "a.part.json").write_text(json.dumps({"url": f"{site.url}/a", "validator": '"1"'}))
    download(f"{site.url}/a", tmp_path / "a", SHA256)  # what is there needs no more room


def test_nothing_is_left_if_it_is_not_to_be_gone_on_with(tmp_path, site):
    site.files["/a"] = Served(BODY, cuts=[1000])
    with pytest.raises(DataError, match="broke off"):
        download(f"{site.url}/a", tmp_path / "a", limits=ONCE, resume=False)
    assert names(tmp_path) == []
