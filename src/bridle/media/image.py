"""Picture files to uint8 tensors: upright, opaque, grey or RGB, of the wanted size.

JPEG, PNG, WebP, TIFF, BMP and GIF, told by their first bytes and never by the name; of a file with several pictures
the first. What Pillow leaves open is settled here:

* The picture is as shown: EXIF orientation applied, transparency laid on white. ICC profiles and gamma are ignored.
* 16-bit grey x becomes ``round(x / 257)``, whatever part of the range is used; integers beyond 16 bits are refused.
  16-bit colour keeps its upper 8 bits. Floats must lie in 0..1: a guess by the values would turn some pictures black.
* A file that is cut short is refused as long as a pixel is missing. Only PNG data have a checksum that finds damage;
  in the other formats, damage that still decodes gives wrong pixels, as in every viewer.
* ``max_pixels`` stands in for Pillow's own limit, which belongs to the whole process and warns on the screen. Only of
  WebP and animated GIF does Pillow still refuse more than twice its ``MAX_IMAGE_PIXELS``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import IO, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from bridle.errors import ConfigError, DecodeError
from bridle.media.image_files import (
    Timed,
    buffered,
    decode_errors,
    exif_orientation,
    is_on_its_side,
    lacks_rows,
    open_image,
    stored_size,
)
from bridle.media.reading import TimeLimit
from bridle.media.source import Source, opened, source_name

__all__ = ["Fit", "ImageInfo", "Picture", "decode_image", "picture_of", "probe_image"]

Fit = Literal["squash", "centre"]
"""How a picture gets a shape not its own: all of it, distorted, or its centre at the right proportions."""

_DRAFT_GAP = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 where so many times the wanted size is left
_REDUCING_GAP = 3.0  # blocks are averaged before resampling where so many times the wanted size is left
_UPRIGHT = {  # EXIF orientation -> what shows it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTES_BETWEEN_CHECKS = 1024  # of a progressive JPEG: a dozen of them may ask for the whole picture once more
_MIRRORED_X, _MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)  # right end and bottom were stored first


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of a picture announces: size in pixels as shown, Pillow's mode of the file, its format."""

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: ``pixels`` (C, H, W) uint8; ``width`` and ``height`` of the whole as shown, before resizing."""

    pixels: Tensor
    width: int
    height: int


@dataclass(frozen=True)
class _Request:
    channels: int
    size: tuple[int, int] | None
    fit: Fit


def check_picture(size: tuple[int, int] | None, fit: Fit, channels: int, max_pixels: int) -> None:
    """What pictures and frames are asked for must make sense.

    Raises:
        ConfigError: it does not.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"size is {size}; it must be (height, width), both positive, or None")
    if fit not in get_args(Fit):
        raise ConfigError(f"fit is {fit!r}; it must be one of {', '.join(get_args(Fit))}")
    if channels not in (1, 3):
        raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
    if max_pixels < 1:
        raise ConfigError(f"max_pixels is {max_pixels}; it must be positive, e.g. 200000000")


def probe_image(source: Source, key: str = "") -> ImageInfo:
    """Read the header of a picture, without decoding a pixel. A WebP is read whole for it.

    Args:
        source: path or seekable binary stream.
        key: name of the file in errors; the path when empty.

    Raises:
        DecodeError: the file is missing, empty, no picture of a known format, or has a broken header.
    """
    key = key or source_name(source)
    with opened(source, key) as raw, buffered(raw) as stream:
        image = open_image(stream, key)
        return ImageInfo(*image.shown, image.file.mode, str(image.file.format))


def decode_image(
    source: Source,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    fit: Fit = "centre",
    max_pixels: int = 200_000_000,
    max_decode_seconds: float = math.inf,
    key: str = "",
) -> Picture:
    """Decode a picture and bring it to ``size`` with Pillow's antialiased bicubic filter.

    A picture that has the size already is not resampled. A JPEG of at least four times the size is decoded at a half,
    a quarter or an eighth, which changes a photograph by less than one level on average.

    Args:
        source: path or seekable binary stream.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        size: (height, width) of the result; None leaves the picture as it is.
        fit: "squash" resizes the whole picture to ``size``; "centre" resizes it until it just covers ``size`` and cuts
            out the centre.
        max_pixels: the most pixels that a file may announce; one with more is refused before they take memory. A tile of a
            TIFF may have as many, all of them together four times as many.
        max_decode_seconds: time that decoding may take, asked between blocks of the file. TIFF and WebP are decoded in one
            go, within the time that ``max_pixels`` takes.
        key: name of the file in errors; the path when empty.

    Raises:
        ConfigError: channels, size, fit or max_pixels is out of range.
        DecodeError: the file is missing, empty, no picture of a known format, cut short, damaged, too large, takes
            too long, or holds values without an 8-bit meaning.
    """
    check_picture(size, fit, channels, max_pixels)
    request = _Request(channels, size, fit)
    key = key or source_name(source)
    with opened(source, key) as raw, buffered(raw) as stream:
        image = open_image(stream, key, max_pixels)
        if not isinstance(image.file, TiffImageFile):  # of which libtiff wants the whole file
            image.file.fp = cast("IO[bytes]", Timed(stream, TimeLimit(max_decode_seconds)))
        if isinstance(image.file, JpegImageFile) and image.file.info.get("progressive"):
            image.file.decodermaxblock = _BYTES_BETWEEN_CHECKS
        with decode_errors(key, Exception):
            extent = _load(image.file, request, is_on_its_side(image.orientation))
            if isinstance(image.file, PngImageFile) and lacks_rows(image.file, stream):
                raise DecodeError(key, "truncated or damaged")
        if isinstance(image.file, PngImageFile):  # which may tell it behind the pixels
            image = dataclasses.replace(image, orientation=exif_orientation(image.file))
        # A TIFF has been turned by Pillow.
        orientation = 1 if isinstance(image.file, TiffImageFile) else image.orientation
        return Picture(_pixels(image.file, orientation, extent, request, key), *image.shown)


