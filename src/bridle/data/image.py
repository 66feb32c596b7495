"""Pictures to clips of one frame: the settings and the loader of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bridle.data.batch import Batch
from bridle.data.cache import CACHE_VERSION, ClipCache
from bridle.data.dataset import LoadedClip
from bridle.data.manifest import Entry
from bridle.data.medium import IMAGE, Medium
from bridle.data.pixels import PixelConfig, finish_pixels, is_unchanged, pixel_baseline, uint8_pixels
from bridle.media.image import Fit, Picture, decode_image, picture_of


@dataclass(frozen=True)
class ImageConfig(PixelConfig):
    """How pictures become clips; every attribute is that of :class:`~bridle.data.pixels.PixelConfig`."""


class ImageLoader:
    """Clips ``(C, 1, H, W)`` of uint8 pixels; cropped, turned over and normalised on the device, a whole batch at once.

    For training a whole picture is squashed to a square of ``decode_size``, its aspect ratio kept beside it; for everything
    else its centre is cut out at ``size``. Training squares are kept in memory until ``cache_gigabytes`` are full.
    """

    medium: ClassVar[Medium] = IMAGE
    dtype: ClassVar[torch.dtype] = torch.uint8
    crop_frames: ClassVar[int] = 1
    baseline_name: ClassVar[str] = "raw pixels"

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        settings = {"picture": config.decode_size, "channels": config.channels, "version": CACHE_VERSION}
        self._cache = ClipCache(config.cache_gigabytes, config.cache_folder, settings)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, decode_size, decode_size)."""
        return (self.config.channels, self.config.decode_size, self.config.decode_size)

    def length(self, entry: Entry) -> int:
        """1."""
        return 1

    def clip_seconds(self, entry: Entry) -> float:
        """0."""
        return 0.0

    def cacheable_bytes(self, entry: Entry) -> int:
        """Of the squashed picture."""
        return self.config.channels * self.config.decode_size**2

    def is_fixed(self, entry: Entry, aspect: float) -> bool:
        """True for a square picture, when nothing is cropped or augmented."""
        return is_unchanged(self.config, aspect)

    def load(self, entry: Entry, generator: torch.Generator) -> LoadedClip:
        """The whole picture, squashed; its crop is drawn on the device from the clip's seed.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        return self._cache.get(entry, lambda: _clip(self._decoded(entry, self.config.decode_size, "squash")))

    def windows(self, entry: Entry) -> Iterator[LoadedClip]:
        """The centre of the picture, not augmented: one window.

        Raises:
            DecodeError: the file cannot be read.
            OSError: the tar it lies in cannot be opened.
        """
        yield _clip(self._decoded(entry, self.config.size, "centre"))

    def windows_of(self, item: Any) -> Iterator[LoadedClip]:
        """:meth:`windows` of a picture in memory: a PIL image, or a tensor (C, H, W) of uint8 or of floats in [0, 1].

        Raises:
            DataError: it is neither.
        """
        from PIL import Image

        image = item
        if not isinstance(item, Image.Image):
            pixels = uint8_pixels(item, "a picture", ("1 or 3", "height", "width"))
            image = Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy())
        size = self.config.size
        yield _clip(picture_of(image, channels=self.config.channels, size=(size, size), fit="centre"))

    def finish(self, batch: Batch, augment: bool) -> Batch:
        """See :func:`~bridle.data.pixels.finish_pixels`."""
        return finish_pixels(batch, self.config, augment)

    def baseline(self, clip: Tensor) -> Tensor:
        """Pixels (1, X), see :func:`~bridle.data.pixels.pixel_baseline`."""
        return pixel_baseline(clip)

    def _decoded(self, entry: Entry, size: int, fit: Fit) -> Picture:
        config = self.config
        with entry.opened() as source:
            return decode_image(
                source,
                channels=config.channels,
                size=(size, size),
                fit=fit,
                max_pixels=config.max_pixels,
                max_decode_seconds=config.max_decode_seconds,
                key=entry.key,
            )


def _clip(picture: Picture) -> LoadedClip:
    return LoadedClip(picture.pixels[:, None], 0.0, picture.width / picture.height)
