"""Layers against naive references, and their invariances."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.errors import ConfigError, DataError
from bridle.grid import PatchGrid
from bridle.nn.attention import Attention, attend
from bridle.nn.block import Block, CrossBlock
from bridle.nn.patches import normalise_patches, patchify
from bridle.nn.pooling import num_cells, pool, pooled_width
from bridle.nn.positions import sine_cosine


def naive_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for q in range(query.shape[2]):
                scores = torch.stack([query[b, h, q] @ k for k in key[b, h]]) / math.sqrt(query.shape[-1])
                if allowed is not None:
                    scores[~allowed[b, 0, 0]] = -torch.inf
                out[b, h, q] = scores.softmax(0) @ value[b, h]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_equals_naive_attention(masked: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (4, 6, 6))
    allowed = (torch.arange(6) < torch.tensor([6, 3])[:, None])[:, None, None] if masked else None
    got = attend(q.to(dtype), k.to(dtype), v.to(dtype), allowed)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.float(), naive_attention(q, k, v, allowed), atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0
    )


def test_the_two_attention_implementations_agree_in_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, 2, 12, 16, generator=generator).to(torch.bfloat16).requires_grad_() for _ in range(3)]
    plain = torch.autograd.grad(attend(*parts, None).float().square().sum(), parts)
    fused = torch.autograd.grad(F.scaled_dot_product_attention(*parts).float().square().sum(), parts)
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=0.05, rtol=0.05)


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="heads=5 must divide width=32"):
        Attention(32, 5)


@pytest.mark.parametrize("block", [Block(16, 2, 4.0), CrossBlock(16, 2, 4.0)])
def test_blocks_have_gradients_everywhere(block: torch.nn.Module) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    out = block(x, None) if isinstance(block, Block) else block(x, x.flip(1), None)
    out.square().sum().backward()
    assert out.shape == x.shape
    for name, parameter in block.named_parameters():
        # A key's bias shifts all scores of a query alike: its gradient is zero in exact arithmetic.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_patchify_cuts_time_major_with_width_fastest() -> None:
    inputs = torch.arange(2 * 3 * 4 * 6 * 12, dtype=torch.float32).reshape(2, 3, 4, 6, 12)
    patches = patchify(inputs, (2, 3, 4))
    assert patches.grid.shape == (2, 2, 3)
    naive = [
        inputs[:, :, 2 * t : 2 * t + 2, 3 * h : 3 * h + 3, 4 * w : 4 * w + 4].flatten(1)
        for t in range(2)
        for h in range(2)
        for w in range(3)
    ]
    assert torch.equal(patches.values, torch.stack(naive, dim=1))


def test_patchify_refuses_a_rest() -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        patchify(torch.zeros(1, 1, 17, 16, 1), (16, 16, 1))


def test_normalised_patches_do_not_change_with_gain_or_offset() -> None:
    values = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalise_patches(4 * values + 7), normalise_patches(values), atol=1e-4, rtol=0)
    assert torch.equal(normalise_patches(torch.full((1, 1, 4), 3.0)), torch.zeros(1, 1, 4))


def test_positions_do_not_depend_on_the_size_of_the_grid() -> None:
    small, large = (sine_cosine(PatchGrid(t, 8), 30, ("time", "height")) for t in (3, 50))
    assert torch.equal(small, large[:24])
    time = sine_cosine(PatchGrid(4, 2), 8, ("time",))
    expected = torch.cat([torch.sin(2 * 10000.0 ** -(torch.arange(4) / 4)), torch.cos(2 * 10000.0 ** -(torch.arange(4) / 4))])
    torch.testing.assert_close(time[4], expected)
    assert len(large.unique(dim=0)) == 400


def test_positions_refuse_too_small_a_width() -> None:
    with pytest.raises(ConfigError, match="width=3"):
        sine_cosine(PatchGrid(2, 2), 3, ("time", "height"))


def test_pooling_ignores_padding() -> None:
    features = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([6, 4])
    poisoned = features.clone()
    poisoned[1, 8:] = 1e6
    mean, kept = (pool(poisoned, PatchGrid(6, 2), steps, kind) for kind in ("mean", "time"))
    torch.testing.assert_close(mean[1], features[1, :8].mean(0))
    torch.testing.assert_close(kept[0], features[0].reshape(6, 2, 5).mean(0).flatten())
    torch.testing.assert_close(kept[1], features[1, :8].reshape(4, 2, 5).mean(0).flatten())
    both = pool(poisoned, PatchGrid(6, 2), steps, "statistics")
    expected = [
        torch.cat([v.mean(0), v.std(0, correction=0)], dim=-1).flatten()
        for v in (features[0].reshape(6, 2, 5), features[1, :8].reshape(4, 2, 5))
    ]
    torch.testing.assert_close(both, torch.stack(expected))
    moved = pool(poisoned, PatchGrid(6, 2), steps, "grid motion")
    torch.testing.assert_close(moved[1], features[1, :8].reshape(4, 2, 5).diff(dim=0).abs().mean(0).flatten())
    for pooling, rows in (("mean", mean), ("time", kept), ("statistics", both)):
        assert rows.shape[1] == pooled_width(5, PatchGrid(6, 2), pooling)


@pytest.mark.parametrize("grid", [PatchGrid(1, 4, 6), PatchGrid(3, 7, 7), PatchGrid(2, 8, 1), PatchGrid(2, 1, 1)])
def test_grid_pooling_is_the_mean_of_each_quarter(grid: PatchGrid) -> None:
    features = torch.randn(2, grid.num_patches, 5, generator=torch.Generator().manual_seed(0))
    cube = features.reshape(2, *grid.shape, 5)
    halves = [
        [slice(0, -(-size // 2)), slice(size // 2, size)] if size > 1 else [slice(0, 1)] for size in (grid.height, grid.width)
    ]
    cells = [(rows, columns) for rows in halves[0] for columns in halves[1]]
    steps = torch.full((2,), grid.time)
    expected = torch.cat([cube[:, :, rows, columns].mean((1, 2, 3)) for rows, columns in cells], dim=1)
    found = pool(features, grid, steps, "grid")
    torch.testing.assert_close(found, expected)
    assert found.shape[1] == pooled_width(5, grid, "grid") == 5 * num_cells(grid)
    deviation = cube.std(1, correction=0)
    spread = [deviation[:, rows, columns].mean((1, 2)) for rows, columns in cells]
    both = torch.cat([torch.cat([cube[:, :, r, c].mean((1, 2, 3)), spread[i]], 1) for i, (r, c) in enumerate(cells)], dim=1)
    torch.testing.assert_close(pool(features, grid, steps, "grid statistics"), both, atol=2e-6, rtol=1e-5)
    assert both.shape[1] == pooled_width(5, grid, "grid statistics")
    moved = (cube[:, 1:] - cube[:, :-1]).abs().sum(1) / max(1, grid.time - 1)
    change = torch.cat([moved[:, rows, columns].mean((1, 2)) for rows, columns in cells], dim=1)
    torch.testing.assert_close(pool(features, grid, steps, "grid motion"), change)
    assert change.shape[1] == pooled_width(5, grid, "grid motion")
    assert pool(features, grid, steps, "grid motion parts").shape[1] == pooled_width(5, grid, "grid motion parts")


def test_motion_is_kept_for_each_eighth_of_the_time() -> None:
    features = torch.randn(2, 17 * 4, 3, generator=torch.Generator().manual_seed(0))
    found = pool(features, PatchGrid(17, 2, 2), torch.tensor([17, 6]), "grid motion parts").reshape(2, 8, 4, 3)
    changes = features.reshape(2, 17, 4, 3).diff(dim=1).abs()
    torch.testing.assert_close(found[0], changes[0].reshape(8, 2, 4, 3).mean(1))
    shared = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 4), (3, 5), (4, 5)]  # of 5 changes
    torch.testing.assert_close(found[1], torch.stack([changes[1, a:b].mean(0) for a, b in shared]))
    assert not pool(features, PatchGrid(17, 2, 2), torch.tensor([1, 1]), "grid motion parts").any()


def _cut(features: Tensor, pieces: int) -> Tensor:
    """Naive trajectory pooling of one clip (T, cells, D): every piece meets every step."""
    lengths = [float((after - before).abs().mean()) for before, after in pairwise(features.double())]
    change, position = torch.zeros(2, pieces, *features.shape[1:], dtype=torch.float64)
    for piece in range(pieces):
        start, end = (sum(lengths) * edge / pieces for edge in (piece, piece + 1))
        gone = 0.0
        for step, length in enumerate(lengths):
            share = max(0.0, min(end, gone + length) - max(start, gone)) / (end - start)
            change[piece] += share * (features[step + 1] - features[step]).abs()
            position[piece] += share * (features[step + 1] + features[step]) / 2
            gone += length
    return torch.cat([change, position - position.mean(0)], dim=-1).float()


@pytest.mark.parametrize("steps", [2, 5, 23])
def test_trajectory_is_cut_into_pieces_of_equal_length(steps: int) -> None:
    features = torch.randn(1, steps * 4, 3, generator=torch.Generator().manual_seed(steps)).cumsum(1)
    grid = PatchGrid(steps, 2, 2)
    found = pool(features, grid, torch.tensor([steps]), "grid trajectory")
    assert found.shape == (1, pooled_width(3, grid, "grid trajectory"))
    expected = _cut(features.reshape(steps, 4, 3), 8)
    torch.testing.assert_close(found.reshape(8, 4, 6), expected, atol=1e-5, rtol=1e-5)


def test_trajectory_does_not_know_pauses_or_padding() -> None:
    features = torch.randn(1, 12, 4, 3, generator=torch.Generator().manual_seed(0))
    waits = [features[:, step : step + 1].expand(-1, count, -1, -1) for step, count in ((0, 2), (3, 4), (11, 1))]
    paused = torch.cat([waits[0], features[:, :4], waits[1], features[:, 4:], waits[2]], dim=1)
    poisoned = torch.cat([features, torch.full((1, 7, 4, 3), 1e6)], dim=1)
    both = torch.cat([paused, poisoned]).flatten(1, 2)
    once = pool(features.flatten(1, 2), PatchGrid(12, 2, 2), torch.tensor([12]), "grid trajectory")
    found = pool(both, PatchGrid(19, 2, 2), torch.tensor([19, 12]), "grid trajectory")
    torch.testing.assert_close(found, once.expand(2, -1), atol=1e-5, rtol=1e-5)
    eighths = pool(both, PatchGrid(19, 2, 2), torch.tensor([19, 12]), "grid motion parts")
    assert (eighths[0] - eighths[1]).abs().max() > 0.1  # parts of equal time do


def test_trajectory_backwards_changes_the_order_of_the_pieces_only() -> None:
    features = torch.randn(1, 9, 4, 3, generator=torch.Generator().manual_seed(0))
    grid, steps = PatchGrid(9, 2, 2), torch.tensor([9])
    ahead, back = (pool(clip.flatten(1, 2), grid, steps, "grid trajectory") for clip in (features, features.flip(1)))
    torch.testing.assert_close(back.reshape(8, -1), ahead.reshape(8, -1).flip(0), atol=1e-5, rtol=1e-5)


def test_trajectory_of_what_stands_still_is_zero() -> None:
    still = torch.randn(1, 1, 4, 3, generator=torch.Generator().manual_seed(0)).expand(2, 6, 4, 3).flatten(1, 2)
    found = pool(still, PatchGrid(6, 2, 2), torch.tensor([6, 1]), "grid trajectory")
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-6, rtol=0)


def test_trajectory_has_the_gradients_of_finite_differences() -> None:
    features = torch.randn(1, 5 * 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float32) * 3
    weight = torch.randn(8 * 4 * 4, generator=torch.Generator().manual_seed(4))

    def value(rows: Tensor) -> Tensor:
        return (pool(rows, PatchGrid(5, 2, 2), torch.tensor([5]), "grid trajectory")[0] * weight).sum()

    leaf = features.clone().requires_grad_()
    value(leaf).backward()
    assert leaf.grad is not None
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    slope = (value(features + 1e-3 * direction) - value(features - 1e-3 * direction)) / 2e-3
    torch.testing.assert_close((leaf.grad * direction).sum(), slope, atol=1e-2, rtol=1e-2)
    still = torch.ones(1, 5 * 4, 2, requires_grad=True)
    value(still).backward()
    assert still.grad is not None and bool(torch.isfinite(still.grad).all())


def test_pooling_one_step_has_finite_gradients() -> None:
    features = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pool(features, PatchGrid(1, 2), torch.tensor([1]), "statistics").sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.ones(1, 2, 3))
