"""Pictures: every format, mode and orientation to its pixels; squash and centre against a naive resampling."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from PIL.JpegImagePlugin import JpegImageFile

from bridle.data.shards import open_window
from bridle.errors import ConfigError
from bridle.media.image import ImageInfo, decode_image, picture_of, probe_image

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}, "BMP": {}}
COMPRESSED_TIFFS = ["tiff_lzw", "tiff_adobe_deflate", "packbits"]
ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def scene(width: int, height: int) -> np.ndarray:
    """Smooth shades, texture and hard edges: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 5 * y), np.cos(13 * x - 7 * y), np.sin(25 * (x - 0.4) ** 2 + 30 * (y - 0.5) ** 2)]
    texture = np.random.default_rng(0).normal(0, 5, (height, width, 3))
    image = Image.fromarray(np.clip(128 + 70 * np.stack(waves, -1) + texture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 5, height // 4, width // 2, height // 2), fill=(250, 240, 20))
    draw.ellipse((width // 2, height // 2, width * 9 // 10, height * 9 // 10), fill=(10, 30, 90))
    return np.asarray(image)


def encoded(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG of raw ``rows``, each led by its filter byte 0, with more chunks before the data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    body += b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decoded(data: bytes, **settings) -> np.ndarray:
    """(H, W) or (H, W, 3) of what ``decode_image`` makes of the bytes."""
    pixels = decode_image(io.BytesIO(data), **settings).pixels
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    return pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()


def luma(rgb: np.ndarray) -> np.ndarray:
    wide = rgb.astype(np.int64)
    return ((19595 * wide[..., 0] + 38470 * wide[..., 1] + 7471 * wide[..., 2] + 32768) >> 16).astype(np.uint8)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def assert_close(ours: np.ndarray, wanted: np.ndarray, most: int, mean: float = 255.0) -> None:
    assert ours.shape == wanted.shape
    difference = np.abs(ours.astype(int) - wanted.astype(int))
    assert difference.max() <= most
    assert difference.mean() <= mean


# Formats and modes


@pytest.mark.parametrize("format", LOSSLESS)
def test_rgb_and_grey_of_lossless_formats_are_exact(format):
    rgb = noise(37, 53, 3)
    data = encoded(rgb, format, **LOSSLESS[format])
    np.testing.assert_array_equal(decoded(data), rgb)
    np.testing.assert_array_equal(decoded(data, channels=1), luma(rgb))
    grey = noise(37, 53)
    np.testing.assert_array_equal(decoded(encoded(grey, format, **LOSSLESS[format])), grey3(grey))
    np.testing.assert_array_equal(decoded(encoded(grey, format, **LOSSLESS[format]), channels=1), grey)


@pytest.mark.parametrize("compression", COMPRESSED_TIFFS)
@pytest.mark.parametrize("shape", [(70, 90, 3), (70, 90)])
def test_compressed_tiff(compression, shape):
    values = noise(*shape)
    assert_close(decoded(encoded(values, "TIFF", compression=compression)), values if len(shape) == 3 else grey3(values), 0)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(format):
    rgba = noise(41, 29, 4)
    wanted = on_white(rgba[..., :3], rgba[..., 3])
    data = encoded(rgba, format, **LOSSLESS[format])
    assert_close(decoded(data), wanted, 0)
    assert_close(decoded(data, channels=1), luma(wanted), 0)


def test_grey_with_alpha():
    values = noise(20, 30, 2)
    data = encoded(Image.fromarray(values, "LA"), "PNG")
    assert probe_image(io.BytesIO(data)).mode == "LA"
    assert_close(decoded(data), on_white(grey3(values[..., 0]), values[..., 1]), 0)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(format):
    palette, indices = noise(256, 3), noise(25, 31, seed=1)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    data = encoded(image, format)
    assert probe_image(io.BytesIO(data)).mode == "P"
    assert_close(decoded(data), palette[indices], 0)
    assert_close(decoded(data, channels=1), luma(palette[indices]), 0)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_one_transparent_colour(format):
    palette, indices = noise(256, 3), noise(25, 31, seed=1)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    wanted = palette[indices]
    wanted[indices == 7] = 255
    assert_close(decoded(encoded(image, format, transparency=7)), wanted, 0)


def test_palette_with_an_alpha_for_every_colour():
    palette, alphas, indices = noise(256, 3), noise(256, seed=2), noise(25, 31, seed=1)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    data = encoded(image, "PNG", transparency=alphas.tobytes())
    assert_close(decoded(data), on_white(palette[indices], alphas[indices]), 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit(format):
    bits = noise(33, 21) > 127
    data = encoded(Image.fromarray(bits), format)
    assert_close(decoded(data, channels=1), bits.astype(np.uint8) * 255, 0)
    assert_close(decoded(data), grey3(bits.astype(np.uint8) * 255), 0)


def test_group_4_fax():
    bits = np.kron(noise(9, 7) > 127, np.ones((5, 8), bool))
    assert_close(decoded(encoded(Image.fromarray(bits), "TIFF", compression="group4"), channels=1), bits * np.uint8(255), 0)


EVERY_16_BIT = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff-lzw", "tiff-big-endian", "tiff-32-bit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_is_divided_by_257_and_rounded(kind, channels):
    image = Image.fromarray(EVERY_16_BIT)
    if kind == "tiff-big-endian":
        image = Image.frombytes("I;16B", (256, 256), EVERY_16_BIT.astype(">u2").tobytes())
    elif kind == "tiff-32-bit":
        image = Image.fromarray(EVERY_16_BIT.astype(np.int32))
    options = {"compression": "tiff_lzw"} if kind == "tiff-lzw" else {}
    data = encoded(image, kind[:4].rstrip("-").upper(), **options)
    wanted = np.rint(EVERY_16_BIT / 257).astype(np.uint8)
    assert_close(decoded(data, channels=channels), wanted if channels == 1 else grey3(wanted), 0)
    assert_close(picture_of(image, channels=1).pixels[0].numpy(), wanted, 0)


def test_16_bit_colour_keeps_its_upper_bits():
    values = np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    assert_close(decoded(png(9, 6, 16, 2, rows)), (values >> 8).astype(np.uint8), 0)


def test_transparent_colour_of_a_png_in_every_depth():
    """The colour key is told in samples of the file, whatever Pillow scales them to."""
    for depth, sample in [(1, 1), (2, 1), (4, 7), (8, 200), (16, 51400)]:
        other, most = (0 if depth == 1 else 2), 2**depth - 1
        packed = {1: b"\xa0", 2: b"\x66", 4: b"\x72\x72", 8: b"\xc8\x02\xc8\x02"}.get(depth, b"\xc8\xc8\0\2\xc8\xc8\0\2")
        width = 3 if depth == 1 else 4
        data = png(width, 1, depth, 0, b"\0" + packed, tRNS=struct.pack(">H", sample))
        shown = [255, round(other * 255 / most)] * 2
        if depth == 2:
            shown = [255, round(2 * 255 / 3), 255, round(2 * 255 / 3)]
        assert decoded(data, channels=1)[0].tolist() == shown[:width], depth
    wide = np.array([[[1000, 40000, 7], [1000, 50000, 7]]], ">u2")
    data = png(2, 1, 16, 2, b"\0" + wide.tobytes(), tRNS=wide[0, 0].tobytes())
    assert decoded(data)[0].tolist() == [[255, 255, 255], [3, 195, 0]]
    narrow = np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8)
    data = png(2, 1, 8, 2, b"\0" + narrow.tobytes(), tRNS=struct.pack(">3H", 10, 20, 30))
    assert decoded(data)[0].tolist() == [[255, 255, 255], [10, 20, 31]]


def test_floats_from_0_to_1():
    values = np.random.default_rng(0).random((12, 17)).astype(np.float32)
    values[0, :2] = 0, 1
    data = encoded(Image.fromarray(values), "TIFF")
    assert probe_image(io.BytesIO(data)).mode == "F"
    assert_close(decoded(data, channels=1), np.rint(values * 255).astype(np.uint8), 0)


def test_cmyk():
    values = noise(22, 18, 4)
    ink = 255 - values.astype(float)
    wanted = np.rint(ink[..., :3] * ink[..., 3:] / 255).astype(np.uint8)
    assert_close(decoded(encoded(Image.fromarray(values, "CMYK"), "TIFF")), wanted, 1)
    flat = np.broadcast_to(np.uint8([30, 120, 200, 40]), (24, 24, 4))
    data = encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=98)
    assert probe_image(io.BytesIO(data)) == ImageInfo(24, 24, "CMYK", "JPEG")
    assert_close(decoded(data), np.broadcast_to(np.uint8([190, 114, 46]), (24, 24, 3)), 3)


def test_ycbcr():
    values = noise(22, 18, 3)
    y, cb, cr = (values[..., i].astype(float) for i in range(3))
    rgb = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    wanted = np.clip(np.rint(np.stack(rgb, -1)), 0, 255)
    assert_close(picture_of(Image.fromarray(values, "YCbCr")).pixels.permute(1, 2, 0).numpy(), wanted, 1)
    data = encoded(Image.fromarray(values, "YCbCr"), "TIFF", compression="tiff_lzw")
    assert_close(decoded(data), wanted, 2)


@pytest.mark.parametrize(
    ("lightness", "a", "b", "wanted"),
    [(100, 0, 0, (255, 255, 255)), (0, 0, 0, (0, 0, 0)), (53.6, 0, 0, (128, 128, 128)), (54.3, 81, 70, (255, 0, 0))],
)
def test_lab(lightness, a, b, wanted):
    values = np.array([lightness * 2.55, a, b]).round().astype(int).astype(np.uint8)  # a and b are signed bytes
    image = Image.frombytes("LAB", (4, 3), np.broadcast_to(values, (3, 4, 3)).tobytes())
    data = encoded(image, "TIFF")
    assert probe_image(io.BytesIO(data)).mode == "LAB"
    assert_close(decoded(data), np.broadcast_to(np.uint8(wanted), (3, 4, 3)), 6)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}, {"quality": 95, "subsampling": 0}])
def test_jpeg(options):
    rgb = scene(160, 120)
    data = encoded(rgb, "JPEG", **options)
    assert_close(decoded(data), rgb, 255, 4.0)
    assert_close(decoded(data, channels=1), luma(rgb), 255, 2.0)
    grey = encoded(luma(rgb), "JPEG", **options)
    assert probe_image(io.BytesIO(grey)) == ImageInfo(160, 120, "L", "JPEG")
    assert_close(decoded(grey), grey3(luma(rgb)), 255, 2.0)


def test_lossy_webp():
    rgb = scene(160, 120)
    assert_close(decoded(encoded(rgb, "WEBP", quality=95)), rgb, 255, 4.0)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_picture_of_several(format):
    first, second = noise(30, 40, 3) // 128 * 255, noise(30, 40, 3, seed=1)
    images = [Image.fromarray(values) for values in (first, second, first)]
    if format == "GIF":
        images = [image.quantize(8) for image in images]
    data = encoded(images[0], format, save_all=True, append_images=images[1:], **LOSSLESS.get(format, {}))
    assert_close(decoded(data), first, 0)
    assert decode_image(io.BytesIO(data), size=(8, 8)).pixels.shape == (3, 8, 8)


def test_two_pictures_of_a_stereo_camera():
    left, right = Image.fromarray(scene(80, 60)), Image.new("RGB", (80, 60))
    data = encoded(left, "MPO", save_all=True, append_images=[right], quality=95)
    assert probe_image(io.BytesIO(data)) == ImageInfo(80, 60, "RGB", "JPEG")
    assert_close(decoded(data), decoded(encoded(left, "JPEG", quality=95)), 0)


def test_colour_profiles_are_ignored():
    rgb = noise(20, 20, 3)
    assert_close(decoded(encoded(rgb, "PNG", icc_profile=b"not even a profile")), rgb, 0)


# What a header says


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_probe_tells_size_mode_and_format_whatever_the_name(tmp_path, format):
    image = Image.fromarray(noise(31, 47, 3))
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, format))
    assert probe_image(path) == ImageInfo(47, 31, "P" if format == "GIF" else "RGB", format)
    picture = decode_image(str(path), size=(7, 9))
    assert (picture.width, picture.height) == (47, 31)
    assert picture.pixels.shape == (3, 7, 9)


