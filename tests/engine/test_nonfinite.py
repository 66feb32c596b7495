"""Non-finite steps in whole runs: skipped, written down, replayed, and what a run goes back to."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.faults import After, die, state

from bridle import cli
from bridle.data.batch import Batch
from bridle.engine import training
from bridle.engine.faults import MAX_RECORDED, fault_path, read_fault, recorded
from bridle.engine.parts import Outcome
from bridle.errors import RunError, TrainingError
from bridle.objectives.masked import MaskedCodes
from bridle.objectives.tokenizer import TokenizerDistillation
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.replaying import replay
from bridle.run import RunConfig
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from bridle.train.reporter import Silent

CPU = torch.device("cpu")
PHASES = "cold:12steps, tokenizer:8steps"


class Listener(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def debug(phases: str = PHASES, **train: Any) -> RunConfig:
    config = dataclasses.replace(recipe("audio-debug"), phases=phases)
    settings = {"batch_size": 4, "checkpoint_every_steps": 5, "log_every_steps": 1, "precision": "fp32", **train}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """Give it steps of the data, counted from 1: training meets NaN in their batches from now on, whoever makes them."""
    make, preparing = training.batch_loader, []

    def poison(steps: Collection[int]) -> None:
        def spoilt(*arguments: Any, start_step: int, **settings: Any) -> Iterator[Batch]:
            for step, batch in enumerate(make(*arguments, start_step=start_step, **settings), start_step + 1):
                if step in steps and not preparing:
                    batch.inputs.fill_(torch.nan)
                yield batch

        monkeypatch.setattr(training, "batch_loader", spoilt)

    for kind in (MaskedCodes, TokenizerDistillation):

        def prepare(self: Any, *arguments: Any, prepare: Any = kind.prepare) -> None:
            preparing.append(True)
            prepare(self, *arguments)
            preparing.clear()

        monkeypatch.setattr(kind, "prepare", prepare)
    return poison


def train(folder: Path, run: Path, config: RunConfig | None = None, **settings: Any) -> Outcome:
    return pretrain(config or debug(), [folder], run, device=CPU, **settings)


def assert_equal_state(ours: Path, theirs: Path, but: Collection[str] = ()) -> None:
    got, expected = state(ours), state(theirs)
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        assert [key for key, value in mine.items() if not torch.equal(value, other[key])] == []
    assert {k: v for k, v in got[2].items() if k not in but} == {k: v for k, v in expected[2].items() if k not in but}


def test_one_bad_batch_is_written_down_named_and_replayed(
    tone_folder: Path, tmp_path: Path, poison: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, listener = tmp_path / "run", Listener()
    poison({4, 15})
    assert train(tone_folder, run, debug(log_every_steps=3), reporter=listener) == Outcome(True, 20, 0)
    assert [path.name for path in recorded(run)] == ["step-00000004", "step-00000015"]
    fault, batch = read_fault(fault_path(run, 4))
    assert (fault.step, fault.phase, fault.phase_step) == (4, 0, 4)
    assert fault.weights_step == 5, "a checkpoint is due there, which must not hide what was before it"
    assert fault.terms == tuple(f"code/{r}" for r in range(len(fault.terms))) and fault.terms
    assert (
        batch.inputs.isnan().all() and len(batch) == len(fault.keys) and set(fault.keys) <= {f"tone-{i}.wav" for i in range(8)}
    )
    told = next(text for text in listener.messages if text.startswith("step 4: "))
    assert "losses code/0" in told and fault.keys[0] in told and "bridle replay" in told
    second, _ = read_fault(fault_path(run, 15))
    assert (second.phase, second.phase_step) == (1, 3) and second.terms == ("commitment", "feature")

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("step-00000004", "step-00000015"):
        assert cli.main(["replay", str(run), name, "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        assert "not finite" in said and "nan" in said and all(key in said for key in read_fault(run / "faults" / name)[0].keys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    lines = state(run)[3]
    assert [line["skipped"] for line in lines if line["step"] in (3, 6, 9, 12, 15)] == [0, 1, 0, 0, 1]


def test_a_step_is_as_if_it_were_not_there(tone_folder: Path, tmp_path: Path, poison: Any) -> None:
    """Weights, optimiser and codebooks behind a skipped step are those before it, in both kinds of phases."""
    config = debug("cold:4steps, tokenizer:4steps", checkpoint_every_steps=1, num_checkpoints=8)
    poison({4, 8})
    train(tone_folder, tmp_path / "run", config)
    folders = tmp_path / "run" / "checkpoints"
    for before, behind in ((3, 4), (7, 8)):
        first, second = (load_checkpoint(folders / f"step-{step:08d}") for step in (before, behind))
        assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
        assert all(torch.equal(value, second.optimizer[name]) for name, value in first.optimizer.items())


def test_a_fault_of_weights_that_are_gone_is_repeated_from_the_data(
    tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is NaN on the very weights of step 8 alone; nobody looks before step 9."""
    forward, seen = MaskedCodes.forward, []

    def sometimes(self: MaskedCodes, batch: Batch, step: int) -> Any:
        output = forward(self, batch, step)
        weight = self.encoder.embed.weight.detach()
        if step == 7 and not seen:
            seen.append(weight.clone())
        if step == 7 and torch.equal(weight, seen[0]):
            output.losses["code/0"] = output.losses["code/0"] * torch.nan
        return output

    monkeypatch.setattr(MaskedCodes, "forward", sometimes)
    run, config = tmp_path / "run", debug("cold:12steps", log_every_steps=3, checkpoint_every_steps=100)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every_steps=5))
    assert train(tone_folder, run, config).finished
    fault, _ = read_fault(fault_path(run, 8))
    assert fault.terms == () and fault.weights_step == 5
    assert (fault_path(run, 8) / "checkpoint" / "manifest.json").is_file()
    other = shutil.copytree(tone_folder, tmp_path / "other")
    (other / "tone-7.wav").unlink()
    with pytest.raises(RunError, match="the data are not those of"):
        replay(run, "step-00000008", [other], device=CPU)
    assert replay(run, "step-00000008", device=CPU).found.shown, "the run knows its files"
    replayed = replay(run, "step-00000008", [tone_folder], device=CPU)
    assert replayed.found.terms == ("code/0",) and replayed.num_repeated == 2 and replayed.weights_step == 7
    with pytest.raises(RunError, match="asked to stop after step"):
        stop = After(1, lambda: signal.raise_signal(signal.SIGTERM))
        replay(run, "step-00000008", device=CPU, reporter=stop)
    seen[0] = seen[0] + 1  # a fault that does not come again is said not to
    assert not replay(run, "step-00000008", [tone_folder], device=CPU).found.shown
    assert cli.main(["replay", str(run), "step-00000008", "--data", str(tone_folder), "--device", "cpu"]) == 1


