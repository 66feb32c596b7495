"""Stochastic depth: which blocks add what to which clip, against blocks and encoders written out."""

import pytest
import torch
from torch import Tensor

from bridle.grid import PatchGrid, Subset
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.nn.block import Block, draw_drop_path
from bridle.nn.patches import Patches
from bridle.randomness import counter_uniform

DEPTH, RATE = 5, 0.4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_factors_equal_a_loop() -> None:
    seeds = torch.tensor([3, 70, 2**60])
    found = draw_drop_path(seeds, DEPTH, RATE)
    assert found.shape == (DEPTH, 2, 3) and found.dtype == torch.float32
    draws = counter_uniform(seeds, 2 * DEPTH, -5)
    for block in range(DEPTH):
        stay = 1 - RATE * block / (DEPTH - 1)
        for branch in range(2):
            for clip in range(3):
                kept = float(draws[clip, 2 * block + branch]) < stay
                assert float(found[block, branch, clip]) == pytest.approx(1 / stay if kept else 0.0)


def test_the_chance_rises_linearly_and_the_mean_stays_one() -> None:
    found = draw_drop_path(torch.arange(6000), DEPTH, RATE)
    for block in range(DEPTH):
        for branch in found[block]:
            assert float((branch == 0).float().mean()) == pytest.approx(RATE * block / (DEPTH - 1), abs=0.03)
            assert float(branch.mean()) == pytest.approx(1.0, abs=0.05)
    assert bool((found[0] == 1).all())
    both = (found[-1, 0] == 0) & (found[-1, 1] == 0)
    assert float(both.float().mean()) == pytest.approx(RATE**2, abs=0.02)  # attention and MLP on their own


def test_a_clips_factors_depend_on_its_seed_alone() -> None:
    seeds, before = torch.arange(30) * 7919, torch.get_rng_state()
    together = draw_drop_path(seeds, DEPTH, RATE)
    for clip in (0, 11, 29):
        assert torch.equal(draw_drop_path(seeds[clip : clip + 1], DEPTH, RATE)[..., 0], together[..., clip])
    assert torch.equal(draw_drop_path(seeds.flip(0), DEPTH, RATE), together.flip(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_edges() -> None:
    assert draw_drop_path(torch.zeros(0, dtype=torch.int64), DEPTH, RATE).shape == (DEPTH, 2, 0)
    assert torch.equal(draw_drop_path(torch.arange(9), 1, 0.9), torch.ones(1, 2, 9))
    assert torch.equal(draw_drop_path(torch.arange(9), DEPTH, 0.0), torch.ones(DEPTH, 2, 9))
    last = draw_drop_path(torch.arange(9), 2, 0.5)[1]
    assert set(last.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("norm", ["pre", "post", "deep"])
def test_a_block_multiplies_what_its_branches_add(norm: str, scale: float | None) -> None:
    block, x = Block(16, 2, 2.0, norm, layer_scale=scale, residual=1.7), noise(3, 5, 16)  # type: ignore[arg-type]
    kept = torch.tensor([[0.0, 2.0, 1.0], [0.5, 0.0, 1.0]])
    found = block(x, None, None, kept)
    residual, weight = 1.7 if norm == "deep" else 1.0, 1.0 if scale is None else scale
    for clip in range(3):
        one = x[clip : clip + 1]
        first, second = kept[:, clip].tolist()
        if norm == "pre":
            seen = block.norm1(one)
            between = one + first * weight * block.attention(seen, seen, None)
            expected = between + second * weight * block.mlp(block.norm2(between))
        else:
            between = block.norm1(residual * one + first * weight * block.attention(one, one, None))
            expected = block.norm2(residual * between + second * weight * block.mlp(between))
        torch.testing.assert_close(found[clip : clip + 1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block(x, None, None, torch.ones(2, 3)), block(x, None))
    if norm == "pre":
        assert torch.equal(block(x, None, None, torch.zeros(2, 3)), x)


def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(EncoderConfig(width=16, depth=3, heads=2, patch=(4, 4, 1)))


def test_an_encoder_passes_over_blocks_clip_by_clip() -> None:
    net, grid = encoder(), PatchGrid(3, 2)
    patches, every = Patches(noise(3, 6, 16), grid), Subset.every(grid, torch.tensor([3, 2, 3]))
    kept = torch.ones(3, 2, 3)
    kept[1, :, 0] = 0  # clip 0 without block 1
    kept[:, :, 1] = 0  # clip 1 without any
    found = net(patches, every, kept)
    whole = net(patches, every)
    torch.testing.assert_close(found.patches[2], whole.patches[2])
    torch.testing.assert_close(found.summary[2], whole.summary[2])
    short = encoder()
    short.blocks = torch.nn.ModuleList([short.blocks[0], short.blocks[2]])
    short.config = EncoderConfig(width=16, depth=2, heads=2, patch=(4, 4, 1))
    torch.testing.assert_close(found.patches[0], short(patches, every).patches[0], atol=1e-6, rtol=1e-5)
    bare = encoder()
    bare.blocks = torch.nn.ModuleList(Block(16, 2, 4.0, layer_scale=0.0) for _ in range(3))
    torch.testing.assert_close(found.patches[1], bare(patches, every).patches[1], atol=1e-6, rtol=1e-5)


def test_factors_of_one_change_no_layer_and_gradients_skip_what_is_dropped() -> None:
    net, grid = encoder(), PatchGrid(3, 2)
    patches, every = Patches(noise(2, 6, 16), grid), Subset.every(grid, torch.tensor([3, 3]))
    plain, with_ones = (net.at_layers(patches, every, (1, 2, 3), kept) for kept in (None, torch.ones(3, 2, 2)))
    for one, other in zip(plain, with_ones, strict=True):
        torch.testing.assert_close(one.patches, other.patches)
    kept = torch.ones(3, 2, 2)
    kept[1] = 0
    net(patches, every, kept).patches.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()) == (not name.startswith("blocks.1.")), name
