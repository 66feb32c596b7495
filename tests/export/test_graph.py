"""The graphs beside the networks they restate, for every kind of encoder and tokenizer; and what counts as equal codes."""

import dataclasses

import pytest
import torch
from reference.untrained_runs import random_networks, small_config

from bridle.errors import RunError
from bridle.export.checks import Expected, check_close, check_codes, check_features, expected
from bridle.export.graph import EncoderGraph, TokenizerGraph, search
from bridle.inference import Model
from bridle.models.tokenizer import ColdStartConfig
from bridle.quantize import QuantizerConfig, ResidualQuantizer
from bridle.run import clip_grid

CPU = torch.device("cpu")
BEATS = {"class_token": False, "positions": "convolved", "position_kernel": (5, 4), "relative_positions": (16, 20)}
ENCODERS = {
    "audio": ("audio", {}),
    "audio, learned": ("audio", {"positions": "learned", "position_grid": (14, 4, 1)}),
    "audio, learned for another height": ("audio", {"positions": "learned", "position_grid": (14, 3, 1)}),
    "audio, BEATs": ("audio", {**BEATS, "block_norm": "deep", "embed_width": 24, "input_norm": True, "final_norm": False}),
    "image": ("image", {}),
    "image, mean and layer scale": ("image", {"class_token": False, "layer_scale": 0.1, "block_norm": "post"}),
    "video": ("video", {}),
    "video, numbered": ("video", {"positions": "sequence", "class_token": False}),
    "video, stretched": ("video", {"position_grid": (4, 3, 5)}),
}


def model_of(medium: str, phases: str = "cold:1, tokenizer:1", **encoder: object) -> Model:
    config = small_config(medium, phases, **encoder)
    return Model(config, random_networks(config), CPU)


@pytest.mark.parametrize("name", ENCODERS)
def test_graphs_compute_what_the_networks_do(name: str) -> None:
    medium, settings = ENCODERS[name]
    model = model_of(medium, **settings)
    tokenizer = model.networks.best_tokenizer
    assert tokenizer is not None
    grid = clip_grid(model.config)
    encoder, coder = EncoderGraph(model.networks.encoder, grid), TokenizerGraph(tokenizer, model.config.encoder.patch, grid)
    runs = list(expected(model))
    assert [len(run.batch) for run in runs] == [1, 3, 2]
    assert [bool(run.valid.all()) for run in runs] == ([True] * 3 if medium == "image" else [True, False, False])
    for run in runs:
        patches, summary = encoder(run.batch.inputs, run.batch.lengths)
        check_features(name, run, patches, summary, 2e-5)
        assert float(run.patches.std()) > 0.1, "features that are all alike would prove nothing"
        assert check_codes(name, run, coder(run.batch.inputs, run.batch.lengths), tokenizer.quantizer) == "equal"


@pytest.mark.parametrize("normalise", ["patch", "set", "motion"])
@pytest.mark.parametrize("smooth", [1, 2])
def test_graphs_of_random_tokenizers(normalise: str, smooth: int) -> None:
    config = small_config("video", "cold:1")
    config = dataclasses.replace(config, cold_start=ColdStartConfig(normalise=normalise, smooth=smooth, code_dim=12))
    model = Model(config, random_networks(config), CPU)
    tokenizer = model.networks.cold
    assert tokenizer is not None
    coder = TokenizerGraph(tokenizer, config.encoder.patch, clip_grid(config))
    for run in expected(model):
        assert check_codes("it", run, coder(run.batch.inputs, run.batch.lengths), tokenizer.quantizer) == "equal"


@pytest.mark.parametrize("normalise", ["none", "l2"])
def test_search_is_that_of_the_quantizer(normalise: str) -> None:
    draws = torch.Generator().manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codebooks=3, codebook_size=32, code_dim=6, normalise=normalise))
    quantizer.fit(torch.randn(600, 6, generator=draws), 0)
    vectors = torch.randn(4, 50, 6, generator=draws)
    assert torch.equal(search(quantizer, vectors), quantizer.encode(vectors))


@pytest.fixture
def run() -> tuple[Expected, ResidualQuantizer]:
    """One clip of one patch right between two entries of level 0; level 1 tells the halves apart."""
    quantizer = ResidualQuantizer(QuantizerConfig(num_codebooks=2, codebook_size=2, code_dim=2, init_sample=2))
    quantizer.codebooks.copy_(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.5, 1.0], [-0.5, -1.0]]]))
    quantizer.fitted.fill_(True)
    vectors = torch.tensor([[[1e-6, 3.0], [0.8, 0.0]]])
    codes = quantizer.encode(vectors)
    assert codes[0, :, 0].tolist() == [0, 0]
    model = model_of("image")
    features = torch.zeros(1, 2, 4)
    batch = next(iter(expected(model))).batch
    return Expected(batch, torch.ones(1, 2, dtype=torch.bool), features, features[:, 0], vectors, codes), quantizer


def test_a_code_may_differ_where_rounding_decides_and_nowhere_else(run: tuple[Expected, ResidualQuantizer]) -> None:
    wanted, quantizer = run
    assert wanted.codes is not None
    assert check_codes("it", wanted, wanted.codes, quantizer) == "equal"
    tie = wanted.codes.clone()
    tie[0, 0] = torch.tensor([1, 0])
    assert check_codes("it", wanted, tie, quantizer) == "equal but for 1 tie in 2 patches"
    wrong = wanted.codes.clone()
    wrong[0, 1, 0] = 1
    with pytest.raises(RunError, match="1 of 2 patches have other codes in the it; nothing was exported"):
        check_codes("it", wanted, wrong, quantizer)
    deeper = wanted.codes.clone()
    deeper[0, 0, 1] = 1 - deeper[0, 0, 1]
    with pytest.raises(RunError, match="1 of 2 patches"):
        check_codes("it", wanted, deeper, quantizer)
    for code in (-1, 2):
        outside = wanted.codes.clone()
        outside[0, 0, 0] = code
        with pytest.raises(RunError, match="other codes"):
            check_codes("it", wanted, outside, quantizer)


def test_padding_and_shapes_are_checked(run: tuple[Expected, ResidualQuantizer]) -> None:
    wanted, quantizer = run
    assert wanted.codes is not None
    padded = dataclasses.replace(wanted, valid=torch.tensor([[True, False]]))
    with pytest.raises(RunError, match="other padding than -1"):
        check_codes("it", padded, wanted.codes, quantizer)
    with pytest.raises(RunError, match="features of the it differ by up to 1 from"):
        check_features("it", padded, torch.ones(1, 2, 4) * torch.tensor([[[0.0], [1.0]]]), wanted.summary)
    with pytest.raises(RunError, match=r"\(2, 4\) where the run gives \(1, 4\)"):
        check_features("it", wanted, wanted.patches, torch.zeros(2, 4))


def test_close_is_absolute_for_small_and_relative_for_large_values() -> None:
    zeros, large = torch.zeros(3), torch.full((3,), 1000.0)
    assert check_close("x", zeros + 9e-5, zeros) == pytest.approx(9e-5)
    assert check_close("x", large + 0.09, large) == pytest.approx(0.09, rel=1e-2)
    assert check_close("x", zeros, zeros, 0.0) == 0
    for found, wanted, tolerance in (
        (zeros + 2e-4, zeros, 1e-4),
        (large + 0.2, large, 1e-4),
        (zeros + 1e-30, zeros, 0.0),
        (zeros * torch.nan, zeros, 1e-4),
    ):
        with pytest.raises(RunError, match="x differ by"):
            check_close("x", found, wanted, tolerance)
