"""Films to clips of some frames: the settings and the loader of video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor

from bridle.data.batch import Batch
from bridle.data.cache import CACHE_VERSION, ClipCache
from bridle.data.dataset import LoadedClip
from bridle.data.manifest import Entry
from bridle.data.medium import VIDEO, Medium
from bridle.data.pixels import PixelConfig, finish_pixels, is_unchanged, pixel_baseline, uint8_pixels
from bridle.errors import ConfigError, DecodeError
from bridle.media.augment import crop_start
from bridle.media.image import Fit
from bridle.media.video import ENDS_BEFORE, Decoder, decode_frames, decode_windows, probe_video
from bridle.media.video.canvas import Canvas
from bridle.media.video.torchcodec import require_torchcodec

# (frames, height, width)
_GREY_AXES = 3
# A last window of a single frame shows no motion.
_MIN_WINDOW_FRAMES = 2
# Films of at most so many clips are kept decoded whole: the first epochs of longer ones would be slow for what later ones gain.
_CACHED_CLIPS = 8


@dataclass(frozen=True)
class VideoConfig(PixelConfig):
    """How films become clips; further attributes are those of :class:`~bridle.data.pixels.PixelConfig`.

    Attributes:
        num_frames: frames of a clip.
        stride: frames of the film from one frame of a clip to the next.
        rate_hz: frames per second that ``stride`` counts; None for the film's own average rate. Set it where films of
            different rates are to be seen at one speed.
        decoder: ``pyav`` or ``torchcodec``, see :data:`bridle.media.video.Decoder`. Never chosen by what is installed: pixels
            differ by some levels, and a run must not depend on that.

    Raises:
        ConfigError: a value out of range.
    """

    num_frames: int = 16
    stride: int = 4
    rate_hz: float | None = None
    decoder: Decoder = "pyav"

    def __post_init__(self) -> None:
        PixelConfig.__post_init__(self)
        if min(self.num_frames, self.stride) < 1:
            raise ConfigError(f"num_frames={self.num_frames} and stride={self.stride} must be 1 or more")
        if self.rate_hz is not None and not 0 < self.rate_hz < math.inf:
            raise ConfigError(f"rate_hz={self.rate_hz} must be above 0, or None for the film's own")


class VideoLoader:
    """Clips ``(C, T, H, W)`` of uint8 pixels; cropped, turned over and normalised on the device, all frames of a clip alike.

    Pictures are squashed and centred as by :class:`~bridle.data.image.ImageLoader`. Films of at most eight clips are kept
    decoded until ``cache_gigabytes`` are full; the cache changes no number.
    """

    medium: ClassVar[Medium] = VIDEO
    dtype: ClassVar[torch.dtype] = torch.uint8
    baseline_name: ClassVar[str] = "raw-pixel statistics"

    def __init__(self, config: VideoConfig) -> None:
        if config.decoder == "torchcodec":
            require_torchcodec()
        self.config = config
        settings: dict[str, Any] = {"film": config.decode_size, "channels": config.channels, "version": CACHE_VERSION}
        settings |= {"rate_hz": config.rate_hz, "decoder": config.decoder}
        self._cache = ClipCache(config.cache_gigabytes, config.cache_folder, settings)

    @property
    def crop_frames(self) -> int:
        """Frames of a full clip."""
        return self.config.num_frames

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, decode_size, decode_size)."""
        return (self.config.channels, self.config.decode_size, self.config.decode_size)

    def length(self, entry: Entry) -> int:
        """Frames of the entry's clip; a full clip when duration or rate is not known."""
        if entry.duration_seconds <= 0 or not (self.config.rate_hz or entry.rate_hz):
            return self.config.num_frames
        return self._left(self._num_frames(entry), 0)

    def clip_seconds(self, entry: Entry) -> float:
        """Time from the first frame of a clip to behind its last."""
        rate = self._rate(entry)
        full = self.config.num_frames * self.config.stride / rate if rate else entry.duration_seconds
        return min(entry.duration_seconds, full)

    def cacheable_bytes(self, entry: Entry) -> int:
        """Of all frames of a film of at most eight clips."""
        total = self._num_frames(entry)
        short = total <= _CACHED_CLIPS * self.config.num_frames * self.config.stride
        return total * self.config.channels * self.config.decode_size**2 if short else 0

    def is_fixed(self, entry: Entry, aspect: float) -> bool:
        """True for a square film of at most one clip, when nothing is cropped or augmented."""
        known = entry.duration_seconds > 0 and (self.config.rate_hz or entry.rate_hz) is not None
        short = known and self._num_frames(entry) <= self.config.num_frames * self.config.stride
        return short and is_unchanged(self.config, aspect)

    def load(self, entry: Entry, generator: torch.Generator) -> LoadedClip:
        """A clip from a random start, or from the first frame where the film ends before that; its crop is drawn on the device
        from the clip's seed.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        entry, config = self._known(entry), self.config
        total, span = self._num_frames(entry), config.num_frames * config.stride
        start = crop_start(total, span, generator)
        num_bytes = self.cacheable_bytes(entry)
        if num_bytes and self._cache.takes(entry, num_bytes):
            film = self._cache.get(
                entry, lambda: self._decoded(entry, 0, total, 1, config.decode_size, "squash", _CACHED_CLIPS)
            )
            start = start if start < film.inputs.shape[1] else 0
            inputs = film.inputs[:, start : start + span : config.stride]
            return LoadedClip(inputs, start / self._rate(entry), film.aspect)
        try:
            return self._decoded(entry, start, self._left(total, start), config.stride, config.decode_size, "squash")
        except DecodeError as error:
            if not start or not error.reason.startswith(ENDS_BEFORE):
                raise
            # The header promised more than there is.
            return self._decoded(entry, 0, self._left(total, 0), config.stride, config.decode_size, "squash")

    def windows(self, entry: Entry) -> Iterator[LoadedClip]:
        """The whole film in consecutive clips, centres of its pictures, not augmented.

        A last clip of a single frame is left out unless it is the only one, and so is what lies behind the stated duration, as
        in training: a damaged last frame may claim to be shown for ever.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        entry, config = self._known(entry), self.config
        total = self._num_frames(entry)
        starts = range(0, max(1, total - (_MIN_WINDOW_FRAMES - 1) * config.stride), config.num_frames * config.stride)
        for start, clip in zip(starts, self._consecutive(entry), strict=False):
            if not start or clip.inputs.shape[1] >= _MIN_WINDOW_FRAMES:
                yield replace(clip, inputs=clip.inputs[:, : self._left(total, start)])

    def windows_of(self, item: Any) -> Iterator[LoadedClip]:
        """:meth:`windows` of frames in memory: (T, C, H, W) of uint8 or of floats in [0, 1].

        They are taken as the frames of clips: of a film in memory whole, give every ``stride``-th.

        Raises:
            DataError: it is no such tensor.
        """
        from av.video.frame import VideoFrame

        size, step = self.config.size, self.config.num_frames
        frames = uint8_pixels(item, "a film", ("frames", "1 or 3", "height", "width"))
        canvas = Canvas((size, size), "centre", self.config.channels, 1.0, frames[0, 0].numel())
        shown = frames.movedim(1, -1).squeeze(-1).contiguous().numpy()
        kind = "rgb24" if shown.ndim > _GREY_AXES else "gray"
        pixels = torch.stack([canvas.picture(VideoFrame.from_ndarray(frame, format=kind)) for frame in shown], dim=1)
        seconds = self.config.stride / self.config.rate_hz if self.config.rate_hz else 0.0
        for start in range(0, max(1, len(frames) - _MIN_WINDOW_FRAMES + 1), step):
            yield LoadedClip(pixels[:, start : start + step], start * seconds, frames.shape[3] / frames.shape[2])

    def finish(self, batch: Batch, augment: bool) -> Batch:
        """See :func:`~bridle.data.pixels.finish_pixels`."""
        return finish_pixels(batch, self.config, augment)

    def baseline(self, clip: Tensor) -> Tensor:
        """Pixels of each frame (T, X), see :func:`~bridle.data.pixels.pixel_baseline`."""
        return pixel_baseline(clip)

    def _known(self, entry: Entry) -> Entry:
        """The entry with its duration and rate, read from the file where the manifest does not tell."""
        if entry.duration_seconds > 0 and self._rate(entry) > 0:
            return entry
        with entry.opened() as source:
            return entry.with_info(probe_video(source, entry.key, self.config.max_pixels))

    def _rate(self, entry: Entry) -> float:
        return self.config.rate_hz or entry.rate_hz

    def _num_frames(self, entry: Entry) -> int:
        """Frames of the whole film at its rate, at least 1."""
        return max(1, round(entry.duration_seconds * self._rate(entry)))

    def _left(self, total: int, start: int) -> int:
        """Frames of a clip from frame ``start`` of a film of ``total``."""
        return min(self.config.num_frames, -(-(total - start) // self.config.stride))

    def _consecutive(self, entry: Entry) -> Iterator[LoadedClip]:
        config, step_seconds = self.config, self.config.stride / self._rate(entry)
        if config.decoder == "torchcodec":
            for start in count(0, config.num_frames * config.stride):
                try:
                    yield self._decoded(entry, start, config.num_frames, config.stride, config.size, "centre")
                except DecodeError as error:
                    if start and error.reason.startswith(ENDS_BEFORE):
                        return
                    raise
        with entry.opened() as source:
            for frames in decode_windows(
                source,
                num_frames=config.num_frames,
                step_seconds=step_seconds,
                size=(config.size, config.size),
                channels=config.channels,
                max_decode_seconds=config.max_decode_seconds,
                max_pixels=config.max_pixels,
                key=entry.key,
            ):
                yield LoadedClip(frames.pixels, frames.start_seconds, frames.width / frames.height)

    def _decoded(
        self, entry: Entry, start: int, num_frames: int, stride: int, size: int, fit: Fit, patience: int = 1
    ) -> LoadedClip:
        """A clip, which may take ``patience`` times as long as the settings say."""
        config, rate = self.config, self._rate(entry)
        with entry.opened() as source:
            frames = decode_frames(
                source,
                start_seconds=start / rate,
                num_frames=num_frames,
                step_seconds=stride / rate,
                size=(size, size),
                fit=fit,
                channels=config.channels,
                max_decode_seconds=patience * config.max_decode_seconds,
                max_pixels=config.max_pixels,
                decoder=config.decoder,
                key=entry.key,
            )
        return LoadedClip(frames.pixels, frames.start_seconds, frames.width / frames.height)
