"""Encoder and predictor: padding changes nothing, any grid, order of patches, gradients."""

import pytest
import torch

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.masking import MaskConfig, draw_masks
from bridle.models.encoder import Encoder, EncoderConfig, Features
from bridle.models.predictor import CodeHead, Predictor, PredictorConfig, window_mask
from bridle.nn.patches import Patches, patchify
from bridle.nn.positions import sine_cosine

CONFIG = EncoderConfig(width=32, depth=2, heads=2, patch=(4, 4, 1))


def clip(batch: int, steps: int, seed: int = 0) -> Patches:
    inputs = torch.randn(batch, 1, 4 * steps, 16, 1, generator=torch.Generator().manual_seed(seed))
    return patchify(inputs, CONFIG.patch)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_any_length_works(encoder: Encoder, steps: int) -> None:
    features = encoder(clip(2, steps), Subset(None, None))
    assert features.patches.shape == (2, 4 * steps, 32)
    assert features.summary.shape == (2, 32)


def test_layers_are_the_blocks_outputs_and_the_last_one_is_normed(encoder: Encoder) -> None:
    patches = clip(2, 3)
    x = encoder.embed(patches.values) + sine_cosine(patches.grid, 32, CONFIG.axes, torch.device("cpu"))
    x = torch.cat([encoder.class_token.expand(2, 1, -1), x], dim=1)
    first = encoder.blocks[0](x, None)
    second = encoder.norm(encoder.blocks[1](first, None))
    last, lower = encoder.at_layers(patches, Subset(None, None), (2, 1))
    for features, expected in ((lower, first), (last, second), (encoder(patches, Subset(None, None)), second)):
        torch.testing.assert_close(features.patches, expected[:, 1:])
        torch.testing.assert_close(features.summary, expected[:, 0])
    for layers, message in (((0,), "layer 0 does not exist"), ((3,), "has layers 1 to 2"), ((), "no layer is asked for")):
        with pytest.raises(ConfigError, match=message):
            encoder.at_layers(patches, Subset(None, None), layers)


def test_video_and_image_use_the_same_class() -> None:
    video = EncoderConfig(width=36, depth=1, heads=2, patch=(2, 4, 4), channels=3, axes=("time", "height", "width"))
    image = EncoderConfig(width=36, depth=1, heads=2, patch=(1, 4, 4), channels=3, axes=("height", "width"))
    for config, size in ((video, (4, 8, 8)), (image, (1, 8, 8))):
        patches = patchify(torch.randn(2, 3, *size), config.patch)
        assert Encoder(config)(patches, Subset(None, None)).patches.shape == (2, patches.grid.num_patches, 36)


def test_padding_changes_no_feature(encoder: Encoder) -> None:
    short, long = clip(1, 3), clip(1, 5, seed=1)
    padded = torch.cat([torch.nn.functional.pad(short.values, (0, 0, 0, 8), value=1e3), long.values])
    grid = PatchGrid(5, 4)
    together = encoder(Patches(padded, grid), Subset.every(grid, torch.tensor([3, 5])))
    alone = encoder(short, Subset(None, None))
    torch.testing.assert_close(together.patches[0, :12], alone.patches[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.summary[0], alone.summary[0], atol=1e-5, rtol=1e-5)


def test_the_order_of_visible_patches_does_not_matter(encoder: Encoder) -> None:
    patches = clip(1, 5)
    indices = torch.tensor([[3, 17, 8, 1]])
    order = torch.tensor([2, 0, 3, 1])
    a = encoder(patches, Subset(indices, None))
    b = encoder(patches, Subset(indices[:, order], None))
    torch.testing.assert_close(a.patches[:, order], b.patches, atol=1e-5, rtol=1e-5)


def test_all_indices_equal_the_whole_clip(encoder: Encoder) -> None:
    patches = clip(2, 4)
    every = torch.arange(16).expand(2, -1)
    a, b = encoder(patches, Subset(every, None)), encoder(patches, Subset(None, None))
    torch.testing.assert_close(a.patches, b.patches)


def test_hidden_patches_do_not_leak(encoder: Encoder) -> None:
    patches = clip(1, 5)
    indices = torch.tensor([[3, 17, 8, 1]])
    changed = patches.values.clone()
    changed[:, 5] = 99.0
    a, b = encoder(patches, Subset(indices, None)), encoder(Patches(changed, patches.grid), Subset(indices, None))
    assert torch.equal(a.patches, b.patches)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads=5"):
        EncoderConfig(width=32, heads=5)


@pytest.mark.parametrize(
    "config",
    [PredictorConfig("cross", 16, 2, 2), PredictorConfig("full", 16, 2, 2), PredictorConfig("full", 16, 2, 2, window=1)],
)
def test_predictor_ignores_padding_and_keeps_its_shape(config: PredictorConfig) -> None:
    torch.manual_seed(0)
    predictor, head = Predictor(config, 32, CONFIG.axes).eval(), CodeHead(16, 3, 7)
    grid, steps = PatchGrid(6, 4), torch.tensor([6, 3])
    masks = draw_masks(MaskConfig(mask_ratio=0.5), grid, steps, torch.tensor([1, 2]))
    features = torch.randn(2, masks.visible.indices.shape[1], 32)  # type: ignore[union-attr]
    out = predictor(Features(torch.ones(2, 32), features), grid, masks.visible, masks.predicted)
    assert head(out).shape == (2, 12, 3, 7)
    visible, masked = (s.indices[1:, s.valid[1]] for s in (masks.visible, masks.predicted))  # type: ignore[index,union-attr]
    alone = predictor(
        Features(torch.ones(1, 32), features[1:, : visible.shape[1]]), grid, Subset(visible, None), Subset(masked, None)
    )
    torch.testing.assert_close(out[1, : masked.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


def test_window_mask_against_a_loop() -> None:
    places = PatchGrid(4, 3).coordinates()[None]
    got = window_mask(places, 1)[0]
    for i, a in enumerate(places[0].tolist()):
        for j, b in enumerate(places[0].tolist()):
            assert bool(got[i, j]) == (max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1)


def test_cross_predictor_has_no_window() -> None:
    with pytest.raises(ConfigError, match="window=2"):
        PredictorConfig("cross", window=2)
