"""The residual quantizer: R codebooks, each quantizing what the ones before it left.

The life of its state: ``fit`` starts the codebooks by k-means, ``forward``, ``encode`` and ``decode`` read them,
``update`` alone changes them, and only in train mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bridle.distributed import all_gather_rows, all_reduce_sum, broadcast, rank
from bridle.errors import QuantizerError
from bridle.quantize.codebook import (
    ema,
    residual_search,
    residual_search_with_statistics,
    revive,
    statistics_length,
    unpack,
)
from bridle.quantize.config import QuantizerConfig
from bridle.quantize.kmeans import check_sample, kmeans
from bridle.randomness import counter_uniform, derive_seed

USED_ABOVE = 0.1
"""A code counts as used (``metrics()["in_use/r"]``) from this share of uniform usage on."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What :meth:`ResidualQuantizer.forward` returns.

    Attributes:
        vectors: (..., C) float32, sum of the chosen entries; its gradient goes straight through to the input.
        codes: (..., R) int64.
        commitment: scalar, sum over vectors of the mean over C of the squared distance between the input (which gets
            the gradient) and the sum of all levels' entries (which gets none). Not weighted, not divided by N.
        statistics: (values,) packed float32 for :meth:`ResidualQuantizer.update`. Statistics of micro-batches are added.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor
    statistics: Tensor


