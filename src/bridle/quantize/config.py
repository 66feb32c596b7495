"""Settings of the quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridle.errors import ConfigError

COLLAPSED_BELOW = 0.1
"""Perplexity / K under which a level has collapsed, and a user is warned."""


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """Settings of a :class:`~bridle.quantize.ResidualQuantizer`.

    Args:
        num_codebooks: R, levels; 1 is plain vector quantization.
        codebook_size: K, entries per level.
        code_dim: C, dimension of the vectors.
        decay: of the codebooks' exponential moving averages, per update, in [0, 1). It also sets how soon a code that
            is no longer chosen is noticed: after 22 updates with 0.9 and ``revive_below`` 0.1, after 230 with 0.99.
        commitment_weight: weight of the commitment in the tokenizer's loss; ``forward`` returns it unweighted.
        revive_below: a code is revived when its EMA usage falls under this fraction of the uniform usage 1/K, so the
            threshold does not depend on the batch size; in [0, 0.5], 0 = never.
        init_sample: most vectors that k-means starts from, over all ranks; 100 K and more are good.
        kmeans_steps: most Lloyd steps per level.
        normalise: "l2" scales every vector to length 1, once, before level 0; "none" takes vectors as they are.
            Residuals and entries are Euclidean and of free norm either way.

    Raises:
        ConfigError: a setting is out of range.
    """

    num_codebooks: int = 4
    codebook_size: int = 256
    code_dim: int = 256
    decay: float = 0.9
    commitment_weight: float = 0.25
    revive_below: float = 0.1
    init_sample: int = 65536
    kmeans_steps: int = 20
    normalise: Literal["none", "l2"] = "none"

    def __post_init__(self) -> None:
        for name in ("num_codebooks", "codebook_size", "code_dim", "kmeans_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay is {self.decay}; it must be in [0, 1), e.g. 0.9")
        if not 0 <= self.commitment_weight < float("inf"):
            raise ConfigError(f"commitment_weight is {self.commitment_weight}; it must be finite, not negative, e.g. 0.25")
        if not 0 <= self.revive_below <= 0.5:
            raise ConfigError(f"revive_below is {self.revive_below}; it must be in [0, 0.5] of uniform usage, 0 = never")
        if self.init_sample < self.codebook_size:
            raise ConfigError(
                f"init_sample is {self.init_sample}; it must be at least codebook_size {self.codebook_size}, "
                "better 100 times it"
            )
        if self.normalise not in ("none", "l2"):
            raise ConfigError(f"normalise is {self.normalise!r}; it must be 'none' or 'l2'")
