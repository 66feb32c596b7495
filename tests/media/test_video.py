"""Decoding films: every container and codec, frame for frame as a whole decode; short cuts; geometry; colours."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference.sound_files import CountingFile
from reference.video_files import all_frames, film, index_of, indices, picture, remux

from bridle.errors import ConfigError, DecodeError
from bridle.media.video import VideoInfo, decode_frames, decode_windows, probe_video
from bridle.media.video import stream as video_stream

# suffix, codec, B frames, and (FFmpeg's names of format and codec) as probed
CODINGS = [
    ("mp4", "libx264", 0, "mov", "h264"),
    ("mp4", "libx264", 2, "mov", "h264"),
    ("mov", "libx264", 1, "mov", "h264"),
    ("mkv", "libx264", 2, "matroska", "h264"),
    ("avi", "libx264", 2, "avi", "h264"),
    ("ts", "libx264", 2, "mpegts", "h264"),
    ("flv", "libx264", 2, "flv", "h264"),
    ("h264", "libx264", 2, "h264", "h264"),
    ("mkv", "libx264rgb", 0, "matroska", "h264"),
    ("mp4", "libx265", 2, "mov", "hevc"),
    ("mkv", "libx265", 2, "matroska", "hevc"),
    ("hevc", "libx265", 2, "hevc", "hevc"),
    ("mp4", "libsvtav1", 0, "mov", "av1"),
    ("webm", "libvpx", 0, "matroska", "vp8"),
    ("ogv", "libvpx", 0, "ogg", "vp8"),
    ("webm", "libvpx-vp9", 0, "matroska", "vp9"),
    ("ivf", "libvpx-vp9", 0, "ivf", "vp9"),
    ("mp4", "mpeg4", 2, "mov", "mpeg4"),
    ("avi", "mpeg4", 0, "avi", "mpeg4"),
    ("avi", "mpeg4", 2, "avi", "mpeg4"),
    ("nut", "mpeg4", 2, "nut", "mpeg4"),
    ("mpg", "mpeg1video", 2, "mpeg", "mpeg1video"),
    ("m1v", "mpeg1video", 2, "mpegvideo", "mpeg1video"),
    ("vob", "mpeg2video", 2, "mpeg", "mpeg2video"),
    ("ts", "mpeg2video", 2, "mpegts", "mpeg2video"),
    ("m2v", "mpeg2video", 2, "mpegvideo", "mpeg2video"),
    ("mxf", "mpeg2video", 2, "mxf", "mpeg2video"),
    ("mkv", "ffv1", 0, "matroska", "ffv1"),
    ("avi", "mjpeg", 0, "avi", "mjpeg"),
    ("mov", "mjpeg", 0, "mov", "mjpeg"),
    ("mjpg", "mjpeg", 0, "mjpeg", "mjpeg"),
    ("3gp", "h263", 0, "mov", "h263"),
    ("avi", "h263p", 0, "avi", "h263"),
    ("mov", "prores_ks", 0, "mov", "prores"),
    ("mov", "qtrle", 0, "mov", "qtrle"),
    ("mov", "png", 0, "mov", "png"),
    ("avi", "huffyuv", 0, "avi", "huffyuv"),
    ("avi", "rawvideo", 0, "avi", "rawvideo"),
    ("y4m", "rawvideo", 0, "yuv4mpegpipe", "rawvideo"),
    ("wmv", "wmv2", 0, "asf", "wmv2"),
    ("asf", "msmpeg4", 0, "asf", "msmpeg4v3"),
    ("flv", "flv", 0, "flv", "flv1"),
    ("rm", "rv20", 0, "rm", "rv20"),
    ("dv", "dvvideo", 0, "dv", "dvvideo"),
    ("gif", "gif", 0, "gif", "gif"),
    ("apng", "apng", 0, "apng", "apng"),
]
INDEXED = ["mp4", "mkv", "avi", "ts", "webm"]


@pytest.fixture
def decoded(monkeypatch) -> list[float]:
    """The times of all frames that are decoded from now on."""
    times: list[float] = []
    shown = video_stream.Film._shown

    def counted(self, packet):
        frames = shown(self, packet)
        times.extend(time for time, _ in frames)
        return frames

    monkeypatch.setattr(video_stream.Film, "_shown", counted)
    return times


def clip(path: Path, start: float, count: int = 3, step: float = 0.04, **settings) -> list[int]:
    frames = decode_frames(path, start_seconds=start, num_frames=count, step_seconds=step, **settings)
    assert frames.start_seconds == start
    assert frames.pixels.dtype == torch.uint8
    return indices(frames.pixels)


def whole(path: Path, num_frames: int, step: float) -> list[int]:
    """What all frames of the consecutive clips show."""
    clips = list(decode_windows(path, num_frames=num_frames, step_seconds=step, size=(48, 64)))
    assert [clip.start_seconds for clip in clips] == pytest.approx([i * num_frames * step for i in range(len(clips))])
    assert all(clip.pixels.shape[1] == num_frames for clip in clips[:-1])
    return [index for clip in clips for index in indices(clip.pixels)]


def test_a_frame_left_out_by_mistake_costs_the_clips_before_it_nothing(tmp_path, decoded):
    gaps = np.r_[np.full(1000, 0.04), np.full(12, 0.5), np.full(200, 0.04)]
    times = [0.0, *np.cumsum(gaps).round(3)[:-1]]
    path = film(tmp_path / "a.mkv", len(times), times=times, b_frames=2, gop=25)
    wanted = np.arange(0, times[-1], 0.16)
    expected = [int(np.searchsorted(times, time + 0.002, side="right")) - 1 for time in wanted]
    assert whole(path, 8, 0.16)[: len(expected)] == expected
    assert len(decoded) < 1.3 * len(times), "nothing is decoded twice but what lies before a key frame"


def grainy(index: int, width: int, height: int) -> np.ndarray:
    grain = np.random.default_rng(index).integers(-30, 30, (height, width))
    return (picture(index, width, height) + grain).astype(np.uint8)


def long_film(path: Path, suffix: str, **how) -> Path:
    """A minute of a few megabytes, with a key frame every second."""
    codec = {"avi": "mpeg4", "webm": "libvpx", "mpg": "mpeg2video"}.get(suffix, "libx264")
    b_frames = 0 if codec == "libvpx" else 2
    return film(
        path / f"long.{suffix}",
        1500,
        codec=codec,
        b_frames=b_frames,
        gop=25,
        draw=grainy,
        options={"b": "500k"} if suffix == "avi" else {},
        **how,
    )


@pytest.mark.parametrize(("suffix", "codec", "b_frames", "form", "coding"), CODINGS)
def test_every_frame_at_its_time(tmp_path, suffix, codec, b_frames, form, coding):
    path = film(tmp_path / f"a.{suffix}", 50, codec=codec, b_frames=b_frames)
    info = probe_video(path)
    assert (info.format, info.codec) == (form, coding)
    assert (info.rate_hz, info.num_frames) == (25, info.num_frames and 50)
    assert info.duration_seconds == pytest.approx(2, abs=1e-3)
    whole = decode_frames(path, num_frames=60, step_seconds=0.04)
    assert (whole.width, whole.height) == (info.width, info.height)
    assert indices(whole.pixels) == list(range(50))
    if info.width == whole.pixels.shape[3] and codec not in ("h263", "h263p", "dvvideo"):  # their pixels are not square
        wanted = torch.from_numpy(np.stack(all_frames(path))).permute(3, 0, 1, 2)
        assert torch.equal(whole.pixels, wanted)
    for first, stride in [(1, 1), (7, 4), (12, 2), (13, 1), (24, 5), (30, 1), (47, 1), (48, 3), (49, 1)]:
        part = decode_frames(path, start_seconds=first / 25, num_frames=4, step_seconds=stride / 25).pixels
        assert torch.equal(part, whole.pixels[:, first : first + 4 * stride : stride]), (first, stride)


@pytest.mark.parametrize("gop", [1, 12, 250])
@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("is_open", ["0", "1"])
def test_any_group_of_pictures(tmp_path, suffix, gop, b_frames, is_open):
    options = {"x264-params": f"open-gop={is_open}:scenecut=0"}
    path = film(tmp_path / f"a.{suffix}", 100, gop=gop, b_frames=b_frames, options=options)
    for first in (0, 3, 11, 12, 13, 23, 38, 60, 61, 97, 99):
        assert clip(path, first / 25, 2) == list(range(first, min(100, first + 2)))
    assert clip(path, 0.9, 6, 0.16) == [22, 26, 30, 34, 38, 42]


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25, 2), Fraction(120)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_multiples_of_the_frame_duration_give_every_frame_once(tmp_path, suffix, rate):
    path = film(tmp_path / f"a.{suffix}", 60, rate=rate, b_frames=2)
    info = probe_video(path)
    assert info.rate_hz == pytest.approx(float(rate), rel=2e-3)
    assert info.duration_seconds == pytest.approx(60 / rate, abs=2e-3)
    for rounded in (1 / info.rate_hz, round(float(1 / rate), 5)):
        assert clip(path, 0.0, 100, rounded) == list(range(60))
    for i in range(60):
        assert clip(path, i / float(rate), 1) == [i]


def test_a_time_gets_the_frame_that_is_on_the_screen(tmp_path):
    path = film(tmp_path / "a.mp4", 50, b_frames=2)
    assert clip(path, 0.41, 5, 0.01) == [10, 10, 10, 11, 11]
    assert clip(path, 0.4399, 1) == [11], "a frame's twentieth is forgiven"
    assert clip(path, 0.435, 1) == [10]
    assert clip(path, 1.2, 6, 0.02) == [30, 30, 31, 31, 32, 32]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts"])
def test_variable_rate_follows_the_time_stamps(tmp_path, suffix):
    gaps = np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.5, 2.0], 80, p=[0.2, 0.5, 0.2, 0.07, 0.03])
    times = [0.0, *np.cumsum(gaps).round(3)[:-1]]
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = film(tmp_path / f"a.{suffix}", 80, codec=codec, times=times, b_frames=0 if codec == "libvpx" else 2)
    for i, (time, following) in enumerate(pairwise(times)):
        assert clip(path, time, 1) == [i]
        assert clip(path, (time + following) / 2, 1) == [i]
    grid = [i * 0.1 for i in range(40)]
    assert clip(path, 0.0, 40, 0.1) == [max(j for j, time in enumerate(times) if time <= t + 0.0015) for t in grid]


def test_time_counts_from_the_first_frame(tmp_path):
    plain = film(tmp_path / "a.ts", 50, b_frames=2)

    def late(_, packet):
        packet.pts, packet.dts = packet.pts + 90000 * 7000, packet.dts + 90000 * 7000

    shifted = remux(plain, tmp_path / "b.ts", edit=late)
    for path in (plain, shifted, remux(plain, tmp_path / "c.ts", keep=lambda i: i >= 12)):
        first = indices(decode_frames(path, num_frames=1, step_seconds=1).pixels)[0]
        assert clip(path, 0.8) == [first + 20, first + 21, first + 22]
        assert probe_video(path).duration_seconds == pytest.approx(2 - first / 25, abs=0.05)


def test_edit_list_cuts_the_start(tmp_path):
    def early(_, packet):
        packet.pts, packet.dts = packet.pts - 12800, packet.dts - 12800

    path = remux(film(tmp_path / "a.mp4", 100, b_frames=2, gop=40), tmp_path / "b.mp4", edit=early)
    assert clip(path, 0.0) == [25, 26, 27]
    assert clip(path, 1.0) == [50, 51, 52]
    assert probe_video(path).duration_seconds == pytest.approx(3.0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mpg", "ts", "h264"])
def test_missing_last_frames(tmp_path, suffix):
    path = film(tmp_path / f"a.{suffix}", 50, codec="mpeg2video" if suffix == "mpg" else "libx264", b_frames=2)
    assert clip(path, 46 / 25, 10) == [46, 47, 48, 49]
    assert clip(path, 46 / 25, 10, 0.12) == [46, 49]
    assert clip(path, 49 / 25, 10) == [49]
    assert clip(path, 1.97, 10, 0.01) == [49, 49, 49], "shown until its end, forgiven a twentieth"
    for late in (2.0, 2.5, 1e6):
        with pytest.raises(DecodeError, match="ends before"):
            clip(path, late)


@pytest.mark.parametrize("suffix", INDEXED)
def test_a_clip_of_a_long_film_is_read_and_decoded_alone(tmp_path, decoded, suffix):
    path = long_film(tmp_path, suffix)
    stream = CountingFile(path)
    frames = decode_frames(stream, start_seconds=41.0, num_frames=8, step_seconds=0.04)
    assert indices(frames.pixels) == list(range(1025, 1033))
    assert len(decoded) <= 25 + 8 + 6, "a group of pictures, the clip, those decoded ahead, and the first of all"
    assert stream.bytes_read < 0.4 * path.stat().st_size
    header = CountingFile(path)
    probe_video(header)
    assert header.bytes_read < (0.6 if suffix == "ts" else 0.4) * path.stat().st_size, "of ts three times 250 kilobytes"


@pytest.mark.parametrize("kind", ["live mkv", "live webm", "fragments", "mpg"])
def test_a_clip_of_a_film_without_index_is_decoded_alone(tmp_path, decoded, kind):
    if kind == "fragments":
        path = long_film(tmp_path, "mp4", container_options={"movflags": "frag_keyframe+empty_moov+skip_trailer"})
    else:
        path = long_film(tmp_path, kind[-4:].strip(), container_options={"live": "1"} if "live" in kind else {})
    assert clip(path, 41.0, 8) == list(range(1025, 1033))
    assert len(decoded) <= 25 + 8 + 6
    assert probe_video(path).duration_seconds == pytest.approx(60, abs=0.1)


def test_avi_without_its_index_is_read_from_the_start(tmp_path):
    path = film(tmp_path / "a.avi", 100, codec="mpeg4", b_frames=2)
    path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"idx1")])
    assert clip(path, 2.0) == [50, 51, 52]
    assert clip(path, 3.96) == [99]


def test_a_film_with_one_key_frame_is_decoded_up_to_the_clip(tmp_path, decoded):
    path = film(tmp_path / "a.mp4", 300, gop=1000, b_frames=3)
    assert clip(path, 4.0, 4) == [100, 101, 102, 103]
    assert 40 < len(decoded) < 90, "most of the frames that no other refers to are left out"
    decoded.clear()
    assert clip(film(tmp_path / "a.mkv", 300, codec="mjpeg"), 4.0, 4, 1.0) == [100, 125, 150, 175]
    assert len(decoded) < 20, "of films of stills the frames between are not decoded"


def test_films_of_stills_of_variable_rate_keep_every_frame(tmp_path):
    gaps = np.random.default_rng(1).choice([0.1, 0.5, 0.03], 60, p=[0.7, 0.2, 0.1])
    times = [0.0, *np.cumsum(gaps).round(3)[:-1]]
    path = film(tmp_path / "a.mkv", 60, codec="mjpeg", rate=10, times=times)
    grid = [i * 0.2 for i in range(int(times[-1] / 0.2))]
    wanted = [max(j for j, time in enumerate(times) if time <= t + 0.0015) for t in grid]
    for first in range(0, len(grid) - 4, 3):
        assert clip(path, grid[first], 4, 0.2) == wanted[first : first + 4]
    assert whole(path, 8, 0.2)[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("suffix", "codec", "how"),
    [
        ("mp4", "libx264", {"b_frames": 3, "gop": 1000}),
        ("mp4", "libx264", {"b_frames": 2, "gop": 12}),
        ("h264", "libx264", {"gop": 12}),
        ("mkv", "mjpeg", {}),
        ("avi", "mpeg4", {"gop": 10}),
        ("ts", "mpeg2video", {"b_frames": 2}),
    ],
)
@pytest.mark.parametrize("stride", [1, 4])
def test_consecutive_clips_are_those_at_their_starts_and_decode_a_frame_once(tmp_path, decoded, suffix, codec, how, stride):
    path = film(tmp_path / f"a.{suffix}", 150, codec=codec, **how)
    seen = whole(path, 8, stride / 25)
    assert len(decoded) <= 155
    assert seen == [i for start in range(0, 150, 8 * stride) for i in clip(path, start / 25, 8, stride / 25)]


def test_consecutive_clips_of_a_film_with_frames_left_out_by_mistake(tmp_path):
    times = [i * 0.04 for i in range(40)] + [1.6 + i * 0.8 for i in range(20)] + [17.6 + i * 0.04 for i in range(40)]
    path = film(tmp_path / "a.mp4", 100, times=times, b_frames=3, gop=200)
    wanted = [max(j for j, time in enumerate(times) if time <= i * 0.1 + 0.0015) for i in range(190)]
    assert whole(path, 8, 0.1)[:190] == wanted


def test_consecutive_clips_of_a_cut_and_of_a_broken_film(tmp_path):
    path = film(tmp_path / "a.mkv", 150, b_frames=2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = whole(path, 8, 0.04)
    assert 40 < len(seen) < 150
    assert seen == list(range(len(seen)))
    (tmp_path / "b.mp4").write_bytes(bytes(5000))
    with pytest.raises(DecodeError, match="not a video"):
        whole(tmp_path / "b.mp4", 8, 0.04)


def without_default_duration(data: bytes) -> bytes:
    """A Matroska file as browsers record it, without the duration of a frame: the element becomes a void one."""
    place = data.index(b"\x23\xe3\x83")
    size = 4 + (data[place + 3] & 0x7F)
    return data[:place] + b"\xec" + bytes([0x80 | (size - 2)]) + bytes(size - 2) + data[place + size :]


@pytest.mark.parametrize("live", ["0", "1"])
@pytest.mark.parametrize("around", [[0.033, 0.034, 0.031, 0.036, 0.028, 0.04], [0.033, 0.05, 0.2, 1.0]])
def test_the_rate_of_a_browsers_recording_is_counted(tmp_path, live, around):
    gaps = np.random.default_rng(0).choice(around, 150)
    times = [0.0, *np.cumsum(gaps).round(3)[:-1]]
    path = film(tmp_path / "a.webm", 150, codec="libvpx", times=times, gop=100, container_options={"live": live})
    path.write_bytes(without_default_duration(path.read_bytes()))
    info = probe_video(path)
    assert info.duration_seconds == pytest.approx(times[-1], abs=0.05)
    assert info.rate_hz == pytest.approx(150 / times[-1], rel=0.02)


def test_a_frame_that_is_too_large_is_refused_by_the_header(tmp_path, decoded):
    path = film(tmp_path / "a.mp4", 3, size=(96, 128))
    with pytest.raises(DecodeError, match="128x96 = 12288 pixels, over max_pixels = 12000"):
        probe_video(path, max_pixels=12000)
    assert not decoded
    assert probe_video(path, max_pixels=12288).width == 128


def test_frames_left_out_by_mistake_are_decoded_after_all(tmp_path, decoded):
    times = [i * 0.04 for i in range(40)] + [1.6 + i * 0.8 for i in range(20)] + [17.6 + i * 0.04 for i in range(40)]
    path = film(tmp_path / "a.mp4", 100, times=times, b_frames=3, gop=200)
    for i in range(40, 60):
        assert clip(path, times[i] + 0.79 * 0.9, 1) == [i]


def test_streams_without_time_stamps_are_read_from_the_start(tmp_path, decoded):
    path = film(tmp_path / "a.h264", 100, b_frames=2, rate=30)
    assert clip(path, 2.0, 2, 1 / 25) == [50, 51], "the rate of a bare stream is taken for 25"
    assert len(decoded) == pytest.approx(54, abs=4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_duration_is_that_of_the_video_track(tmp_path, suffix):
    path = film(tmp_path / f"a.{suffix}", 50, sound="aac", sound_seconds=5)
    assert probe_video(path) == VideoInfo(
        pytest.approx(2, abs=1e-3), 64, 48, 25, 0 if suffix == "mkv" else 50, "h264", "matroska" if suffix == "mkv" else "mov"
    )
    assert clip(path, 1.0) == [25, 26, 27]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mpg", "webm", "gif", "h264", "ts"])
def test_a_single_frame(tmp_path, suffix):
    codec = {"mpg": "mpeg1video", "webm": "libvpx", "gif": "gif"}.get(suffix, "libx264")
    path = film(tmp_path / f"a.{suffix}", 1, codec=codec)
    assert 0 < probe_video(path).duration_seconds <= 0.101
    assert clip(path, 0.0, 5) == [0] or suffix == "gif"  # which shows its last frame longer
    assert clip(path, 0.03, 1) == [0]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "webm", "mpg"])
def test_streams_within_a_larger_file(tmp_path, suffix):
    codec = {"avi": "mpeg4", "webm": "libvpx", "mpg": "mpeg1video"}.get(suffix, "libx264")
    path = film(tmp_path / f"a.{suffix}", 100, codec=codec)
    data = path.read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(os.urandom(1536) + data + os.urandom(512))
    stream = CountingFile(shard, 1536, len(data))
    stream.seek(7)  # wherever the stream stands, it is read from its start
    assert clip(stream, 2.4) == clip(path, 2.4) == clip(io.BytesIO(data), 2.4) == [60, 61, 62]
    assert probe_video(stream) == probe_video(path)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("hflip", [False, True])
def test_frames_are_turned_as_shown(tmp_path, degrees, hflip):
    path = film(tmp_path / "a.mp4", 3, rotation=degrees, hflip=hflip)
    shown = [np.rot90(frame, degrees // 90) for frame in all_frames(path)]
    shown = [frame[:, ::-1] if hflip else frame for frame in shown]
    info, frames = probe_video(path), decode_frames(path, num_frames=3, step_seconds=0.04)
    assert (info.height, info.width) == (frames.height, frames.width) == shown[0].shape[:2]
    np.testing.assert_array_equal(frames.pixels.permute(1, 2, 3, 0), np.stack(shown))
    wide = decode_frames(path, num_frames=3, step_seconds=0.04, size=(24, 60), fit="squash").pixels
    wanted = Image.fromarray(np.ascontiguousarray(shown[1])).resize((60, 24), Image.Resampling.BICUBIC)
    assert np.abs(wide[:, 1].permute(1, 2, 0).numpy() - np.asarray(wanted, dtype=float)).mean() < 2


@pytest.mark.parametrize(("aspect", "size"), [("1", (48, 64)), ("2", (48, 128)), ("16/11", (48, 93)), ("1/2", (48, 32))])
def test_pixels_become_square(tmp_path, aspect, size):
    path = film(tmp_path / "a.mp4", 3, aspect=aspect)
    frames = decode_frames(path, num_frames=3, step_seconds=0.04)
    assert frames.pixels.shape[2:] == size == (frames.height, frames.width)
    assert indices(frames.pixels) == [0, 1, 2]
    info = probe_video(path)
    assert (info.height, info.width) == size
    turned = decode_frames(film(tmp_path / "b.mp4", 3, aspect=aspect, rotation=90), num_frames=1, step_seconds=1)
    assert turned.pixels.shape[2:] == size[::-1]


def ramp(_: int, width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // (width - 1), rows * 255 // (height - 1), np.full_like(rows, 90)], 2).astype(np.uint8)


@pytest.mark.parametrize("source", [(48, 64), (120, 40), (10, 300), (4, 600)])
@pytest.mark.parametrize("size", [(24, 24), (33, 47), (96, 20)])
@pytest.mark.parametrize("fit", ["squash", "centre"])
def test_fit(tmp_path, source, size, fit):
    path = film(tmp_path / "a.mkv", 2, codec="ffv1", pix_fmt="bgr0", draw=ramp, size=source)
    frames = decode_frames(path, num_frames=2, step_seconds=0.04, size=size, fit=fit)
    assert frames.pixels.shape == (3, 2, *size)
    assert (frames.height, frames.width) == source
    scale = max(size[0] / source[0], size[1] / source[1])
    half = (0.5, 0.5) if fit == "squash" else (size[0] / source[0] / scale / 2, size[1] / source[1] / scale / 2)
    image = Image.fromarray(ramp(0, source[1], source[0]))
    box = [(0.5 - half[1]) * source[1], (0.5 - half[0]) * source[0], (0.5 + half[1]) * source[1], (0.5 + half[0]) * source[0]]
    wanted = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, tuple(box)), dtype=float)
    error = np.abs(frames.pixels[:, 1].permute(1, 2, 0).numpy() - wanted)
    assert error.mean() < 4, "within half a pixel"
    assert error[..., 2].max() <= 1


def test_resizing_is_as_good_as_pillows(tmp_path):
    rng = np.random.default_rng(0)

    def texture(_: int, width: int, height: int) -> np.ndarray:
        small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))

    path = film(tmp_path / "a.mp4", 2, size=(360, 640), draw=texture, options={"crf": "10"})
    whole = Image.fromarray(all_frames(path)[0])
    for size in ((96, 96), (224, 398), (97, 171)):
        ours = decode_frames(path, num_frames=1, step_seconds=1, size=size, fit="squash").pixels[:, 0]
        wanted = np.asarray(whole.resize(size[::-1], Image.Resampling.BICUBIC), dtype=float)
        error = ours.permute(1, 2, 0).numpy() - wanted
        assert np.abs(error).mean() < 1.5
        assert abs(error.mean()) < 0.1


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
PIXELS = [
    ("libx264", "yuv420p", (5, 1)),  # ITU-R 601, limited range
    ("libx264", "yuv420p", (1, 1)),  # ITU-R 709
    ("libx264", "yuvj420p", (1, 2)),  # full range
    ("libx264", "yuv444p10le", (1, 1)),
    ("ffv1", "bgr0", None),
    ("ffv1", "gray", None),
    ("ffv1", "gray10le", None),
    ("ffv1", "yuva420p", None),
    ("png", "rgba", None),
    ("png", "rgb48be", None),
    ("gif", "pal8", None),
    ("mjpeg", "yuvj422p", None),
]


@pytest.mark.parametrize(("codec", "pix_fmt", "colours"), PIXELS)
def test_colours(tmp_path, codec, pix_fmt, colours):
    names = [name for name in COLOURS if "gray" not in pix_fmt or COLOURS[name][0] == COLOURS[name][1]]
    if codec == "gif":
        names.remove("grey")  # not among its 256 colours

    def flat(i: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), COLOURS[names[i]], np.uint8)

    suffix, how = ("gif" if codec == "gif" else "mov" if codec == "png" else "mkv"), {"colours": colours} if colours else {}
    if pix_fmt == "pal8":
        pix_fmt = "rgb8"  # which the encoder writes, and the decoder gives as pal8 or bgra
    path = film(tmp_path / f"a.{suffix}", len(names), codec=codec, pix_fmt=pix_fmt, draw=flat, gop=1, **how)
    for size in (None, (31, 33)):
        colour = decode_frames(path, num_frames=9, step_seconds=0.04, size=size).pixels
        grey = decode_frames(path, num_frames=9, step_seconds=0.04, size=size, channels=1).pixels
        assert (colour.shape[0], grey.shape[0]) == (3, 1)
        for i, name in enumerate(names):
            wanted = torch.tensor(COLOURS[name], dtype=torch.float32)
            luma = wanted @ torch.tensor([[0.299], [0.587], [0.114]])
            for pixels, value in ((colour, wanted), (grey, luma)):
                error = (pixels[:, i].float() - value[:, None, None]).abs()
                assert float(error.mean() if codec == "gif" else error.max()) <= 3, name  # its encoder dithers


def test_frames_of_changing_size_take_that_of_the_first(tmp_path):
    parts = [film(tmp_path / f"{i}.ts", 12, size=size, gop=6) for i, size in enumerate([(48, 64), (96, 96)])]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(remux(part, part.with_suffix(".h264")).read_bytes() for part in parts))
    frames = decode_frames(path, num_frames=24, step_seconds=0.04)
    assert frames.pixels.shape == (3, 24, 48, 64)
    assert indices(frames.pixels) == [*range(12), *range(12)]


@pytest.mark.parametrize(
    "settings",
    [
        {"start_seconds": -1.0},
        {"start_seconds": float("nan")},
        {"num_frames": 0},
        {"step_seconds": 0.0},
        {"step_seconds": float("inf")},
        {"size": (0, 5)},
        {"size": (5,)},
        {"fit": "stretch"},
        {"channels": 2},
        {"max_pixels": 0},
    ],
)
def test_wrong_settings_are_named(tmp_path, settings):
    path = film(tmp_path / "a.mp4", 1)
    with pytest.raises(ConfigError, match=next(iter(settings))):
        decode_frames(path, **{"num_frames": 1, "step_seconds": 1.0, **settings})


def test_the_code_of_the_films_can_be_read():
    for index in (0, 1, 77, 2730, 4095):
        assert index_of(picture(index)) == index_of(picture(index, 41, 33)) == index


@pytest.mark.skipif("BRIDLE_TEST_DATA" not in os.environ, reason="BRIDLE_TEST_DATA names no folder of real recordings")
def test_real_films(capfd):
    for path in sorted((Path(os.environ["BRIDLE_TEST_DATA"]) / "grid_s1" / "mouth").iterdir())[:5]:
        whole = torch.from_numpy(np.stack(all_frames(path))).permute(3, 0, 1, 2)
        assert probe_video(path).num_frames == whole.shape[1]
        for first, count, stride in [(0, 80, 1), (11, 16, 4), (40, 8, 2), (70, 16, 4)]:
            part = decode_frames(path, start_seconds=first / 25, num_frames=count, step_seconds=stride / 25).pixels
            assert torch.equal(part, whole[:, first : first + count * stride : stride])
    assert capfd.readouterr() == ("", "")
