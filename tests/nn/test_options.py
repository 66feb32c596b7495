"""Positions by number, stretched positions, and the other kinds of block, against naive references."""

import math

import pytest
import torch
from reference.state_dicts import bucket
from torch import Tensor

from bridle.grid import PatchGrid
from bridle.nn.block import Block
from bridle.nn.positions import sequence, stretch
from bridle.nn.relative import distance_buckets


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [8, 7])
def test_sequence_equals_its_formula_up_to_large_numbers(width: int) -> None:
    got = sequence(PatchGrid(8, 14, 14), width)
    assert got.dtype == torch.float32
    for n in (0, 1, 700, 1567):
        for channel in range(width):
            angle = n / 10000 ** (2 * (channel // 2) / width)
            assert got[n, channel].item() == pytest.approx(math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-7)


def test_a_longer_sequence_goes_on() -> None:
    assert torch.equal(sequence(PatchGrid(3, 4), 16), sequence(PatchGrid(9, 4), 16)[:12])


def test_stretching_to_the_same_grid_changes_nothing() -> None:
    table = noise(12, 5)
    assert stretch(table, PatchGrid(2, 3, 2), 3, 2) is table


def test_stretched_steps_do_not_see_each_other() -> None:
    grid, table = PatchGrid(3, 4, 2), noise(24, 5)
    together = stretch(table, grid, 7, 5).reshape(3, 35, 5)
    for step in range(3):
        torch.testing.assert_close(together[step], stretch(table.reshape(3, 8, 5)[step], PatchGrid(1, 4, 2), 7, 5))


def test_stretching_keeps_constants_and_turns_with_the_grid() -> None:
    constant = torch.full((6, 2), 0.7)
    torch.testing.assert_close(stretch(constant, PatchGrid(1, 3, 2), 5, 5), torch.full((25, 2), 0.7))
    table = noise(12, 3)
    turned = table.reshape(4, 3, 3).transpose(0, 1).reshape(12, 3)
    a = stretch(table, PatchGrid(1, 4, 3), 6, 5).reshape(6, 5, 3)
    b = stretch(turned, PatchGrid(1, 3, 4), 5, 6).reshape(5, 6, 3)
    torch.testing.assert_close(a, b.transpose(0, 1))


def test_stretching_has_the_gradient_of_a_linear_map() -> None:
    table = noise(6, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: stretch(t, PatchGrid(1, 3, 2), 4, 3), (table,))


def test_a_post_norm_block_normalises_its_sums() -> None:
    block, x = Block(16, 2, 2.0, norm="post", norm_eps=1e-3), noise(2, 5, 16)
    assert block.norm1.eps == block.norm2.eps == 1e-3
    between = block.norm1(x + block.attention(x, x, None))
    expected = block.norm2(between + block.mlp(between))
    torch.testing.assert_close(block(x, None), expected)
    torch.testing.assert_close(expected.mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layer_scale_is_a_factor_on_the_last_matrices(norm: str) -> None:
    torch.manual_seed(0)
    scaled, folded, x = Block(16, 2, 2.0, norm, layer_scale=0.3), Block(16, 2, 2.0, norm), noise(2, 5, 16)  # type: ignore[arg-type]
    state = scaled.state_dict()
    scale1, scale2 = state.pop("scale1"), state.pop("scale2")
    assert torch.equal(scale1, torch.full((16,), 0.3))
    for name, scale in (("attention.out", scale1), ("mlp.2", scale2)):
        state[f"{name}.weight"], state[f"{name}.bias"] = scale[:, None] * state[f"{name}.weight"], scale * state[f"{name}.bias"]
    folded.load_state_dict(state)
    torch.testing.assert_close(scaled(x, None), folded(x, None))


def test_a_block_scaled_by_nothing_is_the_identity() -> None:
    x = noise(2, 5, 16)
    assert torch.equal(Block(16, 2, 2.0, layer_scale=0.0)(x, None), x)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 128), (8, 20), (4, 2)])
def test_distances_are_classed_as_by_transformers(num_buckets: int, max_distance: int) -> None:
    transformers = pytest.importorskip("transformers.models.wavlm.modeling_wavlm", reason="transformers is not installed")
    theirs = transformers.WavLMAttention(8, 2, num_buckets=num_buckets, max_distance=max_distance)
    ahead = torch.arange(-2000, 2001)
    assert torch.equal(distance_buckets(ahead, num_buckets, max_distance), theirs._relative_positions_bucket(ahead))
    for one in (-1999, -801, -80, -7, 0, 1, 3, 81, 799, 1500):
        assert int(distance_buckets(torch.tensor(one), num_buckets, max_distance)) == bucket(one, num_buckets, max_distance)
