"""Shards in a bucket: a real server process that speaks S3 over HTTP."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Dataset

from bridle.data import remote
from bridle.errors import BridleError

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bridle[s3]'")
pytest.importorskip("moto.server", reason="moto's server is not installed: pip install 'moto[s3]' flask flask-cors")

SHARDS = {f"set/shard-{number:05}.tar": random.Random(number).randbytes(3_000_000) for number in range(2)}
SMALL = {"set/index.parquet": b"index", "set/below/c.tar": b"c", "else/d.tar": b"d"}
START_SECONDS = 60

pytestmark = pytest.mark.slow


class Server:
    """A server that can be killed and started again at the same address; it forgets what it had."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment, self.log = environment, folder / "server.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **self.environment}, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, "the server does not start"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def fill(self) -> None:
        system = s3fs.S3FileSystem(skip_instance_cache=True)
        system.mkdir("bucket")
        for name, content in (SHARDS | SMALL).items():
            system.pipe(f"bucket/{name}", content)

    def num_requests(self, path: str) -> int:
        return self.log.read_text().count(f"GET /bucket/{path} ")


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Sets what the client knows, and nothing of this machine's owner."""
    known = {"CONFIG_FILE": f"{tmp_path}/none", "SHARED_CREDENTIALS_FILE": f"{tmp_path}/none"}
    known |= {"EC2_METADATA_DISABLED": "true", "MAX_ATTEMPTS": "1", "DEFAULT_REGION": "us-east-1"}
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    pauses: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=pauses.append))

    def know(url: str, key: str, secret: str) -> list[float]:
        for name, value in {**known, "ENDPOINT_URL": url, "ACCESS_KEY_ID": key, "SECRET_ACCESS_KEY": secret}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        pauses.clear()
        return pauses

    yield know
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def server(tmp_path, aws):
    server = Server(tmp_path)
    try:
        aws(server.url, "key", "secret")
        server.fill()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


class Ranges(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> bytes:
        with remote.open_range("s3://bucket/set/shard-00001.tar", 100 * row, 100) as file:
            return file.read()


def test_shards_in_a_bucket(server, tmp_path, monkeypatch):
    content = SHARDS["set/shard-00001.tar"]
    url = "s3://bucket/set/shard-00001.tar"
    assert remote.list_files("s3://bucket/set") == [f"s3://bucket/{name}" for name in sorted(SHARDS | SMALL) if "set/" in name]
    assert remote.read_bytes("s3://bucket/set/index.parquet") == b"index"
    assert remote.file_size(url) == 3_000_000
    with remote.open_range(url, 1_000_000, 500) as file:
        assert file.read() == content[1_000_000:1_000_500]
    assert server.num_requests("set/shard-00001.tar") == 1
    found = [part for batch in DataLoader(Ranges(), batch_size=2, num_workers=2, collate_fn=list) for part in batch]
    assert found == [content[100 * row : 100 * row + 100] for row in range(8)]
    with pytest.raises(FileNotFoundError, match="missing"):
        remote.open_range("s3://bucket/set/shard-00002.tar", 0, 10)
    with pytest.raises(FileNotFoundError, match="missing"):
        remote.read_bytes("s3://nobucket/set/index.parquet")
    with pytest.raises(FileNotFoundError, match="no files"):
        remote.list_files("s3://bucket/nothing")
    monkeypatch.setenv("BRIDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BRIDLE_CACHE_GIGABYTES", "1")
    before = server.num_requests("set/shard-00001.tar")
    assert [part for batch in DataLoader(Ranges(), num_workers=2, collate_fn=list) for part in batch] == found
    assert server.num_requests("set/shard-00001.tar") == before + 1


def test_a_server_killed_and_started_again(server, aws, monkeypatch):
    """Also in the middle of a large range: it goes on where it was."""
    pauses = aws(server.url, "key", "secret")
    content, url = SHARDS["set/shard-00000.tar"], "s3://bucket/set/shard-00000.tar"
    monkeypatch.setattr(remote, "AT_ONCE_BYTES", 1_000_000)
    monkeypatch.setattr(remote, "_AHEAD_BYTES", 100_000)
    with remote.open_range(url, 1000, 2_900_000) as file:
        assert file.read(50_000) == content[1000:51_000]
        server.kill()
        with pytest.raises(OSError, match="cannot be read after 4 tries: Could not connect to the endpoint") as caught:
            file.read(500_000)
        assert "\n" not in str(caught.value)
        assert pauses == [0.5, 1.0, 2.0]
        with pytest.raises(OSError, match="cannot be read after 4 tries"):
            remote.read_bytes("s3://bucket/set/index.parquet")
        server.start()
        server.fill()
        file.seek(50_000)
        assert file.read() == content[51_000:2_901_000]
    assert remote.read_bytes("s3://bucket/set/index.parquet") == b"index"


def test_a_server_that_comes_back_between_two_tries(server, aws, monkeypatch):
    pauses = aws(server.url, "key", "secret")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            server.start()
            server.fill()

    server.kill()
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=sleep))
    assert remote.open_range("s3://bucket/set/shard-00000.tar", 5, 10).read() == SHARDS["set/shard-00000.tar"][5:15]
    assert pauses == [0.5, 1.0]


def test_a_server_that_never_answers(aws, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        pauses = aws(f"http://127.0.0.1:{silent.getsockname()[1]}", "key", "secret")
        with pytest.raises(OSError, match="cannot be read after 4 tries: FSTimeoutError"):
            remote.open_range("s3://bucket/set/shard-00000.tar", 5, 10)
    assert pauses == [0.5, 1.0, 2.0]


def test_credentials(tmp_path, aws):
    """A server that checks signatures, but of its first calls, which make a user."""
    boto3 = pytest.importorskip("boto3")
    server = Server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="3")
    try:
        aws(server.url, "any", "thing")
        iam = boto3.client("iam")
        iam.create_user(UserName="reader")
        policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
        iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        aws(server.url, key["AccessKeyId"], key["SecretAccessKey"])
        server.fill()
        assert remote.read_bytes("s3://bucket/set/index.parquet") == b"index"
        for wrong in (("nobody", key["SecretAccessKey"]), (key["AccessKeyId"], "wrong")):
            pauses = aws(server.url, *wrong)
            for ask in (remote.read_bytes, remote.file_size, lambda url: remote.open_range(url, 0, 3), remote.list_files):
                with pytest.raises((OSError, BridleError)) as caught:
                    ask("s3://bucket/set/index.parquet")
                assert isinstance(caught.value, PermissionError), caught.value
                assert "no permission" in str(caught.value)
                assert "\n" not in str(caught.value)
            assert pauses == []
    finally:
        server.process.kill()
        server.process.wait()
