"""Augmentation of a log-mel clip (T, F). Pure functions: all randomness comes from the generator passed in."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_start(num_frames: int, crop_frames: int, generator: torch.Generator) -> int:
    """First frame of a uniformly drawn crop of ``crop_frames`` out of ``num_frames``; 0 when the clip fits whole."""
    if num_frames <= crop_frames:
        return 0
    return int(torch.randint(num_frames - crop_frames + 1, (), generator=generator, device=generator.device))


def circular_shift(fbank: Tensor, generator: torch.Generator) -> Tensor:
    """Roll the frames of (T, F) by a uniform number in [0, T); what leaves at the end comes back at the start."""
    shift = int(torch.randint(max(1, fbank.shape[0]), (), generator=generator, device=generator.device))
    return torch.roll(fbank, shift, dims=0)


def gain(fbank: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mel (T, F) of the waveform times g = beta(10, 10) + 0.5, which is ``fbank + 2 ln g``; g lies in (0.5, 1.5).

    A gamma(10) draw is the sum of ten exponentials, and beta(10, 10) the share of one gamma draw in the sum of two.
    """
    draws = torch.empty(2, 10, dtype=torch.float64, device=generator.device).exponential_(generator=generator).sum(dim=1)
    return fbank + 2.0 * float(torch.log(draws[0] / draws.sum() + 0.5))
