"""Predicting codes: cross-entropy and accuracy per level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 1 << 19
"""Float32 logits that are worked on at once on a CPU: they stay in its cache from the first operation to the last."""


@dataclass(frozen=True, slots=True)
class CodeScores:
    """How well codes are predicted, summed over positions, by level.

    Attributes:
        cross_entropy: (R,) float32, in nats.
        right: (R,) float32, positions whose code has the largest logit; no gradient.
    """

    cross_entropy: Tensor
    right: Tensor


def code_scores(logits: Tensor, codes: Tensor, valid: Tensor | None) -> CodeScores:
    """Cross-entropy (BEATs, arXiv 2212.09058, eq. 1, for every level) and accuracy of the codes.

    All arithmetic is float32. The gradient is worked out on the way and kept in the dtype of the logits; on a CPU their float32
    copy, their softmax and its logarithm are never whole in memory. There is no second derivative.

    Args:
        logits: (B, M, R, K).
        codes: (B, M, R) int64 in [0, K).
        valid: (B, M) bool, False where a position only fills up the row; None when all count.
    """
    cross_entropy, right = _CodeScores.apply(logits, codes, valid)  # type: ignore[no-untyped-call]
    return CodeScores(cross_entropy, right)


class _CodeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, codes: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        flat, own_code = logits.reshape(-1, logits.shape[-1]), codes.reshape(-1, 1)
        counted = None if valid is None else valid[..., None].expand_as(codes).reshape(-1, 1).float()
        learns = ctx.needs_input_grad[0]
        gradient = torch.empty_like(flat) if learns else flat[:0]
        losses, right = torch.empty(2, len(flat), device=flat.device).unbind()
        size = len(flat) if flat.device.type != "cpu" else max(1, _CHUNK_BYTES // (4 * flat.shape[1]))
        for start in range(0, len(flat), max(1, size)):
            rows = slice(start, start + size)
            chance = flat[rows].float()
            chance = chance - chance.amax(1, keepdim=True)
            own = chance.gather(1, own_code[rows])
            total = chance.exp_().sum(1, keepdim=True)
            losses[rows] = (total.log() - own)[:, 0]
            right[rows] = (own >= 0)[:, 0].float()
            if learns:
                chance.mul_(total.reciprocal_()).scatter_add_(1, own_code[rows], torch.full_like(own, -1.0))
                gradient[rows] = chance if counted is None else chance.mul_(counted[rows])
        if counted is not None:
            losses, right = losses * counted[:, 0], right * counted[:, 0]
        ctx.save_for_backward(gradient)
        ctx.shape = logits.shape
        sums = torch.stack([losses, right]).reshape(2, -1, codes.shape[-1]).sum(1)
        cross_entropy, correct = sums.unbind()
        ctx.mark_non_differentiable(correct)
        return cross_entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.view(ctx.shape) * gradients[0].to(gradient.dtype)[:, None], None, None
