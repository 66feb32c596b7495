"""A run's configuration and networks on disk."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
from reference.configs import normalised
from safetensors.torch import save_file

from bridle.errors import ConfigError, RunError
from bridle.networks import Networks, model_fingerprint, read_networks, renew
from bridle.recipes import RECIPES, recipe
from bridle.run import FORMAT_VERSION, RunConfig, RunFolder
from bridle.train import checkpoint


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_the_disk(name: str, tmp_path: Path) -> None:
    config = normalised(recipe(name), -4.0, 3.0)
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    assert folder.read_config() == config
    assert config.recipe == name


def test_unknown_recipe_names_the_known() -> None:
    with pytest.raises(ConfigError, match="audio-small"):
        recipe("audio-smal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("quantiser: {}\n", "did you mean 'quantizer'"),
        ("encoder: {width: wide}\n", "encoder.width"),
        ("level_weights: [1.0]\n", "level_weights has 1"),
        ("encoder: {patch: [16, 24, 1]}\n", "height 128"),
        ("phases: 'cold:x'\n", "phases"),
        ("cold_start: {smooth: 3}\n", "cold_start.smooth=3 must divide"),
        ("cold_start: {normalise: motion}\nencoder: {axes: [height, width]}\n", "needs clips with a time"),
        ("!!python/object/apply:os.system ['true']\n", "not"),
    ],
)
def test_bad_configurations_are_explained(change: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"format_version: {FORMAT_VERSION}\n{change}" if not change.startswith("!!") else change
    )
    with pytest.raises((ConfigError, RunError), match=message):
        RunFolder(tmp_path).read_config()


def test_networks_are_what_the_phases_need() -> None:
    def names(phases: str) -> set[str]:
        return {name for name, _ in Networks(dataclasses.replace(recipe("audio-debug"), phases=phases)).named_children()}

    assert names("patches:1") == {"encoder", "predictor", "patch_head"}
    assert names("cold:1") == {"encoder", "predictor", "head", "cold"}
    assert names("cold:1, tokenizer:1, encoder:1") == {"encoder", "predictor", "head", "cold", "tokenizer", "estimator"}


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    config = recipe("audio-debug")
    a, b = Networks(config).state_dict(), Networks(config).state_dict()
    other = Networks(dataclasses.replace(config, seed=1)).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["encoder.embed.weight"], other["encoder.embed.weight"])


@pytest.mark.parametrize(
    ("what", "parts"),
    [("head", {"head"}), ("predictor", {"head", "predictor"}), ("encoder", {"head", "predictor", "encoder"})],
)
def test_an_encoder_phase_begins_with_new_parts(what: Literal["head", "predictor", "encoder"], parts: set[str]) -> None:
    config = dataclasses.replace(recipe("audio-debug"), renew=what)
    networks = Networks(config)
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    renew(networks, config, 2)
    after = networks.state_dict()
    assert list(after) == list(before)
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == parts
    again = Networks(config)
    renew(again, config, 2)
    assert all(torch.equal(value, after[name]) for name, value in again.state_dict().items())


def test_the_fingerprint_changes_with_any_weight_and_with_the_front_end() -> None:
    config = normalised(recipe("audio-debug"), 0.0, 1.0)
    weights = Networks(config).state_dict()
    changed = {key: value.clone() for key, value in weights.items()}
    changed["encoder.norm.bias"][3] += 1e-7
    prints = {model_fingerprint(config, weights), model_fingerprint(config, changed)}
    prints.add(model_fingerprint(normalised(config, 0.1, 1.0), weights))
    colder = dataclasses.replace(config, cold_start=dataclasses.replace(config.cold_start, smooth=2))
    prints.add(model_fingerprint(colder, weights))
    assert len(prints) == 4
    audio = dataclasses.replace(config.audio, cache_gigabytes=9.0, shift=False, max_decode_seconds=1.0)
    assert model_fingerprint(dataclasses.replace(config, audio=audio), weights) in prints, "no code depends on these"
    assert model_fingerprint(config, dict(reversed(weights.items()))) == model_fingerprint(config, weights)


def test_weights_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    config = recipe("audio-debug")
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    with pytest.raises(RunError, match="no checkpoint was written yet"):
        read_networks(folder, config)
    save_file(
        {"encoder.norm.bias": torch.zeros(3)}, folder.weights, {"format": "bridle", "version": str(checkpoint.FORMAT_VERSION)}
    )
    with pytest.raises(RunError, match=r"does not fit|missing"):
        read_networks(folder, config)
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder(tmp_path / "nowhere").read_config()


def test_level_weights_must_match() -> None:
    with pytest.raises(ConfigError, match="num_codebooks=4"):
        RunConfig(level_weights=(1.0, 2.0))