def naive_rollback(folder: Path, run: Path, config: RunConfig, to_step: int, from_step: int) -> None:
    """A run that has the weights of one step and goes on at another, put together by hand."""
    train(folder, run, config, reporter=None) if not run.exists() else None
    checkpoint = load_checkpoint(run / "checkpoints" / f"step-{to_step:08d}")
    states = {**checkpoint.state, "phase_step": from_step}
    shutil.rmtree(run / "checkpoints")
    save_checkpoint(run, from_step, weights=checkpoint.weights, optimizer=checkpoint.optimizer, state=states)


@pytest.mark.parametrize(("bad", "back_to"), [((7, 8, 9), 5), ((10, 11, 12), 5), ((6, 7, 8), 5)])
def test_after_a_row_of_bad_steps_the_run_goes_back_and_on_with_the_data_behind(
    bad: tuple[int, ...], back_to: int, tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    config = debug("cold:20steps", max_skipped_in_a_row=3)
    reference = tmp_path / "by hand"
    stopped = After(back_to, lambda: signal.raise_signal(signal.SIGTERM))
    train(tone_folder, reference, config, reporter=stopped)
    naive_rollback(tone_folder, reference, config, back_to, bad[-1])
    train(tone_folder, reference, config, resume=True)

    poison(bad)
    listener = Listener()
    assert train(tone_folder, tmp_path / "run", config, reporter=listener) == Outcome(True, 20, 0)
    assert_equal_state(tmp_path / "run", reference, but={"rollbacks"})
    assert state(tmp_path / "run")[2]["rollbacks"] == [[bad[-1], back_to]]
    assert any(f"the weights are those of step {back_to} again" in text for text in listener.messages)
    assert [line["step"] for line in state(tmp_path / "run")[3]] == list(range(1, 21))


@pytest.mark.parametrize(
    ("bad", "rollbacks"),
    [
        (range(2, 5), [[4, 0]]),  # before the first checkpoint
        (range(13, 16), [[15, 12]]),  # the first steps of the second phase: its codebooks are fitted again
        (range(10, 13), [[12, 5]]),  # the last steps of the first phase
        ([*range(6, 9), *range(10, 13)], [[8, 5], [12, 5]]),
        ([*range(7, 10), *range(17, 20)], [[9, 5], [19, 17]]),
    ],
)
def test_a_run_that_went_back_resumes_bit_for_bit_wherever_it_is_killed(
    bad: Collection[int], rollbacks: list[list[int]], tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    poison(set(bad))
    config = debug(max_skipped_in_a_row=3)
    assert train(tone_folder, tmp_path / "whole", config) == Outcome(True, 20, 0)
    assert [pair[0] for pair in state(tmp_path / "whole")[2]["rollbacks"]] == [pair[0] for pair in rollbacks]
    for killed_after in (3, 8, 11, 14, 18):
        run = tmp_path / f"killed {killed_after}"
        with pytest.raises(SystemExit):
            train(tone_folder, run, config, reporter=After(killed_after, die))
        assert train(tone_folder, run, config, resume=True).finished
        assert_equal_state(run, tmp_path / "whole")


def test_a_stop_amid_a_row_goes_on_counting_and_never_goes_back_to_itself(
    tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    config = debug("cold:16steps", max_skipped_in_a_row=4)
    poison(range(7, 11))
    assert train(tone_folder, tmp_path / "whole", config).finished
    run = tmp_path / "run"
    stopped = After(8, lambda: signal.raise_signal(signal.SIGTERM))
    assert train(tone_folder, run, config, reporter=stopped) == Outcome(False, 8, 0, signal.SIGTERM)
    assert state(run)[2]["skipped_in_a_row"] == 2
    assert train(tone_folder, run, config, resume=True).finished
    assert state(run)[2]["rollbacks"] == [[10, 5]]
    assert_equal_state(run, tmp_path / "whole")


def test_a_run_that_goes_back_too_often_stops_and_keeps_its_good_checkpoint(
    tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    poison(range(7, 99))
    run, config = tmp_path / "run", debug("cold:40steps", max_skipped_in_a_row=2, max_rollbacks=2, checkpoint_every_steps=3)
    with pytest.raises(
        TrainingError, match=r"2 steps in a row .* lower the learning rate .* went back 2 times .*max_rollbacks"
    ):
        train(tone_folder, run, config)
    path = latest_checkpoint(run)
    assert path is not None and load_checkpoint(path).step == 6 and load_checkpoint(path).state["skipped_in_a_row"] == 0
    assert [path.name[-2:] for path in recorded(run)] == ["07", "09", "11"], "the first step of each row"


@pytest.mark.parametrize("num_checkpoints", [1, 2])
def test_stops_amid_a_row_keep_the_good_checkpoint(
    num_checkpoints: int, tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    poison(range(7, 15))
    run, config = tmp_path / "run", debug("cold:18steps", max_skipped_in_a_row=8, num_checkpoints=num_checkpoints)
    for steps in (8, 2, 2):
        stopped = After(steps, lambda: signal.raise_signal(signal.SIGTERM))
        assert not train(tone_folder, run, config, resume=run.exists(), reporter=stopped).finished
    assert state(run)[2]["skipped_in_a_row"] == 6
    assert train(tone_folder, run, config, resume=True).finished
    assert state(run)[2]["rollbacks"] == [[14, 5]]


def test_lines_count_what_was_skipped_before_a_stop_too(tone_folder: Path, tmp_path: Path, poison: Any) -> None:
    poison({5, 13, 14})
    config = debug("cold:20steps", log_every_steps=10, checkpoint_every_steps=4)
    assert train(tone_folder, tmp_path / "whole", config).finished
    assert [line["skipped"] for line in state(tmp_path / "whole")[3]] == [1, 2]
    for after in (6, 15):
        run = tmp_path / f"run {after}"
        stopped = After(after, lambda: signal.raise_signal(signal.SIGTERM))
        assert not train(tone_folder, run, config, reporter=stopped).finished
        assert train(tone_folder, run, config, resume=True).finished
        assert_equal_state(run, tmp_path / "whole")
        assert state(run)[3] == state(tmp_path / "whole")[3]


def test_faults_of_a_call_without_a_checkpoint_are_not_those_of_the_next(
    tone_folder: Path, tmp_path: Path, poison: Any
) -> None:
    poison({2})
    run, config = tmp_path / "run", debug("cold:6steps")
    with pytest.raises(SystemExit):
        train(tone_folder, run, config, reporter=After(3, die))
    assert [path.name for path in recorded(run)] == ["step-00000002"]
    poison({3})
    assert train(tone_folder, run, dataclasses.replace(config, seed=1), resume=True).finished
    assert [path.name for path in recorded(run)] == ["step-00000003"]


def test_no_more_faults_are_kept_than_a_run_may(tone_folder: Path, tmp_path: Path, poison: Any) -> None:
    poison(range(1, 20, 2))
    listener = Listener()
    train(tone_folder, tmp_path / "run", debug("cold:20steps"), reporter=listener)
    assert len(recorded(tmp_path / "run")) == MAX_RECORDED
    assert sum("the gradient is not finite" in text for text in listener.messages) == 10


def test_what_is_no_fault_is_refused_in_one_line(tone_folder: Path, tmp_path: Path, poison: Any, capsys: Any) -> None:
    poison({2})
    run = tmp_path / "run"
    train(tone_folder, run, debug("cold:3steps"))
    fault = fault_path(run, 2)
    assert cli.main(["replay", str(run), "step-00000003"]) == 1
    assert "is no fault of a run (it has no fault.json)" in capsys.readouterr().err
    text = (fault / "fault.json").read_text()
    for broken in ("{", "[]", "{}", text.replace('"version": 1', '"version": 9'), text.replace('"step": 2', '"step": "x"')):
        (fault / "fault.json").write_text(broken)
        with pytest.raises(RunError, match=r"is no fault of a run|was written in version 9"):
            replay(run, fault, device=CPU)
    (fault / "fault.json").write_text(text)
    (fault / "batch.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(RunError, match="reads no pickles"):
        replay(run, fault, device=CPU)
    assert json.loads(text)["keys"]
