"""Whole shards on the local disk: many processes, faults, and a limit."""

import fcntl
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import threading
from pathlib import Path

import pytest
from reference.object_server import Store, serving

from bridle.data import remote, shard_cache
from bridle.errors import ConfigError

SIZE = 100_000
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The cache, with room for two shards and a half."""
    monkeypatch.setenv("BRIDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BRIDLE_CACHE_GIGABYTES", str(2.5 * SIZE / 1e9))
    monkeypatch.setattr(shard_cache, "_TROUBLES", set())
    monkeypatch.setattr(shard_cache, "_STRANGERS", {})
    monkeypatch.setattr(remote, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def store():
    pytest.importorskip("aiohttp")
    with serving() as store:
        store.files = {f"/set/{number}.tar": random.Random(number).randbytes(SIZE) for number in range(5)}
        yield store


def shard(store: Store, number: int) -> tuple[str, bytes]:
    """URL and content of a shard."""
    content = store.files[f"/set/{number}.tar"]
    return remote.pinned(f"{store.url}/set/{number}.tar", len(content), hashlib.sha256(content).hexdigest()), content


def check(store: Store, number: int, offset: int = 500) -> None:
    url, content = shard(store, number)
    with remote.open_range(url, offset, 1000) as file:
        assert file.read() == content[offset : offset + 1000]


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def downloads(store: Store) -> list[str]:
    """Numbers of the shards that were downloaded."""
    return [path.split("/")[2][0] for _, path, part in store.requests if part == f"bytes=0-{SIZE - 1}"]


def test_without_a_limit_nothing_is_kept(store, folder, monkeypatch):
    for text in ("", "0", None):
        monkeypatch.setenv("BRIDLE_CACHE_GIGABYTES", text) if text is not None else monkeypatch.delenv("BRIDLE_CACHE_GIGABYTES")
        assert shard(store, 0)[0] == f"{store.url}/set/0.tar"
        check(store, 0)
    assert not folder.exists()
    assert [request[2] for request in store.requests] == ["bytes=500-1499"] * 3


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number(store, folder, monkeypatch, text):
    monkeypatch.setenv("BRIDLE_CACHE_GIGABYTES", text)
    with pytest.raises(ConfigError, match=f"BRIDLE_CACHE_GIGABYTES is '{text}'; it must be a number"):
        remote.open_range(f"{store.url}/set/0.tar", 0, 10)


def test_the_folder(monkeypatch):
    monkeypatch.delenv("BRIDLE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/user/cache")
    assert shard_cache.folder() == Path("/user/cache/bridle/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert shard_cache.folder() == Path.home() / ".cache/bridle/shards"


def test_a_shard_is_downloaded_once_and_read_from_the_disk(store, folder, monkeypatch):
    for offset in (0, 500, SIZE - 1000):
        check(store, 0, offset)
    assert store.requests == [("GET", "/set/0.tar", f"bytes=0-{SIZE - 1}")]
    assert len(kept(folder)) == 1
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 10)  # a large range
    check(store, 0)
    with remote.open_range(shard(store, 0)[0], 10, 50_000) as file:
        file.seek(40_000)
        assert file.read() == shard(store, 0)[1][40_010:50_010]
    assert len(store.requests) == 1


def test_a_shard_of_unknown_size(store, folder):
    """Of a URL that no index told of."""
    url, content = f"{store.url}/set/0.tar", store.files["/set/0.tar"]
    for _ in range(2):
        assert remote.open_range(url, 7, 10).read() == content[7:17]
    assert [request[0] for request in store.requests] == ["HEAD", "GET"]
    assert remote.file_size(shard(store, 0)[0]) == SIZE


def test_a_shard_comes_in_blocks_and_a_broken_one_is_asked_for_again(store, folder, monkeypatch):
    monkeypatch.setattr(shard_cache, "_BLOCK_BYTES", 30_000)
    store.faults += [None, "cut", 503]
    check(store, 0)
    starts = [request[2] for request in store.requests]
    assert starts == ["bytes=0-29999", *["bytes=30000-59999"] * 3, "bytes=60000-89999", "bytes=90000-99999"]


def test_the_least_recently_used_goes_first_and_open_files_stay_readable(store, folder):
    check(store, 0)
    check(store, 1)
    held = remote.open_range(shard(store, 1)[0], 0, SIZE)
    check(store, 0)
    check(store, 2)  # in place of 1
    check(store, 0)
    assert downloads(store) == ["0", "1", "2"]
    assert len(kept(folder)) == 2
    assert held.read() == shard(store, 1)[1]
    check(store, 1)  # in place of 2
    check(store, 0)
    assert downloads(store) == ["0", "1", "2", "1"]


def test_a_large_range_of_a_removed_shard_stays_readable(store, folder, monkeypatch):
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 10)
    monkeypatch.setattr(remote, "_AHEAD_BYTES", 100)
    held = remote.open_range(shard(store, 0)[0], 0, SIZE)
    for number in (1, 2, 3):
        check(store, number)
    num_requests = len(store.requests)
    assert held.read() == shard(store, 0)[1]
    assert len(store.requests) == num_requests


def test_the_limit_holds_at_every_moment(store, folder, monkeypatch):
    """Also while threads download different shards at the same time; who finds no room reads ranges."""
    largest = 0
    original = shard_cache._download

    def measured(*arguments):
        nonlocal largest
        largest = max(largest, sum(path.stat().st_size for path in folder.iterdir() if path.exists()))
        return original(*arguments)

    monkeypatch.setattr(shard_cache, "_download", measured)
    draw = random.Random(0)
    orders = [draw.choices(range(5), k=20) for _ in range(4)]
    failed: list[BaseException] = []

    def work(order):
        try:
            for number in order:
                check(store, number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert SIZE <= largest <= 2.5 * SIZE
    assert all(name.endswith(".shard") for name in kept(folder))


def test_a_shard_gets_its_name_while_nobody_counts(store, folder, monkeypatch):
    """Else one who lists the folder before, and looks at the files behind it, finds it under neither name."""
    original, renamed = Path.replace, []

    def replace(path, target):
        with pytest.raises(BlockingIOError):
            shard_cache._lock(folder / "lock", wait=False)
        renamed.append(path.suffix)
        return original(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    check(store, 0)
    assert renamed == [".part"]


def test_no_room_beside_what_others_download(store, folder, recwarn):
    folder.mkdir()
    check(store, 0)
    others = shard_cache._lock(folder / f"{'0' * 32}.part")
    others.truncate(2 * SIZE)
    check(store, 1)
    assert store.requests[-1][2] == "bytes=500-1499"
    assert len(kept(folder)) == 2  # shard 0 was not removed in vain
    shard_cache._unlock(others)
    check(store, 1)  # what nobody works at makes room
    assert len(kept(folder)) == 2
    assert all(name.endswith(".shard") for name in kept(folder))
    assert not recwarn.list


def test_a_shard_larger_than_the_cache_is_read_by_ranges(store, folder, monkeypatch):
    monkeypatch.setenv("BRIDLE_CACHE_GIGABYTES", str(0.5 * SIZE / 1e9))
    with pytest.warns(RuntimeWarning, match="more than BRIDLE_CACHE_GIGABYTES; it is read without the cache") as warned:
        check(store, 0)
        check(store, 0)
    assert len(warned) == 1
    assert [request[2] for request in store.requests] == ["bytes=500-1499"] * 2


@pytest.mark.parametrize("damage", ["a byte", "cut off", "grown", "empty", "gone"])
def test_a_damaged_copy_is_fetched_again(store, folder, damage):
    check(store, 0)
    (copy,) = folder.glob("*.shard")
    if damage == "gone":
        copy.unlink()
    elif damage == "a byte":
        with copy.open("r+b") as file:
            file.seek(600)
            file.write(b"\0\0\0\0")
    else:
        os.truncate(copy, {"cut off": SIZE - 1, "grown": SIZE + 1, "empty": 0}[damage])
    check(store, 0)
    check(store, 0)
    assert downloads(store) == ["0", "0"]
    assert copy.read_bytes() == shard(store, 0)[1]


def test_a_shard_that_is_not_the_one_of_the_index(store, folder):
    url = shard(store, 0)[0]
    store.files["/set/0.tar"] = bytes(SIZE)
    for _ in range(3):
        with pytest.raises(OSError, match=r"has not the sha256 .* of its index; write the index anew"):
            remote.open_range(url, 0, 10)
    assert downloads(store) == ["0", "0"]  # perhaps the way was to blame, then never again
    assert kept(folder) == []
    store.files["/set/1.tar"] = bytes(SIZE // 2)
    short = remote.pinned(f"{store.url}/set/1.tar", SIZE, "0" * 64)
    with pytest.raises(OSError, match=f"{SIZE // 2} bytes instead of {SIZE}"):
        remote.open_range(short, 0, 10)
    assert kept(folder) == []


def test_bytes_changed_on_the_way_are_fetched_again(store, folder, monkeypatch):
    original, num_calls = remote._fetch, 0

    def fetch(url, start, stop):
        nonlocal num_calls
        num_calls += 1
        return original(url, start, stop) if num_calls > 1 else bytes(stop - start)

    monkeypatch.setattr(remote, "_fetch", fetch)
    check(store, 0)
    assert num_calls == 2


def test_a_shard_that_changed_with_its_index_is_another(store, folder):
    check(store, 0)
    store.files["/set/0.tar"] = random.Random(9).randbytes(SIZE)
    check(store, 0)
    assert downloads(store) == ["0", "0"]


def test_a_full_disk_is_told_once_and_ranges_are_read(store, folder, monkeypatch):
    check(store, 0)
    monkeypatch.setattr(shard_cache, "free_bytes", lambda path: SIZE - 1)
    with pytest.warns(RuntimeWarning, match="read without the cache in .*: No space left on device; free disk space") as warned:
        check(store, 1)
        check(store, 2)
        check(store, 0)
    assert len(warned) == 1
    assert downloads(store) == ["0"]
    assert len(kept(folder)) == 1


def test_a_disk_that_fills_up_in_the_middle(store, folder, monkeypatch):
    """The limit on file sizes stands for it: the same call fails in the same way."""
    monkeypatch.setattr(shard_cache, "_make_room", lambda *arguments: True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="read without the cache in .*: File too large"):
            check(store, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(folder) == []
    assert store.requests[-1][2] == "bytes=500-1499"


def test_a_folder_that_cannot_be(store, folder):
    folder.write_text("a file")
    with pytest.warns(RuntimeWarning, match="read without the cache"):
        check(store, 0)


def test_a_server_that_fails_leaves_nothing(store, folder):
    store.faults += [503] * 4
    with pytest.raises(OSError, match="cannot be read after 4 tries"):
        remote.open_range(shard(store, 0)[0], 0, 10)
    assert kept(folder) == []
    check(store, 0)


def run(work, *arguments) -> int | None:
    """The exit code of a forked process."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_two_processes_download_a_shard_once(store, folder):
    """The first is kept waiting by the server until the second wants the shard too."""
    store.faults += ["wait"]
    started = FORK.Event()

    def work(second: bool) -> None:
        if second:
            started.set()
        check(store, 0)

    processes = [FORK.Process(target=work, args=(False,))]
    processes[0].start()
    assert store.waiting.wait(60)
    processes += [FORK.Process(target=work, args=(True,)) for _ in range(2)]
    for process in processes[1:]:
        process.start()
    assert started.wait(60)
    assert [path.suffix for path in folder.iterdir() if path.name != "lock"] == [".part"]
    store.gate.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert downloads(store) == ["0"]
    assert [name[32:] for name in kept(folder)] == [".shard"]


