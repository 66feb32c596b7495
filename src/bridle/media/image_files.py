"""Opening picture files with Pillow: their first bytes, size limit and orientation, and why one cannot be read.

Python's warnings cannot be silenced for one thread only, so the ways that lead to Pillow's are not taken: ``Image.open``
with its limit on pixels, ``getexif``, the reading of the resolution. Of a damaged TIFF or GIF, though, Pillow and
libtiff may still complain on stderr.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from bridle.errors import BridleError, DecodeError
from bridle.media.reading import TimeLimit, Unreadable, check_pixels

ORIENTATION_TAG = 0x0112
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 0x0142, 0x0143, 0x0144
_TILED_ALLOWANCE = 4  # of narrow pictures, tiles hold many times the pixels
_NEEDED_BYTES = 30  # a WebP tells its size in so many
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of the passes of an interlaced PNG."""


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nobody asks for the resolution, and a damaged EXIF block would warn."""


_SIGNATURES: tuple[tuple[type[ImageFile], tuple[bytes, ...]], ...] = (
    (_Jpeg, (b"\xff\xd8\xff",)),
    (PngImageFile, (b"\x89PNG\r\n\x1a\n",)),
    (WebPImageFile, (b"RIFF",)),
    (GifImageFile, (b"GIF87a", b"GIF89a")),
    (TiffImageFile, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (BmpImageFile, (b"BM",)),
)
_CUT_SHORT = ("truncated", "Truncated", "not identified", "cannot load", "broken PNG")  # how Pillow says it
_HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


@dataclass(frozen=True, eq=False)
class OpenImage:
    """A picture of which the header is read: Pillow's object, size in pixels and EXIF orientation as stored."""

    file: ImageFile
    width: int
    height: int
    orientation: int

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as shown."""
        return (self.height, self.width) if is_on_its_side(self.orientation) else (self.width, self.height)


def is_on_its_side(orientation: int) -> bool:
    """Whether showing a picture of this EXIF orientation exchanges width and height."""
    return 5 <= orientation <= 8


def open_image(stream: BinaryIO, key: str, max_pixels: int | None = None) -> OpenImage:
    """Read the header of a picture. The stream must stay open until the picture is loaded.

    Args:
        stream: seekable, at any place.
        key: name of the file in errors.
        max_pixels: the most pixels that the header may announce.

    Raises:
        DecodeError: the file is empty, no picture of a known format, too large, or has a broken header.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    if num_bytes == 0:
        raise DecodeError(key, "empty file")
    stream.seek(0)
    head = stream.read(_NEEDED_BYTES)
    plugin = _plugin(head)
    if plugin is None:
        is_heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
        raise DecodeError(key, "AVIF and HEIC are not read; convert to JPEG or PNG" if is_heif else "not an image")
    if plugin is WebPImageFile:  # Pillow reads all of it and allocates the canvas at once
        if num_bytes < 8 + int.from_bytes(head[4:8], "little"):
            raise DecodeError(key, "truncated or damaged")
        _check_pixels(*_webp_size(head), max_pixels, key)
    if plugin is TiffImageFile and not _has_directory(stream, head, num_bytes):
        raise DecodeError(key, "truncated or damaged")  # Pillow would warn on top

    stream.seek(0)
    with decode_errors(key, Exception):
        file = plugin(stream)
        if isinstance(file, TiffImageFile):
            (width, height), orientation = stored_size(file), int(file.tag_v2.get(ORIENTATION_TAG, 1))
            _check_tiles(file, max_pixels, key)
        else:
            (width, height), orientation = file.size, exif_orientation(file)
    _check_pixels(width, height, max_pixels, key)
    return OpenImage(file, width, height, orientation)


def stored_size(file: TiffImageFile) -> tuple[int, int]:
    """Width and height of a TIFF in the file; ``file.size`` is that or the one shown, by Pillow's version."""
    return int(file.tag_v2[256]), int(file.tag_v2[257])


