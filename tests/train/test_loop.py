"""One step and one phase: accumulation, skipped steps, periods."""

from collections.abc import Callable, Iterator

import pytest
import torch
from reference.batches import Parts, batch

from bridle.data.batch import Batch
from bridle.errors import ConfigError
from bridle.masking import MaskConfig
from bridle.objectives.tokenizer import TokenizerDistillation
from bridle.optim.groups import OptimConfig, build_adamw
from bridle.train.loop import Diverged, PhaseSpec, TrainConfig, is_due, resolve_precision, train_phase, train_step
from bridle.train.skipped import Skipped, SkippedState, SkippedSteps

MASKS = MaskConfig(mask_ratio=0.75)


class Recorder:
    """A watcher that remembers."""

    def __init__(self, stop_at: int = 0) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.checkpoints: list[int] = []
        self.skips: list[Skipped] = []
        self.done: list[int] = []
        self.stop_at = stop_at

    def step_done(self, step: int, batch: Batch) -> None:
        self.done.append(step)

    def log(self, step: int, values: dict) -> None:
        self.logged.append((step, {name: float(value) for name, value in values.items()}))

    def skipped(self, found: Skipped) -> None:
        self.skips.append(found)

    def checkpoint(self, step: int, optimizer: torch.optim.Optimizer, skipped: SkippedState) -> None:
        self.checkpoints.append(step)

    def should_stop(self, step: int) -> bool:
        return step == self.stop_at


def stream(start: int) -> Iterator[Batch]:
    for step in range(start, 1000):
        yield batch(16, 16, 12, 9, 7, seed=step)


