"""Reading weights of other code bases: which family, what is left out, what is refused.

State dicts are made up: names and shapes as in the published code, small widths, random values.
"""

import argparse
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference.state_dicts import (
    DEPTH,
    HEADS,
    WIDTH,
    affine,
    beats,
    blocks,
    eat,
    mae,
    naive,
    naive_beats,
    norm,
    random,
    sine_table,
)
from torch import Tensor

from bridle.errors import ConfigError, RunError
from bridle.grid import Subset
from bridle.importing import Imported, read_encoder
from bridle.nn.patches import patchify


@torch.no_grad()
def features(imported: Imported, clips: Tensor) -> Tensor:
    """(B, 1 + N, D) of clips (B, C, T, H, W)."""
    found = imported.build()(patchify(clips, imported.config.patch), Subset(None, None))
    return torch.cat([found.summary[:, None], found.patches], dim=1)


def test_mae_gives_the_features_of_its_formulas() -> None:
    state, picture = mae(), random(2, 3, 12, 12) * 3
    imported = read_encoder(state, heads=HEADS)
    assert (imported.family, imported.medium, imported.size) == ("MAE", "image", (1, 12, 12))
    assert (imported.config.positions, imported.config.position_grid) == ("sine_cosine", (1, 3, 3))
    assert imported.mean == (0.485, 0.456, 0.406)
    torch.testing.assert_close(features(imported, picture[:, :, None]), naive(state, picture, post=False), atol=1e-5, rtol=0)
    left_out = " ".join(imported.notes)
    assert "the decoder, in whose place a predictor is trained; 19 tensors" in left_out
    assert "the token of masked patches, which this encoder does not see; 'mask_token'" in left_out


def test_audio_mae_as_it_was_published_keeps_its_turned_table() -> None:
    state = mae(channels=1, patch=16, table=sine_table(8, 6))  # its code counts 8 rows of 6, its patches lie in 6 rows of 8
    imported, fbank = read_encoder(state, heads=HEADS), random(2, 1, 96, 128) * 3
    assert (imported.family, imported.medium, imported.size) == ("AudioMAE", "audio", (96, 128, 1))
    assert (imported.config.positions, imported.config.position_grid) == ("learned", (6, 8, 1))
    assert (imported.mean, imported.std) == ((-4.2677393,), (4.5689974,))
    assert any("8 rows of 6 patches, though the patches lie in 6 rows" in note for note in imported.notes)
    torch.testing.assert_close(features(imported, fbank[..., None]), naive(state, fbank, post=False), atol=1e-5, rtol=0)