def test_probe_decodes_nothing(monkeypatch):
    data = encoded(noise(31, 47, 3), "JPEG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("loaded"))
    assert probe_image(io.BytesIO(data)).width == 47


# Orientation


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x010F] = "a camera"
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_shown_upright(format, orientation):
    stored = noise(18, 27, 3)
    plain = encoded(stored, format, **LOSSLESS.get(format, {}))
    turned = encoded(stored, format, exif=exif(orientation), **LOSSLESS.get(format, {}))
    wanted = ORIENTED[orientation](decoded(plain))
    assert_close(decoded(turned), wanted, 0)
    info, picture = probe_image(io.BytesIO(turned)), decode_image(io.BytesIO(turned), size=(6, 5))
    assert (info.width, info.height) == (picture.width, picture.height) == (wanted.shape[1], wanted.shape[0])
    upright = picture_of(Image.fromarray(np.ascontiguousarray(wanted)), size=(6, 5))
    assert torch.equal(picture.pixels, upright.pixels)


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("fit", ["squash", "centre"])
def test_orientation_of_a_jpeg_decoded_at_reduced_size(orientation, fit):
    stored = scene(499, 357)
    data = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    whole = ORIENTED[orientation](decoded(data.replace(b"Exif\0\0", b"Nope\0\0")))
    wanted = picture_of(Image.fromarray(np.ascontiguousarray(whole)), size=(40, 30), fit=fit)
    assert_close(decoded(data, size=(40, 30), fit=fit), wanted.pixels.permute(1, 2, 0).numpy(), 12, 1.0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "value", "shown"), [(3, 6, (10, 20)), (3, 9, (20, 10)), (3, 0, (20, 10)), (4, 6, (20, 10))])