def _check_tiles(file: TiffImageFile, max_pixels: int | None, key: str) -> None:
    """Refuse a TIFF whose tiles are huge: libtiff decodes whole tiles, one after the other, however little of them is shown."""
    tile: list[Any] = [file.tag_v2.get(tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if _TILE_OFFSETS not in file.tag_v2 or max_pixels is None or not all(isinstance(size, int) and size > 0 for size in tile):
        return
    _check_pixels(tile[0], tile[1], max_pixels, key)
    num_pixels = math.prod(math.ceil(size / edge) * edge for size, edge in zip(stored_size(file), tile, strict=True))
    if num_pixels > _TILED_ALLOWANCE * max_pixels:
        raise DecodeError(key, f"tiles of {num_pixels} pixels in all, over {_TILED_ALLOWANCE} times max_pixels = {max_pixels}")


def exif_orientation(image: Image.Image) -> int:
    """Orientation 1 to 8 of the EXIF block that an image carries; 1 without one, or with one that is damaged."""
    exif = image.info.get("exif")
    data = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", data, start + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def lacks_rows(file: PngImageFile, stream: BinaryIO) -> bool:
    """Whether a loaded PNG holds fewer rows than it announces; Pillow does not mind where the compressed data end orderly.

    Rows that are missing are black or transparent, so the data are looked at again only where the last row is.
    """
    stream.seek(16)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", stream.read(13))
    if file.crop((0, height - 1, width, height)).getbbox() is not None and not interlaced:
        return False
    missing = 0
    for left, top, right, down in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _PNG_CHANNELS[colour] + 7) // 8)
    inflate = zlib.decompressobj()
    for part in _png_data(stream):
        packed = part
        while packed and missing > 0:
            missing -= len(inflate.decompress(packed, 1 << 20))
            packed = inflate.unconsumed_tail
    return missing > 0


def _png_data(stream: BinaryIO) -> Iterator[bytes]:
    """The compressed pixels of a PNG, in the parts they are stored in."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            yield stream.read(size)
            stream.seek(4, os.SEEK_CUR)
        else:
            stream.seek(size + 4, os.SEEK_CUR)


@contextmanager
def buffered(stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream with a buffer, since plugins read a few bytes at a time; it is not closed at the end."""
    reader = io.BufferedReader(stream if isinstance(stream, io.FileIO) else _NoDescriptor(stream))
    try:
        yield cast("BinaryIO", reader)
    finally:
        reader.detach()


@contextmanager
def decode_errors(key: str, *faults: type[Exception]) -> Iterator[None]:
    """Turn these exceptions into a DecodeError. Errors of the disk pass, for ``opened`` to tell them."""
    try:
        yield
    except BridleError:
        raise
    except Unreadable as error:
        raise DecodeError(key, str(error)) from error
    except faults as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DecodeError(key, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow decodes"
    message = " ".join(str(error).split())[:40]
    is_cut_short = any(isinstance(e, IndexError | EOFError | struct.error) for e in (error, error.__cause__))
    if is_cut_short or any(phrase in message for phrase in _CUT_SHORT):
        return "truncated or damaged"
    return f"damaged or unsupported: {message or type(error).__name__}"


class Timed:
    """A stream for a plugin that decodes while it reads: few bytes may hold many pixels, or ask for them again and again."""

    def __init__(self, stream: BinaryIO, limit: TimeLimit) -> None:
        self._stream, self._limit = stream, limit

    def read(self, size: int = -1) -> bytes:
        """What the stream gives. Raises Unreadable when the time is up."""
        self._limit.check()
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _NoDescriptor(io.RawIOBase):
    """A stream without its file descriptor: by it libtiff would read the whole file that the stream is a window of."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _plugin(head: bytes) -> type[ImageFile] | None:
    plugin = next((plugin for plugin, magic in _SIGNATURES if head.startswith(magic)), None)
    return None if plugin is WebPImageFile and head[8:12] != b"WEBP" else plugin


def _has_directory(stream: BinaryIO, head: bytes, num_bytes: int) -> bool:
    """Whether the list of tags of a TIFF, and the address of the next one behind it, lies within the file."""
    order = "<" if head.startswith(b"II") else ">"
    start_format, count_format, entry_bytes, next_bytes = ("8xQ", "Q", 20, 8) if 43 in head[2:4] else ("4xI", "H", 12, 4)
    try:
        (start,) = struct.unpack_from(order + start_format, head)
        stream.seek(min(start, num_bytes))
        (count,) = struct.unpack(order + count_format, stream.read(struct.calcsize(order + count_format)))
    except struct.error:
        return False
    return bool(stream.tell() + count * entry_bytes + next_bytes <= num_bytes)


def _check_pixels(width: int, height: int, max_pixels: int | None, key: str) -> None:
    try:
        check_pixels(width, height, max_pixels)
    except Unreadable as error:
        raise DecodeError(key, str(error)) from error


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of the canvas; 0, 0 where the header is not understood."""
    kind, size = head[12:16], int.from_bytes(head[21:25], "little")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        return 1 + (size & 0x3FFF), 1 + (size >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0
