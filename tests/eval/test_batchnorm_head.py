"""Batch-norm heads against a plain loop of torch's own modules, scikit-learn, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from bridle.errors import DataError
from bridle.eval.batchnorm_head import (
    BatchNormConfig,
    batchnorm_logits,
    batchnorm_predictions,
    batchnorm_probabilities,
    fit_heads,
    for_ranking,
    head_loss,
)
from bridle.randomness import generator

SHORT = BatchNormConfig(epochs=5, batch_size=32, seed=3)


def blobs(num=160, width=12, num_classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num)
    features = 1.5 * random.normal(size=(num, width)) + random.normal(size=(num_classes, width))[labels]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("tags", [False, True])
def test_heads_are_those_of_a_plain_loop_for_every_rate(tags):
    features, labels = blobs(100)
    targets = nn.functional.one_hot(labels, 3).bool() if tags else labels
    rates = (0.01, 0.3)
    together = fit_heads(features, targets, 3, rates, SHORT)
    for number, rate in enumerate(rates):
        norm, linear = nn.BatchNorm1d(12, eps=1e-6, affine=False, momentum=None), nn.Linear(12, 3)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        optimizer = torch.optim.SGD(linear.parameters(), lr=rate * 25 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        order = generator(3, "batch-norm head")
        for _ in range(5):
            for batch in torch.randperm(100, generator=order).tensor_split(4):
                logits = linear(norm(features[batch]))
                if tags:
                    chance = logits.sigmoid()
                    loss = -(torch.where(targets[batch], chance, 1 - chance)).log().sum(dim=1).mean()
                else:
                    loss = nn.functional.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(together.weights[number], linear.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together(features)[number], linear(norm.eval()(features)), atol=1e-4, rtol=1e-4)
    assert not together.training


def test_long_training_on_whole_batches_ends_at_scikit_learns_unpenalised_regression():
    features, labels = blobs(400, 6, 3)
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(scaler.transform(features), labels)
    config = BatchNormConfig(epochs=600, batch_size=400)
    ours = batchnorm_probabilities(features, labels, features, 0.5, config)
    np.testing.assert_allclose(ours, reference.predict_proba(scaler.transform(features)), atol=2e-3)


def test_scale_and_offset_of_columns_change_nothing_and_repeats_are_equal():
    features, labels = blobs()
    expected = batchnorm_logits(features[:100], labels[:100], features[100:], (0.03, 0.1), 3, SHORT)
    moved = features * torch.logspace(-1, 2, 12) + 4
    found = batchnorm_logits(moved[:100], labels[:100], moved[100:], (0.03, 0.1), 3, SHORT)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    state = torch.random.get_rng_state()
    assert torch.equal(batchnorm_logits(features[:100], labels[:100], features[100:], (0.03, 0.1), 3, SHORT), expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = BatchNormConfig(epochs=5, batch_size=32, seed=4)
    assert not torch.equal(batchnorm_logits(features[:100], labels[:100], features[100:], (0.03, 0.1), 3, other), expected)


def test_probabilities_agree_with_predictions_and_labels_may_be_any_integers():
    features, labels = blobs()
    chances = batchnorm_probabilities(features[:100], 10 * labels[:100] + 5, features[100:], 0.1, SHORT)
    predicted = batchnorm_predictions(features[:100], 10 * labels[:100] + 5, features[100:], (0.1,), SHORT)[0]
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(60, dtype=torch.float64))
    assert torch.equal(10 * chances.argmax(dim=1) + 5, predicted)


def test_two_rows_and_constant_columns_are_harmless():
    features = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    found = batchnorm_predictions(features, torch.tensor([0, 1]), features, (0.1,))[0]
    assert found.tolist() == [0, 1]


def test_loss_of_tags_is_summed_over_tags():
    logits, targets = torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    assert head_loss(logits, targets).item() == pytest.approx(3 * np.log(2))
    assert head_loss(logits, torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("rows", "targets", "rates", "match"),
    [
        (torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), (0.1,), "1 targets for 1 rows"),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), (0.1,), "2 targets for 3 rows"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), (0.0,), "all above 0"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), (), "at least one"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.int64), (0.1,), "NaN or infinity, first in row 0"),
    ],
)
def test_errors_name_the_value(rows, targets, rates, match):
    with pytest.raises(DataError, match=match):
        fit_heads(rows, targets, 2, rates)


def test_many_clips_are_ranked_on_fewer_epochs_at_higher_rates():
    config = BatchNormConfig(epochs=40, seed=3)
    assert for_ranking(config, (0.1, 0.2), 1000) == (config, [0.1, 0.2])
    assert for_ranking(config, (0.1, 0.2), 2000) == (replace(config, epochs=20), [0.2, 0.4])
    assert for_ranking(config, (0.1, 0.2), 10**6) == (replace(config, epochs=10), [0.4, 0.8])
    assert for_ranking(replace(config, epochs=1), (0.1,), 10**6)[0].epochs == 1


def test_heads_are_trained_on_the_device_that_is_asked_for(monkeypatch):
    config = BatchNormConfig(epochs=1, device=torch.device("meta"))
    with monkeypatch.context() as patch:
        patch.setattr(nn.BatchNorm1d, "forward", lambda self, x: x)  # asks for how many batches it saw, which meta cannot tell
        heads = fit_heads(torch.randn(20, 3), torch.arange(20) % 2, 2, (0.1,), config)
    held = (*heads.parameters(), *heads.buffers())
    assert {tensor.device.type for tensor in held} == {"meta"}
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 2
    found = [
        batchnorm_logits(features, targets, features, (0.1,), 2, BatchNormConfig(epochs=2, device=device))
        for device in (None, torch.device("cpu"))
    ]
    assert torch.equal(*found)