def test_orientation_in_both_byte_orders_and_out_of_range(order, kind, value, shown):
    entries = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0") + struct.pack(order + "HHIHH", 0x0112, kind, 1, value, 0)
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2) + entries + bytes(4)
    info = probe_image(io.BytesIO(encoded(noise(10, 20, 3), "JPEG", exif=b"Exif\0\0" + block)))
    assert (info.width, info.height) == shown


@pytest.mark.parametrize(
    "block", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(20), b"nonsense" * 9]
)
def test_a_damaged_exif_block_neither_fails_nor_warns(block):
    rgb = noise(10, 20, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("PNG", "WEBP"):
            assert_close(decoded(encoded(rgb, format, exif=b"Exif\0\0" + block, **LOSSLESS[format])), rgb, 0)
        assert decoded(encoded(rgb, "JPEG", exif=b"Exif\0\0" + block)).shape == rgb.shape


# Where it lies


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "LZW", "BMP", "GIF"])
def test_streams_and_windows_in_a_tar(tmp_path, format):
    options = {"compression": "tiff_lzw"} if format == "LZW" else {}
    data = encoded(scene(90, 70), "TIFF" if format == "LZW" else format, **options)
    path, shard = tmp_path / "picture", tmp_path / "shard.tar"
    path.write_bytes(data)
    with tarfile.open(shard, "w") as tar:
        for name in ("before", "picture"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data if name == "picture" else bytes(len(data))))
    wanted, info = decode_image(path).pixels, probe_image(path)
    with tarfile.open(shard) as tar:
        offset = tar.getmember("picture").offset_data
    with (
        open_window(str(shard), offset, len(data)) as window,
        path.open("rb") as buffered,
        path.open("rb", buffering=0) as raw,
        tarfile.open(shard) as tar,
    ):
        for stream in (window, buffered, raw, tar.extractfile("picture"), io.BytesIO(data)):
            stream.seek(5)  # wherever the stream stands, it is read from its start
            assert torch.equal(decode_image(stream).pixels, wanted)
            assert probe_image(stream) == info
            assert not stream.closed