def test_a_file_removed_while_its_lock_is_waited_for(store, folder, monkeypatch):
    """As by a process whose download failed: who waited must not write to what has no name any more."""
    folder.mkdir()
    url, content = shard(store, 0)
    name = hashlib.sha256("\0".join((f"{store.url}/set/0.tar", str(SIZE), url[-32:])).encode()).hexdigest()[:32]
    part = folder / f"{name}.part"
    file = shard_cache._lock(part)
    waits, original, read = threading.Event(), fcntl.flock, []

    def flock(*arguments):
        waits.set()
        original(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    thread = threading.Thread(target=lambda: read.append(remote.open_range(url, 0, SIZE).read()))
    thread.start()
    assert waits.wait(60)
    part.unlink()
    shard_cache._unlock(file)
    thread.join()
    assert read == [content]
    assert kept(folder) == [f"{name}.shard"]


def test_a_process_forked_while_a_lock_is_held_does_not_keep_it(folder):
    folder.mkdir()
    file = shard_cache._lock(folder / "a.part")
    over = FORK.Event()
    process = FORK.Process(target=over.wait)
    process.start()
    with pytest.raises(BlockingIOError):
        shard_cache._lock(folder / "a.part", wait=False)
    shard_cache._unlock(file)
    shard_cache._unlock(shard_cache._lock(folder / "a.part", wait=False))
    over.set()
    process.join()


def test_a_process_killed_while_it_downloads(store, folder):
    """Those who wait for it go on at once, and what it left is not taken for a shard."""
    store.faults += ["wait"]
    process = FORK.Process(target=check, args=(store, 0))
    process.start()
    assert store.waiting.wait(60)
    waiting = FORK.Process(target=check, args=(store, 0))
    waiting.start()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    waiting.join()
    store.gate.set()
    assert (process.exitcode, waiting.exitcode) == (-signal.SIGKILL, 0)
    check(store, 0)
    assert downloads(store) == ["0", "0"]
    assert [name[32:] for name in kept(folder)] == [".shard"]


def test_killed_at_any_moment(tmp_path, folder, monkeypatch):
    """Before and after each call that changes the disk, while three shards are read and one makes room for another."""
    monkeypatch.setattr(shard_cache, "_BLOCK_BYTES", 30_000)
    contents = [random.Random(number).randbytes(SIZE) for number in range(3)]
    urls = []
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.tar").write_bytes(content)
        urls.append(remote.pinned(f"file://{tmp_path}/{number}.tar", SIZE, hashlib.sha256(content).hexdigest()))

    def read_all() -> None:
        for url, content in zip(urls, contents, strict=True):
            assert remote.open_range(url, 500, 1000).read() == content[500:1500]

    def read_all_but_die(moment: int) -> None:
        left = moment

        def dying(original):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*arguments, **options)
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for owner, name in [*((os, name) for name in ("open", "fsync", "utime")), (Path, "replace"), (Path, "unlink")]:
            setattr(owner, name, dying(getattr(owner, name)))
        remote._fetch = dying(remote._fetch)
        read_all()

    moment, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        moment += 1
        code = run(read_all_but_die, moment)
        assert all(path.read_bytes() in contents for path in folder.glob("*.shard"))
        if moment % 2 or code == 0:  # else the next process comes upon what two have left
            read_all()
            assert [name[32:] for name in kept(folder)] == [".shard"] * 2
    assert code == 0
    assert moment > 30