def test_audio_mae_with_positions_of_its_patches_takes_any_length() -> None:
    state = mae(channels=1, patch=16, table=sine_table(6, 8))
    imported, fbank = read_encoder(state, heads=HEADS), random(2, 1, 160, 128) * 3
    assert (imported.config.positions, imported.config.position_grid) == ("sine_cosine", None)
    longer = state | {"pos_embed": F.pad(sine_table(10, 8), (0, 0, 1, 0))[None]}
    torch.testing.assert_close(features(imported, fbank[..., None]), naive(longer, fbank, post=False), atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", ["fairseq", "hub"])
def test_eat_gives_the_features_of_its_formulas(names: str) -> None:
    state, fbank = eat(), random(2, 1, 96, 128) * 3
    front = "modality_encoders.IMAGE."
    plain = {
        name.replace(f"{front}local_encoder", "patch_embed").replace(f"{front}context_encoder.norm", "norm"): tensor
        for name, tensor in state.items()
    }
    plain |= {"cls_token": state[f"{front}extra_tokens"], "pos_embed": state[f"{front}fixed_positional_encoder.positions"]}
    if names == "hub":
        kept = {name: tensor for name, tensor in state.items() if "decoder" not in name}
        state = {f"model.{name}".replace(front, "").replace("context_encoder.norm", "pre_norm"): t for name, t in kept.items()}
    imported = read_encoder(state, heads=HEADS)
    assert (imported.family, imported.medium, imported.size) == ("EAT", "audio", (96, 128, 1))
    assert (imported.config.block_norm, imported.config.input_norm, imported.config.final_norm) == ("post", True, False)
    assert imported.config.positions == "sine_cosine"
    torch.testing.assert_close(features(imported, fbank[..., None]), naive(plain, fbank, post=True), atol=1e-5, rtol=0)


def test_weights_without_a_last_norm_are_told() -> None:
    state = {name: tensor for name, tensor in mae().items() if not name.startswith("norm.")}
    assert any("no last norm" in note for note in read_encoder(state, heads=HEADS).notes)
    assert not any("no last norm" in note for source in (mae(), eat()) for note in read_encoder(source, heads=HEADS).notes)


def test_the_teacher_and_the_heads_of_a_checkpoint_are_told(tmp_path: Path) -> None:
    state = eat() | affine("recon_proj", WIDTH, 5)
    torch.save({"model": state | {"_ema": eat()}, "extra": 1, "args": argparse.Namespace(lr=0.1)}, tmp_path / "eat.pt")
    imported = read_encoder(tmp_path / "eat.pt", heads=HEADS)
    notes = " ".join(imported.notes)
    assert "left out: the moving-average teacher; " in notes
    assert "left out: heads; 2 tensors, 'recon_proj.weight' and so on" in notes
    assert torch.equal(imported.weights["blocks.1.mlp.0.weight"], state["blocks.1.mlp.fc1.weight"])


def test_fine_tuned_eat_and_ddp_prefixes() -> None:
    for prefix in ("model.", "module."):
        imported = read_encoder(eat(prefix) | affine("head", WIDTH, 5) | norm("fc_norm"), heads=HEADS)
        assert imported.family == "EAT"
        assert any("norm of pooled features" in note for note in imported.notes)


def test_beats_gives_the_features_of_its_formulas() -> None:
    state, fbank = beats(), random(2, 1, 96, 128) * 3
    imported = read_encoder(state)
    assert (imported.family, imported.medium, imported.size) == ("BEATs", "audio", (1024, 128, 1))
    assert (imported.mean, imported.std) == ((15.41663,), (6.55582,))
    assert (imported.fbank.window, imported.fbank.full_scale) == ("povey", 32768)
    config = imported.config
    assert (config.heads, config.embed_width, config.position_kernel) == (HEADS, 16, (128, 16))
    expected = naive_beats(state, fbank, 800, deep=True)
    found = features(imported, fbank[..., None])
    torch.testing.assert_close(found[:, 1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0], expected.mean(1), atol=1e-5, rtol=0)
    notes = " ".join(imported.notes)
    assert "left out: heads; 2 tensors, 'predictor.weight' and so on" in notes
    assert "deep norm, distances up to 800: as the published models have; weights do not tell" in notes
    assert "biases of patches: there are none, so they begin at 0" in notes


@pytest.mark.parametrize("deep", [True, False])
def test_beats_checkpoints_tell_their_settings(tmp_path: Path, deep: bool) -> None:
    state, fbank = beats(kernel=7, num_buckets=16), random(2, 1, 160, 128) * 3
    cfg = {"deep_norm": deep, "layer_norm_first": False, "max_distance": 30, "activation_fn": "gelu"}
    torch.save({"cfg": cfg, "model": state | {"quantize.embedding.weight": random(4, 4)}}, tmp_path / "beats.pt")
    imported = read_encoder(tmp_path / "beats.pt")
    assert imported.config.relative_positions == (16, 30)
    assert not any("weights do not tell" in note and "norm_eps" not in note for note in imported.notes)
    again = read_encoder({"cfg": cfg, "model": state})
    assert (again.config, again.notes) == (imported.config, tuple(note for note in imported.notes if "quantizer" not in note))
    assert any("the quantizer of a tokenizer" in note for note in imported.notes)
    found = features(imported, fbank[..., None])[:, 1:]
    torch.testing.assert_close(found, naive_beats(state, fbank, 30, deep), atol=2e-5, rtol=0)
    for change in ({"layer_norm_first": True}, {"activation_fn": "relu"}):
        torch.save({"cfg": cfg | change, "model": state}, tmp_path / "other.pt")
        with pytest.raises(RunError, match="norms before its sums or another activation"):
            read_encoder(tmp_path / "other.pt")


def test_beats_saved_with_newer_names_of_weight_norm() -> None:
    state = beats()
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): t
        for name, t in state.items()
    }
    a, b = read_encoder(state).weights, read_encoder({f"model.{name}": tensor for name, tensor in newer.items()}).weights
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("encoder.pos_conv.0.weight_g", "not make a whole BEATs: 'encoder.pos_conv.0.weight_g' is missing"),
        ("encoder.pos_conv.0.weight_v", "'encoder.pos_conv.0.weight_v' is missing"),
        ("post_extract_proj.weight", "'post_extract_proj.weight' is missing"),
        ("encoder.layers.0.self_attn.relative_attention_bias.weight", "relative_attention_bias.weight' is missing"),
        ("encoder.layers.1.self_attn.grep_a", "block 1 has no gate on its biases"),
        ("encoder.layers.1.fc2.bias", "'blocks.1.mlp.2.bias' is missing"),
    ],
)
def test_parts_of_beats_that_are_missing(name: str, reason: str) -> None:
    state = beats()
    del state[name]
    with pytest.raises(RunError, match=re.escape(reason)):
        read_encoder(state)