def test_threads_get_the_same_pictures():
    files = [encoded(scene(60 + i, 50), format) for i in range(6) for format in ("JPEG", "PNG", "WEBP", "TIFF")]
    alone = [decoded(data, size=(32, 32)) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decoded(data, size=(32, 32)), files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# A Pillow image in memory


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("fit", ["squash", "centre"])
def test_a_pillow_image_goes_the_way_of_a_file(format, fit):
    options = {"exif": exif(6)} if format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    data = encoded(scene(120, 80), format, **options)
    picture = decode_image(io.BytesIO(data), size=(50, 40), fit=fit)
    image = Image.open(io.BytesIO(data))
    ours = picture_of(image, size=(50, 40), fit=fit)
    assert torch.equal(ours.pixels, picture.pixels)
    assert (ours.width, ours.height) == (picture.width, picture.height)
    assert torch.equal(picture_of(image, size=(50, 40), fit=fit).pixels, picture.pixels), "the image is not changed"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_every_mode_of_pillow(mode):
    image = Image.new(mode, (6, 4), 0)
    assert picture_of(image, channels=1, size=(3, 3)).pixels.shape == (1, 3, 3)
    assert picture_of(image).pixels.shape == (3, 4, 6)


# Resizing


def cubic_weights(count: int, start: float, stop: float, source: int) -> np.ndarray:
    """(count, source): antialiased cubic interpolation (a = -1/2) of the stretch start..stop."""
    step = (stop - start) / count
    widen = max(1.0, step)
    weights = np.zeros((count, source))
    for i in range(count):
        x = np.abs((np.arange(source) + 0.5 - (start + (i + 0.5) * step)) / widen)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights[i] = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def naive(rgb: np.ndarray, size: tuple[int, int], fit: str, rows_first: bool = True) -> np.ndarray:
    """The part of the picture that is shown, resized one way, rounded, and the other way."""
    (height, width), (rows, columns) = size, rgb.shape[:2]
    left, top = 0.0, 0.0
    if fit == "centre":
        scale = max(width / columns, height / rows)
        left, top = (columns - width / scale) / 2, (rows - height / scale) / 2
    across = cubic_weights(width, left, columns - left, columns)
    down = cubic_weights(height, top, rows - top, rows)
    passes = [("lk,jkc->jlc", across), ("ij,jkc->ikc", down)]
    pixels = rgb.astype(float)
    for indices, weights in passes if rows_first else passes[::-1]:
        pixels = np.clip(np.rint(np.einsum(indices, weights, pixels)), 0, 255)
    return pixels


@pytest.mark.parametrize("fit", ["squash", "centre"])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (20, 48), (90, 70), (150, 150), (63, 95)])
@pytest.mark.parametrize("shape", [(64, 96), (97, 61), (64, 64)])
def test_geometry_is_that_of_a_naive_resampling(shape, size, fit):
    rgb = scene(shape[1], shape[0])
    ours = decoded(encoded(rgb, "PNG"), size=size, fit=fit)
    wanted = [naive(rgb, size, fit, rows_first) for rows_first in (True, False)]  # Pillow's versions differ
    if fit == "centre" and max(size[0] / shape[0], size[1] / shape[1]) == 1:
        top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
        wanted = [rgb[top : top + size[0], left : left + size[1]]]
    assert_close(ours, min(wanted, key=lambda pixels: np.abs(ours - pixels).sum()), 1, 0.05)


