"""The names that code bases give the parts of a ViT, and what the parts that an encoder has no place for are.

Every family is mapped to one set of names: ``patch``, ``class_token``, ``positions``, ``input_norm``, ``final_norm``, and for
each block ``norm1``, ``qkv`` or ``query``, ``key`` and ``value``, ``out``, ``norm2``, ``fc1``, ``fc2``, ``scale1``, ``scale2``;
of BEATs also what ``beats.py`` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from bridle.errors import RunError
from bridle.nn.block import BlockNorm


@dataclass(frozen=True)
class Family:
    """Names and habits of one code base.

    Attributes:
        name: as in messages.
        mark: a name that only this family has, with what stands before its names as ``prefix``.
        names: pattern of a name behind the prefix -> name here.
        norm_eps: of its norms, where no settings say so.
        block_norm: where its norms are, unless settings say otherwise.
        class_position: its table begins with a position of the class token.
    """

    name: str
    mark: str
    names: tuple[tuple[str, str], ...]
    norm_eps: float = 1e-6
    block_norm: BlockNorm = "pre"
    class_position: bool = True


_TIMM_BLOCKS = (
    (r"blocks\.(\d+)\.(norm[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"blocks.\1.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.q_bias", r"blocks.\1.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"blocks.\1.value.bias"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.out.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"blocks.\1.scale\2"),
)
_LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
"""A block in transformers: of version 4 and of saved files, and of version 5 in memory."""

TIMM = Family(
    "timm names (MAE, AudioMAE, VideoMAE, ViT, DINOv2)",
    r"(?P<prefix>.*?)patch_embed\.proj\.weight",
    (
        (r"patch_embed\.proj\.(weight|bias)", r"patch.\1"),
        (r"cls_token", r"class_token"),
        (r"pos_embed", r"positions"),
        (r"norm_pre\.(weight|bias)", r"input_norm.\1"),
        (r"norm\.(weight|bias)", r"final_norm.\1"),
        *_TIMM_BLOCKS,
    ),
)
EAT = Family(
    "EAT",
    r"(?P<prefix>.*?)(?:modality_encoders\.IMAGE\.)?local_encoder\.proj\.weight",
    (
        (r"(?:modality_encoders\.IMAGE\.)?local_encoder\.proj\.(weight|bias)", r"patch.\1"),
        (r"(?:modality_encoders\.IMAGE\.)?extra_tokens", r"class_token"),
        (r"(?:modality_encoders\.IMAGE\.)?fixed_positional_encoder\.positions", r"positions"),
        (r"(?:modality_encoders\.IMAGE\.context_encoder\.norm|pre_norm)\.(weight|bias)", r"input_norm.\1"),
        *_TIMM_BLOCKS,
    ),
    block_norm="post",
    class_position=False,
)
TRANSFORMERS = Family(
    "transformers (ViT, ViTMAE, VideoMAE, DINOv2)",
    r"(?P<prefix>.*?)embeddings\.patch_embeddings\.projection\.weight",
    (
        (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch.\1"),
        (r"embeddings\.cls_token", r"class_token"),
        (r"embeddings\.position_embeddings", r"positions"),
        (r"layernorm\.(weight|bias)", r"final_norm.\1"),
        (_LAYER + r"attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.\2.\3"),
        (_LAYER + r"attention\.(?:attention\.q_|q_proj\.)bias", r"blocks.\1.query.bias"),
        (_LAYER + r"attention\.(?:attention\.v_|v_proj\.)bias", r"blocks.\1.value.bias"),
        (_LAYER + r"attention\.k_proj\.bias", r"blocks.\1.key.bias"),
        (_LAYER + r"attention\.q_proj\.weight", r"blocks.\1.query.weight"),
        (_LAYER + r"attention\.k_proj\.weight", r"blocks.\1.key.weight"),
        (_LAYER + r"attention\.v_proj\.weight", r"blocks.\1.value.weight"),
        (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.out.\2"),
        (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", r"blocks.\1.fc1.\2"),
        (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", r"blocks.\1.fc2.\2"),
        (_LAYER + r"(?:layernorm_before|norm1)\.(weight|bias)", r"blocks.\1.norm1.\2"),
        (_LAYER + r"(?:layernorm_after|norm2)\.(weight|bias)", r"blocks.\1.norm2.\2"),
        (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.scale\2"),
    ),
    norm_eps=1e-12,
)
BEATS = Family(
    "BEATs",
    r"(?P<prefix>.*?)(?<!embeddings\.)patch_embedding\.weight",
    (
        (r"patch_embedding\.(weight|bias)", r"patch.\1"),
        (r"layer_norm\.(weight|bias)", r"patch_norm.\1"),
        (r"post_extract_proj\.(weight|bias)", r"patch_out.\1"),
        (r"encoder\.pos_conv\.0\.(weight|bias)", r"convolution.\1"),
        (r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)", r"convolution.size"),
        (r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)", r"convolution.direction"),
        (r"encoder\.layer_norm\.(weight|bias)", r"input_norm.\1"),
        (r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", r"blocks.\1.query.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(weight|bias)", r"blocks.\1.key.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(weight|bias)", r"blocks.\1.value.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\1.out.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.grep_linear\.(weight|bias)", r"blocks.\1.gate.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn\.grep_a", r"blocks.\1.gate.scale"),
        (r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight", r"blocks.\1.distances"),
        (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", r"blocks.\1.norm1.\2"),
        (r"encoder\.layers\.(\d+)\.(fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
        (r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"blocks.\1.norm2.\2"),
    ),
    norm_eps=1e-5,
    block_norm="deep",
)
FAMILIES = (EAT, BEATS, TRANSFORMERS, TIMM)

_REFUSED = (
    (r"relative_position|rel_pos|alibi", "position biases in its attention"),
    (r"register_tokens", "register tokens beside the class token"),
    (r"dist(?:illation)?_token", "a distillation token beside the class token"),
    (r"mlp\.(?:weights_in|weights_out|w12|w3|gate_proj|up_proj|down_proj|fc1_[gx])\.", "a gated MLP (SwiGLU)"),
    (r"[qk]_norm\.", "norms of queries and keys"),
)
_BESIDE = (
    (r"(?:^|\.)_ema\.", "the moving-average teacher"),
    (r"(?:^|\.)quantize(?:_layer)?\.", "the quantizer of a tokenizer"),
    (r"(?:^|\.)(?:shared_)?decoder|encoder_to_decoder", "the decoder, in whose place a predictor is trained"),
    (r"mask_token", "the token of masked patches, which this encoder does not see"),
)
_BEHIND = (
    (r"(?:^|\.)pooler\.", "the pooler on the class token"),
    (r"(?:^|\.)fc_norm\.", "the norm of pooled features before the classification head"),
    (r"(?:^|\.)(?:head|classifier|head_dist|proj|recon_proj|predictor|cls_proj|center|\w+_head|proj_\w+)(?:\.|$)", "heads"),
)
_INSIDE = re.compile(r"(?:^|\.)(?:blocks|layer|layers)\.\d+\.|embed|token")


def detect(names: Iterable[str], source: str) -> tuple[Family, str]:
    """The family of a state dict and what stands before its names.

    Raises:
        RunError: it is of no known family.
    """
    names = list(names)
    for family in FAMILIES:
        found = [match["prefix"] for name in names if (match := re.fullmatch(family.mark, name))]
        if found:
            return family, min(found, key=len)
    raise RunError(
        f"{source} is of no family that is known here: {'; '.join(family.name for family in FAMILIES)}. Its names begin with "
        f"{', '.join(sorted(names)[:3])}"
    )


def rename(tensors: dict[str, Tensor], family: Family, prefix: str, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that an encoder has a place for, under the names of this module, and notes on the others.

    Raises:
        RunError: a tensor that features depend on has no place in this encoder.
    """
    parts: dict[str, Tensor] = {}
    left: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        own = _own_name(name.removeprefix(prefix), family) if name.startswith(prefix) else None
        if own is not None:
            parts[own] = tensor
            continue
        left.setdefault(_purpose(name, source), []).append(name)
    return parts, [f"left out: {purpose}; {_few(names)}" for purpose, names in left.items()]


def _few(names: list[str]) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"{len(names)} tensors, '{names[0]}' and so on"


def _own_name(name: str, family: Family) -> str | None:
    for pattern, own in family.names:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(own)
    return None


def _purpose(name: str, source: str) -> str:
    """What a tensor without a place is for."""
    for pattern, words in _BESIDE:
        if re.search(pattern, name):
            return words
    for pattern, words in _REFUSED:
        if re.search(pattern, name):
            raise RunError(f"{source} has {words} ('{name}'), for which this encoder has no place; its features would be wrong")
    if _INSIDE.search(name):
        raise RunError(f"{source} has '{name}', for which this encoder has no place; its features would be wrong")
    return next((words for pattern, words in _BEHIND if re.search(pattern, name)), "not known, and features may depend on it")
