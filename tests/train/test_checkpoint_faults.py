"""The fault contract: kill -9 at every write boundary, a full disk, a disk that refuses, and the order of syncs."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bridle.errors import RunError
from bridle.train import checkpoint as module
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

# For each save of a history: one forked child for each boundary, on a copy of the run so far. Child k is killed at its
# k-th boundary: before every open, rename, link, removal and mkdir of the run, at every fsync, within each tensor file.
KILL_SWEEP = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from bridle.train import checkpoint as module
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from bridle.train.weights import read_weights

KEEP, *STEPS = map(int, sys.argv[2].split())
WRITES = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}

def save(run, step, i):
    value = torch.full((50,), float(i))
    save_checkpoint(run, step, weights={"w": value}, optimizer={"w/exp_avg": value}, state={"i": i}, keep=KEEP)

def child(run, index, kill_at):
    count = 0
    def boundary(*_):
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def audit(event, arguments):
        if event in WRITES and str(run) in str(arguments[0]):
            boundary()
    save_file = module.save_file
    def save_in_parts(tensors, path, metadata=None):
        save_file(tensors, path, metadata)
        whole = path.read_bytes()
        for size in (0, len(whole) // 2, len(whole)):
            path.write_bytes(whole[:size])
            boundary()
    os.fsync, module.save_file = boundary, save_in_parts
    sys.addaudithook(audit)
    save(run, STEPS[index], index)

def inspect(run, index, completed):
    path = latest_checkpoint(run)
    pointer = run / "checkpoints" / "latest"
    found = -1
    if path is not None:
        checkpoint = load_checkpoint(path)
        found = checkpoint.state["i"]
        expected = torch.full((50,), float(found))
        assert torch.equal(checkpoint.weights["w"], expected)
        assert torch.equal(checkpoint.optimizer["w/exp_avg"], expected)
        assert checkpoint.step == STEPS[found]
    assert found == index or (found == index - 1 and not completed), (found, index)
    if pointer.exists():
        assert load_checkpoint(pointer.parent / pointer.read_text().strip()).state["i"] == found
    else:
        assert index == 0
    if (run / "model.safetensors").exists():
        assert read_weights(run / "model.safetensors")[0]["w"][0].item() in (index - 1, index)
    else:
        assert index == 0
    return found

def sweep(base, run, index):
    kills, outcomes = 0, set()
    while True:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run)
        pid = os.fork()
        if pid == 0:
            try:
                child(run, index, kills + 1)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = inspect(run, index, status == 0)
        if status == 0:
            return kills, outcomes
        assert status == -signal.SIGKILL, status
        kills += 1
        outcomes.add(found - index)
        save(run, 6, 99)  # the next save works and leaves nothing of the killed one behind
        assert load_checkpoint(latest_checkpoint(run)).state["i"] == 99
        left = [p.name for p in (*run.iterdir(), *(run / "checkpoints").iterdir()) if p.name.startswith(".")]
        assert left == [], left

base = Path(sys.argv[1]) / "base"
base.mkdir()
os.fsync = lambda _: None  # SIGKILL does not lose what the kernel holds: the sweep need not wait for the disk
for index, step in enumerate(STEPS):
    kills, outcomes = sweep(base, base.with_name("run"), index)
    print(json.dumps([kills, sorted(outcomes)]))
    save(base, step, index)
"""


