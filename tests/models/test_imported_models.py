"""Encoders with the weights of transformers' models give their features; nothing is downloaded, weights are random."""

import pytest
import torch
from torch import Tensor, nn

from bridle.errors import RunError
from bridle.grid import Subset
from bridle.importing import Imported, read_encoder
from bridle.models.encoder import Encoder
from bridle.nn.patches import Patches, patchify

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

TOLERANCE = 1e-5


def randomised(model: nn.Module) -> nn.Module:
    """The model in eval mode with every trained tensor away from its first value, biases and norms too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                matrix = parameter.ndim > 1 and "embeddings.position" not in name and "token" not in name
                noise *= parameter[0].numel() ** -0.5 if matrix else 0.3
                parameter.copy_(noise + (parameter.ndim == 1 and "weight" in name))  # norms near 1
    return model.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def whole(imported: Imported, inputs: Tensor) -> tuple[Encoder, Patches]:
    """The encoder and the patches of (B, C, H, W) images or (B, C, T, H, W) clips."""
    clips = inputs[:, :, None] if inputs.ndim == 4 else inputs
    return imported.build(), patchify(clips, imported.config.patch)


@torch.no_grad()
def assert_equal(imported: Imported, inputs: Tensor, expected: Tensor, subset: Subset | None = None) -> None:
    encoder, patches = whole(imported, inputs)
    features = encoder(patches, Subset(None, None) if subset is None else subset)
    got = torch.cat([features.summary[:, None], features.patches], dim=1) if encoder.config.class_token else features.patches
    assert expected.abs().mean() > 0.1, "features that are all but 0 prove nothing"
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
DINO_SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 3}


def vit_mae(mask_ratio: float, **settings: int) -> nn.Module:
    config = transformers.ViTMAEConfig(**SIZES, mask_ratio=mask_ratio, **settings)
    model = transformers.ViTMAEModel(config)
    # transformers 5.23 passes over its own table of positions when a model is made from a config; loaded ones have it.
    vars(model.embeddings.patch_embeddings.projection).pop("_is_hf_initialized", None)
    model.embeddings.initialize_weights()
    return randomised(model)


@pytest.mark.parametrize(("image", "patch", "channels"), [(48, 16, 3), (40, 8, 1)])
@torch.no_grad()
def test_vit_mae(image: int, patch: int, channels: int) -> None:
    model = vit_mae(0.0, image_size=image, patch_size=patch, num_channels=channels)
    inputs, count = pixels(2, channels, image, image), (image // patch) ** 2
    out = model(inputs, noise=torch.rand(2, count, generator=torch.Generator().manual_seed(3)))
    places = out.ids_restore + 1  # MAE shuffles patches even when it hides none
    tokens = out.last_hidden_state
    expected = torch.cat([tokens[:, :1], tokens.gather(1, places[..., None].expand(-1, -1, 48))], dim=1)
    imported = read_encoder(model)
    assert (imported.family, imported.config.positions, imported.medium) == ("ViTMAE", "sine_cosine", "image")
    assert_equal(imported, inputs, expected)


@torch.no_grad()
def test_vit_mae_with_hidden_patches() -> None:
    model = vit_mae(0.75, image_size=48, patch_size=8)
    inputs, noise = pixels(2, 3, 48, 48), torch.rand(2, 36, generator=torch.Generator().manual_seed(3))
    visible = noise.argsort(dim=1)[:, :9]
    expected = model(inputs, noise=noise).last_hidden_state
    assert expected.shape == (2, 10, 48)
    assert_equal(read_encoder(model), inputs, expected, Subset(visible, None))


@torch.no_grad()
def test_vit_mae_at_another_resolution() -> None:
    model = vit_mae(0.0, image_size=48, patch_size=8)
    inputs, noise = pixels(1, 3, 64, 40), torch.arange(40.0)[None]
    expected = model(inputs, noise=noise, interpolate_pos_encoding=True).last_hidden_state
    assert_equal(read_encoder(model), inputs, expected)


@pytest.mark.parametrize(("image", "patch"), [((48, 48), 16), ((32, 64), 8), ((24, 60), (8, 12))])
@torch.no_grad()
def test_vit(image: tuple[int, int], patch: int | tuple[int, int]) -> None:
    config = transformers.ViTConfig(**SIZES, image_size=image, patch_size=patch, num_channels=2)
    model, inputs = randomised(transformers.ViTModel(config)), pixels(2, 2, *image)
    imported = read_encoder(model)
    assert (imported.family, imported.config.positions) == ("ViT", "learned")
    assert_equal(imported, inputs, model(inputs).last_hidden_state)


@torch.no_grad()
def test_vit_without_biases_of_query_key_and_value() -> None:
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, qkv_bias=False)
    model, inputs = randomised(transformers.ViTModel(config)), pixels(2, 3, 32, 32)
    imported = read_encoder(model)
    assert any("biases of key, query, value" in note for note in imported.notes)
    assert_equal(imported, inputs, model(inputs).last_hidden_state)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (40, 72), (16, 24)])
@torch.no_grad()
def test_dinov2_at_its_own_and_other_resolutions(size: tuple[int, int]) -> None:
    config = transformers.Dinov2Config(**DINO_SIZES, image_size=32, patch_size=8)
    model, inputs = randomised(transformers.Dinov2Model(config)), pixels(2, 3, *size)
    imported = read_encoder(model)
    assert (imported.family, imported.config.mlp_ratio, imported.config.layer_scale is not None) == ("DINOv2", 3.0, True)
    assert_equal(imported, inputs, model(inputs).last_hidden_state)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_videomae(masked: bool, pooled: bool) -> None:
    config = transformers.VideoMAEConfig(
        **SIZES, image_size=(32, 48), patch_size=16, num_frames=6, tubelet_size=2, use_mean_pooling=pooled, num_channels=2
    )
    model, inputs = randomised(transformers.VideoMAEModel(config)), pixels(2, 6, 2, 32, 48)
    imported, subset, hidden = read_encoder(model), None, None
    if masked:
        hidden = torch.zeros(2, 18, dtype=torch.bool)
        hidden[0, ::2] = hidden[1, 1::2] = True
        subset = Subset(torch.stack([(~row).nonzero()[:, 0] for row in hidden]), None)
    assert (imported.family, imported.medium, imported.config.final_norm) == ("VideoMAE", "video", not pooled)
    assert_equal(imported, inputs.transpose(1, 2), model(inputs, bool_masked_pos=hidden).last_hidden_state, subset)


@torch.no_grad()
def test_videomae_counts_its_positions_to_the_last_of_1568() -> None:
    config = transformers.VideoMAEConfig(**SIZES | {"num_hidden_layers": 1}, image_size=56, patch_size=4, num_frames=16)
    model, inputs = randomised(transformers.VideoMAEModel(config)), pixels(1, 16, 3, 56, 56)
    assert_equal(read_encoder(model), inputs.transpose(1, 2), model(inputs).last_hidden_state)


@pytest.mark.parametrize("kind", ["ViTMAE", "ViT", "VideoMAE", "Dinov2"])
@torch.no_grad()
def test_saved_models_and_models_with_heads_give_the_same_weights(kind: str, tmp_path) -> None:
    head = {"ViTMAE": "ForPreTraining", "VideoMAE": "ForPreTraining"}.get(kind, "ForImageClassification")
    sizes = dict(DINO_SIZES if kind == "Dinov2" else SIZES) | {"image_size": 32, "patch_size": 8}
    model = randomised(getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**sizes)))
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    in_memory, saved = read_encoder(model), read_encoder(tmp_path)
    assert in_memory.config == saved.config
    assert in_memory.weights.keys() == saved.weights.keys()
    for name, tensor in in_memory.weights.items():
        assert torch.equal(tensor, saved.weights[name]), name
    assert any(word in note for note in saved.notes for word in ("decoder", "heads"))


def test_layers_are_those_of_transformers() -> None:
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)
    model, inputs = randomised(transformers.ViTModel(config)), pixels(2, 3, 32, 32)
    encoder, patches = whole(read_encoder(model), inputs)
    with torch.no_grad():
        hidden = model(inputs, output_hidden_states=True).hidden_states
        for features, expected in zip(encoder.at_layers(patches, Subset(None, None), (1, 2)), hidden[1:3], strict=True):
            torch.testing.assert_close(features.patches, expected[:, 1:], atol=TOLERANCE, rtol=0)


def test_imported_weights_share_nothing_with_the_model() -> None:
    model = vit_mae(0.0, image_size=32, patch_size=8)
    imported = read_encoder(model)
    before = imported.weights["embed.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(imported.weights["embed.weight"], before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO_SIZES, use_swiglu_ffn=True)), "SwiGLU"),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, hidden_act="quick_gelu")), "activation 'quick_gelu'"),
        (lambda: transformers.DeiTModel(transformers.DeiTConfig(**SIZES)), "model_type 'deit'"),
        (
            lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**DINO_SIZES)),
            "model_type 'dinov2_with_registers'",
        ),
    ],
)
def test_models_that_an_encoder_cannot_be_are_refused(model, message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_encoder(model())
