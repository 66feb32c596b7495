"""Ranges of bytes, whole objects and lists of URLs, and what happens when a request fails."""

import gc
import io
import random
import sys
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from reference.object_server import Store, serving
from torch.utils.data import DataLoader, Dataset

from bridle.data import remote
from bridle.errors import ConfigError, DataError

CONTENT = random.Random(0).randbytes(10_000)


class Flaky(AbstractFileSystem):
    """Objects in memory. The next requests meet ``faults``: an error is raised, a number of bytes is kept back."""

    protocol = "flaky"
    cachable = False
    objects: dict[str, bytes] = {}  # noqa: RUF012
    faults: list[Exception | int] = []  # noqa: RUF012
    requests: list[tuple[int | None, int | None]] = []  # noqa: RUF012

    def cat_file(self, path, start=None, end=None, **options):
        self.requests.append((start, end))
        fault = self.faults.pop(0) if self.faults else 0
        if isinstance(fault, Exception):
            raise fault
        if path not in self.objects:
            raise FileNotFoundError(path)
        part = self.objects[path][start:end]
        return part[: len(part) - fault]

    def info(self, path, **options):
        return {"name": path, "size": len(self.objects[path]), "type": "file"}


class ServerError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Seconds that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.fixture
def flaky(monkeypatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "objects", {"set/a.tar": CONTENT})
    monkeypatch.setattr(Flaky, "faults", [])
    monkeypatch.setattr(Flaky, "requests", [])
    return Flaky


@pytest.fixture
def store():
    pytest.importorskip("aiohttp")
    with serving() as store:
        store.files["/set/a.tar"] = CONTENT
        yield store


@pytest.fixture(params=["memory", "file", "http"])
def base(request, tmp_path) -> str:
    """The URL of a folder with ``a.tar``, ``b.txt`` and ``below/c.tar``, in each kind of store."""
    files = {"a.tar": CONTENT, "b.txt": b"text", "below/c.tar": b"", "below/d e.tar": b"d"}
    if request.param == "http":
        server: Store = request.getfixturevalue("store")
        server.files = {f"/set/{name.replace(' ', '%20')}": content for name, content in files.items()}
        return f"{server.url}/set"
    url = f"memory://{tmp_path.name}/set" if request.param == "memory" else f"file://{tmp_path}/set"
    for name, content in files.items():
        with fsspec.open(f"{url}/{name}", "wb", auto_mkdir=True) as file:
            file.write(content)
    return url


@pytest.mark.parametrize(
    "path", ["s3://bucket/set", "https://host/a.tar", "memory://a", "file:///tmp/a.tar", "gs://b", "hf://datasets/a"]
)
def test_urls(path):
    assert remote.is_url(path)


@pytest.mark.parametrize(
    "path", ["", "a.tar", "/tmp/a.tar", "./s3://x", "hf:NAME:SPLIT", "C:\\a", "C:/a", "c://a", "://a", "s3:/a"]
)
def test_paths_that_are_no_urls(path):
    assert not remote.is_url(path)


@pytest.mark.parametrize("name", ["shard-00000.tar", "below/shard.tar", "100 % of it.tar", "ü.tar", "...tar"])
def test_join(name):
    assert remote.join("s3://bucket/set/", name) == remote.join("s3://bucket/set", name) == f"s3://bucket/set/{name}"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a.tar", "a/../../b.tar", "a/..", "/etc/passwd", "a//b", "a/", "//host/a.tar", "%2fetc"),
        *("file:///etc/passwd", "http:a", "a::file://x", "a::b", "..\\a", "%2e%2e/a", "a/%2E%2E%2Fb"),
        *("a?x", "a#b", "a%3Fb", "a\nb", "a\0b"),
    ],
)
def test_join_refuses_to_lead_outside(name):
    with pytest.raises(DataError, match="no plain relative name below s3://bucket/set") as caught:
        remote.join("s3://bucket/set", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at_once", [remote.AT_ONCE_BYTES, 100])
def test_range_is_a_file_of_its_own(base, at_once, monkeypatch):
    """Reads and seeks at random, against the same bytes in memory."""
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", at_once)
    monkeypatch.setattr(remote, "_AHEAD_BYTES", 64)
    draw = random.Random(1)
    for _ in range(4 if base.startswith("http") else 20):
        offset = draw.randrange(9000)
        size = draw.randrange(10_000 - offset)
        expected = io.BytesIO(CONTENT[offset : offset + size])
        with remote.open_range(f"{base}/a.tar", offset, size) as file:
            assert isinstance(file, io.BufferedReader)
            assert file.readable() and file.seekable() and not file.writable()
            for _ in range(30):
                if draw.random() < 0.5:
                    where = (draw.randrange(size + 10), 0) if draw.random() < 0.7 else (-draw.randrange(size + 1), 2)
                    assert file.seek(*where) == expected.seek(*where)
                count = draw.choice([0, 1, 10, 700, -1])
                assert file.read(count) == expected.read(count)
                assert file.tell() == expected.tell()
        assert file.closed


def test_whole_objects_and_their_sizes(base, monkeypatch):
    assert remote.read_bytes(f"{base}/a.tar") == CONTENT
    assert (remote.read_bytes(f"{base}/b.txt"), remote.read_bytes(f"{base}/below/c.tar")) == (b"text", b"")
    assert (remote.file_size(f"{base}/a.tar"), remote.file_size(f"{base}/below/c.tar")) == (10_000, 0)
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 999)
    assert remote.read_bytes(f"{base}/a.tar") == CONTENT