@pytest.mark.parametrize(("keep", "steps"), [(1, "1 2 2"), pytest.param(2, "1 2 2 2 3 5 4", marks=pytest.mark.slow)])
def test_kill_at_every_write_boundary(tmp_path, keep, steps):
    """A kill leaves the checkpoint before or the new one, always whole; never the pointer without its folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILL_SWEEP, str(tmp_path), f"{keep} {steps}"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    sweeps = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(sweeps) == len(steps.split())
    for kills, outcomes in sweeps:
        assert kills > 30
        assert outcomes == [-1, 0]


def save(run: Path, step: int, size: int = 4, **options):
    tensors = {"w": torch.full((size,), float(step))}
    return save_checkpoint(run, step, weights=tensors, optimizer=tensors, state={}, **options)


def assert_previous_is_whole(run: Path, step: int):
    path = latest_checkpoint(run)
    assert path is not None
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == step
    assert torch.equal(checkpoint.weights["w"], torch.full((4,), float(step)))
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".tmp")] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=30)


def test_disk_really_full(small_disk):
    run = small_disk / "run"
    save(run, 1)
    match = r"cannot write checkpoint of step 2 to .*: No space left on device \(\d\.\d MB free\); free disk space .*; "
    with pytest.raises(RunError, match=match + "the previous checkpoint is untouched: step 1"):
        save(run, 2, size=1_000_000)
    assert_previous_is_whole(run, 1)
    save(run, 3)
    assert_previous_is_whole(run, 3)


def test_disk_full_to_the_last_page(small_disk):
    """Every amount of free space from none on: the save works, or the previous one stays."""
    run = small_disk / "run"
    save(run, 1, keep=1)
    filler = small_disk / "filler"
    done = 1
    for pages in range(40, -1, -2):
        filler.write_bytes(b"")
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(free - pages * 4096))
        try:
            save(run, done + 1, keep=1)
        except RunError as error:
            assert f"untouched: step {done}" in str(error)
        else:
            done += 1
        assert_previous_is_whole(run, done)
    assert 1 < done < 22


def test_disk_read_only(small_disk):
    run = small_disk / "run"
    save(run, 1)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    if subprocess.run(remount, check=False, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("the tmpfs cannot be remounted read-only here")
    with pytest.raises(RunError, match=r"Read-only file system .*mount it writable .*untouched: step 1"):
        save(run, 2)
    assert_previous_is_whole(run, 1)


def test_file_size_limit_in_the_tensor_writer(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=r"File too large .*ulimit -f.*untouched: step 1"):
            save(tmp_path, 2, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_previous_is_whole(tmp_path, 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "mkdir"])
def test_every_failing_call_keeps_the_previous(tmp_path, monkeypatch, call, code):
    """The k-th call fails, for every k, until a save is never disturbed."""
    real = getattr(os, call)
    failures = 0
    for k in range(1, 50):
        run = tmp_path / str(k)
        save(run, 1)
        calls = 0

        def faulty(*arguments, k=k, **options):
            nonlocal calls
            calls += 1
            if calls == k:
                raise OSError(code, os.strerror(code), "x")
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, faulty)
        try:
            save(run, 2)
        except RunError as error:
            failures += 1
            written = "the checkpoint of step 2 is whole" in str(error)
            pointed = "the newest whole checkpoint is step 2" in str(error)
            assert written or pointed or "the previous checkpoint is untouched: step 1" in str(error)
            assert os.strerror(code) in str(error)
            assert_previous_is_whole(run, 2 if written or pointed else 1)
        else:
            assert calls < k
            break
        finally:
            monkeypatch.setattr(os, call, real)
    assert failures == {"fsync": 11, "replace": 4, "rename": 1, "mkdir": 1}[call]


def test_first_save_that_fails_says_so(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="check the disk; there was no previous checkpoint"):
        save(tmp_path, 1)
    assert latest_checkpoint(tmp_path) is None


def test_interrupt_leaves_no_temporary_folder(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert_previous_is_whole(tmp_path, 1)


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """What a power cut needs: contents before the rename, that before the pointer, that before removals."""
    trace: list[str] = []
    real_fsync, real_rename, real_replace, real_rmdir = os.fsync, os.rename, os.replace, os.rmdir

    def label(path) -> str:
        return Path(path).name.replace(str(os.getpid()), "PID")

    def fsync(descriptor):
        trace.append("sync " + label(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(source, target, **options):
        trace.append(f"rename {label(source)} {label(target)}")
        real_rename(source, target, **options)

    def replace(source, target):
        trace.append(f"rename {label(source)} {label(target)}")
        real_replace(source, target)

    def rmdir(path, **options):
        trace.append("remove")
        real_rmdir(path, **options)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name a descriptor")
    save(tmp_path, 1)
    for name, function in (("fsync", fsync), ("rename", rename), ("replace", replace), ("rmdir", rmdir)):
        monkeypatch.setattr(os, name, function)
    save(tmp_path, 2, keep=1)
    monkeypatch.undo()

    def at(event: str) -> int:
        return trace.index(event)

    folder = ".tmp-00000002-PID"
    named = at(f"rename {folder} step-00000002")
    contents = [".tmp-state.json-PID", "model.safetensors", "optimizer.safetensors", ".tmp-manifest.json-PID"]
    assert [at(f"sync {name}") for name in contents] == sorted(at(f"sync {name}") for name in contents)
    assert at(f"sync {contents[-1]}") < at("rename .tmp-manifest.json-PID manifest.json")
    last_folder_sync = max(i for i, event in enumerate(trace) if event == f"sync {folder}")
    assert at("rename .tmp-manifest.json-PID manifest.json") < last_folder_sync < named
    assert named < at("sync checkpoints") < at("sync .tmp-latest-PID") < at("rename .tmp-latest-PID latest")
    assert at("rename .tmp-latest-PID latest") < at("rename step-00000001 .tmp-step-00000001") < at("remove")
    assert "sync checkpoints" in trace[at("rename .tmp-latest-PID latest") : at("remove")]
    assert trace[-1] == f"sync {tmp_path.name}"
