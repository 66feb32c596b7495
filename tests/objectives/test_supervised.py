"""Learning classes: losses and targets against clips one by one, what is random in training and nothing in evaluation."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from reference.batches import ENCODER, batch, clips
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bridle.data.batch import Batch, collate
from bridle.errors import ConfigError
from bridle.grid import PatchGrid
from bridle.mixing import draw_beta, draw_partners, mix
from bridle.models.classifier import Classifier
from bridle.models.encoder import Encoder
from bridle.objectives.supervised import FinetuneConfig, Supervised, Targets, balanced_weights
from bridle.objectives.view import whole_view
from bridle.optim.groups import OptimConfig, build_adamw
from bridle.train.loop import TrainConfig, train_step

QUIET: dict[str, Any] = {"drop_path": 0.0, "label_smoothing": 0.0}
HARD: dict[str, Any] = {"drop_path": 0.5, "patch_drop": (0.3, 0.5, 0.0), "mixup": 0.5, "mix_ratio": 0.7}
GRID = PatchGrid(4, 2)
LABELS = (0, 2, 1, 2, 0, 1, 2)
LENGTHS = (16, 16, 12, 9, 7, 16, 10)
TAGS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]).float()


def one_hot() -> Tensor:
    return F.one_hot(torch.tensor(LABELS), 3).float()


def make(values: Tensor | None = None, weights: Tensor | None = None, **settings: Any) -> Supervised:
    """Equal networks whatever the settings, two blocks deep."""
    values = one_hot() if values is None else values
    config = FinetuneConfig(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(dataclasses.replace(ENCODER, depth=2))
        classifier = Classifier(config.pooling, 16, GRID, values.shape[1])
        torch.nn.init.normal_(classifier.linear.weight)
    return Supervised(
        encoder, classifier, config, Targets(values, torch.ones(values.shape[1]) if weights is None else weights), "powers", 8.0
    )


def logits_of(objective: Supervised, data: Batch) -> Tensor:
    """Clip by clip, without anything random."""
    found = []
    for row in range(len(data)):
        one = rows(data, [row])
        view = whole_view(one, ENCODER.patch)
        features = objective.encoder(view.patches, view.every).patches
        found.append(objective.classifier(features, view.patches.grid, view.steps))
    return torch.cat(found)


def rows(of: Batch, index: list[int]) -> Batch:
    return Batch(of.inputs[index], of.lengths[index], of.seeds[index], of.indices[index], of.aspects[index])


@pytest.mark.parametrize("pooling", ["mean", "time", "grid statistics"])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_cross_entropy_summed_over_clips(pooling: str, training: bool) -> None:
    objective, data = make(**QUIET | {"label_smoothing": 0.1, "pooling": pooling}).train(training), batch(*LENGTHS)
    output = objective(data, 0)
    logits = logits_of(objective, data)
    expected = F.cross_entropy(logits, torch.tensor(LABELS), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(output.losses["class"], expected, atol=1e-4, rtol=1e-4)
    assert float(output.metrics["accuracy"]) == float((logits.argmax(1) == torch.tensor(LABELS)).sum())
    assert objective.counts(data, 0) == {"class": 7, "accuracy": 7}
    assert objective.weights() == {"class": 1.0}


def test_several_labels_are_binary_cross_entropies_and_have_no_accuracy() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5])
    objective = make(TAGS, weights, **QUIET, multi_label=True, class_weights="balanced").train()
    data = batch(*LENGTHS)
    output = objective(data, 0)
    each = F.binary_cross_entropy_with_logits(logits_of(objective, data), TAGS, pos_weight=weights, reduction="none")
    torch.testing.assert_close(output.losses["class"], each.mean(1).sum(), atol=1e-4, rtol=1e-4)
    assert output.metrics == {} and objective.counts(data, 0) == {"class": 7}


def test_one_label_may_be_learnt_by_binary_cross_entropies() -> None:
    objective, data = make(**QUIET, loss="bce").train(), batch(*LENGTHS)
    output = objective(data, 0)
    each = F.binary_cross_entropy_with_logits(logits_of(objective, data), one_hot(), reduction="none")
    torch.testing.assert_close(output.losses["class"], each.mean(1).sum(), atol=1e-4, rtol=1e-4)
    assert "accuracy" in output.metrics


@pytest.mark.parametrize("balanced", [True, False])
def test_class_weights_multiply_the_loss_of_their_clips(balanced: bool) -> None:
    weights = torch.tensor([0.5, 2.0, 1.25])
    settings = QUIET | {"class_weights": "balanced" if balanced else "none"}
    objective = make(None, weights, **settings).train()
    data = batch(*LENGTHS)
    given = weights if balanced else None
    expected = F.cross_entropy(logits_of(objective, data), torch.tensor(LABELS), weight=given, reduction="sum")
    torch.testing.assert_close(objective(data, 0).losses["class"], expected, atol=1e-4, rtol=1e-4)
    smooth = make(None, weights, **settings | {"label_smoothing": 0.3}).train()
    each = F.cross_entropy(logits_of(smooth, data), torch.tensor(LABELS), label_smoothing=0.3, reduction="none")
    expected = (each * weights[list(LABELS)]).sum() if balanced else each.sum()  # by the clip's class, smoothed or not
    torch.testing.assert_close(smooth(data, 0).losses["class"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("balanced", [True, False])
def test_mixed_clips_have_mixed_targets_and_mixed_weights(balanced: bool) -> None:
    weights = torch.tensor([0.5, 2.0, 1.25])
    settings = QUIET | {"mixup": 0.5, "mix_ratio": 0.7, "class_weights": "balanced" if balanced else "none"}
    objective, data = make(None, weights, **settings).train(), batch(*LENGTHS)
    output = objective(data, 0)
    mixture = mix(data.inputs, data.lengths, data.seeds, objective.config.mixing, "powers", 8.0)
    log = logits_of(objective, dataclasses.replace(data, inputs=mixture.inputs)).log_softmax(1)
    expected, right = 0.0, 0
    for clip in range(7):
        own, other, weight = LABELS[clip], LABELS[6 - clip], float(mixture.weights[clip])
        target = torch.zeros(3)
        target[own] += weight
        target[other] += 1 - weight
        factor = float(target @ weights) if balanced else 1.0
        expected -= factor * float(target @ log[clip].detach())
        right += int(target.argmax()) == int(log[clip].argmax())
    assert float(output.losses["class"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(output.metrics["accuracy"]) == right
    assert 0 < int((mixture.weights < 1).sum()) < 7


def test_targets_of_mixed_waveforms_are_those_of_any_partner() -> None:
    settings = QUIET | {"mixup": 0.5, "mixup_domain": "waveform", "mix_ratio": 0.6}
    objective, data = make(**settings).train(), batch(*LENGTHS)
    assert not objective.config.mixing.on and objective.config.waveforms is not None
    partners, weights = draw_partners(data.seeds, 7, objective.config.waveforms)
    targets = weights[:, None] * one_hot() + (1 - weights[:, None]) * one_hot()[partners]
    log = logits_of(objective, data).log_softmax(1)
    torch.testing.assert_close(objective(data, 0).losses["class"], -(targets * log).sum(), atol=1e-4, rtol=1e-4)
    mixed = weights < 1
    assert torch.equal(weights[mixed], draw_beta(data.seeds, 0.5)[mixed]) and bool(mixed.any())
    plain = F.cross_entropy(logits_of(objective, data), torch.tensor(LABELS), reduction="sum")
    torch.testing.assert_close(objective.eval()(data, 0).losses["class"], plain, atol=1e-4, rtol=1e-4)


def test_batches_name_rows_in_any_order() -> None:
    objective, data = make(**QUIET).train(), batch(*LENGTHS)
    order = [6, 6, 0, 3]
    expected = F.cross_entropy(logits_of(objective, rows(data, order)), torch.tensor(LABELS)[order], reduction="sum")
    torch.testing.assert_close(objective(rows(data, order), 0).losses["class"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [QUIET, HARD | {"mixup": 0.0}], ids=["quiet", "hard"])
def test_a_batch_equals_its_clips_one_by_one(settings: dict[str, Any]) -> None:
    """All that is random but the partner of a mixture follows from the clip's own seed."""
    objective, data = make(**settings).train(), batch(*LENGTHS)
    whole = objective(data, 0)
    for parts in (data.split(3), [rows(data, [row]) for row in (3, 1, 0, 2, 6, 5, 4)]):
        outputs = [objective(part, 0) for part in parts]
        total = sum(output.losses["class"] for output in outputs)
        torch.testing.assert_close(whole.losses["class"], total, atol=1e-4, rtol=1e-4)
        assert float(whole.metrics["accuracy"]) == sum(float(output.metrics["accuracy"]) for output in outputs)
        assert sum(objective.counts(part, 0)["class"] for part in parts) == 7