def test_lists(base):
    space = "%20" if base.startswith("http") else " "
    names = ["a.tar", "b.txt", "below/c.tar", f"below/d{space}e.tar"]
    assert remote.list_files(base) == remote.list_files(f"{base}/") == [f"{base}/{name}" for name in names]
    assert remote.list_files(f"{base}/below") == [f"{base}/{name}" for name in names[2:]]
    assert remote.read_bytes(remote.list_files(base)[-1]) == b"d"


def test_missing_objects_are_asked_for_once(base, pauses):
    for ask in (remote.file_size, remote.read_bytes, lambda url: remote.open_range(url, 0, 10)):
        with pytest.raises(FileNotFoundError, match="missing") as caught:
            ask(f"{base}/nothing.tar")
        assert caught.value.strerror == "missing"
    with pytest.raises(FileNotFoundError):
        remote.list_files(f"{base}/nowhere")
    assert pauses == []


def test_range_behind_the_end(base, pauses):
    with pytest.raises(OSError, match="5 bytes instead of 10"):
        remote.open_range(f"{base}/a.tar", 9995, 10)


@pytest.mark.parametrize("num_faults", [1, 2, 3])
@pytest.mark.parametrize(
    "fault", [OSError("reset"), TimeoutError(), ValueError("odd"), ServerError(503), ServerError(429), 1, 10]
)
def test_faults_that_pass(flaky, pauses, fault, num_faults):
    flaky.faults += [fault] * num_faults
    assert remote.open_range("flaky://set/a.tar", 50, 10).read() == CONTENT[50:60]
    assert flaky.requests == [(50, 60)] * (num_faults + 1)
    assert pauses == [0.5, 1.0, 2.0][:num_faults]


def test_a_fault_that_stays_is_an_error_in_one_line(flaky, pauses):
    flaky.faults += [OSError("connection reset\nby peer")] * 5
    with pytest.raises(OSError, match="cannot be read after 4 tries: connection reset by peer") as caught:
        remote.open_range("flaky://set/a.tar", 0, 10)
    assert "\n" not in str(caught.value)
    assert caught.value.filename == "flaky://set/a.tar"
    assert len(flaky.requests) == 4
    assert pauses == [0.5, 1.0, 2.0]
    flaky.faults[:] = [3] * 4
    with pytest.raises(OSError, match="after 4 tries: 7 bytes instead of 10"):
        remote.open_range("flaky://set/a.tar", 0, 10)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (FileNotFoundError("x"), FileNotFoundError),
        (PermissionError("denied"), PermissionError),
        (IsADirectoryError(21, "is one"), IsADirectoryError),
        (ServerError(403), PermissionError),
        (ServerError(404), FileNotFoundError),
        (ServerError(416), OSError),
        (type("NoCredentialsError", (Exception,), {})("none found"), PermissionError),
    ],
)
def test_faults_that_stay_are_not_tried_again(flaky, pauses, fault, kind):
    flaky.faults += [fault] * 2
    with pytest.raises(kind):
        remote.open_range("flaky://set/a.tar", 0, 10)
    assert len(flaky.requests) == 1
    assert pauses == []


def test_small_ranges_are_one_request_and_large_ones_are_read_in_parts(flaky, monkeypatch):
    with remote.open_range("flaky://set/a.tar", 100, 5000) as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == CONTENT[5090:5100]
        file.seek(0)
        file.read()
    assert flaky.requests == [(100, 5100)]
    flaky.requests.clear()
    flaky.objects["set/film.tar"] = CONTENT * 100
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 10_000)
    monkeypatch.setattr(remote, "_AHEAD_BYTES", 4096)
    with remote.open_range("flaky://set/film.tar", 100, 900_000) as file:
        file.seek(500_000)
        assert file.read(10) == CONTENT[100:110]
    assert min(start for start, _ in flaky.requests) == 100
    assert max(stop for _, stop in flaky.requests) < 520_000
    assert sum(stop - start for start, stop in flaky.requests) < 40_000


def test_a_large_range_that_cannot_be_read_is_found_out_when_it_is_opened(flaky, pauses, monkeypatch):
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 1000)
    with pytest.raises(FileNotFoundError):
        remote.open_range("flaky://set/b.tar", 0, 5000)


