"""Cosine nearest neighbours against scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from bridle.errors import DataError
from bridle.eval.knn import (
    fit_standardisation,
    knn_predictions,
    knn_probabilities,
    nearest,
    plain_votes,
    weighted_votes,
)


def blobs(num=120, width=20, num_classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num)
    centres = random.normal(size=(num_classes, width))
    features = 1.5 * random.normal(size=(num, width)) + centres[labels]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_plain_votes_equal_scikit_learn(k):
    features, labels = blobs()
    train, test = slice(0, 80), slice(80, 120)
    ours = knn_predictions(features[train], labels[train], features[test], [k], temperature=None)[0]
    scaler = StandardScaler().fit(features[train].double().numpy())
    unit = normalize(scaler.transform(features.double().numpy()))
    theirs = KNeighborsClassifier(k).fit(unit[train], labels[train].numpy())
    votes = theirs.predict_proba(unit[test])
    decided = torch.from_numpy((votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1)
    assert decided.float().mean() > 0.6
    assert torch.equal(ours[decided], torch.from_numpy(theirs.predict(unit[test]))[decided])


def test_weighted_votes_equal_a_loop():
    features, labels = blobs()
    k, temperature = 9, 0.2
    ours = knn_predictions(features[:80], labels[:80], features[80:], [k], temperature=temperature)[0]
    rows = StandardScaler().fit(features[:80].double().numpy()).transform(features.double().numpy())
    for query in range(40):
        cosine = [float(r @ rows[80 + query] / np.linalg.norm(r) / np.linalg.norm(rows[80 + query])) for r in rows[:80]]
        votes = np.zeros(4)
        for row in sorted(range(80), key=lambda row: -cosine[row])[:k]:
            votes[labels[row]] += np.exp(cosine[row] / temperature)
        assert int(ours[query]) == int(votes.argmax())


def test_ties_of_plain_votes_go_to_the_more_similar_and_never_outweigh_a_vote():
    similarity = torch.tensor([[0.9, 0.5, 0.4, 0.3], [1.0, -1.0, -1.0, -1.0]])
    labels = torch.tensor([[2, 1, 1, 2], [0, 1, 1, 2]])
    assert plain_votes(similarity, labels, 3).argmax(dim=1).tolist() == [2, 1]


def test_cold_weighted_votes_follow_the_nearest_neighbour_without_overflow():
    similarity = torch.tensor([[0.9, 0.8, 0.8]])
    votes = weighted_votes(similarity, torch.tensor([[1, 0, 0]]), 2, temperature=1e-6)
    assert torch.isfinite(votes).all()
    assert votes.argmax(dim=1).tolist() == [1]


def test_chunks_change_nothing_and_rows_come_most_similar_first():
    features, _ = blobs()
    unit = torch.nn.functional.normalize(features, dim=1)
    whole, parts = nearest(unit[:80], unit[80:], 5), nearest(unit[:80], unit[80:], 5, chunk=7)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])
    assert (whole[0].diff(dim=1) <= 0).all()


def test_scale_and_offset_of_columns_and_order_of_rows_change_nothing():
    features, labels = blobs()
    ks = [1, 5, 10]
    expected = knn_predictions(features[:80], labels[:80], features[80:], ks)
    scale = 2.0 ** torch.randint(-8, 8, (20,), generator=torch.Generator().manual_seed(0))
    moved = features.double() * scale + 3.0
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    assert torch.equal(knn_predictions(moved[:80], labels[:80], moved[80:], ks), expected)
    assert torch.equal(knn_predictions(features[:80][order], labels[:80][order], features[80:], ks), expected)


def test_k_above_the_training_rows_uses_all_and_labels_may_be_any_integers():
    features, labels = blobs()
    predicted = knn_predictions(features[:10], 100 * labels[:10] - 7, features[80:], [10, 50])
    assert torch.equal(predicted[0], predicted[1])
    assert set(predicted.flatten().tolist()) <= set((100 * labels[:10] - 7).tolist())


def test_standardisation_leaves_constant_columns_at_zero():
    features = torch.full((50, 2), 0.1)
    features[:, 1] = torch.arange(50)
    rows = fit_standardisation(features).apply(features)
    torch.testing.assert_close(rows[:, 0], torch.zeros(50, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(rows[:, 1].std(correction=0), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (torch.zeros(3), "shape"),
        (torch.zeros(0, 3), "at least 1 row"),
        (torch.tensor([[0.0], [torch.nan]]), "row 1"),
        (torch.tensor([[torch.inf], [0.0]]), "row 0"),
    ],
)
def test_features_that_cannot_be_standardised_are_errors(features, match):
    with pytest.raises(DataError, match=match):
        fit_standardisation(features)


def test_k_out_of_range_is_an_error():
    features, labels = blobs()
    with pytest.raises(DataError, match="k is 0"):
        knn_predictions(features, labels, features, [0])
    with pytest.raises(DataError, match="1 to the number of training rows, 120"):
        nearest(features, features, 121)


@pytest.mark.parametrize("k", [1, 7])
def test_probabilities_are_shares_of_the_votes(k):
    features, labels = blobs()
    found = knn_probabilities(features[:80], 10 * labels[:80], features[80:], k, temperature=None)
    scaler = StandardScaler().fit(features[:80].double().numpy())
    unit = normalize(scaler.transform(features.double().numpy()))
    theirs = KNeighborsClassifier(k).fit(unit[:80], labels[:80].numpy()).predict_proba(unit[80:])
    np.testing.assert_allclose(found, theirs, atol=0.5 / k)  # tie-breakers are worth a quarter of a vote in all, at most
    weighted = knn_probabilities(features[:80], labels[:80], features[80:], k)
    np.testing.assert_allclose(weighted.sum(dim=1), 1)
    predicted = knn_predictions(features[:80], labels[:80], features[80:], [k])[0]
    assert torch.equal(weighted.argmax(dim=1), predicted)
