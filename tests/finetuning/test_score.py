"""Scores of labelled clips against scikit-learn on the model's own probabilities, and the look at validation clips."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from reference.finetuned import CLASSES, finetuned_model, write_breaking, write_sounds
from sklearn.metrics import accuracy_score, average_precision_score, log_loss

from bridle.config import from_dict, to_dict
from bridle.data.labels import ClassLabels, TagLabels, class_labels, tag_labels
from bridle.data.manifest import Entry, Manifest
from bridle.errors import DataError
from bridle.finetuning.score import Measured, Validation, measure, predict_entries
from bridle.inference import Model, load
from bridle.networks import Networks
from bridle.run import RunFolder
from bridle.train.weights import read_weights, write_weights

CPU = torch.device("cpu")
CELLS = ("cat", "bee", "cat", "dog", "bee", "dog")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Six sounds; number 3 is none, number 4 breaks off in its third window."""
    folder = tmp_path_factory.mktemp("sounds")
    found = write_sounds(folder, 0.6, 1.1, 3.0, 0, 1.0, 0.9)
    found[4] = write_breaking(folder / "breaks.wav")
    return found


def labels() -> ClassLabels:
    return class_labels(CELLS, CLASSES)


def tags() -> TagLabels:
    return tag_labels(["cat,dog", "", "bee", "cat", "dog", "cat"], classes=CLASSES)


def readable() -> list[int]:
    return [0, 1, 2, 5]


def test_scores_are_those_of_scikit_learn(sounds: list[Entry]) -> None:
    model = finetuned_model()
    found = measure(model, Manifest(tuple(sounds)), labels())
    chances = torch.stack([model.predict(sounds[row].path).probabilities for row in readable()])
    truth = labels().index[readable()].numpy()
    assert found.metrics is not None and found.tags is None
    assert found.metrics.num_clips == 4
    assert found.score == found.metrics.accuracy == pytest.approx(accuracy_score(truth, chances.argmax(1)))
    sure = chances.double() / chances.double().sum(1, keepdim=True)
    expected = log_loss(truth, sure.numpy(), labels=[0, 1, 2])
    assert found.metrics.negative_log_likelihood == pytest.approx(expected, abs=1e-4)
    assert (found.fingerprint, found.classes) == (model.fingerprint, CLASSES)
    assert [clip.key for clip in found.clips] == [sounds[row].key for row in readable()]
    for clip, row, chance in zip(found.clips, readable(), chances, strict=True):
        assert clip.labels == (CELLS[row],)
        assert clip.predicted == (CLASSES[int(chance.argmax())],)
        assert clip.probability == pytest.approx(float(chance.max()), abs=1e-5)
    assert [file.key for file in found.bad] == ["3.wav", "breaks.wav"]
    assert from_dict(Measured, to_dict(found)) == found


def test_scores_of_tags_are_those_of_scikit_learn(sounds: list[Entry]) -> None:
    model = finetuned_model(multi_label=True)
    found = measure(model, Manifest(tuple(sounds)), tags())
    chances = torch.stack([model.predict(sounds[row].path).probabilities for row in readable()]).numpy()
    truth = tags().targets[readable()].numpy()
    assert found.tags is not None and found.metrics is None
    expected = [average_precision_score(truth[:, name], chances[:, name]) for name in range(3)]
    assert found.score == pytest.approx(sum(expected) / 3)
    assert [clip.labels for clip in found.clips] == [("cat", "dog"), (), ("bee",), ("cat",)]
    for clip, row in zip(found.clips, chances, strict=True):
        present = sorted(((-chance, name) for chance, name in zip(row, CLASSES, strict=True) if chance >= 0.5))
        assert clip.predicted == tuple(name for _, name in present)


def test_clips_without_any_tag_at_all_score_nothing(sounds: list[Entry]) -> None:
    nothing = TagLabels(CLASSES, torch.zeros(2, 3, dtype=torch.bool))
    found = measure(finetuned_model(multi_label=True), Manifest(tuple(sounds[:2])), nothing)
    assert found.tags is not None and found.tags.mean_average_precision is None
    assert found.score == 0.0
    assert from_dict(Measured, to_dict(found)) == found


def test_one_class_learnt_by_binary_cross_entropies_is_scored(sounds: list[Entry]) -> None:
    model = finetuned_model(loss="bce")
    model.classifier.linear.bias.fill_(-60.0)  # all classes next to impossible: their chances still sum to 1
    found = measure(model, Manifest(tuple(sounds[:3])), class_labels(CELLS[:3], CLASSES))
    assert found.metrics is not None and 0 <= found.score <= 1


