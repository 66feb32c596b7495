"""The classifier: poolings against the layers written out, padding, subsets of patches, gradients."""

import pytest
import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.models.classifier import Classifier
from bridle.nn.pooling import MOTIONS, Pooling, pool, pooled_width

GRID, WIDTH, CLASSES = PatchGrid(4, 3, 2), 8, 5
POOLINGS: tuple[Pooling, ...] = ("mean", "time", "statistics", "grid", "grid statistics")


def classifier(pooling: Pooling = "mean") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Classifier(pooling, WIDTH, GRID, CLASSES)
        torch.nn.init.normal_(made.norm.weight)
        torch.nn.init.normal_(made.norm.bias)
    return made


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_are_a_linear_map_of_the_normalised_pool(pooling: Pooling) -> None:
    net, features, steps = classifier(pooling), noise(3, 24, WIDTH), torch.tensor([4, 2, 1])
    found = net(features, GRID, steps)
    assert found.shape == (3, CLASSES) and found.dtype == torch.float32
    for clip in range(3):
        pooled = pool(features[clip : clip + 1], GRID, steps[clip : clip + 1], pooling)[0].double()
        assert len(pooled) == pooled_width(WIDTH, GRID, pooling)
        level = (pooled - pooled.mean()) / (pooled.var(correction=0) + 1e-5).sqrt()
        level = level * net.norm.weight.double() + net.norm.bias.double()
        expected = net.linear.weight.double() @ level + net.linear.bias.double()
        torch.testing.assert_close(found[clip].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_counts_and_a_clip_does_not_know_its_batch(pooling: Pooling) -> None:
    net, features, steps = classifier(pooling), noise(2, 24, WIDTH), torch.tensor([4, 2])
    poisoned = features.clone()
    poisoned[1, 12:] = 1e6
    torch.testing.assert_close(net(poisoned, GRID, steps), net(features, GRID, steps), atol=1e-4, rtol=1e-4)
    alone = net(features[1:, :12], PatchGrid(2, 3, 2), steps[1:])
    torch.testing.assert_close(net(features, GRID, steps)[1:], alone, atol=1e-5, rtol=1e-5)


def test_some_patches_are_pooled_by_their_mean() -> None:
    net, features = classifier(), noise(2, 24, WIDTH)
    everything = net.of_subset(features, Subset(None, None))
    torch.testing.assert_close(everything, net(features, GRID, torch.tensor([4, 4])), atol=1e-6, rtol=1e-5)
    valid = torch.zeros(2, 24, dtype=torch.bool)
    valid[0, :24], valid[1, :7] = True, True
    seen = features.clone()
    seen[1, 7:] = 1e6
    expected = torch.cat([net.of_subset(features[:1], Subset(None, None)), net.of_subset(features[1:, :7], Subset(None, None))])
    torch.testing.assert_close(net.of_subset(seen, Subset(None, valid)), expected, atol=1e-5, rtol=1e-5)
    padded = Subset.every(GRID, torch.tensor([4, 2]))
    torch.testing.assert_close(net.of_subset(features, padded), net(features, GRID, torch.tensor([4, 2])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_features_and_weights_and_an_empty_batch_has_none(pooling: Pooling) -> None:
    net, features = classifier(pooling), noise(2, 24, WIDTH).requires_grad_()
    net(features, GRID, torch.tensor([4, 2])).square().sum().backward()
    assert features.grad is not None and bool(features.grad[0].any())
    assert not features.grad[1, 12:].any()
    for value in (features, *net.parameters()):
        assert value.grad is not None and bool(torch.isfinite(value.grad).all()) and bool(value.grad.any())
    none = noise(0, 24, WIDTH).requires_grad_()
    out = net(none, GRID, torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, CLASSES)
    out.sum().backward()


def test_low_precision_features_give_float32_logits() -> None:
    net, features = classifier("statistics"), noise(2, 24, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(features.bfloat16(), GRID, torch.tensor([4, 4]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, net(features, GRID, torch.tensor([4, 4])), atol=0.1, rtol=0.1)


def test_a_new_one_knows_nothing_and_motions_are_refused() -> None:
    assert not Classifier("mean", WIDTH, GRID, CLASSES).linear.bias.detach().any()
    for pooling in MOTIONS:
        with pytest.raises(ConfigError, match=f"pooling='{pooling}' is for frozen features"):
            Classifier(pooling, WIDTH, GRID, CLASSES)