def test_large_reductions_stay_close_to_a_naive_resampling():
    rgb = scene(640, 480)
    for fit in ("squash", "centre"):
        assert_close(decoded(encoded(rgb, "BMP"), size=(24, 32), fit=fit), naive(rgb, (24, 32), fit), 8, 0.7)


@pytest.mark.parametrize("fit", ["squash", "centre"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF"])
def test_a_picture_of_the_size_is_not_resampled(format, fit):
    data = encoded(noise(33, 47, 3), format)
    np.testing.assert_array_equal(decoded(data, size=(33, 47), fit=fit), decoded(data))


@pytest.mark.parametrize(("size", "cut"), [((40, 30), np.s_[:, 10:40]), ((39, 50), np.s_[0:39]), ((40, 31), np.s_[:, 9:40])])
def test_centre_of_a_picture_that_fits_one_way_is_cut_only(size, cut):
    rgb = noise(40, 50, 3)
    np.testing.assert_array_equal(decoded(encoded(rgb, "PNG"), size=size), rgb[cut])


def test_transparent_colours_do_not_bleed_when_resized():
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :32] = 255, 0, 0, 255
    rgba[:, 32:] = 0, 255, 0, 0  # green, but nowhere to be seen
    pixels = decoded(encoded(rgba, "PNG"), size=(10, 10)).astype(int)
    assert (pixels[..., 1] == pixels[..., 2]).all()


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["squash", "centre"]),
    channels=st.sampled_from([1, 3]),
)
def test_any_shape_comes_to_any_size_and_a_flat_picture_stays_flat(shape, size, fit, channels):
    picture = picture_of(Image.new("RGB", shape, (90, 90, 90)), size=size, fit=fit, channels=channels)
    assert picture.pixels.shape == (channels, *size)
    assert (picture.pixels == 90).all()