def picture_of(
    image: Image.Image, *, channels: int = 3, size: tuple[int, int] | None = None, fit: Fit = "centre", key: str = "<image>"
) -> Picture:
    """A Pillow image, treated as :func:`decode_image` treats a file, orientation and transparency included.

    Only the decoding of a large JPEG at reduced size is left out. The image is loaded, not changed.

    Args:
        image: of a mode that a file may have.
        channels: as in :func:`decode_image`.
        size: as in :func:`decode_image`.
        fit: as in :func:`decode_image`.
        key: name of the image in errors.

    Raises:
        ConfigError: channels, size or fit is out of range.
        DecodeError: the image cannot be loaded, is empty, or holds values without an 8-bit meaning.
    """
    check_picture(size, fit, channels, 1)
    request = _Request(channels, size, fit)
    with decode_errors(key, Exception):
        image.load()
    if min(image.size) < 1:
        raise DecodeError(key, "no pixels")
    orientation = exif_orientation(image)
    width, height = image.size[::-1] if is_on_its_side(orientation) else image.size
    return Picture(_pixels(image, orientation, image.size, request, key), width, height)


def _load(image: ImageFile, request: _Request, is_on_its_side: bool) -> tuple[float, float]:
    """Decode. The result is (width, height) of the picture within the decoded one, which may have a part pixel more."""
    if isinstance(image, TiffImageFile):
        image.im = Image.new(image.mode, stored_size(image), None).im  # lest Pillow checks its own limit
    elif isinstance(image, PngImageFile):
        _mend_colour_key(image)
    elif isinstance(image, JpegImageFile) and request.size is not None:
        height, width = request.size[::-1] if is_on_its_side else request.size
        scale_x, scale_y = _DRAFT_GAP * width / image.width, _DRAFT_GAP * height / image.height
        if request.fit == "centre":
            scale_x = scale_y = max(scale_x, scale_y)
        drafted = image.draft(None, (math.ceil(scale_x * image.width), math.ceil(scale_y * image.height)))
        image.load()
        return drafted[1][2:] if drafted is not None else image.size
    image.load()
    return image.size


def _mend_colour_key(image: PngImageFile) -> None:
    """Scale the transparent colour to 8 bits as Pillow scales the pixels."""
    colour, raw_mode = image.info.get("transparency"), image.tile[0][3] if image.tile else ""
    if raw_mode in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _pixels(image: Image.Image, orientation: int, extent: tuple[float, float], request: _Request, key: str) -> Tensor:
    """(C, H, W) uint8 of a loaded image; ``extent`` (width, height) of the picture in it, as stored."""
    with decode_errors(key, OSError, ValueError, MemoryError):
        image = _opaque(image, "L" if request.channels == 1 else "RGB", key)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        if request.size is not None:
            width, height = extent[::-1] if is_on_its_side(orientation) else extent
            left = image.width - width if orientation in _MIRRORED_X else 0.0
            top = image.height - height if orientation in _MIRRORED_Y else 0.0
            image = _resized(image, (left, top, left + width, top + height), request.size, request.fit)
        values = np.array(image)
        return torch.from_numpy(values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1)))


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], fit: Fit) -> Image.Image:
    """The part ``box`` (left, top, right, bottom) of an image at ``size`` (height, width).

    "centre" narrows the box: the result is that of resizing all of it, without a huge picture in between.
    """
    height, width = size
    left, top, right, bottom = box
    if fit == "centre":
        scale = max(width / (right - left), height / (bottom - top))
        spare_x, spare_y = max(0.0, right - left - width / scale), max(0.0, bottom - top - height / scale)
        if scale == 1:
            spare_x, spare_y = spare_x // 2 * 2, spare_y // 2 * 2  # a cut between pixels would blur
            right, bottom = left + spare_x + width, top + spare_y + height
        left, top, right, bottom = left + spare_x / 2, top + spare_y / 2, right - spare_x / 2, bottom - spare_y / 2
    return image.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom), _REDUCING_GAP)


def _opaque(image: Image.Image, mode: Literal["L", "RGB"], key: str) -> Image.Image:
    """The image on white, as "L" or "RGB"."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image, key)
    elif image.mode == "LAB":
        from PIL import ImageCms  # needed by hardly any file

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = cast("Image.Image", ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    return image if image.mode == mode else image.convert(mode)


def _eight_bit(image: Image.Image, key: str) -> Image.Image:
    """An integer or float image as "L"; the transparent grey becomes white."""
    values: npt.NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise DecodeError(key, "float pixels outside 0..1; store 8 or 16 bits")
        return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DecodeError(key, f"integer pixels from {low} to {high}, not in 0..65535")
    grey = ((values.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)  # round(x / 257) without a division
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
