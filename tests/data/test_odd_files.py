"""Twenty odd or damaged pictures and films each on their way through a folder: in a clip, or in quarantine with a reason."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference.video_files import film

from bridle.data.batch import Sample, collate
from bridle.data.dataset import ClipDataset
from bridle.data.image import ImageConfig, ImageLoader
from bridle.data.manifest import read_manifest
from bridle.data.medium import IMAGE, VIDEO
from bridle.data.quarantine import BadFile
from bridle.data.video import VideoConfig, VideoLoader

IMAGES = ImageConfig(size=16, decode_size=20, mean=(0.5,) * 3, std=(0.25,) * 3)
VIDEOS = VideoConfig(size=16, decode_size=20, num_frames=4, stride=2, mean=(0.5,) * 3, std=(0.25,) * 3, max_decode_seconds=20.0)


def encoded(format: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> bytes:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format, **options)
    return stream.getvalue()


def animated() -> bytes:
    frames = [Image.new("P", (20, 20), i) for i in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 60000 x 60000 pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100000))) + chunk(b"IEND", b"")


def pictures() -> dict[str, tuple[bytes, bool]]:
    """Content and whether it is a picture, by file name."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    noise = np.random.default_rng(1).bytes(5000)
    return {
        "whole.jpg": (jpeg, True),
        "whole.webp": (encoded("WEBP"), True),
        "grey.tif": (encoded("TIFF", mode="L"), True),
        "palette.bmp": (encoded("BMP", mode="P"), True),
        "cmyk.jpg": (encoded("JPEG", mode="CMYK"), True),
        "really-a.png": (jpeg, True),
        "animated.gif": (animated(), True),
        "one-pixel.png": (encoded("PNG", (1, 1)), True),
        "wide.png": (encoded("PNG", (20000, 2)), True),
        "tall.jpg": (encoded("JPEG", (3, 9000)), True),
        "truncated-late.jpg": (jpeg[:-200], False),
        "truncated-half.png": (png[: len(png) // 2], False),
        "truncated-header.png": (png[:20], False),
        "truncated.webp": (encoded("WEBP")[:-100], False),
        "empty.jpg": (b"", False),
        "noise.jpg": (noise, False),
        "noise-behind-magic.png": (b"\x89PNG\r\n\x1a\n" + noise, False),
        "text.png": (b"<html>not found</html>", False),
        "bomb.png": (bomb(), False),
        "sound.png": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), False),
    }


def write_films(folder: Path) -> dict[str, bool]:
    """Odd films in the folder, and whether they are films, by file name."""
    folder.mkdir()
    film(folder / "whole.mp4", 30)
    whole = (folder / "whole.mp4").read_bytes()
    good = {"whole.mp4": True}

    def write(name: str, content: bytes, readable: bool) -> None:
        (folder / name).write_bytes(content)
        good[name] = readable

    for name, options in {
        "whole.mkv": {},
        "whole.webm": {"codec": "libvpx"},
        "whole.avi": {"codec": "mpeg4"},
        "whole.mpg": {"codec": "mpeg1video"},
        "slow.mp4": {"rate": 1},
        "vertical.mp4": {"size": (96, 32)},
    }.items():
        film(folder / name, 6 if name == "slow.mp4" else 30, **options)
        good[name] = True
    film(folder / "one-frame.mp4", 1)
    good["one-frame.mp4"] = True
    write("really-mp4.avi", whole, True)
    mkv, long = (folder / "whole.mkv").read_bytes(), film(folder.parent / "long.mkv", 300, gop=25).read_bytes()
    write("cut.mkv", mkv[: len(mkv) // 3], False)  # before the first frame ends
    write("half.mkv", long[: len(long) // 2], True)
    write("no-index.mp4", whole[: len(whole) - 600], False)
    write("half.mp4", whole[: len(whole) // 2], False)
    write("header-only.mkv", mkv[:40], False)
    write("empty.mp4", b"", False)
    write("noise.mp4", np.random.default_rng(2).bytes(20000), False)
    write("noise-behind-magic.mp4", whole[:32] + np.random.default_rng(3).bytes(20000), False)
    write("noise-behind-magic.mkv", mkv[:200] + np.random.default_rng(3).bytes(20000), False)
    write("text.webm", b"<html>not found</html>", False)
    write("picture.mp4", encoded("JPEG"), False)
    write("zeros.mpg", bytes(20000), False)
    return good


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


def test_pictures(folder: Path) -> None:
    place = folder / "pictures"
    place.mkdir()
    wanted = pictures()
    assert len(wanted) == 20
    for name, (content, _) in wanted.items():
        (place / name).write_bytes(content)
    manifest = read_manifest(place, IMAGE)
    loader = ImageLoader(IMAGES)
    data = ClipDataset(manifest, loader, 0)
    items = {manifest.entries[row].key: data[0, row] for row in range(len(manifest))}
    assert {name: isinstance(item, Sample) for name, item in items.items()} == {name: ok for name, (_, ok) in wanted.items()}
    assert all(item.reason for item in items.values() if isinstance(item, BadFile))
    batch = loader.finish(collate(list(items.values()), (1, 4, 4)), augment=True)
    assert len(batch) == 10
    assert len(batch.bad) == 10
    assert bool(torch.isfinite(batch.inputs).all())


def test_films(folder: Path) -> None:
    wanted = write_films(folder / "films")
    assert len(wanted) == 21
    manifest = read_manifest(folder / "films", VIDEO)
    loader = VideoLoader(VIDEOS)
    data = ClipDataset(manifest, loader, 0)
    items: dict[str, Sample | BadFile] = {bad.key: bad for bad in manifest.bad}
    items |= {manifest.entries[row].key: data[0, row] for row in range(len(manifest))}
    assert {name: isinstance(item, Sample) for name, item in items.items()} == wanted
    assert all(item.reason for item in items.values() if isinstance(item, BadFile))
    batch = loader.finish(collate(list(items.values()), (2, 4, 4)), augment=True)
    assert bool(torch.isfinite(batch.inputs).all())
    for entry in manifest.entries:
        if wanted[entry.key]:
            assert sum(window.inputs.shape[1] for window in loader.windows(entry)) >= 1