@pytest.mark.parametrize("fit", ["squash", "centre"])
@pytest.mark.parametrize("shape", [(640, 480), (901, 677), (1283, 500), (500, 1283)])
def test_a_jpeg_at_reduced_size_looks_the_same(shape, fit):
    data = encoded(scene(*shape), "JPEG", quality=90)
    for size in ((56, 56), (40, 64), (16, 16)):
        whole = picture_of(Image.open(io.BytesIO(data)), size=size, fit=fit).pixels.permute(1, 2, 0).numpy()
        assert_close(decoded(data, size=size, fit=fit), whole, 16, 0.6)


@pytest.mark.parametrize("fit", ["squash", "centre"])
def test_a_jpeg_is_never_decoded_below_twice_the_size(monkeypatch, fit):
    loaded = []
    monkeypatch.setattr(JpegImageFile, "load_prepare", lambda self: loaded.append(self.size) or original(self), raising=False)
    original = super(JpegImageFile, JpegImageFile).load_prepare
    data = encoded(noise(300, 500, 3), "JPEG")
    for side in range(10, 160, 7):
        decode_image(io.BytesIO(data), size=(side, side), fit=fit)
        width, height = loaded[-1]
        across = side if fit == "squash" else side * 500 / 300
        assert (width, height) == (500, 300) or (width >= 2 * across and height >= 2 * side)
        assert width < 4 * across or height < 4 * side or width == 63, "reduced as far as allowed, at most to an eighth"


# Extremes and settings


def test_one_pixel():
    data = encoded(np.uint8([[[10, 20, 30]]]), "PNG")
    assert decoded(data).tolist() == [[[10, 20, 30]]]
    for fit in ("squash", "centre"):
        assert (decoded(data, size=(5, 4), fit=fit) == np.uint8([10, 20, 30])).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("shape", [(1, 20000), (20000, 2)])
def test_a_thin_picture(format, shape):
    grey = np.full(shape, 77, np.uint8)
    data = encoded(grey, format)
    assert decode_image(io.BytesIO(data)).width == shape[1]
    for fit in ("squash", "centre"):
        assert (np.abs(decoded(data, size=(64, 64), fit=fit).astype(int) - 77) <= 1).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_max_pixels_stands_in_for_the_limit_of_pillow(monkeypatch, format):
    data = encoded(noise(32, 32, 3), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 if format == "WEBP" else 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(data, max_pixels=1024).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "settings",
    [{"channels": 2}, {"channels": 0}, {"size": (0, 5)}, {"size": (5, -1)}, {"size": (5,)}, {"fit": "crop"}, {"max_pixels": 0}],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        decode_image(io.BytesIO(encoded(noise(4, 4, 3), "PNG")), **settings)
    if "max_pixels" not in settings:
        with pytest.raises(ConfigError, match=next(iter(settings))):
            picture_of(Image.new("L", (4, 4)), **settings)


def test_orientation_behind_the_pixels_of_a_png():
    picture = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53).astype(np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    data = stream.getvalue()
    late = data[:-12] + struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block)) + data[-12:]
    found = decode_image(io.BytesIO(late), channels=1)
    assert (found.width, found.height) == (37, 53)
    wanted = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(found.pixels[0], wanted)
    np.testing.assert_array_equal(picture_of(Image.open(io.BytesIO(late)), channels=1).pixels[0], wanted)