def test_a_class_that_no_clip_is_of_is_listed(sounds: list[Entry]) -> None:
    found = measure(finetuned_model(), Manifest(tuple(sounds[:3])), class_labels(CELLS[:3], CLASSES))
    assert found.metrics is not None and found.metrics.without_clips == ("dog",)


def test_rows_are_told_apart_where_keys_are_not(sounds: list[Entry]) -> None:
    same = Manifest(tuple(dataclasses.replace(entry, key="same.wav") for entry in sounds))
    found, bad = predict_entries(finetuned_model(), same)
    assert list(found) == readable()
    assert [file.key for file in bad] == ["same.wav"] * 2


def test_what_cannot_be_scored_is_named(sounds: list[Entry]) -> None:
    with pytest.raises(DataError, match=r"none of 2 labelled clips can be read; first: 3.wav \("):
        measure(finetuned_model(), Manifest(tuple(sounds[3:5])), class_labels(["cat", "bee"], CLASSES))


def validation(folder: Path, model: Model, sounds: list[Entry], every: int = 5) -> Validation:
    return Validation(model.config, RunFolder(folder), Manifest(tuple(sounds)), labels(), every_steps=every, device=CPU)


def biased(model: Model, name: str) -> Networks:
    """Networks that always say the class, in train mode."""
    networks = copy.deepcopy(model.networks).train().requires_grad_(True)
    assert networks.classifier is not None
    with torch.no_grad():
        networks.classifier.linear.bias.copy_(100.0 * torch.tensor([name == other for other in CLASSES]))
    return networks


def test_the_weights_of_the_best_look_are_kept_and_of_equal_ones_the_first(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model()
    look = validation(tmp_path, model, sounds)  # readable are two cats, a bee and a dog
    scores = {"bee": 0.25, "cat": 0.5, "dog": 0.25}
    for step, name in enumerate(("dog", "bee", "cat", "bee"), 1):
        networks = biased(model, name)
        values = look(step, networks)
        assert values["validation/accuracy"] == scores[name]
        assert values["validation/loss"] > 1
    assert look.best_step == 3
    weights, header = read_weights(RunFolder(tmp_path).chosen)
    expected = biased(model, "cat").state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert header["step"] == "3"
    assert header["fingerprint"] == Model(model.config, biased(model, "cat"), CPU).fingerprint
    assert look.state() == {"best": 0.5, "best_step": 3}


def test_a_look_changes_nothing(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model()
    networks = biased(model, "dog")
    before, state = copy.deepcopy(networks.state_dict()), torch.get_rng_state()
    validation(tmp_path, model, sounds)(1, networks)
    assert networks.training and all(module.training for module in networks.modules())
    assert all(parameter.requires_grad for parameter in networks.parameters())
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_look_goes_on_from_where_it_was(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model()
    first = validation(tmp_path, model, sounds)
    first(4, biased(model, "cat"))
    again = validation(tmp_path, model, sounds)
    again.restore(first.state())
    again(9, biased(model, "cat"))  # no better
    assert (again.best_step, read_weights(RunFolder(tmp_path).chosen)[1]["step"]) == (4, "4")
    fresh = validation(tmp_path, model, sounds)
    fresh(9, biased(model, "bee"))
    assert fresh.best_step == 9


def test_tags_are_looked_at_by_their_mean_average_precision(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model(multi_label=True)
    look = Validation(model.config, RunFolder(tmp_path), Manifest(tuple(sounds)), tags(), every_steps=1, device=CPU)
    values = look(1, model.networks)
    assert values == {"validation/mean_average_precision": measure(model, Manifest(tuple(sounds)), tags()).score}
    nothing = TagLabels(CLASSES, torch.zeros(6, 3, dtype=torch.bool))
    look = Validation(model.config, RunFolder(tmp_path / "b"), Manifest(tuple(sounds)), nothing, every_steps=1, device=CPU)
    (tmp_path / "b").mkdir()
    assert look(1, model.networks) == {"validation/mean_average_precision": 0.0}
    assert look.best_step == 1  # the first look stands, so that there are weights to read


def test_chosen_weights_are_what_a_run_loads(sounds: list[Entry], tmp_path: Path) -> None:
    model = finetuned_model()
    folder = RunFolder(tmp_path)
    folder.write_config(model.config)
    write_weights(folder.weights, biased(model, "dog").state_dict(), 9)
    assert load(tmp_path, "cpu").predict(sounds[0].path).label == "dog"
    validation(tmp_path, model, sounds)(3, biased(model, "cat"))
    loaded = load(tmp_path, "cpu")
    assert loaded.predict(sounds[0].path).label == "cat"
    assert loaded.config == model.config
