"""Damaged files of sound, pictures and film, and readers that share no code with the package to say which can still be read.

``readable`` of a kind says what is known by how it is made; None leaves it to a reader of the format: of wav and png one that
is written here from the format's description, of flac and ogg FFmpeg and libsndfile, asked for all of it in the plainest way.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image
from reference.media_folders import texture
from reference.video_files import film

RATE = 16000
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>The file has moved.</body></html>\n"
Random = np.random.Generator
Make = Callable[[Random], bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of damage: the content of a file, its suffix, and whether it can be read (None: the format's reader tells)."""

    suffix: str
    make: Make
    readable: bool | None = False


def sound(random: Random, seconds: float = 0.3, subtype: str = "PCM_16", form: str = "WAV") -> bytes:
    """A tone in noise, mono at 16 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    samples = 0.3 * np.sin(2 * np.pi * random.uniform(200, 2000) * time) + 0.05 * random.standard_normal(time.size)
    stream = io.BytesIO()
    soundfile.write(stream, samples.astype(np.float32), RATE, subtype, format=form)
    return stream.getvalue()


def flac(random: Random) -> bytes:
    """Three frames of 4096 samples at least."""
    return sound(random, 0.9, form="FLAC")


def ogg(random: Random) -> bytes:
    """Vorbis of several pages."""
    return sound(random, 2.0, "VORBIS", "OGG")


def mp3(random: Random) -> bytes:
    """Some thirty frames, with libsndfile's encoder."""
    return sound(random, 1.0, "MPEG_LAYER_III", "MP3")


def cut(content: bytes, random: Random, low: float = 0.0, high: float = 1.0) -> bytes:
    """The content up to a place between two parts of its length."""
    return content[: random.integers(int(low * len(content)), max(int(high * len(content)), int(low * len(content)) + 1))]


def flipped(content: bytes, random: Random, first: int, last: int, num_bits: int) -> bytes:
    """Some bits between two bytes turned over."""
    damaged = bytearray(content)
    for place in random.integers(first, min(last, len(content)), num_bits):
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def wav_header(rate: int, channels: int, num_bytes: int, bits: int = 16, tag: int = 1) -> bytes:
    """44 bytes that announce a sound of so many bytes."""
    frame = channels * bits // 8 & 0xFFFF
    body = struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    return (
        b"RIFF" + struct.pack("<I", 36 + num_bytes & 0xFFFFFFFF) + b"WAVEfmt " + body + b"data" + struct.pack("<I", num_bytes)
    )


def _absurd(random: Random) -> bytes:
    rate, channels = [(0, 1), (1, 1), (10**9, 1), (2**32 - 1, 2), (RATE, 0), (999, 1)][random.integers(6)]
    return wav_header(rate, channels, 4000) + random.bytes(4000)


def _not_finite(random: Random) -> bytes:
    samples = random.standard_normal(4000).astype(np.float32)
    samples[random.integers(4000)] = [np.nan, np.inf, -np.inf][random.integers(3)]
    return wav_header(RATE, 1, 16000, 32, 3) + samples.tobytes()


def _announces_more(random: Random) -> bytes:
    return wav_header(RATE, 1, [2**32 - 1, 2**31, 2**31 - 1, 10**9][random.integers(4)]) + sound(random)[44:]


def _odd_chunks(random: Random) -> bytes:
    """Chunks of odd sizes, padded as they must be, before and behind the samples."""
    size = 2 * int(random.integers(0, 30)) + 1
    junk = b"JUNK" + struct.pack("<I", size) + bytes(size + 1)
    whole = sound(random)
    return whole[:12] + junk + whole[12:] + junk


