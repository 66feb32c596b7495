"""Runs whose number of processes changes, whose weights are divided, and whose ranks come to differ."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.configs import normalised
from reference.faults import After, state
from reference.processes import run_tasks, task

from bridle.data.dataset import ClipDataset
from bridle.data.loaders import build_loader
from bridle.data.manifest import read_manifest
from bridle.engine import training
from bridle.engine.faults import fault_path, read_fault
from bridle.engine.parts import epoch_order
from bridle.errors import TrainingError
from bridle.inference import load
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.replaying import replay
from bridle.run import RunConfig
from bridle.train import agreement
from bridle.train.agreement import assert_ranks_agree, bit_hash
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint

CPU = torch.device("cpu")
PHASES = "cold:5steps, tokenizer:5steps, encoder:3steps, joint:5steps"


def debug(**train: Any) -> RunConfig:
    config = dataclasses.replace(recipe("audio-debug"), phases=PHASES)
    settings = {"batch_size": 4, "checkpoint_every_steps": 4, "log_every_steps": 1, "precision": "fp32", **train}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


@pytest.fixture(scope="module")
def alone(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    assert pretrain(debug(), [tone_folder], run, device=CPU).finished
    return run


def assert_close_runs(ours: Path, theirs: Path) -> None:
    got, expected = state(ours), state(theirs)
    assert got[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        torch.testing.assert_close(got[0][key].float(), value.float(), atol=2e-4, rtol=1e-3, msg=key)
    for mine, other in zip(got[3], expected[3], strict=True):
        assert mine["step"] == other["step"] and mine.keys() == other.keys()
        bound = 1e-5 if mine["step"] == 1 else 1e-4  # later steps carry rounding through the optimiser
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=50 * bound, nan_ok=True)
        for key in [key for key in mine if key.startswith(("code", "feature", "commitment"))]:
            assert mine[key] == pytest.approx(other[key], rel=bound, abs=bound, nan_ok=True), (mine["step"], key)


def assert_equal_weights(ours: Path, theirs: Path) -> None:
    got, expected = state(ours), state(theirs)
    assert [key for key, value in got[0].items() if not torch.equal(value, expected[0][key])] == []
    assert got[3] == expected[3]


def test_one_two_one_processes_divided_or_not(alone: Path, tone_folder: Path, tmp_path: Path) -> None:
    """The order of the data stays; a divided run, resumed, is bit for bit the one that was not stopped."""
    full, plain = debug(sharding="full", check_ranks_every_steps=2), debug(check_ranks_every_steps=2)
    runs = {name: tmp_path / name for name in ("divided", "resumed", "plain", "changed", "changed divided")}
    for name in ("changed", "changed divided"):
        pretrain(debug(), [tone_folder], runs[name], device=CPU, reporter=After(3, _stop))
    tasks = [
        task(full, tone_folder, runs["divided"]),
        task(full, tone_folder, runs["resumed"], stop_after=7),
        task(full, tone_folder, runs["resumed"], stop_after=5),
        task(full, tone_folder, runs["resumed"]),
        task(plain, tone_folder, runs["plain"]),
        task(plain, tone_folder, runs["changed"], stop_after=8),
        task(full, tone_folder, runs["changed divided"], stop_after=8),
    ]
    outcomes = run_tasks(2, tmp_path / "job", tasks)
    assert [(each["finished"], each["step"]) for each in outcomes] == [
        (True, 18),
        (False, 7),
        (False, 12),
        (True, 18),
        (True, 18),
        (False, 11),
        (False, 11),
    ]
    path = latest_checkpoint(runs["divided"])
    assert path is not None
    assert sorted(each.name.split("-")[0] for each in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer",
        "state.json",
    ]
    assert len(list((path / "optimizer").iterdir())) == 2
    assert load_checkpoint(path).shards == path / "optimizer"
    assert_equal_weights(runs["resumed"], runs["divided"])
    assert_close_runs(runs["divided"], alone)
    assert_close_runs(runs["plain"], alone)
    for name in ("changed", "changed divided"):
        assert pretrain(debug(), [tone_folder], runs[name], resume=True, device=CPU).finished
        assert_close_runs(runs[name], alone)
    assert load(runs["divided"]).fingerprint == json.loads(_header(runs["divided"]))["fingerprint"]


@pytest.mark.slow
def test_divided_with_micro_batches_of_unequal_shares_and_with_phases_added(tone_folder: Path, tmp_path: Path) -> None:
    """Eight clips in batches that two ranks share as 2 and 1: three micro-batches are more than either has."""
    broken = shutil.copytree(tone_folder, tmp_path / "sounds")
    settings = {"num_micro_batches": 3, "max_bad_fraction": 0.5}
    whole = debug(**settings)
    first = dataclasses.replace(whole, phases="cold:5steps, tokenizer:5steps")
    divided, shorter = (
        dataclasses.replace(config, train=dataclasses.replace(config.train, sharding="full")) for config in (whole, first)
    )
    runs = {name: tmp_path / name for name in ("alone", "divided", "added", "amid")}
    (broken / "tone-3.wav").write_bytes((broken / "tone-3.wav").read_bytes()[:60])
    pretrain(whole, [broken], runs["alone"], device=CPU)
    tasks = [
        task(divided, broken, runs["divided"]),
        task(shorter, broken, runs["added"]),
        task(divided, broken, runs["added"]),
        task(shorter, broken, runs["amid"], stop_after=7),
        task(divided, broken, runs["amid"]),
    ]
    assert [each["step"] for each in run_tasks(2, tmp_path / "job", tasks)] == [18, 10, 18, 7, 18]
    assert_close_runs(runs["divided"], runs["alone"])
    for name in ("added", "amid"):
        assert_equal_weights(runs[name], runs["divided"])


def test_the_rank_whose_clips_are_at_fault_writes_them_down(tone_folder: Path, tmp_path: Path) -> None:
    plain = dataclasses.replace(debug(), phases="cold:6steps")
    divided = dataclasses.replace(plain, train=dataclasses.replace(plain.train, sharding="full"))
    runs = [tmp_path / "plain", tmp_path / "divided"]
    tasks = [task(each, tone_folder, run, spoilt=[3], rank=1) for each, run in zip((plain, divided), runs, strict=True)]
    run_tasks(2, tmp_path / "job", tasks)
    order = epoch_order(*_clips(tone_folder, plain))
    clips = order.batches(2 // order.steps_per_epoch)[2 % order.steps_per_epoch][1::2]
    for run in runs:
        fault, batch = read_fault(fault_path(run, 3))
        assert fault.terms == ("code/0",) and batch.indices.tolist() == clips


def _clips(folder: Path, config: RunConfig) -> tuple[ClipDataset, RunConfig]:
    config = normalised(config, 0.0, 1.0)
    return ClipDataset(read_manifest(folder), build_loader(config.clips), config.seed), config


@pytest.mark.slow
def test_several_processes_skip_record_and_go_back_together(tone_folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(debug(max_skipped_in_a_row=3), phases="cold:14steps")
    divided = dataclasses.replace(config, train=dataclasses.replace(config.train, sharding="full"))
    runs = [tmp_path / "plain", tmp_path / "divided"]
    spoilt = (2, 7, 8, 9)
    tasks = [task(each, tone_folder, run, spoilt=spoilt) for each, run in zip((config, divided), runs, strict=True)]
    tasks += [task(divided, tone_folder, tmp_path / "resumed", stop_after=stop, spoilt=spoilt) for stop in (8, 3, 0)]
    assert [each["step"] for each in run_tasks(2, tmp_path / "job", tasks)] == [14, 14, 8, 11, 14]
    for run in runs:
        assert state(run)[2]["rollbacks"] == [[9, 4]]
        for step in (2, 7):
            fault, batch = read_fault(fault_path(run, step))
            assert fault.terms == ("code/0",) and len(batch) == len(fault.keys) > 0
    assert_close_runs(runs[1], runs[0])
    assert_equal_weights(tmp_path / "resumed", runs[1])
    replayed = replay(runs[1], "step-00000007", device=CPU)
    assert not replayed.found.shown, "the batch is sound, and the weights beside it are whole"


def _stop() -> None:
    import signal

    signal.raise_signal(signal.SIGTERM)


def _header(run: Path) -> str:
    from bridle.train.weights import read_weights

    return json.dumps(read_weights(run / "model.safetensors")[1])


def test_a_hash_tells_every_bit_and_place() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
        noise = torch.randn(3, 7, generator=generator) * 100
        tensor = noise > 0 if dtype is torch.bool else noise.to(dtype)
        found = int(bit_hash(tensor))
        assert found == int(bit_hash(tensor.clone())) == int(bit_hash(tensor.T.contiguous().T))
        other = tensor.clone()
        other[1, 2] = ~other[1, 2] if dtype in (torch.bool, torch.int64, torch.uint8) else other[1, 2] * 1.01 + 1
        assert int(bit_hash(other)) != found
        assert int(bit_hash(tensor.flip(0))) != found
    assert int(bit_hash(torch.tensor([0.0]))) != int(bit_hash(torch.tensor([-0.0])))
    assert int(bit_hash(torch.empty(0))) == int(bit_hash(torch.empty(0, 3)))


def test_ranks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, 2), "c": torch.arange(4)}
    assert_ranks_agree(tensors)  # without other processes there is nothing to compare

    def of_three_ranks(own: torch.Tensor) -> torch.Tensor:
        found = own.repeat(3, 1)
        found[1, 1] += 1
        found[2, 1:] += 1
        return found

    monkeypatch.setattr(agreement.distributed, "is_active", lambda: True)
    monkeypatch.setattr(agreement.distributed, "all_gather_rows", lambda own: own.repeat(3, 1))
    assert_ranks_agree(tensors)
    monkeypatch.setattr(agreement.distributed, "all_gather_rows", of_three_ranks)
    with pytest.raises(TrainingError, match=r"^b of ranks \[1, 2\] differs from rank 0's, and so do 1 more"):
        assert_ranks_agree(tensors)


def test_ranks_are_compared_as_often_as_asked_for(tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[frozenset[str]] = []
    monkeypatch.setattr(training, "assert_ranks_agree", lambda tensors: seen.append(frozenset(tensors)))
    config = dataclasses.replace(debug(check_ranks_every_steps=2, checkpoint_every_steps=100), phases="cold:7steps")
    pretrain(config, [tone_folder], tmp_path / "run", device=CPU)
    assert len(seen) == 4, "at steps 2, 4 and 6, and at the checkpoint of step 7"
    assert {"encoder.embed.weight", "cold.quantizer.codebooks"} <= seen[0]
