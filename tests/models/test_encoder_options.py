"""The encoder's options for weights trained elsewhere: invariances, gradients, and settings without them."""

from dataclasses import replace

import pytest
import torch

from bridle.config import fingerprint, from_dict, to_dict
from bridle.data.audio import AudioConfig
from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.media.fbank import FbankConfig
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.networks import model_fingerprint
from bridle.nn.patches import Patches, patchify
from bridle.recipes import recipe

PLAIN = EncoderConfig(width=32, depth=2, heads=2, patch=(4, 4, 1))
OPTIONS = {
    "learned": replace(PLAIN, positions="learned", position_grid=(6, 4, 1)),
    "learned and stretched": replace(PLAIN, positions="learned", position_grid=(6, 3, 1)),
    "sequence": replace(PLAIN, positions="sequence"),
    "sequence and stretched": replace(PLAIN, positions="sequence", position_grid=(6, 5, 1)),
    "sine-cosine and stretched": replace(PLAIN, position_grid=(6, 5, 1)),
    "no class token": replace(PLAIN, class_token=False, final_norm=False),
    "post-norm": replace(PLAIN, block_norm="post", input_norm=True, final_norm=False, norm_eps=1e-6),
    "deep norm": replace(PLAIN, block_norm="deep"),
    "convolved": replace(PLAIN, positions="convolved", position_kernel=(8, 4), class_token=False),
    "by distance": replace(PLAIN, relative_positions=(8, 20), class_token=False),
    "normalised patches": replace(PLAIN, embed_width=24),
    "layer scale": replace(PLAIN, layer_scale=0.5),
    "post-norm with layer scale": replace(PLAIN, block_norm="post", layer_scale=0.5),
}
options = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)


def clip(batch: int, steps: int, seed: int = 0) -> Patches:
    inputs = torch.randn(batch, 1, 4 * steps, 16, 1, generator=torch.Generator().manual_seed(seed))
    return patchify(inputs, PLAIN.patch)


def build(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    if encoder.position_table is not None:
        torch.nn.init.normal_(encoder.position_table)
    return encoder


@options
def test_the_option_changes_the_features(config: EncoderConfig) -> None:
    patches, subset = clip(2, 5), Subset(None, None)
    plain, other = (build(c)(patches, subset).patches for c in (PLAIN, config))
    assert (plain - other).abs().mean() > 1e-2


@options
def test_every_parameter_has_a_gradient(config: EncoderConfig) -> None:
    encoder = build(config)
    indices = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(i))[:12] for i in range(4)])
    features = encoder(clip(4, 6), Subset(indices, None))
    noise = torch.randn(features.patches.shape, generator=torch.Generator().manual_seed(9))
    ((features.patches * noise).sum() + features.summary.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@options
def test_a_subset_has_the_positions_of_its_patches(config: EncoderConfig) -> None:
    encoder, patches = build(config), clip(2, 5)
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i)) for i in (1, 2)])
    every, shuffled = encoder(patches, Subset(None, None)), encoder(patches, Subset(order, None))
    expected = every.patches.gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(shuffled.patches, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(shuffled.summary, every.summary, atol=1e-5, rtol=0)


@options
def test_hidden_patches_do_not_leak(config: EncoderConfig) -> None:
    encoder, patches = build(config), clip(1, 5)
    changed = patches.values.clone()
    changed[:, 5] = 99.0
    subset = Subset(torch.tensor([[3, 17, 8, 1]]), None)
    a, b = encoder(patches, subset), encoder(Patches(changed, patches.grid), subset)
    assert torch.equal(a.patches, b.patches)
    assert torch.equal(a.summary, b.summary)


@options
def test_padding_changes_no_feature(config: EncoderConfig) -> None:
    encoder, short, long = build(config), clip(1, 3), clip(1, 5, seed=1)
    padded = torch.cat([torch.nn.functional.pad(short.values, (0, 0, 0, 8), value=1e3), long.values])
    grid = PatchGrid(5, 4)
    together = encoder(Patches(padded, grid), Subset.every(grid, torch.tensor([3, 5])))
    alone = encoder(short, Subset(None, None))
    torch.testing.assert_close(together.patches[0, :12], alone.patches[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.summary[0], alone.summary[0], atol=1e-5, rtol=0)


@options
def test_settings_survive_plain_data(config: EncoderConfig) -> None:
    assert from_dict(EncoderConfig, to_dict(config)) == config


def test_models_made_before_an_option_keep_their_fingerprint() -> None:
    assert fingerprint(EncoderConfig()) == "dfa46715aae2ebac"
    assert fingerprint(AudioConfig()) == "612e3545a745ab9c"
    assert fingerprint(replace(PLAIN, embed_width=24)) != fingerprint(PLAIN)
    assert fingerprint(replace(AudioConfig(), fbank=FbankConfig(window="povey"))) != fingerprint(AudioConfig())
    models = {"audio-debug": "99d3d2a98d4ad4e2", "image-debug": "9595e0497447078c", "video-debug": "95e35daf4f52e6ac"}
    assert {name: model_fingerprint(recipe(name), {"a": torch.zeros(2)}) for name in models} == models


def test_settings_written_before_the_options_are_todays_defaults() -> None:
    old = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 4.0, "patch": [4, 4, 1], "channels": 1, "axes": ["time", "height"]}
    assert from_dict(EncoderConfig, old) == PLAIN
    assert not {"position_table", "input_norm.weight", "blocks.0.scale1"} & build(PLAIN).state_dict().keys()


def test_the_summary_without_a_class_token_is_the_mean_of_the_valid_patches() -> None:
    encoder, grid = build(OPTIONS["no class token"]), PatchGrid(5, 4)
    features = encoder(clip(2, 5), Subset.every(grid, torch.tensor([3, 5])))
    torch.testing.assert_close(features.summary[0], features.patches[0, :12].mean(0))
    torch.testing.assert_close(features.summary[1], features.patches[1].mean(0))


def test_learned_positions_end_with_their_table() -> None:
    encoder = build(OPTIONS["learned"])
    assert encoder(clip(1, 6), Subset(None, None)).patches.shape == (1, 24, 32)
    with pytest.raises(ConfigError, match="positions are learned for 6 time steps, not 7; use shorter clips"):
        encoder(clip(1, 7), Subset(None, None))


def test_each_learned_position_has_the_gradient_of_its_patch_alone() -> None:
    encoder = build(OPTIONS["learned"])
    encoder(clip(2, 5), Subset(torch.tensor([[3, 17, 8], [3, 0, 1]]), None)).patches.square().sum().backward()
    assert encoder.position_table is not None
    assert encoder.position_table.grad is not None
    assert encoder.position_table.grad.abs().sum(1).nonzero()[:, 0].tolist() == [0, 1, 3, 8, 17]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": "learned"}, "encoder.positions=learned needs encoder.position_grid"),
        ({"position_grid": (1, 0, 4)}, "must be 1 or more"),
        ({"norm_eps": 0.0}, "encoder.norm_eps=0.0 must be above 0"),
        ({"embed_width": 0}, "must be 1 or more"),
        ({"positions": "convolved"}, "class_token must be False"),
        ({"relative_positions": (8, 20)}, "class_token must be False"),
        ({"positions": "convolved", "class_token": False, "position_kernel": (128, 5)}, "its groups must divide width=32"),
        ({"relative_positions": (320, 80), "class_token": False}, "a largest distance of more than a quarter"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAIN, **settings)
