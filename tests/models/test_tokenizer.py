"""Estimator targets and the width of the cold start."""

from dataclasses import replace

import pytest
import torch
from reference.batches import ENCODER, batch

from bridle.errors import ConfigError
from bridle.grid import Subset
from bridle.models.encoder import EncoderConfig
from bridle.models.tokenizer import ColdStartConfig, Estimator, EstimatorConfig, RandomTokenizer
from bridle.nn.patches import PatchSize, patchify, without_mean_over_time
from bridle.objectives.view import whole_view
from bridle.quantize import QuantizerConfig


def features(seed: int) -> torch.Tensor:
    """(50, 6) with a mean and a scale of its own in every dimension."""
    noise = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
    return noise * torch.arange(1.0, 7.0) + 10 * torch.arange(6.0)


def estimator(**settings: object) -> Estimator:
    return Estimator(EstimatorConfig(width=8, depth=1, heads=2, **settings), 4, 6, ("time", "height")).train()  # type: ignore[arg-type]


def test_targets_have_no_mean_and_unit_deviation() -> None:
    made, rows = estimator(), features(0)
    made.update(made.statistics(rows[:20]) + made.statistics(rows[20:]))
    target = made.target(rows)
    torch.testing.assert_close(target.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    assert made.target(rows.bfloat16()).dtype == torch.float32


def test_averages_follow_with_their_decay() -> None:
    made, first, second = estimator(target_decay=0.75), features(0), features(1) + 5
    made.update(made.statistics(first))
    torch.testing.assert_close(made.target_mean, first.mean(0))
    made.update(made.statistics(second))
    torch.testing.assert_close(made.target_mean, 0.75 * first.mean(0) + 0.25 * second.mean(0))
    torch.testing.assert_close(made.target_square, 0.75 * first.square().mean(0) + 0.25 * second.square().mean(0))


def test_nothing_moves_in_eval_mode_or_by_bad_statistics() -> None:
    made = estimator()
    made.update(made.statistics(features(0)))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.update(made.statistics(features(1)) + torch.nan)
    made.update(made.statistics(features(1)[:0]))
    made.eval().update(made.statistics(features(1)))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_plain_targets_are_the_features() -> None:
    made = estimator(target="plain")
    made.update(made.statistics(features(0)))
    assert torch.equal(made.target(features(1)), features(1))


def test_the_cold_start_may_be_wider_than_the_codes() -> None:
    quantizer = QuantizerConfig(num_codebooks=2, codebook_size=8, code_dim=4, init_sample=64)
    view = whole_view(batch(16, 12), ENCODER.patch)
    for config, width in ((ColdStartConfig(), 4), (ColdStartConfig(code_dim=16), 16)):
        cold = RandomTokenizer(config, ENCODER, quantizer)
        assert cold.vectors(view.patches, view.every).shape[-1] == width
        assert cold.quantizer.codebooks.shape == (2, 8, width)
    with pytest.raises(ConfigError, match="code_dim=0"):
        ColdStartConfig(code_dim=0)
    with pytest.raises(ConfigError, match="target_decay=1"):
        EstimatorConfig(target_decay=1.0)


@pytest.mark.parametrize("patch", [(2, 4, 4), (1, 4, 2), (3, 2, 2)])
def test_motion_is_what_the_mean_over_time_leaves(patch: PatchSize) -> None:
    clip = torch.randn(2, 3, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = patchify(clip, patch)
    expected = patchify(clip - clip.mean(2, keepdim=True), patch).values
    torch.testing.assert_close(without_mean_over_time(patches, None, patch), expected)
    still = patchify(clip[:, :, :1].expand_as(clip), patch)
    assert float(without_mean_over_time(still, None, patch).abs().max()) < 1e-6
    steps = torch.tensor([12 // patch[0], 2])
    every = Subset.every(patches.grid, steps)
    found = without_mean_over_time(patches, every.valid, patch)
    short = without_mean_over_time(patchify(clip[1:, :, : 2 * patch[0]], patch), None, patch)
    torch.testing.assert_close(found[1, : short.shape[1]], short[0])
    torch.testing.assert_close(found[0], expected[0])


def test_codes_of_motion_ignore_what_is_always_there() -> None:
    encoder = EncoderConfig(width=16, depth=1, heads=2, patch=(2, 4, 4), channels=1, axes=("time", "height", "width"))
    quantizer = QuantizerConfig(num_codebooks=2, codebook_size=8, code_dim=6)
    tokenizer = RandomTokenizer(ColdStartConfig(normalise="motion"), encoder, quantizer)
    generator = torch.Generator().manual_seed(0)
    clip, background = torch.randn(2, 1, 8, 8, 8, generator=generator), torch.randn(2, 1, 1, 8, 8, generator=generator)
    whole = Subset(None, None)
    vectors = tokenizer.vectors(patchify(clip, encoder.patch), whole)
    moved = tokenizer.vectors(patchify(clip + 5 * background, encoder.patch), whole)
    torch.testing.assert_close(vectors, moved, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([[3, 0], [7, 5], [1, 1], [2, 15]])  # two masks for each clip
    picked = tokenizer.vectors_at(patchify(clip, encoder.patch), whole, rows)
    torch.testing.assert_close(picked, vectors.repeat_interleave(2, 0).gather(1, rows[..., None].expand(-1, -1, 6)))
    with pytest.raises(ConfigError, match=r"cold_start\.normalise=motion needs clips with a time"):
        RandomTokenizer(
            ColdStartConfig(normalise="motion"), replace(encoder, patch=(1, 4, 4), axes=("height", "width")), quantizer
        )
