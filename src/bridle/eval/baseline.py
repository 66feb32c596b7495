"""The features every encoder must beat: statistics of the log-mel filterbank over time."""

from __future__ import annotations

import torch
from torch import Tensor

from bridle.errors import DataError


def log_mel_statistics(fbank: Tensor) -> Tensor:
    """Mean, then population standard deviation, over time of every mel band.

    Args:
        fbank: (T, F) log-mel filterbank of one clip, valid frames only.

    Returns:
        (2F,) in the type of ``fbank``; one frame has deviation 0.

    Raises:
        DataError: not two-dimensional, or no frames.
    """
    if fbank.ndim != 2 or fbank.shape[0] == 0:
        raise DataError(f"fbank has shape {tuple(fbank.shape)}; it must be (frames, mels) with at least 1 frame")
    return torch.cat([fbank.mean(dim=0), fbank.std(dim=0, correction=0)])
