"""Multi-head attention, and the one place that chooses its implementation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.errors import ConfigError
from bridle.nn.relative import BiasGate

PLAIN_MAX_KEYS = 1025
"""Longest row of keys for which plain softmax attention is used in bf16 on a CPU; the longest that was measured, where it is
still 1.27 times as fast (``benchmarks/attention.py``)."""


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention.

    On a CPU in bf16 the fused kernel's backward is slow for short rows, so those take the plain product when they need one;
    everything else takes torch's fused kernel.

    Args:
        query: (B, H, queries, d).
        key: (B, H, keys, d).
        value: (B, H, keys, d).
        allowed: bool, broadcastable to (B, H, queries, keys), True where a query may look; None for everywhere. Each query must
            be allowed at least one key.
        bias: broadcastable to (B, H, queries, keys), added to the scores.

    Returns:
        (B, H, queries, d).
    """
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if learns and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= PLAIN_MAX_KEYS:
        return _plain(query, key, value, allowed, bias)
    mask = allowed
    if bias is not None:
        mask = bias.to(query.dtype)
        mask = mask if allowed is None else mask.masked_fill(~allowed, -torch.inf)
    attended: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended


def _plain(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if allowed is not None:
        # Added in place: to fill by a mask that is shared by heads takes several times as long, forward and backward.
        hidden = torch.zeros(allowed.shape, dtype=scores.dtype, device=scores.device)
        scores = scores.add_(hidden.masked_fill_(~allowed, torch.finfo(scores.dtype).min))
    weights: Tensor = scores.softmax(-1)
    return weights @ value


class Attention(nn.Module):
    """Multi-head attention of queries over a context (the queries themselves for self-attention).

    Args:
        width: width D of queries and context.
        heads: number of heads H; must divide ``width``.
        gated: each query weighs the bias by itself, see :class:`~bridle.nn.relative.BiasGate`.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, gated: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"heads={heads} must divide width={width}; choose heads from the divisors of the width")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.gate = BiasGate(width // heads, heads) if gated else None

    def forward(self, x: Tensor, context: Tensor, allowed: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """Attend from ``x`` (B, Q, D) to ``context`` (B, S, D); ``allowed`` and ``bias`` as in :func:`attend`.

        Returns (B, Q, D).
        """
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.gate is not None and bias is not None:
            bias = self.gate(query) * bias
        return self.out(attend(query, key, value, allowed, bias).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
