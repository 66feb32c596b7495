import multiprocessing
import os
import signal
import subprocess
import time
import warnings
from itertools import pairwise

import pytest
import torch

from bridle.data import dataset as dataset_module
from bridle.data.batch import Batch
from bridle.data.dataset import ClipDataset, LoadedClip, batch_loader
from bridle.data.lasting import lasting
from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.data.sampler import EpochOrder
from bridle.errors import ConfigError, DecodeError, WorkerDied
from bridle.randomness import derive_seed

PATCH = (4, 2, 1)


class NoiseLoader:
    """Clips of seeded noise; as long as its entry says; "bad", "gone" or "kill" in the key is a fault."""

    frame_shape = (1, 2, 1)
    dtype = torch.float32

    def length(self, entry):
        return min(int(entry.duration_seconds), 20)

    def load(self, entry, generator):
        if "bad" in entry.key:
            raise DecodeError(entry.key, "truncated")
        if "gone" in entry.key:
            raise FileNotFoundError(2, "No such file or directory", entry.path)
        if "kill" in entry.key:
            os.kill(os.getpid(), signal.SIGKILL)
        return LoadedClip(torch.rand(1, self.length(entry), 2, 1, generator=generator), 0.5)

    def windows(self, entry):
        yield self.load(entry, torch.Generator())


def dataset(count=23, seed=0, **faults):
    entries = (Entry(faults.get(f"clip{i}", f"{i}"), f"/{i}", duration_seconds=3 + 7 * i % 30) for i in range(count))
    return ClipDataset(Manifest(tuple(entries)), NoiseLoader(), seed)


def batches(data, start_step=0, num_steps=12, rank=0, world_size=1, num_workers=0, batch_size=3):
    order = EpochOrder(data.lengths(), batch_size, 20, PATCH[0], seed=5, max_clips=6)
    loader = batch_loader(
        data,
        order,
        start_step=start_step,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        num_workers=num_workers,
        patch=PATCH,
    )
    return list(loader)


def equal(a: Batch, b: Batch) -> bool:
    tensors = ((getattr(a, name), getattr(b, name)) for name in ("inputs", "lengths", "seeds", "indices"))
    return a.bad == b.bad and all(torch.equal(x, y) for x, y in tensors)


def equal_all(first, second):
    return len(first) == len(second) and all(map(equal, first, second))


def test_a_sample_is_a_function_of_seed_epoch_and_row():
    data, twin, other = dataset(), dataset(), dataset(seed=1)
    twin[0, 3], twin[4, 2]
    sample = data[2, 5]
    assert torch.equal(sample.inputs, twin[2, 5].inputs)
    assert sample.seed == derive_seed(0, "sample", 2, 5) == twin[2, 5].seed
    assert (sample.index, sample.length) == (5, sample.inputs.shape[1])
    for different in (data[1, 5], data[2, 6], other[2, 5]):
        assert different.seed != sample.seed
        assert not torch.equal(different.inputs[:, :3], sample.inputs[:, :3])


def test_bad_files_are_samples_not_errors():
    data = dataset(clip1="bad.wav", clip2="gone.wav")
    assert data[0, 1] == BadFile("bad.wav", "truncated")
    assert data[0, 2] == BadFile("gone.wav", "No such file or directory")
    assert len(data) == 23


def test_epochs_follow_each_other_and_hold_every_clip_once():
    data = dataset()
    order = EpochOrder(data.lengths(), 3, 20, PATCH[0], seed=5, max_clips=6)
    steps = order.steps_per_epoch
    found = batches(data, num_steps=3 * steps)
    for epoch in range(3):
        part = found[epoch * steps : (epoch + 1) * steps]
        assert [batch.indices.tolist() for batch in part] == order.batches(epoch)
        assert sorted(torch.cat([batch.indices for batch in part]).tolist()) == list(range(23))
        assert all(
            int(s) == derive_seed(0, "sample", epoch, int(i)) for b in part for s, i in zip(b.seeds, b.indices, strict=True)
        )


@pytest.mark.parametrize("start", [1, 7, 8, 9, 30])
def test_starting_at_any_step_equals_the_uninterrupted_stream(start):
    assert equal_all(batches(dataset(), start, 40 - start), batches(dataset(), 0, 40)[start:])


