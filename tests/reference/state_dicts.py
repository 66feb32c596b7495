"""Made-up state dicts with the names and shapes of published code bases, and the features that their formulas give."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH, HEADS, HIDDEN = 32, 2, 4, 64
State = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / shape[-1] ** 0.5


def affine(name: str, inputs: int, outputs: int, prefix: str = "") -> State:
    return {f"{prefix}{name}.weight": random(outputs, inputs), f"{prefix}{name}.bias": random(1, outputs)[0]}


def norm(name: str, width: int = WIDTH) -> State:
    return {f"{name}.weight": 1 + 0.3 * random(1, width)[0], f"{name}.bias": random(1, width)[0]}


def blocks(prefix: str = "blocks", width: int = WIDTH, depth: int = DEPTH) -> State:
    state: State = {}
    for i in range(depth):
        at = f"{prefix}.{i}."
        state |= norm(at + "norm1", width) | norm(at + "norm2", width)
        state |= affine(at + "attn.qkv", width, 3 * width) | affine(at + "attn.proj", width, width)
        state |= affine(at + "mlp.fc1", width, 2 * width) | affine(at + "mlp.fc2", 2 * width, width)
    return {name: tensor * (1 + 0.01 * n) for n, (name, tensor) in enumerate(state.items())}


def sine_table(rows: int, columns: int, width: int = WIDTH) -> Tensor:
    """(rows * columns, width) as MAE's code makes it: columns first, in float64."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    parts = [f(axis[:, None] * frequencies) for axis in (column, row) for f in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


def mae(channels: int = 3, side: int = 3, patch: int = 4, table: Tensor | None = None) -> State:
    """facebookresearch/mae, and AudioMAE with one channel."""
    table = sine_table(side, side) if table is None else table
    state = {"cls_token": random(1, 1, WIDTH), "pos_embed": F.pad(table, (0, 0, 1, 0))[None], "mask_token": random(1, 1, 16)}
    state |= {"patch_embed.proj.weight": random(WIDTH, channels, patch, patch), "patch_embed.proj.bias": random(1, WIDTH)[0]}
    state |= blocks() | norm("norm") | affine("decoder_embed", WIDTH, 16) | {"decoder_pos_embed": random(1, len(table) + 1, 16)}
    return state | blocks("decoder_blocks", 16, 1) | norm("decoder_norm", 16) | affine("decoder_pred", 16, patch**2 * channels)


def eat(prefix: str = "") -> State:
    """fairseq's names, as EAT's pretraining writes them, with the teacher beside."""
    front = f"{prefix}modality_encoders.IMAGE."
    state = {f"{front}extra_tokens": random(1, 1, WIDTH), f"{front}fixed_positional_encoder.positions": sine_table(6, 8)[None]}
    state |= {
        f"{front}local_encoder.proj.weight": random(WIDTH, 1, 16, 16),
        f"{front}local_encoder.proj.bias": random(1, WIDTH)[0],
    }
    state |= norm(f"{front}context_encoder.norm") | blocks(f"{prefix}blocks")
    return state | affine(f"{front}decoder.blocks.0.0", 16, 16) | affine(f"{front}decoder.proj", 16, WIDTH)


