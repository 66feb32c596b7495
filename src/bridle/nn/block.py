"""Pre-norm transformer blocks."""

from __future__ import annotations

from torch import Tensor, nn

from bridle.nn.attention import Attention


class Mlp(nn.Sequential):
    """Linear, GELU, Linear with ``ratio`` times the width in between; (..., D) -> (..., D)."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = round(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Self-attention, then MLP, each on normalised input and added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        """``x`` (B, N, D), ``allowed`` as in :func:`bridle.nn.attention.attend`. Returns (B, N, D)."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, allowed)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


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