def test_beats_whose_weight_norm_was_removed() -> None:
    state = beats()
    folded = read_encoder(state).weights["convolved.convolution.weight"]
    bare = {name: tensor for name, tensor in state.items() if "pos_conv.0.weight" not in name}
    imported = read_encoder(bare | {"encoder.pos_conv.0.weight": folded})
    assert torch.equal(imported.weights["convolved.convolution.weight"], folded)
    assert not any("weight norm" in note for note in imported.notes)


def test_a_model_tells_its_settings_by_its_cfg() -> None:
    class Model(torch.nn.Module):
        def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
            return beats()

    model = Model()
    model.cfg = argparse.Namespace(deep_norm=False)  # type: ignore[assignment]
    config = read_encoder(model).config
    assert (config.block_norm, config.relative_positions) == ("post", (320, 1280))


def test_what_lies_under_cfg_means_nothing_to_other_families(tmp_path: Path) -> None:
    cfg = {"model_type": {"a": 1}, "image_size": "96", "norm_eps": "1e-6", "hidden_size": 512, "hidden_act": "relu"}
    torch.save({"cfg": cfg, "model": mae()}, tmp_path / "mae.pt")
    assert read_encoder(tmp_path / "mae.pt", heads=HEADS).config == read_encoder(mae(), heads=HEADS).config


def test_beats_with_a_table_for_each_block_is_refused() -> None:
    state = beats()
    state["encoder.layers.1.self_attn.relative_attention_bias.weight"] = random(320, HEADS)
    with pytest.raises(RunError, match="different biases by distance"):
        read_encoder(state)