def test_no_step_before_the_start_is_read(monkeypatch):
    data = dataset()
    read = []
    load = data.loader.load
    monkeypatch.setattr(data.loader, "load", lambda entry, generator: read.append(entry) or load(entry, generator))
    (batch,) = batches(data, start_step=10_001, num_steps=1)
    assert len(read) == len(batch)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_global_batches(world_size):
    data = dataset()
    whole = batches(data)
    shares = [batches(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            mine = share[step]
            rows = slice(rank, None, world_size)
            assert torch.equal(mine.indices, batch.indices[rows])
            assert torch.equal(mine.seeds, batch.seeds[rows])
            frames = mine.inputs.shape[2]
            assert torch.equal(mine.inputs, batch.inputs[rows, :, :frames])
    empty = [batch for share in shares for batch in share if len(batch) == 0]
    assert all(batch.inputs.shape == (0, 1, PATCH[0], 2, 1) for batch in empty)
    if world_size == 5:
        assert empty, "some batch is smaller than the world"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_number_of_workers_changes_nothing(workers):
    data = dataset(clip4="bad.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's, of more workers than cores
        assert equal_all(batches(data, 2, 12, 1, 2, num_workers=workers), batches(data, 2, 12, 1, 2))


def test_bad_files_come_with_their_batch_even_when_no_clip_is_left():
    everything = dataset(**{f"clip{i}": f"bad-{i}" for i in range(23)})
    found = batches(everything, num_steps=8)
    assert all(len(batch) == 0 and batch.inputs.shape == (0, 1, 4, 2, 1) for batch in found)
    one = batches(dataset(clip9="bad.wav"), num_steps=30)
    assert sum(len(batch.bad) for batch in one) >= 3
    assert all(9 not in batch.indices for batch in one)
    assert {file.key for batch in one for file in batch.bad} == {"bad.wav"}


def test_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches(dataset(), num_workers=1, num_steps=2)
    batches(dataset(), num_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def looking_often(monkeypatch):
    monkeypatch.setattr(dataset_module, "LOOK_SECONDS", 0.2)


@pytest.mark.parametrize("faults", [{"clip0": "kill"}, {"clip0": "kill", "clip7": "kill"}])
def test_a_dead_worker_is_named(faults, looking_often):
    with pytest.raises(WorkerDied, match=r"a data worker died .*lower num_workers"):
        batches(dataset(**faults), num_workers=2, num_steps=20)


def stream_of(data, start, num_steps, num_workers=1):
    order = EpochOrder(data.lengths(), 3, 20, PATCH[0], seed=5)
    settings = {"rank": 0, "world_size": 1, "num_workers": num_workers, "patch": PATCH}
    return batch_loader(data, order, start_step=start, num_steps=num_steps, **settings)


def test_a_death_raises_nothing_where_the_program_is_and_is_named_when_the_next_batch_is_asked_for(looking_often):
    stream = iter(stream_of(dataset(), 0, 10_000))
    others = set(multiprocessing.active_children())
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and its signal has come
    assert sum(i for i in range(100_000)) == 4_999_950_000
    with pytest.raises(WorkerDied, match="a data worker died"):
        for _ in range(10_000):
            next(stream)


def test_a_death_whose_signal_is_lost_is_named(monkeypatch, looking_often):
    monkeypatch.setattr(dataset_module, "_quiet_deaths", lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(WorkerDied, match=r"a data worker died or hangs: (?!DataLoader timed out)"):
            batches(dataset(clip0="kill", clip7="kill"), num_workers=2, num_steps=20)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("deaths", [1, 2])
def test_new_workers_go_on_at_the_very_batch_that_did_not_come(deaths, looking_often, tmp_path, monkeypatch):
    load = NoiseLoader.load

    def dies_at_first(self, entry, generator):
        marker = tmp_path / str(len(list(tmp_path.iterdir())))
        if entry.key == "9" and int(marker.name) < deaths:
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, entry, generator)

    expected = list(stream_of(dataset(), 2, 20, num_workers=0))
    monkeypatch.setattr(NoiseLoader, "load", dies_at_first)
    told = []
    found = list(lasting(lambda step: stream_of(dataset(), step, 22 - step, num_workers=2), 2, 22, told.append))
    assert equal_all(found, expected)
    assert len(told) == deaths == len(list(tmp_path.iterdir()))
    assert f"started again ({deaths} of 2)" in told[-1]


def test_workers_that_die_each_time_are_given_up(looking_often):
    told = []
    with pytest.raises(WorkerDied):
        list(lasting(lambda step: stream_of(dataset(clip0="kill"), step, 20 - step), 0, 20, told.append))
    assert len(told) == 2


def test_a_worker_that_is_slow_is_waited_for_and_one_that_hangs_is_named(monkeypatch):
    class SlowLoader(NoiseLoader):
        def load(self, entry, generator):
            time.sleep(seconds)
            return super().load(entry, generator)

    monkeypatch.setattr(dataset_module, "LOOK_SECONDS", 0.05)
    data = ClipDataset(dataset().manifest, SlowLoader(), 0)
    seconds = 0.1
    assert equal_all(batches(data, num_workers=1, num_steps=2), batches(data, num_steps=2))
    monkeypatch.setattr(dataset_module, "WORKER_TIMEOUT_SECONDS", 0.3)
    seconds = 2.0
    with pytest.raises(WorkerDied, match="a data worker died or hangs: DataLoader timed out"):
        batches(data, num_workers=1, num_steps=2)


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_workers_outlive_a_signal_to_every_process_and_not_their_parents(name, monkeypatch):
    start = dataset_module._start_worker
    # The second worker has not begun when the signal comes.
    monkeypatch.setattr(dataset_module, "_start_worker", lambda worker: (time.sleep(worker), start(worker)))
    data = dataset()
    order = EpochOrder(data.lengths(), 3, 20, PATCH[0], seed=5)
    settings = {"rank": 0, "world_size": 1, "num_workers": 2, "patch": PATCH}
    stream = iter(batch_loader(data, order, start_step=0, num_steps=40, **settings))
    found = [next(stream)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert equal_all([*found, *stream], batches(data, num_steps=40))

    stream = iter(batch_loader(data, order, start_step=0, num_steps=40, **settings))
    next(stream)
    others = set(multiprocessing.active_children()) - set(workers)
    assert len(others) == 2
    for worker in others:
        worker.terminate()
        worker.join(60)
    assert [worker.exitcode for worker in others] == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, EOFError])
def test_an_error_of_the_program_is_not_hidden(monkeypatch, workers, error):
    data = dataset()

    def load(entry, generator):
        raise error("a mistake in the loader")

    monkeypatch.setattr(data.loader, "load", load)
    with pytest.raises(error, match="a mistake in the loader"):
        batches(data, num_workers=workers)


def test_the_loader_can_be_iterated_again():
    data = dataset()
    order = EpochOrder(data.lengths(), 3, 20, PATCH[0], seed=5)
    settings = {"rank": 0, "world_size": 1, "num_workers": 0, "patch": PATCH}
    loader = batch_loader(data, order, start_step=3, num_steps=4, **settings)
    assert equal_all(list(loader), list(loader))
    assert list(batch_loader(data, order, start_step=3, num_steps=0, **settings)) == []


def test_loading_has_one_thread():
    class ThreadLoader(NoiseLoader):
        def load(self, entry, generator):
            return LoadedClip(torch.full((1, 4, 2, 1), float(torch.get_num_threads())), 0.0)

    data = ClipDataset(dataset().manifest, ThreadLoader(), 0)
    threads = torch.get_num_threads()
    try:
        for here in (1, 2):
            torch.set_num_threads(here)
            for workers in (0, 1):
                found = batches(data, num_workers=workers, num_steps=2)
                assert all(torch.all(batch.inputs[:, :, :4] == 1) for batch in found)
            assert torch.get_num_threads() == here, "and the training process keeps its own"
    finally:
        torch.set_num_threads(threads)


def test_wrong_settings():
    for wrong in ({"start_step": -1}, {"num_steps": -1}, {"rank": 2, "world_size": 2}, {"num_workers": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            batches(dataset(), **wrong)
    order = EpochOrder([5, 5], 3, 20, 4, seed=5)
    with pytest.raises(ConfigError, match="over 2 clips and the dataset has 23"):
        batch_loader(dataset(), order, start_step=0, num_steps=1, rank=0, world_size=1, num_workers=0, patch=PATCH)


def test_lengths_are_the_loaders():
    data = dataset()
    assert data.lengths() == [min(entry.duration_seconds, 20) for entry in data.manifest.entries]
    assert any(a != b for a, b in pairwise(data.lengths()))