def test_training_is_random_by_the_seeds_alone_and_changes_nothing() -> None:
    objective, data = make(**HARD).train(), batch(*LENGTHS)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    copy, state = data.inputs.clone(), torch.get_rng_state()
    first, again = (objective(data, step).losses["class"] for step in (0, 7))
    other = objective(dataclasses.replace(data, seeds=data.seeds + 1), 0).losses["class"]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.inputs, copy)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_evaluation_knows_no_randomness() -> None:
    hard, plain, data = make(**HARD).eval(), make(drop_path=0.0).eval(), batch(*LENGTHS)
    expected = plain(data, 0).losses["class"]
    for seeds in (data.seeds, data.seeds + 5):
        assert torch.equal(hard(dataclasses.replace(data, seeds=seeds), 0).losses["class"], expected)
    assert not hard.training


@pytest.mark.parametrize("part", [{"drop_path": 0.5}, {"patch_drop": (0.5, 0.0, 0.0)}, {"mixup": 0.5}])
def test_every_part_does_something_in_training(part: dict[str, Any]) -> None:
    data = batch(*LENGTHS)
    found = [make(**QUIET | each).train()(data, 0).losses["class"] for each in (part, {})]
    assert not torch.allclose(found[0], found[1])


def test_patches_behind_the_end_of_a_clip_play_no_part() -> None:
    data, objective = batch(16, 7), make(**HARD | {"mixup": 0.0}).train()
    poisoned = dataclasses.replace(data, inputs=data.inputs.clone())
    poisoned.inputs[1, :, 8:] = 100.0
    for mode in (True, False):
        objective.train(mode)
        torch.testing.assert_close(
            objective(poisoned, 0).losses["class"], objective(data, 0).losses["class"], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("settings", [QUIET, HARD, HARD | {"multi_label": True}], ids=["quiet", "hard", "tags"])
def test_gradients_reach_encoder_and_classifier(settings: dict[str, Any]) -> None:
    objective = make(TAGS if "multi_label" in settings else None, **settings).train()
    objective(batch(*LENGTHS), 0).losses["class"].backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("settings", [QUIET, HARD, HARD | {"mixup_domain": "waveform"}], ids=["quiet", "hard", "waveform"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_an_empty_share_of_a_batch_is_harmless(settings: dict[str, Any], multi_label: bool) -> None:
    objective, empty = make(TAGS if multi_label else None, **settings, multi_label=multi_label), batch()
    for mode in (True, False):
        output = objective.train(mode)(empty, 0)
        assert set(objective.counts(empty, 0).values()) == {0}
        assert float(output.losses["class"].detach()) == 0.0
        output.losses["class"].backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in objective.parameters())


def test_one_clip_is_a_batch() -> None:
    output = make(**HARD).train()(batch(7), 0)
    assert bool(torch.isfinite(output.losses["class"]))


def test_it_learns_its_clips() -> None:
    objective, data = make(**QUIET).train(), batch(*LENGTHS)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        objective(data, step).losses["class"].backward()
        optimizer.step()
    assert float(objective.eval()(data, 0).metrics["accuracy"]) == 7


def test_balanced_weights_by_their_formulas() -> None:
    values = F.one_hot(torch.tensor([0] * 12 + [1] * 3 + [3]), 5).float()
    found = balanced_weights(values, exclusive=True)
    # Classes 2 and 4 have no clip here: 1, and they do not count among the others.
    assert found.tolist() == pytest.approx([16 / (3 * 12), 16 / (3 * 3), 1.0, 16 / 3, 1.0])
    assert float((values @ found).mean()) == pytest.approx(1.0)
    tags = torch.zeros(1000, 4)
    tags[:10, 0], tags[:250, 1], tags[:, 2] = 1, 1, 1
    assert balanced_weights(tags, exclusive=False).tolist() == pytest.approx([99.0, 3.0, 1.0, 1.0])
    tags[1:, 0] = 0
    assert float(balanced_weights(tags, exclusive=False)[0]) == 100.0
    rare = F.one_hot(torch.tensor([0] * 999 + [1]), 2).float()
    assert balanced_weights(rare, exclusive=True).tolist() == pytest.approx([1000 / (2 * 999), 500.0])


def test_settings_that_follow_from_others() -> None:
    assert FinetuneConfig().exclusive and FinetuneConfig(loss="cross_entropy").exclusive
    assert not FinetuneConfig(multi_label=True).exclusive and not FinetuneConfig(loss="bce").exclusive
    waves = FinetuneConfig(mixup=0.5, mixup_domain="waveform", mix_ratio=0.3)
    assert waves.waveforms is not None and (waves.waveforms.mixup, waves.waveforms.ratio) == (0.5, 0.3)
    assert not waves.mixing.on
    assert FinetuneConfig(mixup=0.5).waveforms is None and FinetuneConfig(mixup_domain="waveform").waveforms is None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"drop_path": 1.0}, r"drop_path=1.0 must lie in \[0, 1\)"),
        ({"drop_path": float("nan")}, "drop_path=nan"),
        ({"patch_drop": (0.0, -0.1, 0.0)}, "patch_drop=-0.1"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 must lie in \(0, 1\]"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"mix_ratio": 2.0}, "mix_ratio=2.0"),
        ({"mixup": 0.5, "mixup_domain": "waveform", "mix_ratio": 2.0}, "mix_ratio=2.0"),
        ({"mixup": -0.5, "mixup_domain": "waveform"}, "mixup=-0.5"),
        ({"pooling": "grid motion"}, "pooling='grid motion' is for frozen features"),
        ({"pooling": "time", "patch_drop": (0.1, 0.0, 0.0)}, "needs pooling=mean, not 'time'"),
        ({"multi_label": True, "loss": "cross_entropy"}, "loss=cross_entropy is for one class a clip"),
        ({"clips_per_epoch": -1}, "clips_per_epoch=-1 must be at least 0"),
        ({"validate_every_epochs": 0}, "validate_every_epochs=0 at least 1"),
        ({"clips_per_epoch": 10}, "clips_per_epoch=10 is for sampling=balanced"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        FinetuneConfig(**settings)


KINDS: dict[str, dict[str, Any]] = {
    "classes": {"drop_path": 0.5, "patch_drop": (0.3, 0.5, 0.0), "class_weights": "balanced"},
    "tags": {"drop_path": 0.5, "multi_label": True, "pooling": "statistics"},
}


def one_step(kind: str, rank: int, world: int, num_clips: int) -> dict[str, Tensor]:
    """Values and gradients of a step on this rank's share of the clips."""
    objective = make(TAGS if kind == "tags" else None, torch.tensor([0.5, 2.0, 1.25]), **KINDS[kind]).train()
    model: torch.nn.Module = objective
    if world > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=objective.varying)
    data = collate(clips(*LENGTHS[:num_clips])[rank::world], ENCODER.patch, (1, 8, 1))
    optimizer = build_adamw(objective, OptimConfig(lr=0.0))
    result = train_step(model, objective, optimizer, data, 0, 0.0, TrainConfig(precision="fp32"))
    found = {f"value {name}": value for name, value in result.values.items()}
    return found | {f"gradient {name}": one.grad.clone() for name, one in objective.named_parameters() if one.grad is not None}


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({(kind, num): one_step(kind, rank, world, num) for kind in KINDS for num in (7, 1)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Seven clips are no equal shares; of one clip the second process has none."""
    mp.spawn(worker, (2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in KINDS:
        for num in (7, 1):
            expected = one_step(kind, 0, 1, num)
            assert sum(name.startswith("gradient ") for name in expected) == len(list(make().named_parameters()))
            for name, value in expected.items():
                for got in ranks:
                    torch.testing.assert_close(got[kind, num][name], value, atol=1e-5, rtol=1e-5, msg=f"{kind} {num} {name}")
