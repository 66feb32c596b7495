"""Optimiser and random state: exact, by name, and refused when they belong to another model."""

import pytest
import torch
from torch import nn

from bridle.errors import ConfigError, RunError
from bridle.optim.groups import OptimConfig, build_adamw
from bridle.train.checkpoint import load_checkpoint, save_checkpoint
from bridle.train.packing import pack_optimizer, pack_rng, unpack_optimizer, unpack_rng


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 2)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def train(net, optimizer, steps):
    for step in steps:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


def make(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
    return net, build_adamw(net, OptimConfig(lr=0.01, weight_decay=0.1))


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def test_resumed_training_is_bit_equal(tmp_path):
    """3 steps, save, load into another network and optimiser, 3 more = 6 uninterrupted, dropout included."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        whole, whole_optimizer = make(0)
        train(whole, whole_optimizer, range(6))

        torch.manual_seed(7)
        net, optimizer = make(0)
        train(net, optimizer, range(3))
        tensors = {**pack_optimizer(optimizer, net.named_parameters()), **pack_rng()}
        path = save_checkpoint(tmp_path, 3, weights=net.state_dict(), optimizer=tensors, state={})

        torch.manual_seed(99)
        resumed, resumed_optimizer = make(1)
        checkpoint = load_checkpoint(path)
        resumed.load_state_dict(checkpoint.weights)
        unpack_optimizer(resumed_optimizer, resumed.named_parameters(), checkpoint.optimizer)
        unpack_rng(checkpoint.optimizer)
        train(resumed, resumed_optimizer, range(3, 6))

    assert_equal(resumed.state_dict(), whole.state_dict())
    packed = pack_optimizer(resumed_optimizer, resumed.named_parameters())
    assert_equal(packed, pack_optimizer(whole_optimizer, whole.named_parameters()))
    assert packed["first.weight/step"].item() == 6
    assert not any(name.startswith(("unused", "frozen")) for name in packed)


def test_names_not_order_decide():
    net, optimizer = make(0)
    train(net, optimizer, range(2))
    packed = pack_optimizer(optimizer, net.named_parameters())
    reverse = torch.optim.AdamW(list(net.parameters())[::-1])
    unpack_optimizer(reverse, net.named_parameters(), packed)
    assert_equal(pack_optimizer(reverse, net.named_parameters()), packed)


def test_unpacked_state_is_a_copy():
    net, optimizer = make(0)
    train(net, optimizer, range(2))
    packed = {name: tensor.clone() for name, tensor in pack_optimizer(optimizer, net.named_parameters()).items()}
    before = {name: tensor.clone() for name, tensor in packed.items()}
    unpack_optimizer(optimizer, net.named_parameters(), packed)
    train(net, optimizer, range(2))
    assert_equal(packed, before)


def test_settings_stay_and_old_state_goes():
    net, optimizer = make(0)
    train(net, optimizer, range(2))
    optimizer.param_groups[0]["lr"] = 0.5
    unpack_optimizer(optimizer, net.named_parameters(), {})
    assert pack_optimizer(optimizer, net.named_parameters()) == {}
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_state_of_another_model_is_refused():
    net, optimizer = make(0)
    with pytest.raises(RunError, match=r"'second\.weight', which is no trained parameter"):
        unpack_optimizer(optimizer, net.named_parameters(), {"second.weight/exp_avg": torch.zeros(1)})
    with pytest.raises(RunError, match=r"'first\.weight/exp_avg' has shape \(\), the parameter \(8, 4\)"):
        unpack_optimizer(optimizer, net.named_parameters(), {"first.weight/exp_avg": torch.zeros(())})


def test_unnamed_parameter_and_untensored_state_are_refused():
    net, optimizer = make(0)
    with pytest.raises(ConfigError, match="without a name"):
        pack_optimizer(optimizer, net.first.named_parameters())
    optimizer.state[net.first.weight]["step"] = 3
    with pytest.raises(ConfigError, match=r"'step' of 'first\.weight' is of type int"):
        pack_optimizer(optimizer, net.named_parameters())


def test_random_state_roundtrip():
    with torch.random.fork_rng():
        packed = pack_rng()
        first = torch.rand(5)
        unpack_rng({**packed, "first.weight/step": torch.ones(())})
        assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize("tensors", [{}, {"@rng/cpu": torch.zeros(3, dtype=torch.uint8)}, {"@rng/cpu": torch.zeros(9)}])
def test_missing_or_wrong_random_state(tensors):
    before = torch.get_rng_state()
    with pytest.raises(RunError, match="no usable random state"):
        unpack_rng(tensors)
    assert torch.equal(torch.get_rng_state(), before)
