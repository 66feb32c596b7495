"""Logistic regression against scikit-learn at the same C, and what must not change it."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bridle.errors import DataError
from bridle.eval import linear_probe
from bridle.eval.linear_probe import fit_path, linear_predictions, linear_probabilities

STRENGTHS = [1e-4, 1e-2, 1.0, 100.0]


def blobs(num, width, num_classes, seed=0, spread=2.0):
    """Classes that overlap, in columns of very different scale and strong correlation."""
    random = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    centres = random.normal(size=(num_classes, width))
    mixing = random.normal(size=(width, width)) * np.logspace(0, -2, width)[:, None]
    features = (spread * random.normal(size=(num, width)) + centres[labels]) @ mixing + 5.0
    return torch.from_numpy(features), torch.from_numpy(labels)


def objective(weight, bias, rows, labels, strength):
    """scikit-learn's, for 3 classes or more: C * sum of cross-entropies + |weights|^2 / 2."""
    logits = rows @ weight.T + bias
    return float(strength * torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + 0.5 * weight.square().sum())


@pytest.mark.parametrize(("num", "width", "num_classes"), [(90, 12, 3), (60, 150, 4), (80, 10, 2), (50, 120, 2)])
def test_weights_equal_scikit_learn(num, width, num_classes):
    features, labels = blobs(num, width, num_classes)
    rows = StandardScaler().fit_transform(features.numpy())
    for strength, probe in zip(STRENGTHS, fit_path(features, labels, STRENGTHS, tolerance=1e-9), strict=True):
        reference = LogisticRegression(C=strength, tol=1e-10, max_iter=20000).fit(rows, labels.numpy())
        weight, bias = probe.weight, probe.bias
        if num_classes == 2:  # scikit-learn keeps the difference of the two rows
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        size = np.abs(reference.coef_).max()
        np.testing.assert_allclose(weight.numpy(), reference.coef_, atol=2e-3 * size)
        np.testing.assert_allclose(bias.numpy(), reference.intercept_, atol=2e-3 * max(1.0, size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_accuracy_equals_scikit_learn_on_held_out_rows(dtype):
    features, labels = blobs(900, 60, 6)
    scaler = StandardScaler().fit(features[:300].numpy())
    tolerance = 1e-6 if dtype == torch.float64 else 1e-5
    ours = linear_predictions(features[:300], labels[:300], features[300:], STRENGTHS, tolerance=tolerance, dtype=dtype)
    for strength, predicted in zip(STRENGTHS, ours, strict=True):
        reference = LogisticRegression(C=strength, tol=1e-7, max_iter=5000)  # at its own 1e-4 it stops short of the optimum
        reference.fit(scaler.transform(features[:300]), labels[:300])
        theirs = reference.score(scaler.transform(features[300:]), labels[300:])
        assert abs((predicted == labels[300:]).double().mean().item() - theirs) <= 0.005


@pytest.mark.parametrize(("num", "width"), [(80, 10), (40, 100)])
def test_no_small_step_lowers_the_objective(num, width):
    features, labels = blobs(num, width, 3)
    generator = torch.Generator().manual_seed(0)
    for strength, probe in zip(STRENGTHS, fit_path(features, labels, STRENGTHS), strict=True):
        assert probe.converged
        rows = probe.standardisation.apply(features)
        best = objective(probe.weight, probe.bias, rows, labels, strength)
        for _ in range(20):
            step = 1e-2 * torch.randn(probe.weight.shape, generator=generator, dtype=torch.float64)
            assert objective(probe.weight + step, probe.bias, rows, labels, strength) > best


def test_the_order_and_the_company_of_c_do_not_matter():
    features, labels = blobs(70, 90, 3)
    path = fit_path(features, labels, [10.0, 1e-3, 1.0], tolerance=1e-8)
    for strength, probe in zip([10.0, 1e-3, 1.0], path, strict=True):
        alone = fit_path(features, labels, [strength], tolerance=1e-8)[0]
        torch.testing.assert_close(probe.weight, alone.weight, atol=1e-4, rtol=1e-3)
    assert path[1].weight.norm() < path[2].weight.norm() < path[0].weight.norm()


def test_scale_and_offset_of_columns_and_order_of_rows_change_nothing():
    features, labels = blobs(70, 90, 3)
    expected = fit_path(features, labels, [1.0], tolerance=1e-9)[0]
    moved = features * torch.logspace(-3, 3, 90, dtype=torch.float64) - 2.0
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    for rows, classes in ((moved, labels), (features[order], labels[order])):
        probe = fit_path(rows, classes, [1.0], tolerance=1e-9)[0]
        torch.testing.assert_close(probe.weight, expected.weight, atol=1e-5, rtol=1e-4)


def test_rotation_of_standardised_features_rotates_the_weights():
    random = np.random.default_rng(0)
    base = random.normal(size=(64, 8))
    base = np.linalg.qr(base - base.mean(axis=0))[0] * 8.0  # centred, orthogonal: every rotation is standardised too
    rotation = torch.from_numpy(np.linalg.qr(random.normal(size=(8, 8)))[0])
    features, labels = torch.from_numpy(base), torch.arange(64) % 3
    plain = fit_path(features, labels, [1.0], tolerance=1e-9)[0]
    rotated = fit_path(features @ rotation, labels, [1.0], tolerance=1e-9)[0]
    torch.testing.assert_close(rotated.weight, plain.weight @ rotation, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rotated.logits(features @ rotation), plain.logits(features), atol=1e-6, rtol=1e-5)


def test_duplicate_and_constant_columns_and_repeated_rows_are_harmless():
    features, labels = blobs(30, 5, 3)
    wide = torch.cat([features, features, torch.ones(30, 40)], dim=1)
    rows, classes = torch.cat([wide, wide]), torch.cat([labels, labels])
    probe = fit_path(rows, classes, [1.0])[0]
    assert probe.converged
    torch.testing.assert_close(probe.weight[:, :5], probe.weight[:, 5:10], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probe.weight[:, 10:], torch.zeros(3, 40, dtype=torch.float64), atol=1e-7, rtol=0)


def test_labels_may_be_any_integers_and_repeats_are_bit_equal():
    features, labels = blobs(60, 80, 3)
    first = fit_path(features, 10 * labels + 5, STRENGTHS)
    again = fit_path(features, 10 * labels + 5, STRENGTHS)
    assert all(torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias) for a, b in zip(first, again, strict=True))
    assert set(first[-1].predict(features).tolist()) == {5, 15, 25}
    assert abs(first[-1].bias.sum().item()) < 1e-9


def test_too_few_iterations_are_reported():
    features, labels = blobs(60, 80, 3)
    assert not fit_path(features, labels, [100.0], tolerance=1e-9, max_iterations=2)[0].converged


def test_errors_name_the_value():
    features, labels = blobs(20, 4, 2)
    with pytest.raises(DataError, match="1 class"):
        fit_path(features, torch.zeros(20, dtype=torch.int64), [1.0])
    with pytest.raises(DataError, match="19 labels for 20 rows"):
        fit_path(features, labels[:19], [1.0])
    with pytest.raises(DataError, match="above 0"):
        fit_path(features, labels, [1.0, 0.0])
    with pytest.raises(DataError, match="at least one C"):
        fit_path(features, labels, [])
    with pytest.raises(DataError, match="NaN or infinity, first in row 3"):
        fit_path(features.index_fill(0, torch.tensor([3]), torch.nan), labels, [1.0])


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probabilities_are_scikit_learns(num_classes):
    features, labels = blobs(300, 12, num_classes)
    scaler = StandardScaler().fit(features[:200].numpy())
    reference = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000).fit(scaler.transform(features[:200]), labels[:200])
    found = linear_probabilities(features[:200], 3 * labels[:200], features[200:], 0.1)
    np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(features[200:])), atol=1e-4)


def test_small_problems_take_one_thread_and_give_the_others_back(monkeypatch):
    before, seen = torch.get_num_threads(), []
    known = torch.optim.LBFGS.step
    monkeypatch.setattr(torch.optim.LBFGS, "step", lambda *given: seen.append(torch.get_num_threads()) or known(*given))
    features, labels = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    try:
        torch.set_num_threads(2)
        fit_path(features, labels, (1.0,))
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(linear_probe, "_ONE_THREAD", 0)
        fit_path(features, labels, (1.0,))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]
