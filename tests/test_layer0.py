"""grid, randomness, config, errors and distributed."""

import dataclasses
import os
import pickle
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridle import distributed, errors
from bridle.config import fingerprint, from_dict, load_yaml, to_dict, to_yaml
from bridle.errors import ConfigError, DecodeError
from bridle.grid import PatchGrid, Subset
from bridle.randomness import counter_uniform, derive_seed, generator, permutation

# --- grid ---


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
def test_grid_numbers_patches_time_major_width_fastest(time, height, width):
    grid = PatchGrid(time, height, width)
    rows = grid.coordinates().tolist()
    assert rows == [[t, h, w] for t in range(time) for h in range(height) for w in range(width)]
    assert (len(rows), len(rows) // time) == (grid.num_patches, grid.patches_per_step)


def test_grid_refuses_an_empty_axis():
    with pytest.raises(ConfigError, match="less than 1 patch"):
        PatchGrid(4, 0)


def test_subset_gathers_its_patches_also_for_many_masks_per_clip():
    patches = torch.arange(24.0).reshape(2, 4, 3)
    indices = torch.tensor([[0, 3], [1, 2], [3, 3], [2, 0]])  # two masks for each of two clips
    gathered = Subset(indices, None).gather(patches)
    assert torch.equal(gathered, torch.stack([patches[row // 2][indices[row]] for row in range(4)]))
    assert Subset(None, None).gather(patches) is patches


def test_subset_of_every_patch_marks_the_padding():
    grid = PatchGrid(3, 2)
    assert Subset.every(grid, torch.tensor([3, 3])) == Subset(None, None)
    subset = Subset.every(grid, torch.tensor([1, 3]))
    assert subset.indices is None
    assert subset.valid is not None
    assert subset.valid.tolist() == [[True] * 2 + [False] * 4, [True] * 6]
    moved = subset.to(torch.device("meta"))
    assert (moved.indices, moved.valid.device.type) == (None, "meta")


# --- randomness ---


def splitmix64(state: int) -> int:
    """The finaliser, in Python integers: Steele, Lea and Flood 2014."""
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) % 2**64
    return state ^ state >> 31


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31))
def test_counter_uniform_equals_reference_on_python_integers(seed, stream):
    start = splitmix64(seed % 2**64 ^ splitmix64(stream))
    expected = [(splitmix64((start + k * 0x9E3779B97F4A7C15) % 2**64) >> 11) * 2.0**-53 for k in range(1, 6)]
    assert counter_uniform(torch.tensor([seed]), 5, stream)[0].tolist() == expected


def test_counter_uniform_of_a_seed_does_not_depend_on_the_batch():
    seeds = torch.tensor([derive_seed("clip", i) for i in range(6)])
    batch = counter_uniform(seeds, 9, stream=2)
    assert torch.equal(batch[4:5], counter_uniform(seeds[4:5], 9, stream=2))
    assert torch.equal(batch[:, :4], counter_uniform(seeds, 4, stream=2))


def test_counter_uniform_is_uniform_and_streams_are_independent():
    seeds = torch.arange(200)  # neighbouring seeds are the hard case
    numbers = torch.stack([counter_uniform(seeds, 500, stream) for stream in range(2)])
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
    chi_square = float(((counts - 10000) ** 2 / 10000).sum())
    assert chi_square < 43.8  # the 99.9 % point for 19 degrees of freedom
    correlation = np.corrcoef(
        np.stack([numbers[0].ravel(), numbers[1].ravel(), numbers[0].roll(1, 0).ravel(), numbers[0].roll(1, 1).ravel()])
    )
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(100000)


def test_derive_seed_is_pinned_and_tells_parts_apart():
    assert derive_seed(0, "order", 3) == 1855528780364446383  # checked against b2sum -l 64
    variants = [(0, "order", 3), (0, "order", 4), (0, "orde", "r3"), ("0", "order", 3), (0, "order"), ()]
    seeds = {derive_seed(*parts) for parts in variants}
    assert len(seeds) == len(variants)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generator_repeats_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, second = (torch.rand(4, generator=generator("a", 1)) for _ in range(2))
    permutation(10, "b")
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(0, 300), st.integers(0, 2**40))
def test_permutation_is_a_permutation_and_a_pure_function(size, seed):
    order = permutation(size, seed, "order")
    assert sorted(order.tolist()) == list(range(size))
    assert torch.equal(order, permutation(size, seed, "order"))


def test_permutation_changes_with_its_parts():
    assert not torch.equal(permutation(100, 0, 1), permutation(100, 0, 2))


# --- config ---


@dataclass(frozen=True)
class Inner:
    width: int = 8
    ratio: float = 0.5
    axes: tuple[str, ...] = ("time", "height")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    kind: Literal["random", "block"] = "random"
    patch: tuple[int, int] = (16, 16)
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    shared: bool = False


CHANGED = Outer(Inner(9, 0.25, ("time",)), "block", (4, 4), Path("a/b"), {"code/0": 2.0}, True)


@pytest.mark.parametrize("config", [Outer(), CHANGED])
def test_config_survives_yaml(tmp_path, config):
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_yaml(Outer, tmp_path / "config.yaml") == config
    assert from_dict(Outer, to_dict(config)) == config


def test_empty_yaml_gives_the_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert load_yaml(Outer, tmp_path / "config.yaml") == Outer()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"widht": 3}}, "unknown setting 'inner.widht'; did you mean 'width'"),
        ({"zzz": 3}, "unknown setting 'zzz'; known: inner, kind"),
        ({"inner": {"width": "big"}}, "inner.width is 'big'; it must be of type int"),
        ({"inner": {"width": True}}, "inner.width is True; it must be of type int"),
        ({"inner": {"ratio": True}}, "inner.ratio is True; it must be of type float"),
        ({"inner": 3}, "must be a mapping of Inner settings, not 3"),
        ({"inner": {"axes": "time"}}, "inner.axes is 'time'; it must be a list"),
        ({"kind": "tube"}, "kind is 'tube'; it must be one of 'random', 'block'"),
        ({"patch": [1, 2, 3]}, "patch has 3 values; it must have 2"),
        ({"folder": 3}, "folder is 3; it must be of type Path"),
        ({"weights": {"code/0": "x"}}, "weights.code/0 is 'x'; it must be of type float"),
    ],
)
def test_config_errors_name_setting_and_remedy(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, data)


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.getcwd []", "- 1\n- 2\n"])
def test_yaml_that_is_broken_unsafe_or_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_yaml(Outer, tmp_path / "config.yaml")