class ResidualQuantizer(nn.Module):
    """Residual quantization with codebooks trained by exponential moving averages (SoundStream, Zeghidour et al. 2021).

    All arithmetic is float32, under any autocast, and the buffers stay float32 under ``.to(dtype)``.

    Non-finite input: ``encode`` and ``fit`` raise. ``forward`` must not wait for the device, so it passes the fault on:
    the vectors of such rows, the commitment and the statistics are then not finite, the loop sees it in the loss, and
    ``update`` leaves every codebook of every rank as it was.

    Buffers:
        codebooks: (R, K, C) float32.
        ema_usage: (R, K) float32, EMA of the share of the vectors that chose a code; each level sums to 1. The EMA of
            the sum of those vectors is ``ema_usage * codebooks`` and needs no buffer.
        last_revived: (R,) float32, codes revived by the last update.
        last_residual: (R,) float32, energy left after each level in the last update, as a fraction of the input's.
        updates: int64, applied updates.
        fitted: bool, True after ``fit``; a state dict carries it, so a resumed run does not fit again.
    """

    codebooks: Tensor
    ema_usage: Tensor
    updates: Tensor
    fitted: Tensor
    last_revived: Tensor
    last_residual: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        levels, size = config.num_codebooks, config.codebook_size
        self.register_buffer("codebooks", torch.zeros(levels, size, config.code_dim, dtype=torch.float32))
        self.register_buffer("ema_usage", torch.full((levels, size), 1 / size, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("last_revived", torch.zeros(levels, dtype=torch.float32))
        self.register_buffer("last_residual", torch.zeros(levels, dtype=torch.float32))
        self._known_fitted = False
        self.register_load_state_dict_post_hook(_forget_fitted)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def encode(self, z: Tensor, *, check: bool = True) -> Tensor:
        """Codes of vectors. Changes nothing.

        Args:
            z: (..., C).
            check: raise on non-finite input, which waits for the device once. Without it such vectors get arbitrary
                codes: for a training step whose loss is then not finite either.

        Returns:
            (..., R) int64.

        Raises:
            QuantizerError: not fitted, wrong C, or (``check``) a non-finite vector or codebook; names the level.
        """
        self._require_fitted()
        with torch.autocast(z.device.type, enabled=False):
            flat = self._prepare(z)
            if check:
                self._require_finite(flat)
            codes, _ = residual_search(flat, self.codebooks)
        return codes.view(*z.shape[:-1], self.config.num_codebooks)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the codes' entries. Changes nothing; waits for the device once.

        Args:
            codes: (..., r) integers, 1 <= r <= R; fewer than R levels give the coarser vector.

        Returns:
            (..., C) float32.

        Raises:
            QuantizerError: wrong number of levels, or a code outside [0, K).
        """
        levels = codes.shape[-1] if codes.ndim else 0
        if not 1 <= levels <= self.config.num_codebooks:
            raise QuantizerError(
                f"codes {tuple(codes.shape)} have {levels} levels; the last axis must hold 1 to "
                f"{self.config.num_codebooks}: use the quantizer that made the codes"
            )
        if codes.numel() and not bool(((codes >= 0) & (codes < self.config.codebook_size)).all()):
            raise QuantizerError(
                f"codes reach from {int(codes.min())} to {int(codes.max())}; the codebooks hold 0 to "
                f"{self.config.codebook_size - 1}: use the quantizer that made the codes"
            )
        flat = codes.reshape(-1, levels).long()
        vectors = self.codebooks[0].index_select(0, flat[:, 0])
        for level in range(1, levels):
            vectors += self.codebooks[level].index_select(0, flat[:, level])
        return vectors.view(*codes.shape[:-1], self.config.code_dim)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize vectors for training. Changes nothing, also in train mode, and does not wait for the device.

        Args:
            z: (..., C), usually (N, C) of the valid patches; N may be 0.

        Raises:
            QuantizerError: not fitted, or wrong C.
        """
        self._require_fitted()
        with torch.autocast(z.device.type, enabled=False):
            flat = self._prepare(z)
            outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _StraightThrough.apply(  # type: ignore[no-untyped-call]
                flat, self.codebooks, self._planes()
            )
        vectors, codes, commitment, statistics = outputs
        levels, dim = self.config.num_codebooks, self.config.code_dim
        return Quantized(vectors.view(*z.shape[:-1], dim), codes.view(*z.shape[:-1], levels), commitment, statistics)

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """One EMA step of all codebooks and the revival of expired codes; nothing at all in eval mode.

        One all-reduce, then the same arithmetic on the same numbers, so all ranks stay bit-equal. Every rank must call
        it, also one without vectors. Statistics that are not finite, or of no vectors, change nothing on any rank.

        Args:
            statistics: of ``forward`` since the last update, on this rank; several are added. Left as it is.

        Raises:
            QuantizerError: statistics of another quantizer.
        """
        if not self.training:
            return
        length = statistics_length(self.codebooks)
        if statistics.shape != (length,):
            raise QuantizerError(f"statistics {tuple(statistics.shape)} must be ({length},): pass what this quantizer returned")
        with torch.autocast(statistics.device.type, enabled=False):
            packed = all_reduce_sum(statistics.detach().float().clone())
            sums = unpack(packed, self.codebooks)
            sound = packed.isfinite().all() & (sums.counts.sum() > 0)
            codebooks, usage = ema(self.codebooks, self.ema_usage, sums, self.config.decay)
            revived = torch.zeros_like(self.last_revived)
            if self.config.revive_below > 0:
                codebooks, usage, revived = revive(codebooks, usage, sums, self.config.revive_below)
            residual = sums.energies[1:] / sums.energies[0].clamp(min=torch.finfo(torch.float32).tiny)
            for buffer, new in (
                (self.codebooks, codebooks),
                (self.ema_usage, usage),
                (self.last_revived, revived),
                (self.last_residual, residual),
                (self.updates, self.updates + 1),
            ):
                buffer.copy_(torch.where(sound, new, buffer))

    @torch.no_grad()
    def fit(self, z: Tensor, seed: int, order: Tensor | None = None) -> None:
        """Start the codebooks by k-means, level after level on true residuals, from the vectors of all ranks together.

        Every rank must call it. Rank 0 computes, all others receive, so all ranks are bit-equal; equal samples, seeds
        and devices give equal codebooks. Allowed in eval mode: it is asked for, not a side effect.

        Args:
            z: (..., C), this rank's sample, may be empty; at most ``init_sample`` vectors of all ranks are used.
            seed: of the subsample and of the k-means starts.
            order: as many int64 as vectors, all different: which vectors are used and in which order follows from it, so the
                result does not depend on how they are shared out; None numbers them rank after rank.

        Raises:
            QuantizerError: wrong C, a vector not finite, all equal, or fewer than ``codebook_size``; on all ranks alike.
        """
        size = self.config.codebook_size
        with torch.autocast(z.device.type, enabled=False):
            sample = all_gather_rows(self._prepare(z))
            names = torch.arange(len(sample)) if order is None else all_gather_rows(order.to(sample.device))
            _require_finite_rows(sample)
            check_sample(sample, size)
            chosen = sampling_priority(names, seed).argsort(stable=True)[: self.config.init_sample]
            residual = sample[chosen.to(sample.device)]
            if rank() == 0:
                for level in range(self.config.num_codebooks):
                    entries, codes = kmeans(residual, size, self.config.kmeans_steps, derive_seed(seed, "level", level))
                    residual = residual - entries.index_select(0, codes)
                    self.codebooks[level] = entries
                    self.ema_usage[level] = torch.bincount(codes, minlength=size) / len(codes)
        broadcast(self.codebooks)
        broadcast(self.ema_usage)
        self.updates.zero_()
        self.fitted.fill_(True)

    def metrics(self) -> dict[str, Tensor]:
        """Health of every level r as 0-dim tensors on the quantizer's device.

        ``in_use/r`` share of codes used at least a tenth of uniform; ``perplexity/r`` of the EMA usage, divided by K, in
        (0, 1]; ``revived/r`` codes revived by the last update; ``residual/r`` energy left after the level in the last
        update, as a fraction of the input's.
        """
        size = self.config.codebook_size
        in_use = (self.ema_usage * size >= USED_ABOVE).float().mean(1)
        share = self.ema_usage / self.ema_usage.sum(1, keepdim=True)
        perplexity = torch.special.entr(share).sum(1).exp() / size
        named = {
            "in_use": in_use,
            "perplexity": perplexity,
            "revived": self.last_revived.clone(),
            "residual": self.last_residual.clone(),
        }
        return {f"{name}/{r}": value for name, values in named.items() for r, value in enumerate(values.unbind())}

    def extra_repr(self) -> str:
        return str(self.config)

    def _planes(self) -> Tensor:
        """(R, C) normals of the planes that halve the codes: new ones after every update, equal on all ranks."""
        levels = self.config.num_codebooks
        seeds = self.updates * levels + torch.arange(levels, device=self.updates.device)
        return (counter_uniform(seeds, self.config.code_dim) - 0.5).float()

    def _prepare(self, z: Tensor) -> Tensor:
        """(N, C) float32, contiguous, normalised if so configured."""
        if z.ndim == 0 or z.shape[-1] != self.config.code_dim:
            raise QuantizerError(
                f"vectors {tuple(z.shape)} must be (..., code_dim) with code_dim {self.config.code_dim}: "
                "project them or change code_dim"
            )
        flat = z.reshape(-1, self.config.code_dim).float().contiguous()
        return nn.functional.normalize(flat, dim=1) if self.config.normalise == "l2" else flat

    def _require_fitted(self) -> None:
        if not self._known_fitted:  # asks the device once, not at every step
            self._known_fitted = bool(self.fitted)
        if not self._known_fitted:
            raise QuantizerError("the quantizer has no codebooks yet: call fit(sample, seed) or load a fitted state")

    def _require_finite(self, flat: Tensor) -> None:
        sound = torch.cat([flat.isfinite().all()[None], self.codebooks.isfinite().all(2).all(1)])
        if bool(sound.all()):
            return
        _require_finite_rows(flat)
        level = int(sound[1:].int().argmin())
        raise QuantizerError(f"level {level}: the codebook has non-finite entries: load a sound checkpoint or fit again")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResidualQuantizer:
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype != tensor.dtype else moved

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]
        return self


class _StraightThrough(torch.autograd.Function):
    """Search and both gradients in one node, so that nothing of size (N, C) is kept besides input and output."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codebooks: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes, vectors, statistics = residual_search_with_statistics(z, codebooks, planes)
        commitment = statistics[-1] / z.shape[1]  # the last energy is the squared distance after all levels
        ctx.mark_non_differentiable(codes, statistics)
        ctx.save_for_backward(z, vectors)
        return vectors, codes, commitment, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, vectors = ctx.saved_tensors
        grad_vectors, _, grad_commitment, _ = grads
        return torch.addcmul(grad_vectors, z - vectors, grad_commitment, value=2 / z.shape[1]), None, None


def sampling_priority(order: Tensor, seed: int) -> Tensor:
    """(n,) int64 names of vectors -> (n,) float64: the vectors of lowest priority number are the random sample."""
    return counter_uniform(order ^ derive_seed(seed, "fit"), 1)[:, 0]


def _require_finite_rows(flat: Tensor) -> None:
    bad = int((~flat.isfinite().all(1)).sum())
    if bad:
        raise QuantizerError(
            f"level 0: {bad} of {len(flat)} input vectors are not finite; all must be: look for NaN in data or weights"
        )


def _forget_fitted(module: nn.Module, _: object) -> None:
    cast("ResidualQuantizer", module)._known_fitted = False
