"""Search, EMA and revival as pure functions, against the naive versions."""

import pytest
import torch
from reference.naive_quantizer import NaiveEma, naive_codes, naive_revive, naive_vectors
from reference.vectors import structured_vectors

from bridle.quantize import codebook
from bridle.quantize.codebook import (
    ema,
    nearest,
    residual_search,
    residual_search_with_statistics,
    revive,
    statistics_length,
    unpack,
)


def tables(levels: int, size: int, dim: int, seed: int = 0) -> torch.Tensor:
    scales = 0.5 ** torch.arange(levels)[:, None, None]
    return torch.randn(levels, size, dim, generator=torch.Generator().manual_seed(seed)) * scales


def vectors(count: int, dim: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "levels", "size", "dim"), [(500, 4, 32, 8), (1, 1, 1, 1), (0, 2, 4, 3), (130, 3, 5, 7)])
def test_search_equals_naive(count: int, levels: int, size: int, dim: int) -> None:
    z, books = vectors(count, dim), tables(levels, size, dim)
    codes, found = residual_search(z, books)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, naive_codes(z, books))
    torch.testing.assert_close(found.double(), naive_vectors(codes, books), rtol=0, atol=1e-5)


def test_nearest_equals_naive_with_distances() -> None:
    x, entries = vectors(300, 6), tables(1, 20, 6)[0]
    codes, distances = nearest(x, entries)
    full = (x[:, None] - entries[None]).double().square().sum(2)
    assert torch.equal(codes, full.argmin(1))
    torch.testing.assert_close(distances.double(), full.amin(1), rtol=1e-5, atol=1e-5)


def test_nearest_takes_the_first_of_equals() -> None:
    entries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest(torch.tensor([[1.0, 0.0]]), entries)[0].item() == 0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, books, planes = vectors(1000, 8), tables(3, 16, 8), vectors(3, 8, seed=5)
    whole = residual_search_with_statistics(z, books, planes)
    monkeypatch.setattr(codebook, "_CHUNK_SCORES", 1)
    chunked = residual_search_with_statistics(z, books, planes)
    assert torch.equal(whole[0], chunked[0])
    torch.testing.assert_close(whole[1], chunked[1])
    torch.testing.assert_close(whole[2], chunked[2], rtol=1e-5, atol=1e-4)


def test_statistics_equal_naive() -> None:
    z, books, planes = vectors(400, 8), tables(3, 16, 8), vectors(3, 8, seed=5)
    codes, _, packed = residual_search_with_statistics(z, books, planes)
    assert packed.shape == (statistics_length(books),)
    statistics = unpack(packed, books)
    residual = z.double()
    energies = [residual.square().sum()]
    for r in range(3):
        residual = residual - books[r].double()[codes[:, r]]
        energies.append(residual.square().sum())
        half = (residual @ planes[r].double() > 0).long()
        one_hot = torch.nn.functional.one_hot(half * 16 + codes[:, r], 32).double()
        assert torch.equal(statistics.counts[r].double().view(-1), one_hot.sum(0))
        torch.testing.assert_close(statistics.errors[r].double().view(32, 8), one_hot.T @ residual, rtol=0, atol=1e-4)
    torch.testing.assert_close(statistics.energies.double(), torch.stack(energies), rtol=1e-5, atol=0)


def test_ema_equals_naive_over_many_updates() -> None:
    books = tables(2, 8, 4)
    usage = torch.full((2, 8), 1 / 8)
    naive = NaiveEma(books, usage, decay=0.9)
    for step in range(20):
        z = vectors(200, 4, seed=10 + step)
        packed = residual_search_with_statistics(z, books, torch.ones(2, 4))[2]
        books, usage = ema(books, usage, unpack(packed, books), decay=0.9)
        naive.update(z)
    torch.testing.assert_close(usage.double(), naive.usage, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(books.double(), naive.codebooks, rtol=0, atol=1e-4)
    torch.testing.assert_close(usage.sum(1), torch.ones(2))


def test_an_entry_without_vectors_keeps_its_value_when_its_usage_underflows() -> None:
    books, usage = torch.tensor([[[0.0, 0.0], [50.0, 50.0]]]), torch.full((1, 2), 0.5)
    z = 0.1 * vectors(20, 2)
    for _ in range(300):
        packed = residual_search_with_statistics(z, books, torch.ones(1, 2))[2]
        books, usage = ema(books, usage, unpack(packed, books), decay=0.5)
    assert usage[0, 1] == 0
    assert torch.equal(books[0, 1], torch.tensor([50.0, 50.0]))
    torch.testing.assert_close(books[0, 0], z.mean(0))
    packed = residual_search_with_statistics(torch.full((4, 2), 60.0), books, torch.ones(1, 2))[2]
    books, usage = ema(books, usage, unpack(packed, books), decay=0.5)
    torch.testing.assert_close(books[0, 1], torch.tensor([60.0, 60.0]))  # no memory of the time without vectors


def test_revival_equals_naive() -> None:
    z = structured_vectors(2000, 8, branches=6)
    books = torch.cat([z[:8], torch.full((8, 8), 100.0) + torch.arange(8)[:, None]])[None]
    usage = torch.cat([torch.full((8,), 1 / 8), torch.linspace(0, 1e-4, 8)])[None]
    usage /= usage.sum()
    plane = vectors(1, 8, seed=3)
    codes, _, packed = residual_search_with_statistics(z, books, plane)
    after, new_usage = ema(books, usage, unpack(packed, books), decay=0.9)
    revived_books, revived_usage, revived = revive(after, new_usage, unpack(packed, books), below=0.1)
    expected = naive_revive(after[0], new_usage[0], z, codes[:, 0], plane[0], books[0], below=0.1)
    assert int(revived[0]) == expected[2] > 2
    torch.testing.assert_close(revived_books[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(revived_usage[0].double(), expected[1], rtol=1e-4, atol=1e-6)


def test_revival_keeps_the_mean_of_the_parent_and_all_of_the_usage() -> None:
    z = structured_vectors(1000, 8, branches=4)
    books = torch.stack([z.mean(0), torch.full((8,), 100.0)])[None]
    usage = torch.tensor([[1.0, 0.0]])
    packed = residual_search_with_statistics(z, books, vectors(1, 8, seed=3))[2]
    after, new_usage, revived = revive(books, usage, unpack(packed, books), below=0.1)
    assert revived.tolist() == [1]
    assert new_usage.min() > 0.1
    torch.testing.assert_close(new_usage.sum(), torch.tensor(1.0))
    torch.testing.assert_close((after * new_usage[..., None]).sum(1), books[:, 0], rtol=0, atol=1e-5)
    assert nearest(z, after[0])[1].mean() < 0.9 * nearest(z, books[0])[1].mean()


def test_vectors_without_spread_are_not_split() -> None:
    z = torch.ones(100, 4)
    books, usage = torch.stack([torch.ones(4), torch.full((4,), 9.0)])[None], torch.tensor([[1.0, 0.0]])
    packed = residual_search_with_statistics(z, books, vectors(1, 4))[2]
    after, new_usage, revived = revive(books, usage, unpack(packed, books), below=0.1)
    assert revived.tolist() == [0]
    assert torch.equal(after, books)
    assert torch.equal(new_usage, usage)