def test_original_videomae_has_no_table_and_no_bias_of_keys() -> None:
    state = {
        "encoder.patch_embed.proj.weight": random(WIDTH, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": random(1, WIDTH)[0],
    }
    for name, tensor in blocks("encoder.blocks").items():
        if name.endswith("qkv.bias"):
            state |= {
                name.replace("qkv.bias", "q_bias"): tensor[:WIDTH],
                name.replace("qkv.bias", "v_bias"): tensor[2 * WIDTH :],
            }
        else:
            state[name] = tensor
    state |= norm("encoder.norm") | {"encoder_to_decoder.weight": random(16, WIDTH)} | blocks("decoder.blocks", 16, 1)
    imported = read_encoder(state, heads=HEADS)
    assert (imported.family, imported.medium, imported.size) == ("VideoMAE", "video", (16, 224, 224))
    assert (imported.config.positions, imported.config.position_grid) == ("sequence", (8, 14, 14))
    assert not imported.config.class_token
    for part, kept in (("query", slice(WIDTH)), ("key_value", slice(WIDTH, 2 * WIDTH))):
        assert imported.weights[f"blocks.0.attention.{part}.bias"][kept].any()
    assert not imported.weights["blocks.0.attention.key_value.bias"][:WIDTH].any()
    notes = " ".join(imported.notes)
    assert "biases of key: there are none" in notes
    assert "clips: 16 frames of 224 x 224" in notes


def test_learned_tables_are_kept_with_the_class_tokens_position() -> None:
    state = mae() | {"pos_embed": random(1, 10, WIDTH)}
    imported = read_encoder(state, heads=HEADS)
    assert (imported.family, imported.config.positions, imported.config.position_grid) == ("ViT", "learned", (1, 3, 3))
    torch.testing.assert_close(imported.weights["class_token"], (state["cls_token"][0, 0] + state["pos_embed"][0, 0]))
    assert any("normalisation of the inputs: not known" in note for note in imported.notes)


def test_half_precision_is_widened_and_told() -> None:
    imported = read_encoder({name: tensor.half() for name, tensor in mae().items()}, heads=HEADS)
    assert imported.config.positions == "sine_cosine"
    assert all(tensor.dtype == torch.float32 for tensor in imported.weights.values())
    assert any("stored as float16" in note for note in imported.notes)


def test_dinov2_in_its_own_names_has_layer_scale_and_no_registers() -> None:
    state = mae() | {"pos_embed": random(1, 10, WIDTH)}
    state |= {f"blocks.{i}.ls{j}.gamma": random(1, WIDTH)[0] + i + j for i in range(DEPTH) for j in (1, 2)}
    imported = read_encoder(state, heads=HEADS)
    assert imported.family == "DINOv2"
    assert torch.equal(imported.weights["blocks.1.scale2"], state["blocks.1.ls2.gamma"])
    with pytest.raises(RunError, match="register tokens beside the class token"):
        read_encoder(state | {"register_tokens": random(1, 4, WIDTH)}, heads=HEADS)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("blocks.0.attn.rel_pos_table", "position biases in its attention"),
        ("blocks.1.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("blocks.0.adapter.weight", "has 'blocks.0.adapter.weight', for which this encoder has no place"),
        ("temporal_embed", "has 'temporal_embed', for which"),
        ("dist_token", "distillation token"),
    ],
)
def test_what_features_depend_on_is_never_left_out(extra: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_encoder(mae() | {extra: random(4, 4)}, heads=HEADS)


def test_unknown_tensors_are_told() -> None:
    imported = read_encoder(mae() | {"whatever.weight": random(4, 4)}, heads=HEADS)
    assert "left out: not known, and features may depend on it; 'whatever.weight'" in imported.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.proj.bias": None}, "'blocks.1.attention.out.bias' is missing"),
        ({"blocks.0.norm1.weight": torch.ones(5)}, r"'blocks.0.norm1.weight' is \(5,\), not \(32,\)"),
        ({"norm.bias": torch.full((WIDTH,), torch.nan)}, "not finite"),
        ({"pos_embed": torch.zeros(1, 9, WIDTH)}, "8 positions are no square"),
        ({"cls_token": random(1, 2, WIDTH)}, r"the class token \(1, 2, 32\) should be of width 32"),
        ({"patch_embed.proj.weight": random(WIDTH, 48)}, r"the patch embedding is \(32, 48\), not a convolution's"),
        ({"pos_embed": None}, "no square|no positions"),
        ({"patch_embed.proj.weight": random(WIDTH, 1, 16, 16)}, "9 positions do not fit 128 mel bands"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (mae() | change).items() if tensor is not None}
    with pytest.raises(RunError, match=message):
        read_encoder(state, heads=HEADS)


def test_heads_are_asked_for_where_nothing_tells_them() -> None:
    with pytest.raises(ConfigError, match=r"width 32 do not tell the number of attention heads; give it \(heads=, --heads\)"):
        read_encoder(mae())
    with pytest.raises(ConfigError, match="heads=5 must divide"):
        read_encoder(mae(), heads=5)


def test_the_medium_must_fit_the_patches() -> None:
    grey = mae(channels=1)
    assert read_encoder(grey, heads=HEADS, medium="image").size == (1, 12, 12)
    with pytest.raises(ConfigError, match=r"patches of \(4, 4\) are not those of video"):
        read_encoder(grey, heads=HEADS, medium="video")


def test_another_code_base_is_refused_in_words() -> None:
    with pytest.raises(RunError, match=r"of no family that is known here: EAT; .*Its names begin with conv1.weight, fc.bias"):
        read_encoder(
            {"fc.weight": random(3, 4), "fc.bias": random(1, 3), "conv1.weight": random(3, 3), "layer1.x": random(1, 1)}
        )
