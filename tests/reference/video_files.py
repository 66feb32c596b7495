"""Films for the tests of decoding: every frame shows its own index, in a code that survives compression."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

os.environ.setdefault("SVT_LOG", "1")  # that encoder writes to stderr by itself

COLUMNS, ROWS = 4, 3  # one bit a cell: indices up to 4095
DARK, LIGHT = 48, 208
OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libsvtav1": {"preset": "11"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
PIX_FMTS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p", "gif": "rgb8", "libx264rgb": "rgb24"}
PIX_FMTS |= {"qtrle": "rgb24", "png": "rgb24", "apng": "rgb24"}
FORMATS = {"m1v": "mpeg1video", "m2v": "mpeg2video", "y4m": "yuv4mpegpipe", "mjpg": "mjpeg"}
HOW = {"pix_fmt", "format", "container_options", "sound", "sound_seconds", "rotation", "hflip", "aspect", "colours", "draw"}
SIZES = {"h263": (96, 128), "h263p": (96, 128), "rv20": (96, 128), "libsvtav1": (96, 128), "dvvideo": (576, 720)}


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width) uint8: the bits of ``index`` as light and dark cells, the lowest at the top left."""
    bits = np.array([(index >> bit) & 1 for bit in range(COLUMNS * ROWS)], dtype=bool).reshape(ROWS, COLUMNS)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    return np.where(bits[rows[:, None], columns[None]], LIGHT, DARK).astype(np.uint8)


def index_of(pixels: Any) -> int:
    """The index that a grey (H, W) picture shows, read from the middle of its cells."""
    grey = np.asarray(pixels, dtype=np.float64)
    height, width = grey.shape[0] / ROWS, grey.shape[1] / COLUMNS
    index = 0
    for bit in range(COLUMNS * ROWS):
        row, column = divmod(bit, COLUMNS)
        rows = slice(round((row + 0.3) * height), round((row + 0.7) * height) + 1)
        columns = slice(round((column + 0.3) * width), round((column + 0.7) * width) + 1)
        index |= int(grey[rows, columns].mean() > (DARK + LIGHT) / 2) << bit
    return index


def indices(pixels: Any) -> list[int]:
    """The index that each frame of a clip (C, T, H, W) shows."""
    return [index_of(frame) for frame in np.asarray(pixels).astype(np.float64).mean(axis=0)]


def film(
    path: Path,
    num_frames: int = 50,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 25,
    size: tuple[int, int] | None = None,
    gop: int = 12,
    b_frames: int = 0,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    **how: Any,
) -> Path:
    """Write a film whose frame i shows i, at i / rate, or at ``times[i]`` seconds.

    Args:
        size: (height, width) in pixels.
        how: ``pix_fmt``, ``format`` (by name), ``container_options``, ``sound`` (codec of a sound track), ``sound_seconds``,
            ``rotation`` (degrees counter-clockwise, as shown), ``hflip``, ``aspect`` (of a pixel), ``colours`` (colorspace and
            color_range), ``draw`` (index, width, height -> grey or RGB picture instead of the index).
    """
    assert how.keys() <= HOW, f"unknown: {how.keys() - HOW}"
    draw: Callable[[int, int, int], np.ndarray] = how.get("draw", picture)
    height, width = size or SIZES.get(codec, (48, 64))
    form = how.get("format", FORMATS.get(path.suffix[1:]))
    clock = Fraction(1, 90000)
    with av.open(str(path), "w", format=form, container_options=how.get("container_options") or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={**OPTIONS.get(codec, {}), **(options or {})})
        stream.height, stream.width = height, width
        stream.pix_fmt = how.get("pix_fmt", PIX_FMTS.get(codec, "yuv420p"))
        context = stream.codec_context
        context.thread_count, context.gop_size, context.max_b_frames = 1, gop, b_frames
        if times is not None:
            context.time_base = clock
        if "aspect" in how:
            context.sample_aspect_ratio = Fraction(how["aspect"])
        if "colours" in how:
            context.colorspace, context.color_range = how["colours"]
        if "rotation" in how:
            stream.set_display_rotation(how["rotation"], hflip=how.get("hflip", False))
        sound = container.add_stream(how["sound"], rate=48000) if "sound" in how else None
        if sound is not None:
            sound.layout = "mono"
        for i in range(num_frames):
            image = draw(i, width, height)
            frame = av.VideoFrame.from_ndarray(image, format="gray" if image.ndim == 2 else "rgb24")
            if "colours" in how:
                frame = frame.reformat(
                    format=stream.pix_fmt, dst_colorspace=how["colours"][0], dst_color_range=how["colours"][1]
                )
            frame.pts, frame.time_base = (i, 1 / Fraction(rate)) if times is None else (round(times[i] / clock), clock)
            container.mux(stream.encode(frame))
            if sound is not None:
                beep(container, sound, i / Fraction(rate), (i + 1) / Fraction(rate))
        if sound is not None:
            beep(container, sound, num_frames / Fraction(rate), Fraction(how.get("sound_seconds", 0)))
        for track in (stream, sound):
            if track is not None:
                container.mux(track.encode())
    return path


def beep(container: Any, sound: Any, start: Fraction, end: Fraction) -> None:
    """Encode the sound of some time."""
    first, last = int(start * 48000), int(end * 48000)
    if first >= last:
        return
    wave = 0.1 * np.sin(np.arange(first, last) * 0.06).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
    container.mux(sound.encode(frame))


def remux(
    source: Path,
    path: Path,
    keep: Callable[[int], bool] = lambda i: True,
    edit: Callable[[int, Any], None] = lambda i, packet: None,
    **how: Any,
) -> Path:
    """Copy the packets of a film that are to be kept, in decoding order and each edited first, into another file."""
    with av.open(str(source)) as inputs, av.open(str(path), "w", **how) as outputs:
        track = outputs.add_stream_from_template(inputs.streams.video[0])
        packets = [packet for packet in inputs.demux(video=0) if packet.size]
        for i, packet in enumerate(packets):
            if keep(i):
                edit(i, packet)
                packet.stream = track
                outputs.mux(packet)
    return path


def with_cover(path: Path) -> Path:
    """A sound file with the picture of its cover, which FFmpeg takes for a video track of one frame."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=48000)
        sound.layout = "mono"
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in [
            *cover.encode(av.VideoFrame.from_ndarray(picture(5), format="gray").reformat(format="yuvj420p")),
            *cover.encode(),
        ]:
            container.mux(packet)
        beep(container, sound, Fraction(0), Fraction(1))
        container.mux(sound.encode())
    return path


def all_frames(path: Path) -> list[np.ndarray]:
    """Every frame of a film in order, (H, W, 3) uint8, unturned, by decoding the whole file."""
    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = container.decode(video=0)
        return [frame.reformat(format="rgb24", interpolation=flags, threads=1).to_ndarray().copy() for frame in frames]
