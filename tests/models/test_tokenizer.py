"""Estimator targets and the width of the cold start."""

import pytest
import torch
from reference.batches import ENCODER, batch

from bridle.errors import ConfigError
from bridle.models.tokenizer import ColdStartConfig, Estimator, EstimatorConfig, RandomTokenizer
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
