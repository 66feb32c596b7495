"""Augmentation of log-mel clips. Pure functions: all randomness comes from the generator or the seeds passed in."""

from __future__ import annotations

import torch
from torch import Tensor

from bridle.randomness import counter_uniform

_BANDS_STREAM = -3


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


def mask_bands(inputs: Tensor, lengths: Tensor, seeds: Tensor, max_frames: int, max_mels: int) -> Tensor:
    """Set one band of frames and one of mel bands of each clip to 0 (SpecAugment, arXiv 1904.08779, without time warping).

    Args:
        inputs: (B, 1, T, F, 1) normalised log-mel, so that 0 is the mean.
        lengths: (B,) valid frames, on the CPU.
        seeds: (B,) int64, on the CPU; places and widths follow from them.
        max_frames: widths are uniform from 0 to this, or to the clip's length.
        max_mels: the same along the mel axis.
    """
    draws = counter_uniform(seeds, 4, _BANDS_STREAM)
    hidden = torch.zeros(len(inputs), inputs.shape[2], inputs.shape[3], dtype=torch.bool)
    for axis, limit, sizes in ((1, max_frames, lengths), (2, max_mels, torch.full_like(lengths, inputs.shape[3]))):
        widths = (draws[:, 2 * axis - 2] * (sizes.clamp(max=limit) + 1)).long()
        starts = (draws[:, 2 * axis - 1] * (sizes - widths + 1)).long()
        places = torch.arange(inputs.shape[axis + 1])
        inside = (places >= starts[:, None]) & (places < (starts + widths)[:, None])
        hidden |= inside[:, :, None] if axis == 1 else inside[:, None, :]
    return inputs.masked_fill(hidden[:, None, :, :, None].to(inputs.device, non_blocking=True), 0.0)