def test_integers_become_floats_and_missing_settings_without_default_are_named():
    @dataclass(frozen=True)
    class Needs:
        rate: float

    assert from_dict(Needs, {"rate": 1}) == Needs(1.0)
    with pytest.raises(ConfigError, match="rate"):
        from_dict(Needs, {})


def test_fingerprint_changes_with_every_setting():
    changes = [{f.name: getattr(CHANGED, f.name)} for f in dataclasses.fields(Outer)]
    prints = {fingerprint(Outer()), *(fingerprint(dataclasses.replace(Outer(), **change)) for change in changes)}
    assert len(prints) == 1 + len(changes)
    assert fingerprint(Outer()) == fingerprint(from_dict(Outer, to_dict(Outer())))


# --- errors ---


def test_every_error_is_a_bridle_error_and_also_what_python_expects():
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(found) == 9
    assert all(issubclass(error, errors.BridleError) for error in found)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.QuantizerError, ValueError)


def test_decode_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(DecodeError("a.wav", "truncated")))
    assert (type(error), error.key, error.reason, str(error)) == (DecodeError, "a.wav", "truncated", "a.wav: truncated")


# --- distributed ---


def test_collectives_are_the_identity_without_a_process_group():
    rows = torch.arange(6.0).reshape(3, 2)
    assert (distributed.is_active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    for function in (distributed.all_reduce_sum, distributed.broadcast, distributed.all_gather_rows):
        assert function(rows) is rows
    assert torch.equal(rows, torch.arange(6.0).reshape(3, 2))
    distributed.barrier()
    assert [distributed.any_rank(flag, rows.device) for flag in (True, False)] == [True, False]
    with distributed.process_group():
        assert not distributed.is_active()


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_a_setting_that_is_wrong(name):
    assert distributed.usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=rf"^device '{name}' cannot be used: .*; use cpu, cuda or cuda:N$"):
        distributed.usable_device(name)


def test_default_device_follows_the_local_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    for available, device in ((False, "cpu"), (True, "cuda:3")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert distributed.default_device() == torch.device(device)


def rows_of(rank: int, count: int) -> torch.Tensor:
    return 10.0 * rank + torch.arange(2 * count, dtype=torch.float32).reshape(count, 2)


def collectives(rank: int, port: int) -> None:
    """What each of two processes does, in the environment that torchrun gives them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    with distributed.process_group():
        with distributed.process_group():  # does not open or close a second one
            assert distributed.is_active()
        assert (distributed.is_active(), distributed.rank(), distributed.world_size()) == (True, rank, 2)
        total = torch.tensor([float(rank + 1)])
        assert distributed.all_reduce_sum(total) is total
        assert total.tolist() == [3.0]
        assert distributed.broadcast(torch.tensor([rank]), source=1).tolist() == [1]
        for counts in ((2, 2), (1, 4), (0, 3), (3, 0), (0, 0)):
            gathered = distributed.all_gather_rows(rows_of(rank, counts[rank]))
            assert torch.equal(gathered, torch.cat([rows_of(0, counts[0]), rows_of(1, counts[1])])), counts
        codes = distributed.all_gather_rows(torch.full((rank + 1,), rank))
        assert (codes.dtype, codes.tolist()) == (torch.int64, [0, 1, 1])
        flags = [distributed.any_rank(flag, codes.device) for flag in (rank == 0, rank == 1, True, False)]
        assert flags == [True, True, True, False]
        distributed.barrier()
    assert not distributed.is_active()


def test_collectives_of_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(collectives, (port,), nprocs=2)
