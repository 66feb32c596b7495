"""Sound files to log-mel clips: the loader of audio, its cache, and the estimate of its normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bridle.config import LATER, told
from bridle.data.batch import Batch
from bridle.data.cache import CACHE_VERSION, ClipCache
from bridle.data.dataset import LoadedClip, one_thread
from bridle.data.manifest import Entry
from bridle.data.medium import AUDIO, Medium
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.media.audio import decode_audio, probe_audio
from bridle.media.augment import circular_shift, crop_start, gain, mask_bands
from bridle.media.fbank import Fbank, FbankConfig, num_frames

# A last window of fewer frames would be less than half of a usual patch of 16, hardly anything to encode.
_MIN_WINDOW_FRAMES = 8


@dataclass(frozen=True)
class AudioConfig:
    """How sound becomes clips.

    Attributes:
        fbank: the log-mel filterbank.
        crop_seconds: sound in a full clip; longer files are cropped at random.
        mean: of the log-mel values, subtracted; None until it is estimated from the data.
        std: of the log-mel values; clips are divided by twice this. None like ``mean``.
        shift: augment by a circular shift along time.
        gain: augment by a random gain.
        mask_frames: most frames of a band in time that is set to the mean in training (SpecAugment); 0 for none.
        mask_mels: most mel bands of a band in frequency, likewise.
        cache_gigabytes: memory for decoded short files, over all workers of a process; 0 for none.
        cache_folder: folder that keeps decoded short files for other processes and runs; "" for none.
        max_decode_seconds: time that decoding one clip may take; a file that takes longer counts as unreadable.
    """

    fbank: FbankConfig = field(default_factory=FbankConfig)
    crop_seconds: float = 5.0
    mean: float | None = None
    std: float | None = None
    shift: bool = True
    gain: bool = True
    mask_frames: int = field(default=0, metadata=LATER)
    mask_mels: int = field(default=0, metadata=LATER)
    cache_gigabytes: float = 1.0
    cache_folder: str = field(default="", metadata=LATER)
    max_decode_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.fbank.frame_seconds <= self.crop_seconds < math.inf:
            raise ConfigError(f"crop_seconds is {self.crop_seconds}; it must hold a frame of {self.fbank.frame_seconds} s")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"mean is {self.mean} and std is {self.std}; set both, or neither to have them estimated")
        if self.std is not None and not 0 < self.std < math.inf:
            raise ConfigError(f"std is {self.std}; it must be above 0")
        if min(self.mask_frames, self.mask_mels) < 0:
            raise ConfigError(f"mask_frames={self.mask_frames} and mask_mels={self.mask_mels} must be at least 0")
        if not 0 <= self.cache_gigabytes < math.inf:
            raise ConfigError(f"cache_gigabytes is {self.cache_gigabytes}; it must be finite and at least 0")
        if not self.max_decode_seconds > 0:
            raise ConfigError(f"max_decode_seconds is {self.max_decode_seconds}; it must be above 0, e.g. 60")


class AudioLoader:
    """Clips ``(1, T, F, 1)`` of log-mel frames, normalised as ``(x - mean) / (2 * std)``.

    Files of at most a crop are kept in memory as log-mel before augmentation, until ``cache_gigabytes`` are full; which
    file comes first is as good as any other, so nothing is ever thrown out. The cache changes no number.

    Raises:
        ConfigError: the normalisation is not set.
    """

    medium: ClassVar[Medium] = AUDIO
    dtype: ClassVar[torch.dtype] = torch.float32
    baseline_name: ClassVar[str] = "log-mel statistics"

    def __init__(self, config: AudioConfig) -> None:
        if config.mean is None or config.std is None:
            raise ConfigError("mean and std of the log-mel values are not set; set them, or use estimate_normalisation")
        self.config = config
        self._mean, self._scale = config.mean, 2 * config.std
        self._fbank = Fbank(replace(config.fbank, dither=0.0))
        self._dithered_fbank = Fbank(config.fbank)
        self._hop = config.fbank.hop_samples
        self._crop_samples = round(config.crop_seconds * config.fbank.sample_rate)
        self.crop_frames = num_frames(self._crop_samples, config.fbank)
        self._min_frames = min(_MIN_WINDOW_FRAMES, self.crop_frames)
        dithered = config.fbank.dither > 0  # every reading differs
        settings = {"log-mel": told(config.fbank), "crop_seconds": config.crop_seconds, "version": CACHE_VERSION}
        self._cache = ClipCache(*(0.0, "") if dithered else (config.cache_gigabytes, config.cache_folder), settings)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(1, F, 1)."""
        return (1, self.config.fbank.num_mels, 1)

    def length(self, entry: Entry) -> int:
        """Frames of the entry's clip; a full crop when its duration is not known."""
        return min(self.crop_frames, self._frames(entry)) if entry.duration_seconds > 0 else self.crop_frames

    def clip_seconds(self, entry: Entry) -> float:
        """Sound in the entry's clip."""
        return min(entry.duration_seconds, self.config.crop_seconds)

    def cacheable_bytes(self, entry: Entry) -> int:
        """Of the log-mel of a file of at most a crop."""
        frames = self._frames(entry)
        return 4 * frames * self.config.fbank.num_mels if frames <= self.crop_frames else 0

    def is_fixed(self, entry: Entry, aspect: float) -> bool:
        """True for a file of at most a crop, when nothing is augmented."""
        config = self.config
        augmented = config.shift or config.gain or config.mask_frames + config.mask_mels or config.fbank.dither
        return not augmented and self._frames(entry) <= self.crop_frames

    @one_thread()
    def load(self, entry: Entry, generator: torch.Generator) -> LoadedClip:
        """A random crop, shifted and amplified at random.

        Args:
            entry: the file; of a file of unknown duration the beginning is taken.
            generator: the only source of randomness.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        start = 0
        if self._frames(entry) > self.crop_frames:
            start = crop_start(self._frames(entry), self.crop_frames, generator)
            fbank = self._log_mel(entry, start * self._hop, generator)
        else:
            fbank = self._cache.get(entry, lambda: LoadedClip(self._log_mel(entry, 0, generator), 0.0)).inputs
        if self.config.shift:
            fbank = circular_shift(fbank, generator)
        if self.config.gain:
            fbank = gain(fbank, generator)
        return self._clip(fbank, start * self._hop)

    @one_thread()
    def load_mixture(self, entry: Entry, other: Entry, weight: float, generator: torch.Generator) -> LoadedClip:
        """Like :meth:`load`, of ``weight`` times one sound plus the rest of another, each without its mean (arXiv 2104.01778).

        The other sound is cut, or padded with silence, to the length of the first. Neither is kept in memory.

        Raises:
            DecodeError: a file cannot be read; it names the one.
            OSError: the tar that the first lies in cannot be opened.
        """
        first = self._random_crop(entry, generator)
        try:
            second = self._random_crop(other, generator)
        except OSError as error:
            raise DecodeError(other.key, error.strerror or str(error)) from error
        second = torch.nn.functional.pad(second[: len(first)], (0, max(0, len(first) - len(second))))
        fbank = self._fbank_of(weight * first + (1 - weight) * second, generator)
        if self.config.shift:
            fbank = circular_shift(fbank, generator)
        if self.config.gain:
            fbank = gain(fbank, generator)
        return self._clip(fbank, 0)

    def windows(self, entry: Entry) -> Iterator[LoadedClip]:
        """The whole file in windows of ``crop_seconds`` that start at multiples of it (to the hop), not augmented.

        A last window of fewer than 8 frames is left out unless it is the only one, which is padded with silence to one.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        seconds = entry.duration_seconds
        if seconds <= 0:
            with entry.opened() as source:
                seconds = probe_audio(source, entry.key).duration_seconds
        for start in self._window_starts(round(seconds * self.config.fbank.sample_rate)):
            fbank = self._log_mel(entry, start)
            if start and len(fbank) < self._min_frames:
                return
            yield self._clip(fbank, start)
            if len(fbank) < self.crop_frames:  # the last one, also where a file ends before its stated duration
                return

    def windows_of(self, item: Any) -> Iterator[LoadedClip]:
        """:meth:`windows` of a waveform (S,), mono at the filterbank's sample rate, in [-1, 1].

        Raises:
            DataError: it is no waveform, empty, not mono or not finite.
        """
        waveform = _checked_waveform(item)
        for start in self._window_starts(len(waveform)):
            yield self._clip(self._fbank_of(waveform[start : start + self._crop_samples]), start)

    def finish(self, batch: Batch, augment: bool) -> Batch:
        """The batch, with masked bands when ``augment`` and the settings say so; all else is done when a crop is loaded."""
        frames, mels = self.config.mask_frames, self.config.mask_mels
        if not augment or not frames + mels:
            return batch
        return replace(batch, inputs=mask_bands(batch.inputs, batch.lengths, batch.seeds, frames, mels))

    def baseline(self, clip: Tensor) -> Tensor:
        """Log-mel frames (T, F)."""
        return clip[0, :, :, 0]

    def _window_starts(self, num_samples: int) -> range:
        step = max(1, round(self._crop_samples / self._hop)) * self._hop
        shortest = self.config.fbank.frame_samples + (self._min_frames - 1) * self._hop
        return range(0, max(0, num_samples - shortest) + 1, step)

    def _frames(self, entry: Entry) -> int:
        """Frames of the whole file by its stated duration, at least 1."""
        samples = round(entry.duration_seconds * self.config.fbank.sample_rate)
        return num_frames(max(samples, self.config.fbank.frame_samples), self.config.fbank)

    def _log_mel(self, entry: Entry, start: int, generator: torch.Generator | None = None) -> Tensor:
        """(T, F) from sample ``start`` on, at most a crop long, at least one frame."""
        return self._fbank_of(self._samples(entry, start), generator)

    def _samples(self, entry: Entry, start: int) -> Tensor:
        """(S,) from sample ``start`` on, at most a crop long."""
        rate = self.config.fbank.sample_rate
        with entry.opened() as source:
            clip = decode_audio(
                source,
                sample_rate=rate,
                start_seconds=start / rate,
                duration_seconds=self._crop_samples / rate,
                max_decode_seconds=self.config.max_decode_seconds,
                key=entry.key,
            )
        return clip.samples

    def _random_crop(self, entry: Entry, generator: torch.Generator) -> Tensor:
        """(S,) of a crop at random, without its mean."""
        samples = self._samples(entry, crop_start(self._frames(entry), self.crop_frames, generator) * self._hop)
        return samples - samples.mean()

    @one_thread()
    def _fbank_of(self, samples: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(T, F) of at least one frame; a shorter waveform is padded with silence. No dither without a generator."""
        padding = max(0, self.config.fbank.frame_samples - len(samples))
        with torch.no_grad():
            waveform = torch.nn.functional.pad(samples, (0, padding))
            fbank: Tensor = self._fbank(waveform) if generator is None else self._dithered_fbank(waveform, generator)
        return fbank

    @one_thread()
    def _clip(self, fbank: Tensor, start: int) -> LoadedClip:
        inputs = ((fbank - self._mean) / self._scale)[None, :, :, None]
        return LoadedClip(inputs, start / self.config.fbank.sample_rate)


def _checked_waveform(waveform: Any) -> Tensor:
    if not isinstance(waveform, Tensor):
        raise DataError(f"a sound must be a path or a tensor (samples,), not {type(waveform)}")
    if waveform.ndim != 1 or not waveform.is_floating_point() or waveform.numel() == 0:
        raise DataError(
            f"a waveform must be a non-empty float tensor (samples,), not {tuple(waveform.shape)} {waveform.dtype}; "
            "average the channels and scale to [-1, 1]"
        )
    if not bool(torch.isfinite(waveform).all()):
        raise DataError("the waveform holds NaN or infinite samples; clean it first")
    return waveform.detach().to("cpu", torch.float32)
