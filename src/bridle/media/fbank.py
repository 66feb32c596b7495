"""Log-mel filterbank with Kaldi's arithmetic, batched in torch, on CPU and GPU, differentiable.

Per frame: subtract the mean, pre-emphasise (0.97), Kaldi's "hanning" window (or "povey"), power spectrum, triangular filters in
mel = 1127 ln(1 + f / 700), natural logarithm with the floor at float32's epsilon. Samples, window and triangles are
rounded to float32 and the FFT is done in float64, as kaldi_native_fbank 1.20 does; with dither 0 and use_energy False
the two agree on recordings to 3e-4. Releases 1.21 and 1.22 do the FFT in float32, whose rounding shows where a band is
all but empty beside a strong one: 1 value in a million differs from 1.20, and from here, by more than 2e-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bridle.config import LATER
from bridle.errors import ConfigError

Window = Literal["hanning", "povey"]

_PREEMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps
# BLAS takes another path, with other rounding, for a few rows (measured: under 4); a short crop takes the long one's.
_MIN_ROWS = 16


@dataclass(frozen=True)
class FbankConfig:
    """Options of the filterbank, the rest is Kaldi's default.

    Args:
        sample_rate: Hz of the waveform.
        num_mels: F, number of triangular bands.
        frame_seconds: length of the window; cut to whole samples, the FFT is the next power of two.
        hop_seconds: distance of frames; cut to whole samples.
        low_hz: lower edge of the lowest band.
        high_hz: upper edge of the highest band; 0 or less counts from Nyquist.
        dither: standard deviation of white noise added to the waveform.
        window: Kaldi's "hanning" or "povey", which is that to the power of 0.85 and Kaldi's own default (BEATs).
        full_scale: what a sample of 1 counts as. Kaldi takes 16-bit integers, so 32768 gives its values (BEATs), and quiet
            bands fall less often below the floor of the logarithm.

    Raises:
        ConfigError: a value out of range.
    """

    sample_rate: int = 16000
    num_mels: int = 128
    frame_seconds: float = 0.025
    hop_seconds: float = 0.010
    low_hz: float = 20.0
    high_hz: float = 0.0
    dither: float = 0.0
    window: Window = field(default="hanning", metadata=LATER)
    full_scale: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("sample_rate", "num_mels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("frame_seconds", "hop_seconds"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite, such as 0.025 and 0.010")
        if not self.frame_samples >= 2:
            raise ConfigError(f"frame_seconds {self.frame_seconds} is under 2 samples at {self.sample_rate} Hz; use e.g. 0.025")
        if not self.hop_samples >= 1:
            raise ConfigError(f"hop_seconds {self.hop_seconds} is under 1 sample at {self.sample_rate} Hz; use e.g. 0.010")
        if not 0 <= self.low_hz < self.top_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"bands from low_hz {self.low_hz} to high_hz {self.top_hz}; "
                f"they must rise within 0 and {self.sample_rate / 2} Hz"
            )
        if not self.dither >= 0:
            raise ConfigError(f"dither is {self.dither}; it must be 0 or more")
        if self.window not in get_args(Window):
            raise ConfigError(f"window is {self.window!r}; it must be one of {', '.join(get_args(Window))}")
        if not (math.isfinite(self.full_scale) and self.full_scale > 0):
            raise ConfigError(f"full_scale is {self.full_scale}; it must be above 0, such as 1 or 32768")

    @property
    def frame_samples(self) -> int:
        """Samples per frame."""
        return int(self.sample_rate * self.frame_seconds + 1e-6)

    @property
    def hop_samples(self) -> int:
        """Samples from frame to frame."""
        return int(self.sample_rate * self.hop_seconds + 1e-6)

    @property
    def fft_samples(self) -> int:
        """Length of the FFT: ``frame_samples`` rounded up to a power of two."""
        return 1 << (self.frame_samples - 1).bit_length()

    @property
    def top_hz(self) -> float:
        """Upper edge of the highest band in Hz."""
        return self.high_hz if self.high_hz > 0 else self.sample_rate / 2 + self.high_hz


def num_frames(num_samples: int, config: FbankConfig) -> int:
    """T, the frames that lie wholly within ``num_samples`` (Kaldi's snip_edges); 0 when not one does."""
    return max(0, 1 + (num_samples - config.frame_samples) // config.hop_samples)


class Fbank(nn.Module):
    """Waveform to log-mel energies. No parameters, nothing in the state dict, always float32; the FFT needs float64.

    A clip's result does not depend on the batch it is in, and the frames of a crop that starts at a multiple of the hop
    are those of the whole (bit for bit on the CPUs tried, else to 1e-5).
    """

    window: Tensor
    mels: Tensor

    def __init__(self, config: FbankConfig | None = None) -> None:
        super().__init__()
        self.config = config or FbankConfig()
        self.register_buffer("window", _window(self.config), persistent=False)
        self.register_buffer("mels", _mel_filters(self.config), persistent=False)

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Natural-log mel energies.

        Args:
            waveform: (..., S) with full scale [-1, 1].
            generator: source of the dither, needed when ``config.dither > 0`` only.

        Returns:
            (..., T, F) float32, T = ``num_frames(S)``, which may be 0.

        Raises:
            ConfigError: dither without a generator.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            samples = self._dithered(waveform.float(), generator)
            return self._log_mel(samples if self.config.full_scale == 1 else samples * self.config.full_scale)

    def _dithered(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.config.dither == 0:
            return waveform
        if generator is None:
            raise ConfigError(f"dither is {self.config.dither}; pass a generator to Fbank, or set dither to 0")
        noise = torch.randn(waveform.shape, generator=generator, device=generator.device)
        return waveform + self.config.dither * noise.to(waveform.device)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        config = self.config
        frames = num_frames(waveform.shape[-1], config)
        if frames == 0:
            return waveform.new_zeros((*waveform.shape[:-1], 0, config.num_mels))
        framed = waveform.unfold(-1, config.frame_samples, config.hop_samples)
        # The mean goes first: to pre-emphasise the waveform once and subtract the mean's share after saves 0.1 ms of a
        # 5 s clip, and costs a factor 10 in precision on sounds with strong low frequencies.
        framed = framed - framed.mean(dim=-1, keepdim=True)
        # Kaldi treats a frame's first sample apart, but the window is 0 there, so the frame starts at its second.
        # Two roundings, as in Kaldi: torch.sub with alpha has one, and a steady tone's empty bands tell the difference.
        steps = framed[..., 1:] - _PREEMPHASIS * framed[..., :-1]
        spectrum = torch.fft.rfft((steps * self.window).double(), config.fft_samples)
        parts = torch.view_as_real(spectrum).float().square_()
        power = parts[..., 0] + parts[..., 1]
        if frames < _MIN_ROWS:
            power = nn.functional.pad(power, (0, 0, 0, _MIN_ROWS - frames))
        energies: Tensor = (power @ self.mels)[..., :frames, :]
        return energies.clamp_(min=_FLOOR).log_()


def _window(config: FbankConfig) -> Tensor:
    """Kaldi's window without its first value, which is 0: (frame_samples - 1,) float32."""
    size = config.frame_samples
    phase = 2 * math.pi / (size - 1) * torch.arange(1, size, dtype=torch.float64)
    hanning = 0.5 - 0.5 * torch.cos(phase)
    return (hanning if config.window == "hanning" else hanning.clamp(min=0) ** 0.85).float()


def _mel_filters(config: FbankConfig) -> Tensor:
    """Triangles of equal width in mel over the bins of the FFT, (fft_samples // 2 + 1, F); Kaldi leaves Nyquist out.

    In float32 throughout, as in Kaldi: a narrow band may hold a single bin near its edge, and the rounding of that
    one weight moves the whole band (seen: 7e-4).
    """
    low, high = _mel(torch.tensor([config.low_hz, config.top_hz]))
    edges = low + (high - low) / (config.num_mels + 1) * torch.arange(config.num_mels + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(config.fft_samples // 2 + 1) * (config.sample_rate / config.fft_samples)
    position = _mel(bins)[:, None]
    rising, falling = (position - left) / (centre - left), (right - position) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[-1] = 0
    return filters


def _mel(hz: Tensor) -> Tensor:
    return 1127 * (1 + hz / 700).double().log().float()  # the C library's logf rounds rightly, torch's float32 log does not
