"""Transformer blocks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bridle.nn.attention import Attention
from bridle.randomness import counter_uniform

BlockNorm = Literal["pre", "post", "deep"]
_DROP_STREAM = -5


class Mlp(nn.Sequential):
    """Linear, GELU, Linear with ``ratio`` times the width in between; (..., D) -> (..., D)."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = round(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Self-attention, then MLP, each added to its input.

    Args:
        width: D.
        heads: attention heads; must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        norm: ``pre``: attention and MLP see normalised input (ViT); ``post``: each sum is normalised (Vaswani et al. 2017);
            ``deep``: the same, with the input of each sum multiplied by ``residual`` (DeepNorm, arXiv 2203.00555).
        norm_eps: added to the variance in the norms.
        layer_scale: first value of a factor for each channel of what attention and MLP add (CaiT, arXiv 2103.17239); None for
            no such factor.
        residual: of ``deep``; (2 x depth)^(1/4) for an encoder.
        gated: queries weigh the bias of attention, see :class:`~bridle.nn.attention.Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        norm: BlockNorm = "pre",
        norm_eps: float = 1e-5,
        layer_scale: float | None = None,
        residual: float = 1.0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.post_norm = norm != "pre"
        self.residual = residual if norm == "deep" else 1.0
        self.norm1 = nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, heads, gated)
        self.norm2 = nn.LayerNorm(width, norm_eps)
        self.mlp = Mlp(width, mlp_ratio)
        self.scale1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.scale2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, allowed: Tensor | None, bias: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """``x`` (B, N, D), ``allowed`` and ``bias`` as in :func:`bridle.nn.attention.attend`. Returns (B, N, D).

        ``kept`` (2, B) multiplies what attention and MLP add to each clip; see :func:`draw_drop_path`.
        """
        first, second = (None, None) if kept is None else kept[..., None, None].unbind()
        if self.post_norm:
            x = self.norm1(x * self.residual + _scaled(self.attention(x, x, allowed, bias), self.scale1, first))
            return self.norm2(x * self.residual + _scaled(self.mlp(x), self.scale2, second))  # type: ignore[no-any-return]
        seen = self.norm1(x)
        x = x + _scaled(self.attention(seen, seen, allowed, bias), self.scale1, first)
        return x + _scaled(self.mlp(self.norm2(x)), self.scale2, second)


def _scaled(x: Tensor, *factors: Tensor | None) -> Tensor:
    for factor in factors:
        x = x if factor is None else x * factor
    return x


def draw_drop_path(seeds: Tensor, depth: int, rate: float) -> Tensor:
    """Stochastic depth (Huang et al., arXiv 1603.09382): which blocks add what to which clip.

    The chance to be dropped rises linearly from 0 in the first block to ``rate`` in the last one.

    Args:
        seeds: (B,) int64, on the CPU.
        depth: number of blocks.
        rate: in [0, 1).

    Returns:
        (depth, 2, B) float32 on the CPU: 0, or 1 over the chance to stay; of each block for attention and MLP.
    """
    stay = 1 - rate * torch.arange(depth, dtype=torch.float64) / max(depth - 1, 1)
    draws = counter_uniform(seeds, 2 * depth, _DROP_STREAM).T.reshape(depth, 2, len(seeds))
    stay = stay[:, None, None]
    return ((draws < stay) / stay).float()


class CrossBlock(nn.Module):
    """Attention from queries to a context, then MLP; queries do not see each other (CrossMAE, arXiv 2401.14391)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, context: Tensor, allowed: Tensor | None) -> Tensor:
        """``x`` (B, Q, D), ``context`` (B, S, D). Returns (B, Q, D)."""
        x = x + self.attention(self.norm1(x), self.norm_context(context), allowed)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers (Glorot & Bengio 2010), as ViT and MAE do."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