def _zipped(random: Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sound.wav", sound(random))
    return stream.getvalue()


def _no_samples_behind_the_tag(random: Random) -> bytes:
    size = int(random.integers(0, 500))
    return b"ID3\x03\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


def _broken_frame(random: Random) -> bytes:
    """A flac whose second frame on is damaged, so that its checksum is wrong."""
    whole = flac(random)
    return flipped(whole, random, len(whole) // 2, len(whole), 20)


def _lost_pages(random: Random) -> bytes:
    """An ogg without some of the pages behind its three headers' ones."""
    pages = [b"OggS" + page for page in ogg(random).split(b"OggS")[1:]]
    kept = [page for i, page in enumerate(pages) if i < 2 or random.random() < 0.5]
    return b"".join(kept)


SOUNDS: dict[str, Kind] = {
    "cut": Kind("wav", lambda random: cut(sound(random), random), None),
    "header-only": Kind("wav", lambda random: sound(random)[:44]),
    "empty": Kind("wav", lambda random: b""),
    "other-suffix": Kind("wav", lambda random: [flac, ogg, mp3][random.integers(3)](random), True),
    "bits-of-header": Kind("wav", lambda random: flipped(sound(random), random, 0, 44, 2), None),
    "bits-of-samples": Kind("wav", lambda random: flipped(sound(random), random, 44, 10**9, 50), True),
    "web-page": Kind("wav", lambda random: HTML * int(random.integers(1, 100))),
    "not-finite": Kind("wav", _not_finite),
    "absurd-header": Kind("wav", _absurd),
    "announces-more": Kind("wav", _announces_more, True),
    "zipped": Kind("flac", _zipped),
    "encrypted": Kind("ogg", lambda random: random.bytes(5000)),
    "text": Kind("mp3", lambda random: b"The quick brown fox.\n" * int(random.integers(1, 500))),
    "tag-only": Kind("mp3", _no_samples_behind_the_tag),
    "broken-frame": Kind("flac", _broken_frame, None),
    "lost-pages": Kind("ogg", _lost_pages, None),
    "odd-chunks": Kind("wav", _odd_chunks, True),
    "bits-of-flac-header": Kind("flac", lambda random: flipped(flac(random), random, 4, 42, 3), None),
    "cut-mp3": Kind("mp3", lambda random: cut(mp3(random), random, 0.5), True),
    "zeros": Kind("wav", lambda random: bytes(int(random.integers(1, 30000)))),
}
"""Twenty kinds of damaged sound."""


def riff_readable(content: bytes) -> bool:
    """Whether a wav announces a usual sound and holds a sample of it, by the format's description."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return False
    place, format_of = 12, None
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        body = content[place + 8 : place + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            format_of = struct.unpack("<HHIIHH", body[:16])
        if name == b"data":
            if format_of is None:
                return False
            tag, channels, rate, _, frame, bits = format_of
            usual = tag == 1 and 1 <= channels <= 256 and 1000 <= rate <= 1_000_000 and bits in (8, 16, 24, 32)
            return usual and len(body) >= frame >= 1
        place += 8 + size + size % 2
    return False


def ffmpeg_readable(content: bytes, kind: str = "audio") -> bool:
    """Whether FFmpeg gets anything out of it, decoding from the start to the end."""
    try:
        with av.open(io.BytesIO(content)) as container:
            for packet in container.demux(**{kind: 0}):
                try:
                    if packet.decode():
                        return True
                except av.error.FFmpegError:
                    continue
    except (av.error.FFmpegError, ValueError, IndexError):
        return False
    return False


def sndfile_readable(content: bytes) -> bool:
    """Whether libsndfile gets samples of a usual rate out of it."""
    try:
        samples, rate = soundfile.read(io.BytesIO(content))
    except (soundfile.SoundFileError, RuntimeError):
        return False
    return len(samples) > 0 and 1000 <= rate <= 1_000_000


def sound_readable(name: str, content: bytes) -> bool:
    """What the reader of its format says of a damaged sound."""
    kind = SOUNDS[name]
    if kind.readable is not None:
        return kind.readable
    return riff_readable(content) if kind.suffix == "wav" else ffmpeg_readable(content) or sndfile_readable(content)


def picture(random: Random, form: str = "PNG", size: tuple[int, int] = (40, 50)) -> bytes:
    """A texture."""
    stream = io.BytesIO()
    Image.fromarray(texture(random, *size, int(random.integers(2)))).save(stream, form)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a png."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """A grey png that announces a size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_readable(content: bytes) -> bool:
    """Whether a png is whole by the format's description: signature, lengths, checksums, and all of its pixels."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    place, pixels, size = 8, b"", None
    while place + 12 <= len(content):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        body = content[place + 8 : place + 8 + length]
        if len(body) < length or content[place + 8 + length : place + 12 + length] != struct.pack(
            ">I", zlib.crc32(name + body)
        ):
            return False
        if name == b"IHDR":
            size = struct.unpack(">IIBBBBB", body)
        if name == b"IDAT":
            pixels += body
        place += 12 + length
    try:
        rows = zlib.decompressobj().decompress(pixels)
    except zlib.error:
        return False
    return size is not None and len(rows) >= size[1] * (1 + size[0] * {0: 1, 2: 3}[size[3]])


def _bomb(random: Random) -> bytes:
    return png_of(60_000, 60_000, zlib.compress(bytes(10**6)))


PICTURES: dict[str, Kind] = {
    "cut-png": Kind("png", lambda random: cut(picture(random), random, 0.0, 0.9)),
    "cut-jpeg": Kind("jpg", lambda random: cut(picture(random, "JPEG"), random, 0.0, 0.9)),
    "cut-webp": Kind("webp", lambda random: cut(picture(random, "WEBP"), random, 0.1, 0.9)),
    "cut-tiff": Kind("tif", lambda random: cut(picture(random, "TIFF"), random, 0.1, 0.9)),
    "header-only": Kind("png", lambda random: picture(random)[:33]),
    "empty": Kind("jpg", lambda random: b""),
    "other-suffix": Kind(
        "jpg", lambda random: picture(random, ["PNG", "WEBP", "BMP", "TIFF", "GIF"][random.integers(5)]), True
    ),
    "bits-of-header": Kind("png", lambda random: flipped(picture(random), random, 8, 33, 2), None),
    "bits-of-pixels": Kind("png", lambda random: flipped(picture(random), random, 41, 10**9, 5), None),
    "bits-of-bmp": Kind("bmp", lambda random: flipped(picture(random, "BMP"), random, 54, 10**9, 50), True),
    "web-page": Kind("jpg", lambda random: HTML * int(random.integers(1, 100))),
    "zipped": Kind("png", _zipped),
    "encrypted": Kind("jpg", lambda random: random.bytes(5000)),
    "text": Kind("gif", lambda random: b"The quick brown fox.\n" * int(random.integers(1, 500))),
    "signature-only": Kind("png", lambda random: b"\x89PNG\r\n\x1a\n" + random.bytes(3000)),
    "no-pixels-wide": Kind("png", lambda random: png_of(0, int(random.integers(0, 9)), zlib.compress(b"\0" * 9))),
    "bomb": Kind("png", _bomb),
    "too-few-rows": Kind("png", lambda random: png_of(40, 40, zlib.compress(bytes(41 * int(random.integers(1, 40)))))),
    "sound": Kind("jpg", sound),
    "zeros": Kind("jpg", lambda random: bytes(int(random.integers(1, 30000)))),
}
"""Twenty kinds of damaged pictures."""


def picture_readable(name: str, content: bytes) -> bool:
    """What the reader of its format says of a damaged picture."""
    kind = PICTURES[name]
    return png_readable(content) if kind.readable is None else kind.readable


def film_bytes(folder: Path, suffix: str, **how: object) -> bytes:
    """A film of 30 frames."""
    path = film(folder / f"source.{suffix}", 30, **how)  # type: ignore[arg-type]
    return path.read_bytes()


def films(folder: Path) -> dict[str, tuple[str, bytes, bool]]:
    """Twenty kinds of damaged films by name: suffix, content, and whether a film is left."""
    random = np.random.default_rng(3)
    mp4, mkv, avi = film_bytes(folder, "mp4"), film_bytes(folder, "mkv"), film_bytes(folder, "avi", codec="mpeg4")
    mpg = film_bytes(folder, "mpg", codec="mpeg1video")
    known = {
        "cut-mp4": ("mp4", mp4[: len(mp4) // 2], False),  # its index lies at its end
        "cut-index": ("mp4", mp4[:-200], False),
        "cut-early": ("mkv", mkv[: len(mkv) // 20], False),
        "header-only": ("mkv", mkv[:60], False),
        "empty": ("mp4", b"", False),
        "other-suffix": ("avi", mp4, True),
        "web-page": ("mp4", HTML * 50, False),
        "zipped": ("mkv", _zipped(random), False),
        "encrypted": ("mp4", random.bytes(20_000), False),
        "text": ("webm", b"The quick brown fox.\n" * 500, False),
        "zeros": ("mpg", bytes(20_000), False),
        "noise-behind-the-type": ("mp4", mp4[:32] + random.bytes(20_000), False),
        "picture": ("mp4", picture(random, "JPEG"), False),
        "play-list": ("mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", False),
        "sound-only": ("avi", sound(random), False),
    }
    unsure = {
        "bits-of-mkv": ("mkv", flipped(mkv, random, len(mkv) // 2, len(mkv), 30)),
        "bits-of-avi": ("avi", flipped(avi, random, len(avi) // 2, len(avi) * 3 // 4, 30)),
        "bits-of-mkv-header": ("mkv", flipped(mkv, random, 4, 60, 3)),
        "half-mpg": ("mpg", mpg[: len(mpg) // 2]),
        "lost-middle": ("mpg", mpg[: len(mpg) // 3] + mpg[len(mpg) // 2 :]),
    }
    return known | {name: (suffix, content, ffmpeg_readable(content, "video")) for name, (suffix, content) in unsure.items()}
