"""k-means against scikit-learn and at its edges."""

import torch
from reference.vectors import structured_vectors
from sklearn.cluster import KMeans

from bridle.quantize.codebook import nearest
from bridle.quantize.kmeans import kmeans, plus_plus


def test_steps_equal_scikit_learn_from_the_same_start() -> None:
    x = structured_vectors(2000, 8, branches=6)
    start = plus_plus(x, 24, seed=0)
    reference = KMeans(24, init=start.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x.numpy())
    centres, codes = kmeans(x, 24, 300, seed=0)
    torch.testing.assert_close(centres, torch.from_numpy(reference.cluster_centers_), rtol=0, atol=1e-4)
    assert torch.equal(codes, nearest(x, centres)[0])


def test_as_good_as_scikit_learn_in_many_dimensions() -> None:
    x = structured_vectors(3000, 40, branches=6)
    centres, codes = kmeans(x, 36, 50, seed=0)
    reference = KMeans(36, n_init=3, random_state=0).fit(x.numpy())
    assert float(nearest(x, centres)[1].sum()) <= 1.02 * reference.inertia_
    assert torch.equal(codes, nearest(x, centres)[0])


def test_the_start_spreads_over_the_clusters() -> None:
    x = torch.eye(8).repeat(50, 1) * 10 + structured_vectors(400, 8) * 0.01
    start = plus_plus(x, 8, seed=0)
    assert sorted(start.argmax(1).tolist()) == list(range(8))


def test_equal_seeds_give_equal_bits_and_other_seeds_other_starts() -> None:
    x = structured_vectors(500, 8)
    assert torch.equal(kmeans(x, 16, 5, seed=3)[0], kmeans(x, 16, 5, seed=3)[0])
    assert not torch.equal(kmeans(x, 16, 1, seed=3)[0], kmeans(x, 16, 1, seed=4)[0])


def test_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    kmeans(structured_vectors(200, 8), 16, 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_as_many_clusters_as_vectors_finds_every_vector() -> None:
    x = structured_vectors(20, 4)
    centres, codes = kmeans(x, 20, 10, seed=0)
    torch.testing.assert_close(centres[codes], x)
    assert len(codes.unique()) == 20


def test_fewer_distinct_vectors_than_clusters_stays_finite() -> None:
    x = torch.eye(3).repeat(10, 1)
    centres, codes = kmeans(x, 8, 10, seed=0)
    assert centres.isfinite().all()
    torch.testing.assert_close(centres[codes], x)


def test_an_empty_cluster_starts_again_at_the_farthest_vector() -> None:
    x = torch.cat([torch.zeros(50, 2), torch.tensor([[9.0, 9.0]])])
    for seed in range(5):
        centres, codes = kmeans(x, 2, 10, seed=seed)
        torch.testing.assert_close(centres[codes], x)