def test_accumulation_changes_memory_not_the_result() -> None:
    weights = []
    for num_micro_batches in (1, 2, 5):
        objective = Parts().masked_codes(MASKS)
        optimizer = build_adamw(objective, OptimConfig())
        config = TrainConfig(num_micro_batches=num_micro_batches, precision="fp32")
        result = train_step(objective, objective, optimizer, next(stream(0)), 0, 1.0, config)
        gradients = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
        weights.append((gradients, result.values["code/0"]))
    for gradients, value in weights[1:]:
        torch.testing.assert_close(gradients, weights[0][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(value, weights[0][1])


def test_losses_are_means_over_predicted_positions() -> None:
    objective = Parts().masked_codes(MASKS)
    optimizer = build_adamw(objective, OptimConfig())
    data = next(stream(0))
    output, counts = objective(data, 0), objective.counts(data, 0)
    result = train_step(objective, objective, optimizer, data, 0, 1.0, TrainConfig(precision="fp32"))
    torch.testing.assert_close(result.values["code/1"], output.losses["code/1"].detach() / counts["code/1"])
    assert 0 <= float(result.values["accuracy/0"]) <= 1


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_non_finite_batch_changes_no_weight_and_no_optimizer_state(bad: str) -> None:
    objective = Parts().masked_codes(MASKS)
    optimizer = build_adamw(objective, OptimConfig())
    config = TrainConfig(precision="fp32")
    train_step(objective, objective, optimizer, next(stream(0)), 0, 1.0, config)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    steps = [float(state["step"]) for state in optimizer.state.values()]
    data = next(stream(1))
    data.inputs[0] = float(bad)
    result = train_step(objective, objective, optimizer, data, 1, 1.0, config)
    assert float(result.skipped) == 1.0
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    assert steps == [float(state["step"]) for state in optimizer.state.values()]
    good = train_step(objective, objective, optimizer, next(stream(2)), 2, 1.0, config)
    assert float(good.skipped) == 0.0
    assert not torch.equal(objective.state_dict()["encoder.embed.weight"], before["encoder.embed.weight"])


def poisoned(steps: range) -> Callable[[int], Iterator[Batch]]:
    """The stream, with NaN in the batches of some steps, counted from 0."""

    def batches(start: int) -> Iterator[Batch]:
        for step, data in enumerate(stream(start), start):
            if step in steps:
                data.inputs.fill_(float("nan"))
            yield data

    return batches


def test_too_many_skipped_steps_in_a_row_end_a_phase_and_write_no_checkpoint() -> None:
    objective, recorder = Parts().masked_codes(MASKS), Recorder()
    optimizer = build_adamw(objective, OptimConfig())
    config = TrainConfig(precision="fp32", log_every_steps=1, checkpoint_every_steps=2, max_skipped_in_a_row=3)
    with pytest.raises(Diverged, match="3 steps in a row up to step 6 of the phase had non-finite gradients") as raised:
        train_phase(PhaseSpec("x", 10, OptimConfig()), objective, optimizer, poisoned(range(3, 99)), recorder, config)
    assert (raised.value.step, raised.value.count) == (6, 3)
    assert recorder.checkpoints == [2], "the checkpoint that was due at step 4 would hold the weights that diverged"
    assert [found.first for found in recorder.skips] == [(4,), (), ()]


def test_skipped_steps_are_told_before_a_checkpoint_is_written_and_count_on_over_lines() -> None:
    objective, recorder = Parts().masked_codes(MASKS), Recorder()
    optimizer = build_adamw(objective, OptimConfig())
    config = TrainConfig(precision="fp32", log_every_steps=4, checkpoint_every_steps=3, max_skipped_in_a_row=3)
    assert train_phase(PhaseSpec("x", 8, OptimConfig()), objective, optimizer, poisoned(range(2, 4)), recorder, config)
    assert recorder.skips == [Skipped((3,), (3,), 1), Skipped((4,), (), 2)]
    assert [(step, values["skipped"]) for step, values in recorder.logged] == [(4, 2.0), (8, 0.0)]
    assert recorder.checkpoints == [6, 8]


def test_skipped_steps_are_counted_as_a_plain_list_would() -> None:
    flags = [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1]
    for every in (1, 2, 5, 12):
        steps, told, row = SkippedSteps(SkippedState(in_a_row=2)), [], 2
        for step, flag in enumerate(flags, 1):
            steps.add(step, torch.tensor(float(flag)))
            row = row + 1 if flag else 0
            if step % every == 0:
                found = steps.look()
                assert found.in_a_row == row
                told += [found]
        looked = len(flags) // every * every
        assert [s for found in told for s in found.steps] == [s for s, flag in enumerate(flags[:looked], 1) if flag]
        assert [s for found in told for s in found.first] == [s for s in (2, 6, 8, 12) if s <= looked]


def test_a_phase_logs_and_saves_when_due_and_learns() -> None:
    objective = Parts().masked_codes(MASKS)
    optimizer = build_adamw(objective, OptimConfig(lr=3e-3))
    recorder = Recorder()
    config = TrainConfig(precision="fp32", log_every_steps=7, checkpoint_every_steps=20)

    def same(start: int) -> Iterator[Batch]:
        return (batch(16, 16, 12, 9, 7, seed=0) for _ in range(start, 1000))

    spec = PhaseSpec("x", 50, OptimConfig(lr=3e-3))
    assert train_phase(spec, objective, optimizer, same, recorder, config)
    assert [step for step, _ in recorder.logged] == [7, 14, 21, 28, 35, 42, 49, 50]
    assert recorder.checkpoints == [20, 40, 50]
    assert recorder.done == list(range(1, 51))
    assert recorder.logged[-1][1]["code/0"] < 0.8 * recorder.logged[0][1]["code/0"]


def test_a_phase_stops_with_a_checkpoint_when_asked() -> None:
    objective = Parts().masked_codes(MASKS)
    recorder = Recorder(stop_at=3)
    optimizer = build_adamw(objective, OptimConfig())
    config = TrainConfig(precision="fp32", log_every_steps=100, checkpoint_every_steps=100)
    assert not train_phase(PhaseSpec("x", 10, OptimConfig()), objective, optimizer, stream, recorder, config)
    assert recorder.checkpoints == [3]


def test_a_skipped_step_changes_no_codebook() -> None:
    parts = Parts()
    objective = TokenizerDistillation(parts.encoder, parts.tokenizer, parts.estimator).train()
    objective.prepare([batch(16, 16, 12, 8, seed=seed) for seed in range(5, 9)], 0)
    optimizer = build_adamw(objective, OptimConfig())
    with torch.no_grad():
        parts.estimator.out.weight[0, 0] = torch.inf  # the loss breaks behind the quantizer, whose statistics are sound
    before = parts.tokenizer.quantizer.codebooks.clone()
    result = train_step(objective, objective, optimizer, next(stream(0)), 0, 1.0, TrainConfig(precision="fp32"))
    assert float(result.skipped) == 1.0
    assert torch.equal(parts.tokenizer.quantizer.codebooks, before)


def test_bf16_autocast_stays_close_to_fp32() -> None:
    values = []
    for precision in ("fp32", "bf16"):
        objective = Parts().masked_codes(MASKS)
        optimizer = build_adamw(objective, OptimConfig())
        config = TrainConfig(precision=precision)  # type: ignore[arg-type]
        values.append(float(train_step(objective, objective, optimizer, next(stream(0)), 0, 1.0, config).values["code/0"]))
    assert values[0] == pytest.approx(values[1], abs=0.03)


def test_periods() -> None:
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    with pytest.raises(ConfigError, match=r"train\.batch_size=0"):
        TrainConfig(batch_size=0)
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