def beats(kernel: int = 128, num_buckets: int = 320) -> State:
    """microsoft/unilm, beats: a fine-tuned model. Its blocks share one table of biases."""
    state = {"patch_embedding.weight": random(16, 1, 16, 16)} | norm("layer_norm", 16) | affine("post_extract_proj", 16, WIDTH)
    state |= {"encoder.pos_conv.0.bias": random(1, WIDTH)[0], "encoder.pos_conv.0.weight_g": 1 + random(1, 1, kernel)}
    state |= {"encoder.pos_conv.0.weight_v": random(WIDTH, 2, kernel)} | norm("encoder.layer_norm")
    table = 3 * random(num_buckets, HEADS)
    for i in range(DEPTH):
        at = f"encoder.layers.{i}."
        state |= {
            f"{at}self_attn.grep_a": 1 + random(1, HEADS, 1, 1) + i,
            f"{at}self_attn.relative_attention_bias.weight": table,
        }
        state |= affine(f"{at}self_attn.grep_linear", WIDTH // HEADS, 8)
        for n, part in enumerate(("q_proj", "k_proj", "v_proj", "out_proj")):
            for name, tensor in affine(f"{at}self_attn.{part}", WIDTH, WIDTH).items():
                state[name] = tensor.roll(n + i, -1)
        state |= norm(f"{at}self_attn_layer_norm") | affine(f"{at}fc1", WIDTH, HIDDEN) | affine(f"{at}fc2", HIDDEN, WIDTH)
        state |= norm(f"{at}final_layer_norm")
    return state | affine("predictor", WIDTH, 527)


def bucket(ahead: int, num_buckets: int, max_distance: int) -> int:
    """The class of a distance, one at a time (T5)."""
    half = num_buckets // 2
    exact, distance = half // 2, abs(ahead)
    if distance >= exact:
        growth = np.log(np.float32(distance) / exact) / np.log(max_distance / exact)
        distance = min(exact + int(growth * (half - exact)), half - 1)
    return distance + (half if ahead > 0 else 0)


def naive_beats(state: State, fbank: Tensor, max_distance: int, deep: bool) -> Tensor:
    """Features of the patches of (B, 1, T, F) by the formulas of BEATs, one head and one pair of patches at a time."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    x = F.conv2d(fbank, state["patch_embedding.weight"], stride=16).flatten(2).mT
    x = linear("post_extract_proj", layer_norm("layer_norm", x))
    direction = state["encoder.pos_conv.0.weight_v"]
    kernel = direction.shape[2]
    weight = torch.stack(
        [state["encoder.pos_conv.0.weight_g"][0, 0, k] * direction[..., k] / direction[..., k].norm() for k in range(kernel)],
        -1,
    )
    groups, length = direction.shape[0] // direction.shape[1], x.shape[1]
    convolved = F.conv1d(x.mT, weight, state["encoder.pos_conv.0.bias"], padding=kernel // 2, groups=groups)
    x = layer_norm("encoder.layer_norm", x + F.gelu(convolved[..., :length]).mT)
    table = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    bias = torch.stack([table[[bucket(k - q, len(table), max_distance) for k in range(length)]] for q in range(length)])
    size, alpha = WIDTH // HEADS, (2 * DEPTH) ** 0.25 if deep else 1.0
    for i in range(DEPTH):
        at = f"encoder.layers.{i}.self_attn"
        query, key, value = (linear(f"{at}.{name}_proj", x) for name in "qkv")
        seen = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            gates = linear(f"{at}.grep_linear", query[..., part])
            first, second = gates[..., :4].sum(-1).sigmoid(), gates[..., 4:].sum(-1).sigmoid()
            factor = first * (second * state[f"{at}.grep_a"][0, h, 0, 0] - 1) + 2
            scores = query[..., part] @ key[..., part].mT / size**0.5 + factor[..., None] * bias[..., h]
            seen.append(scores.softmax(-1) @ value[..., part])
        at = f"encoder.layers.{i}"
        x = layer_norm(f"{at}.self_attn_layer_norm", alpha * x + linear(f"{at}.self_attn.out_proj", torch.cat(seen, -1)))
        x = layer_norm(f"{at}.final_layer_norm", alpha * x + linear(f"{at}.fc2", F.gelu(linear(f"{at}.fc1", x))))
    return x


def naive(state: State, picture: Tensor, post: bool) -> Tensor:
    """Features of the class token and the patches by the formulas of MAE (pre-norm) and EAT (post-norm), one head at a time.

    Args:
        state: in the names of timm; those of EAT with its front renamed.
        picture: (B, C, rows, columns).
        post: norms as in EAT.
    """
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(picture, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch).flatten(2).mT
    token, table = state["cls_token"], state["pos_embed"]
    x = torch.cat(
        [token.expand(len(x), -1, -1), x + table]
        if post
        else [(token + table[:, :1]).expand(len(x), -1, -1), x + table[:, 1:]],
        1,
    )

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def attention(at: str, y: Tensor) -> Tensor:
        query, key, value = linear(f"{at}.attn.qkv", y).chunk(3, dim=-1)
        size = WIDTH // HEADS
        heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
        seen = [(query[..., h] @ key[..., h].mT / size**0.5).softmax(-1) @ value[..., h] for h in heads]
        return linear(f"{at}.attn.proj", torch.cat(seen, -1))

    def mlp(at: str, y: Tensor) -> Tensor:
        return linear(f"{at}.mlp.fc2", F.gelu(linear(f"{at}.mlp.fc1", y)))

    x = layer_norm("norm", x) if post else x
    for at in (f"blocks.{i}" for i in range(DEPTH)):
        if post:
            x = layer_norm(f"{at}.norm1", x + attention(at, x))
            x = layer_norm(f"{at}.norm2", x + mlp(at, x))
        else:
            x = x + attention(at, layer_norm(f"{at}.norm1", x))
            x = x + mlp(at, layer_norm(f"{at}.norm2", x))
    return x if post else layer_norm("norm", x)
