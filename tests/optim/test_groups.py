"""Groups against a naive loop, AdamW against its formula, clipping against the definition."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from bridle.errors import ConfigError
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.optim.groups import OptimConfig, build_adamw, clip_gradients, layer_scale, parameter_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.ones(1, 1, 4))
        self.mask_token = nn.Parameter(torch.ones(4))
        self.relative_bias = nn.Parameter(torch.ones(3, 3))
        self.scale = nn.Parameter(torch.ones(()))
        self.to_tokens = nn.Linear(4, 4)
        self.norm1 = nn.LayerNorm((2, 4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.LayerNorm(4)])
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


DECAYED = {"to_tokens.weight", "blocks.0.weight"}
PLAIN = {
    "class_token", "mask_token", "relative_bias", "scale", "to_tokens.bias",
    "norm1.weight", "norm1.bias", "blocks.1.weight", "blocks.1.bias",
}  # fmt: skip


def grouped_names(module, groups):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_groups_name_by_name():
    net = Net()
    groups = parameter_groups(net.named_parameters(), 0.1)
    assert grouped_names(net, groups) == [DECAYED, PLAIN]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_groups_of_a_plain_network_match_the_naive_rule():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.Embedding(5, 4))
    naive = [[], []]
    for name, parameter in net.named_parameters():
        naive[int(parameter.ndim < 2 or name.endswith("bias"))].append(parameter)
    groups = parameter_groups(net.named_parameters(), 0.1)
    for group, expected in zip(groups, naive, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]


def test_empty_groups_are_left_out():
    groups = parameter_groups(nn.Linear(2, 2, bias=False).named_parameters(), 0.1)
    assert [len(group["params"]) for group in groups] == [1]


def test_nothing_to_train():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_adamw(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_adamw_takes_the_settings_and_is_fused_on_the_cpu():
    config = OptimConfig(lr=0.1, weight_decay=0.2, betas=(0.5, 0.6), eps=1e-3)
    optimizer = build_adamw(Net(), config)
    assert optimizer.defaults["fused"] is True
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.5, 0.6), 1e-3, decay)


def test_adamw_is_the_paper_formula():
    config = OptimConfig(lr=0.1, weight_decay=0.2, betas=(0.9, 0.95), eps=1e-8)
    net = nn.Linear(3, 2).double()
    weight, mean, square = net.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    optimizer = build_adamw(net, config)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 5):
        gradient = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        net.weight.grad, net.bias.grad = gradient.clone(), torch.zeros(2, dtype=torch.float64)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        weight = weight * (1 - 0.1 * 0.2)
        weight = weight - 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-12, atol=1e-12)


def test_found_inf_skips_the_step_on_the_device():
    net = nn.Linear(3, 2)
    optimizer = build_adamw(net, OptimConfig(lr=0.1))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert optimizer.state[parameter]["step"].item() == 0
        assert not optimizer.state[parameter]["exp_avg"].any()


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clipping(max_norm):
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    gradients = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([[4.0, 0.0], [0.0, -1.0]])]
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient.clone()
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    result = clip_gradients(iter(parameters), max_norm)
    assert result.shape == ()
    assert result.item() == pytest.approx(norm, rel=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=False):
        torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-5, atol=0)
    assert parameters[2].grad is None


def test_clipping_without_gradients():
    assert clip_gradients([nn.Parameter(torch.zeros(3))], 1.0).item() == 0.0


def test_clipping_reports_a_non_finite_norm():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, torch.inf])
    assert not torch.isfinite(clip_gradients([parameter], 1.0))


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_clipping_refuses_a_bad_limit(max_norm):
    with pytest.raises(ConfigError, match="max_norm is"):
        clip_gradients([], max_norm)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": -1.0},
        {"lr": math.inf},
        {"weight_decay": -1e-4},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9,)},
        {"eps": 0.0},
        {"clip_norm": math.nan},
        {"warmup_ratio": 1.5},
    ],
)
def test_config_out_of_range(change):
    (name,) = change
    with pytest.raises(ConfigError, match=f"{name} is"):
        OptimConfig(**change)


def beit_layer(name, depth):
    """Number of the layer of a parameter as BEiT counts them: 0 before the blocks, then 1 to ``depth``, then ``depth + 1``."""
    if name.startswith(("encoder.embed", "encoder.class_token", "encoder.position_table", "encoder.input_norm")):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


@pytest.mark.parametrize(("depth", "decay"), [(1, 0.5), (3, 0.75), (12, 0.65), (3, 1.0)])
def test_layer_decay_is_the_formula_of_beit(depth, decay):
    config = EncoderConfig(
        width=16, depth=depth, heads=2, positions="learned", position_grid=(4, 8, 1), input_norm=True, layer_scale=0.1
    )
    net = nn.ModuleDict({"encoder": Encoder(config), "classifier": nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))})
    seen = set()
    for name, _ in net.named_parameters():
        layer = beit_layer(name, depth)
        seen.add(layer)
        values = [decay ** (depth + 1 - i) for i in range(depth + 2)]
        assert layer_scale(name, depth, decay) == pytest.approx(values[layer], rel=1e-12), name
    assert seen == set(range(depth + 2))
    assert layer_scale("encoder.norm.weight", depth, decay) == layer_scale("classifier.0.weight", depth, decay) == 1.0
    assert layer_scale("encoder.relative.biases", depth, decay) == 1.0  # shared by all blocks, as BEiT has it


def test_groups_hold_every_parameter_once_apart_by_rate_and_decay():
    net = nn.ModuleDict({"encoder": Encoder(EncoderConfig(width=16, depth=2, heads=2)), "classifier": nn.Linear(16, 3)})
    scale = partial(layer_scale, depth=2, decay=0.5)
    groups = parameter_groups(net.named_parameters(), 0.1, scale)
    names = grouped_names(net, groups)
    assert sorted(name for group in names for name in group) == sorted(name for name, _ in net.named_parameters())
    assert len({(group["weight_decay"], group["lr_scale"]) for group in groups}) == len(groups) == 8
    plain = parameter_groups(net.named_parameters(), 0.1)
    for group, members in zip(groups, names, strict=True):
        assert {scale(name) for name in members} == {group["lr_scale"]}
        assert members <= grouped_names(net, plain)[0 if group["weight_decay"] else 1]
    decays = [group["weight_decay"] for group in groups]
    assert decays == sorted(decays, reverse=True)
    assert [group["lr_scale"] for group in plain] == [1.0, 1.0]


def test_scales_reach_the_optimiser_and_survive_its_state():
    net = nn.ModuleDict({"encoder": Encoder(EncoderConfig(width=16, depth=2, heads=2)), "classifier": nn.Linear(16, 3)})
    first, second = (build_adamw(net, OptimConfig(lr=0.1), partial(layer_scale, depth=2, decay=0.5)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    scales = {group["lr_scale"] for group in second.param_groups}
    assert scales == {0.125, 0.25, 0.5, 1.0}
