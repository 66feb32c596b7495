"""Broken pictures fail with a reason; only DecodeError comes out, and never a picture of which a part is missing."""

from __future__ import annotations

import gc
import io
import os
import pickle
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from reference.sound_files import CountingFile, melody, write

from bridle.errors import ConfigError, DecodeError
from bridle.media.image import decode_image, picture_of, probe_image

READERS = [probe_image, decode_image]


def encoded(values: np.ndarray | Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(stream, format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG that announces a size; its pixels are the chunks' business."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def reason(data: bytes, read=decode_image, **settings) -> str:
    with pytest.raises(DecodeError) as caught:
        read(io.BytesIO(data), **settings)
    return caught.value.reason


RANDOM = np.random.default_rng(0)
NOISE = RANDOM.bytes(20000)
RGB = np.clip(RANDOM.normal(0, 20, (40, 50, 3)) + np.linspace(20, 230, 50)[:, None], 0, 255).astype(np.uint8)
PICTURE = Image.fromarray(RGB)
TWO = {"save_all": True, "append_images": [PICTURE.rotate(180)]}
FILES = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive-jpeg": encoded(RGB, "JPEG", progressive=True),
    "cmyk-jpeg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "palette-png": encoded(PICTURE.quantize(64), "PNG"),
    "16-bit-png": encoded(RANDOM.integers(0, 65536, (20, 20)).astype(np.uint16), "PNG"),
    "animated-png": encoded(RGB, "PNG", **TWO),
    "webp": encoded(RGB, "WEBP"),
    "lossless-webp": encoded(RGB, "WEBP", lossless=True),
    "animated-webp": encoded(RGB, "WEBP", **TWO),
    "gif": encoded(PICTURE.quantize(64), "GIF"),
    "animated-gif": encoded(PICTURE.quantize(64), "GIF", **TWO),
    "bmp": encoded(RGB, "BMP"),
    "palette-bmp": encoded(PICTURE.quantize(64), "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "lzw-tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "deflate-tiff": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg-tiff": encoded(RGB, "TIFF", compression="jpeg"),
    "fax-tiff": encoded(PICTURE.convert("1"), "TIFF", compression="group4"),
}
BROKEN = {
    "empty": (b"", "empty file"),
    "one-byte": (b"x", "not an image"),
    "text": (b"The quick brown fox.\n" * 1000, "not an image"),
    "noise": (NOISE, "not an image"),
    "zeros": (bytes(20000), "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),  # runs a program in Pillow
    "avi": (b"RIFF\x40\0\0\0AVI LIST" + NOISE, "not an image"),
    "heic": (b"\0\0\0\x18ftypheic" + NOISE, "AVIF and HEIC are not read; convert to JPEG or PNG"),
    "jpeg-magic": (b"\xff\xd8\xff", "truncated or damaged"),
    "jpeg-noise": (b"\xff\xd8\xff\xe0" + NOISE, "truncated or damaged"),
    "png-magic": (b"\x89PNG\r\n\x1a\n", "truncated or damaged"),
    "png-noise": (b"\x89PNG\r\n\x1a\n" + NOISE, "truncated or damaged"),
    "png-0-wide": (png(0, 9), "truncated or damaged"),
    "webp-noise": (b"RIFF" + struct.pack("<I", 19992) + b"WEBPVP8 " + NOISE[:-12], "damaged or unsupported: "),
    "webp-cut": (b"RIFF" + struct.pack("<I", 20000) + b"WEBPVP8 " + NOISE[:-12], "truncated or damaged"),
    "gif-magic": (b"GIF89a", "truncated or damaged"),
    "gif-without-a-picture": (b"GIF89a\x05\0\x05\0\0\0\0;", "truncated or damaged"),
    "tiff-magic": (b"II*\0", "truncated or damaged"),
    "tiff-noise": (b"II*\0" + NOISE, "truncated or damaged"),
    "big-tiff": (b"II+\0\x08\0\0\0" + b"\xff" * 8 + NOISE, "truncated or damaged"),
    "tiff-without-tags": (b"MM\0*\0\0\0\x08\0\0" + bytes(40), "damaged or unsupported: "),
    "bmp-magic": (b"BM", "truncated or damaged"),
    "bmp-noise": (b"BM" + bytes(12) + b"\x29" + bytes(40), "damaged or unsupported: Unsupported BMP header type (41)"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_broken_files_fail_with_their_reason_and_without_noise(tmp_path, capfd, name, suffix):
    data, wanted = BROKEN[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (path, str(path), io.BytesIO(data)):
            for read in READERS:
                with pytest.raises(DecodeError) as caught:
                    read(source, key="k")
                assert caught.value.reason.startswith(wanted)
                assert len(caught.value.reason) < 70
                assert caught.value.key == "k"
    assert capfd.readouterr() == ("", "")


def test_places_that_hold_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    wanted = {"absent.png": "missing", ".": "is a directory", "pipe": "not a regular file", "nul\0.png": "missing"}
    for name, why in wanted.items():
        for read in READERS:
            with pytest.raises(DecodeError) as caught:
                read(tmp_path / name)
            assert caught.value.reason == why
            assert name.strip(".") in caught.value.key


def test_a_sound_file_named_png(tmp_path):
    path = write(tmp_path / "a.wav", melody(0.2, 16000), 16000, "PCM_16").rename(tmp_path / "a.png")
    with pytest.raises(DecodeError, match="not an image"):
        decode_image(path)


class BrokenDisk(CountingFile):
    def read(self, size: int = -1) -> bytes:
        if self.inner.tell() + max(size, 0) > 20_000:
            raise OSError(5, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_failing_disk_is_a_decode_error(tmp_path, format):
    path = tmp_path / "a"
    path.write_bytes(encoded(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8), format))
    with pytest.raises(DecodeError, match="cannot be read: Input/output error"):
        decode_image(BrokenDisk(path), key="k")


# Files that are cut short


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused_unless_all_pixels_are_there(capfd, name):
    data = FILES[name]
    whole, refused = decode_image(io.BytesIO(data)).pixels, 0
    cuts = {*range(60), *range(60, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "tiff" else "error")
        for cut in sorted(cuts):
            try:
                pixels = decode_image(io.BytesIO(data[:cut])).pixels
            except DecodeError as error:
                assert error.reason in ("empty file", "not an image", "truncated or damaged"), cut
                refused += 1
            else:
                assert torch.equal(pixels, whole), cut
    assert refused > len(cuts) - 30 or name.startswith("animated")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [None, (30, 30), (300, 300)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_of_many_blocks_is_refused_at_any_decoding_size(progressive, size):
    shades = np.random.default_rng(0).integers(0, 256, (600, 800, 3)).astype(np.uint8)
    data = encoded(shades, "JPEG", progressive=progressive)
    assert len(data) > 4 * ImageFile.MAXBLOCK
    for part in (0.1, 0.5, 0.9, 0.999):
        assert reason(data[: int(len(data) * part)], size=size) == "truncated or damaged"
    assert reason(data[:-2], size=size) == "truncated or damaged", "even if the end mark alone is missing"


def test_nothing_of_pillow_is_changed(monkeypatch):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    for data in FILES.values():
        decode_image(io.BytesIO(data))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# Damage


def test_damaged_png_data_are_found():
    """By the checksum of the zlib stream; that of the chunk is not needed, and may be wrong while the pixels are right."""
    data = FILES["png"]
    start, whole = data.index(b"IDAT") + 4, decode_image(io.BytesIO(data)).pixels
    length = int.from_bytes(data[start - 8 : start - 4])
    for place in range(start + 10, start + length - 4, length // 50):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert reason(bytes(damaged)).startswith(("damaged or unsupported: ", "truncated or damaged"))
    damaged = bytearray(data)
    damaged[start + length] ^= 0x10
    assert torch.equal(decode_image(io.BytesIO(bytes(damaged))).pixels, whole)


@pytest.mark.parametrize("place", [20, 30])
def test_a_wrong_checksum_in_the_head_of_a_png(place):
    data = bytearray(FILES["png"])
    data[place] ^= 1  # the height; the checksum itself
    assert reason(bytes(data)) == "truncated or damaged"
    assert reason(bytes(data), probe_image) == "truncated or damaged"


def test_a_jpeg_damaged_in_the_middle_decodes_with_wrong_pixels_or_not_at_all():
    """JPEG has no checksum and libjpeg goes on after damage, as every viewer does."""
    data, outcomes = FILES["jpeg"], set()
    whole = decode_image(io.BytesIO(data)).pixels
    for place in range(len(data) // 2, len(data) - 40, 7):
        damaged = bytearray(data)
        damaged[place : place + 3] = b"\x12\x34\x56"
        try:
            pixels = decode_image(io.BytesIO(bytes(damaged))).pixels
        except DecodeError as error:
            outcomes.add(error.reason)
        else:
            assert pixels.shape == whole.shape
            outcomes.add("decoded")
    assert "decoded" in outcomes


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(spots=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4))
def test_whatever_the_damage_only_a_decode_error_comes_out(name, spots):
    damaged = bytearray(FILES[name])
    for place, patch in spots:
        start = place % len(damaged) if place % 2 else place % min(len(damaged), 300)
        damaged[start : start + len(patch)] = patch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for request in ({}, {"size": (9, 7), "channels": 1, "fit": "squash"}):
            try:
                pixels = decode_image(io.BytesIO(bytes(damaged)), max_pixels=10**6, **request).pixels
            except DecodeError as error:
                assert 0 < len(error.reason) < 90
                assert "\n" not in error.reason
            else:
                assert pixels.dtype == torch.uint8
                assert pixels.shape[1:] == (9, 7) or not request


@given(st.sampled_from([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"BM", b"RIFF"]), st.binary())
def test_noise_behind_a_magic(magic, tail):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in READERS:
            assert reason(magic + tail, read)


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (ValueError("no such\nshape"), "damaged or unsupported: no such shape"),
        (RuntimeError("x" * 500), "damaged or unsupported: " + "x" * 40),
        (MemoryError(), "needs more memory than there is"),
        (ZeroDivisionError("division by zero"), "damaged or unsupported: division by zero"),
        (AttributeError("no seek"), "damaged or unsupported: no seek"),
        (AssertionError(), "damaged or unsupported: AssertionError"),
        (struct.error("unpack requires 4 bytes"), "truncated or damaged"),
        (EOFError("end"), "truncated or damaged"),
        (SyntaxError("bad\tchunk"), "damaged or unsupported: bad chunk"),
        (UserWarning("under -W error"), "damaged or unsupported: under -W error"),
        (Image.DecompressionBombError("x"), "more pixels than Pillow decodes"),
        (OSError("image file is truncated (7 bytes not processed)"), "truncated or damaged"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
    ],
)
def test_whatever_pillow_raises_is_a_decode_error(monkeypatch, fault, wanted):
    def fail(*_, **__):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
        assert reason(FILES["png"]) == wanted
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.__init__", fail)
    assert reason(FILES["png"]) == wanted
    assert reason(FILES["png"], probe_image) == wanted


@pytest.mark.parametrize("fault", [ConfigError("no such fit"), TypeError("3 arguments"), AttributeError("no x")])
def test_errors_of_the_program_are_not_hidden(monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("bridle.media.image._resized", fail)
    with pytest.raises(type(fault), match=str(fault)):
        decode_image(io.BytesIO(FILES["png"]), size=(5, 5))


def test_errors_can_be_sent_between_processes():
    with pytest.raises(DecodeError) as caught:
        decode_image(io.BytesIO(NOISE), key="k")
    assert str(pickle.loads(pickle.dumps(caught.value))) == "k: not an image"


# Bombs


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_png_that_claims_3600_megapixels_is_refused_by_its_header():
    bomb = png(60000, 60000, chunk(b"IDAT", zlib.compress(bytes(10**6))))
    before = peak_megabytes()
    assert reason(bomb) == "60000x60000 = 3600000000 pixels, over max_pixels = 200000000"
    assert probe_image(io.BytesIO(bomb)).width == 60000, "the header is whole"
    assert peak_megabytes() - before < 50


@pytest.mark.parametrize(
    "name", ["jpeg", "png", "animated-png", "webp", "lossless-webp", "animated-webp", "gif", "bmp", "tiff"]
)
def test_max_pixels_is_checked_before_a_pixel_is_decoded(monkeypatch, name):
    def fail(_):
        raise AssertionError("decoded")

    assert decode_image(io.BytesIO(FILES[name]), max_pixels=2000).width == 50
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert reason(FILES[name], max_pixels=1999) == "50x40 = 2000 pixels, over max_pixels = 1999"


@pytest.mark.parametrize("kind", [b"VP8 ", b"VP8L", b"VP8X"])
def test_a_webp_that_claims_a_huge_canvas_takes_no_memory(monkeypatch, kind):
    side = {b"VP8 ": 16383, b"VP8L": 16384, b"VP8X": 2**24}[kind]
    body = {
        b"VP8 ": b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383),
        b"VP8L": b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(5),
        b"VP8X": bytes(4) + b"\xff" * 6,
    }[kind]
    data = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.__init__", lambda *_: pytest.fail("opened"))
    assert reason(b"RIFF" + struct.pack("<I", len(data)) + data).startswith(f"{side}x{side} = ")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_that_swells(kind):
    lead = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    swollen = chunk(kind, lead + zlib.compress(bytes(200_000_000), 1))
    before = peak_megabytes()
    text = reason(png(2, 2, swollen, chunk(b"IDAT", zlib.compress(bytes(6)))))
    assert text.lower().startswith("damaged or unsupported: decompressed data too large")
    assert peak_megabytes() - before < 400


def test_much_text_that_fits_is_no_fault():
    text = PngInfo()
    text.add_text("note", "x" * 500_000, zip=True)
    assert decode_image(io.BytesIO(encoded(RGB, "PNG", pnginfo=text))).width == 50


def test_a_picture_of_20000_pixels_in_a_row():
    row = np.random.default_rng(0).integers(0, 256, (3, 20000)).astype(np.uint8)
    picture = decode_image(io.BytesIO(encoded(row, "PNG")), channels=1)
    assert np.array_equal(picture.pixels[0].numpy(), row)


# Values without an 8-bit meaning


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.float32([[0.5, 1.5]]), "float pixels outside 0..1; store 8 or 16 bits"),
        (np.float32([[-0.1, 0.5]]), "float pixels outside 0..1; store 8 or 16 bits"),
        (np.float32([[0.5, np.nan]]), "float pixels outside 0..1; store 8 or 16 bits"),
        (np.float32([[0.5, np.inf]]), "float pixels outside 0..1; store 8 or 16 bits"),
        (np.int32([[0, 65536]]), "integer pixels from 0 to 65536, not in 0..65535"),
        (np.int32([[-1, 7]]), "integer pixels from -1 to 7, not in 0..65535"),
    ],
)
def test_values_without_an_8_bit_meaning(values, wanted):
    assert reason(encoded(values, "TIFF")) == wanted
    with pytest.raises(DecodeError, match=r"^<image>: " + wanted[:5]):
        picture_of(Image.fromarray(values))


# Pillow images in memory


def test_a_pillow_image_that_cannot_be_loaded(tmp_path):
    cut = Image.open(io.BytesIO(FILES["jpeg"][:-200]))
    with pytest.raises(DecodeError, match="k: truncated or damaged"):
        picture_of(cut, key="k")
    path = tmp_path / "a.png"
    path.write_bytes(FILES["png"])
    with Image.open(path) as closed:
        pass
    with pytest.raises(DecodeError, match="damaged or unsupported"):
        picture_of(closed)
    with pytest.raises(DecodeError, match="no pixels"):
        picture_of(Image.new("RGB", (0, 5)))


def test_no_file_handle_is_left_open(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}-cut").write_bytes(data[: len(data) // 3])
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    gc.disable()  # handles must not wait for the collector
    try:
        for name in FILES:
            decode_image(tmp_path / name)
            probe_image(tmp_path / name)
            with pytest.raises(DecodeError):
                decode_image(tmp_path / f"{name}-cut")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("num_bytes", [200_000, 20_000])
def test_a_jpeg_that_asks_for_the_picture_again_and_again_ends_in_time(monkeypatch, num_bytes):
    stream = io.BytesIO()
    Image.new("L", (400, 300)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    endless = data[:-2] + scan * (num_bytes // len(scan)) + b"\xff\xd9"
    assert decode_image(io.BytesIO(data), max_decode_seconds=10).width == 400
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now.__setitem__(0, now[0] + 4.0) or now[0])
    with pytest.raises(DecodeError, match="takes longer than 6 s to decode"):
        decode_image(io.BytesIO(endless), max_decode_seconds=6)


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "JPEG"])
def test_every_format_that_is_read_in_blocks_ends_in_time(monkeypatch, form):
    stream = io.BytesIO()
    Image.new("L", (3000, 2000)).save(stream, form)
    assert decode_image(io.BytesIO(stream.getvalue()), max_decode_seconds=60).width == 3000
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now.__setitem__(0, now[0] + 4.0) or now[0])
    with pytest.raises(DecodeError, match="takes longer than 3 s to decode"):
        decode_image(io.BytesIO(stream.getvalue()), max_decode_seconds=3)


def tiled_tiff(size: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """A grey TIFF of that width and height, whose tiles of that width and height share one block of zeros."""
    data = zlib.compress(bytes(tile[0] * tile[1]), 9)
    num_tiles = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    tags = [(256, size[0]), (257, size[1]), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile[0]), (323, tile[1])]
    end = 8 + 2 + 12 * (len(tags) + 2) + 4
    starts, lengths = struct.pack(f"<{num_tiles}I", *[end] * num_tiles), struct.pack(f"<{num_tiles}I", *[len(data)] * num_tiles)
    tables = [
        (324, end if num_tiles == 1 else end + len(data)),
        (325, len(data) if num_tiles == 1 else end + len(data) + len(starts)),
    ]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    entries += [struct.pack("<HHII", tag, 4, num_tiles, value) for tag, value in tables]
    return b"".join([b"II*\0\x08\0\0\0", struct.pack("<H", len(entries)), *entries, bytes(4), data, starts, lengths])


def test_tiles_of_a_tiff_count_whole():
    for size, tile in (((40, 30), (16, 16)), ((10, 10), (16, 32))):
        assert decode_image(io.BytesIO(tiled_tiff(size, tile)), max_pixels=2000).width == size[0]
    assert probe_image(io.BytesIO(tiled_tiff((10, 10), (2048, 2048)))).width == 10
    with pytest.raises(DecodeError, match="2048x2048 = 4194304 pixels, over max_pixels = 4000000"):
        decode_image(io.BytesIO(tiled_tiff((10, 10), (2048, 2048))), max_pixels=4_000_000)
    many = tiled_tiff((80, 16), (16, 65536))
    assert decode_image(io.BytesIO(many), max_pixels=1_400_000).width == 80
    with pytest.raises(DecodeError, match="tiles of 5242880 pixels in all, over 4 times max_pixels = 1100000"):
        decode_image(io.BytesIO(many), max_pixels=1_100_000)


def test_tags_of_tiles_that_make_no_sense_are_passed_over():
    stream = io.BytesIO()
    Image.new("L", (40, 30)).save(stream, "TIFF", tiffinfo={322: 50000, 323: 50000})
    assert decode_image(io.BytesIO(stream.getvalue()), max_pixels=2000).width == 40