def test_faults_within_a_large_range(flaky, pauses, monkeypatch):
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 1000)
    monkeypatch.setattr(remote, "_AHEAD_BYTES", 256)
    with remote.open_range("flaky://set/a.tar", 100, 9000) as file:
        flaky.faults += [TimeoutError(), 5]
        assert file.read() == CONTENT[100:9100]
        assert len(pauses) == 2
    with remote.open_range("flaky://set/a.tar", 100, 9000) as file:
        file.seek(5000)
        flaky.faults += [TimeoutError()] * 4
        with pytest.raises(OSError, match="cannot be read after 4 tries: TimeoutError"):
            file.read(1000)


def test_the_library_of_a_scheme_is_missing(monkeypatch, pauses):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"s3://bucket/a needs a library that is not installed: pip install 'bridle\[s3\]'"):
        remote.read_bytes("s3://bucket/a")
    with pytest.raises(ConfigError, match=r"abfs://bucket/a needs a library that is not installed: .*adlfs"):
        remote.read_bytes("abfs://bucket/a")
    with pytest.raises(DataError, match="nonsense://a cannot be opened: Protocol not known"):
        remote.read_bytes("nonsense://a")
    assert pauses == []


@pytest.mark.parametrize("fault", [500, 503, 429, "short", "cut"])
def test_faults_of_a_web_server_that_pass(store, pauses, fault):
    store.faults += [fault] * 3
    assert remote.open_range(f"{store.url}/set/a.tar", 50, 10).read() == CONTENT[50:60]
    assert store.requests == [("GET", "/set/a.tar", "bytes=50-59")] * 4
    assert len(pauses) == 3


@pytest.mark.parametrize(("fault", "kind"), [(404, FileNotFoundError), (403, PermissionError), (416, OSError), (503, OSError)])
def test_faults_of_a_web_server_that_stay(store, pauses, fault, kind):
    store.faults += [fault] * 8
    with pytest.raises(kind) as caught:
        remote.open_range(f"{store.url}/set/a.tar", 50, 10)
    assert len(store.requests) == (4 if fault == 503 else 1)
    assert "\n" not in str(caught.value)


def test_the_size_is_asked_for_again_when_the_server_is_busy(store, pauses, monkeypatch):
    """Where a server refuses HEAD, fsspec says "not found" of whatever the GET behind it meets."""
    monkeypatch.setattr("reference.object_server.Handler.do_HEAD", lambda handler: handler.send_whole(405, b"", False))
    store.faults += [503, 503]
    assert remote.file_size(f"{store.url}/set/a.tar") == 10_000
    assert len(pauses) == 2
    store.faults += [403]
    with pytest.raises(PermissionError):
        remote.file_size(f"{store.url}/set/a.tar")


def test_a_server_that_ignores_ranges_is_refused_before_it_sends_a_shard(store, pauses):
    store.files["/set/large.tar"] = bytes(64 << 20)
    store.ranges = False
    with pytest.raises(OSError, match="ignores range requests"):
        remote.open_range(f"{store.url}/set/large.tar", 512, 1000)
    assert len(store.requests) == 1
    assert pauses == []
    assert store.sent_bytes < 64 << 20
    assert remote.read_bytes(f"{store.url}/set/a.tar") == CONTENT  # a range that is all of it


def test_a_server_that_hangs(store, pauses, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.05)
    store.faults += ["wait"] * 4
    with pytest.raises(OSError, match="cannot be read after 4 tries: FSTimeoutError"):
        remote.open_range(f"{store.url}/set/a.tar", 50, 10)
    assert len(store.requests) == 4
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 60)
    store.gate.set()
    assert remote.open_range(f"{store.url}/set/a.tar", 50, 10).read() == CONTENT[50:60]


def test_no_server_at_all(store, pauses):
    url = f"{store.url}/set/a.tar"
    store.shutdown()
    store.server_close()
    with pytest.raises(OSError, match="cannot be read after 4 tries"):
        remote.read_bytes(url)
    assert len(pauses) == 3


class Ranges(Dataset):
    def __init__(self, url: str) -> None:
        self.url = url

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> bytes:
        with remote.open_range(self.url, 10 * row, 10) as file:
            return file.read()


def clean(worker: int) -> None:
    """What the worker has of its parent, and does not need, goes, as it does sooner or later."""
    gc.collect()


def test_forked_workers_and_their_parent_read_the_same_server(store, pauses):
    """Connections of the parent are left alone by its workers: it uses its own one again."""
    url = f"{store.url}/set/a.tar"
    assert remote.open_range(url, 0, 10).read() == CONTENT[:10]
    first = store.ports[0]
    for _ in range(2):
        found = []
        for batch in DataLoader(Ranges(url), batch_size=4, num_workers=2, collate_fn=list, worker_init_fn=clean):
            found += batch
            assert remote.open_range(url, 5, 10).read() == CONTENT[5:15]
        assert found == [CONTENT[10 * row : 10 * row + 10] for row in range(40)]
    assert store.ports.count(first) == 1 + 2 * 10
    assert len(set(store.ports)) == 1 + 2 * 2
    assert pauses == []
