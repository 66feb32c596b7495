"""Broken films fail with a reason, without noise, hanging or leaks; what is left of a cut film is decoded."""

from __future__ import annotations

import gc
import io
import os
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from reference.sound_files import CountingFile, melody, mux, write
from reference.video_files import film, indices, picture, remux, with_cover

from bridle.errors import DecodeError
from bridle.media.video import NO_PICTURES, decode_frames, decode_windows, probe_video
from bridle.media.video import stream as video_stream

NOISE = np.random.default_rng(0).bytes(50_000)
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
HEADER, NOT_FILM, NOTHING = "truncated or damaged header", "not a video", "no picture can be decoded"
BROKEN = {
    "empty": (b"", "empty file"),
    "one byte": (b"x", NOT_FILM),
    "text": (b"The quick brown fox.\n" * 1000, NOT_FILM),
    "noise": (NOISE, NOT_FILM),
    "zeros": (bytes(50_000), NOT_FILM),
    "png": (b"\x89PNG\r\n\x1a\n" + NOISE, NOT_FILM),
    "jpeg": (b"\xff\xd8\xff\xe0" + NOISE, NOT_FILM),
    "play list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", NOT_FILM),
    "list of films": (b"ffconcat version 1.0\nfile /etc/passwd\n", NOT_FILM),
    "ftyp only": (b"\0\0\0\x20ftypisom", HEADER),
    "mp4": (b"\0\0\0\x20ftypisom" + NOISE, HEADER),
    "mdat": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + b"\0\0\xc3\x58mdat" + NOISE, HEADER),
    "matroska": (b"\x1aE\xdf\xa3" + NOISE, HEADER),
    "avi": (b"RIFF\0\0\1\0AVI LIST" + NOISE, HEADER),
    "mpeg": (b"\0\0\1\xba" + NOISE, HEADER),
    "flv": (b"FLV\1\5\0\0\0\x09" + NOISE, HEADER),
    "asf": (ASF + NOISE, HEADER),
    "ogg": (b"OggS\0\2" + NOISE, HEADER),
    "gif": (b"GIF89a" + NOISE, NOTHING),
    "transport stream": ((b"G" + bytes(187)) * 300, NOT_FILM),
}


def read(source, start: float = 0.0, count: int = 3, **settings) -> list[int]:
    settings = {"max_decode_seconds": 20.0, "step_seconds": 0.04, **settings}
    return indices(decode_frames(source, start_seconds=start, num_frames=count, **settings).pixels)


def reason_of(function, *arguments, **settings) -> str:
    with pytest.raises(DecodeError) as caught:
        function(*arguments, key="k", **settings)
    assert caught.value.key == "k"
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 80
    return caught.value.reason


@pytest.fixture
def quiet(capfd):
    """Nothing may be written to the screen."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("suffix", ["mp4", "raw"])
def test_broken_files_fail_with_their_reason(tmp_path, quiet, name, suffix):
    data, reason = BROKEN[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data)):
        assert reason_of(probe_video, source) == reason
        assert reason_of(read, source) == reason


def test_places_that_hold_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    wanted = {"absent.mp4": "missing", ".": "is a directory", "pipe": "not a regular file", "nul\0.mp4": "missing"}
    for name, reason in wanted.items():
        assert reason_of(read, tmp_path / name) == reason
        with pytest.raises(DecodeError) as caught:
            probe_video(tmp_path / name)
        assert name.strip(".") in caught.value.key


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_the_name_tells_nothing(tmp_path, suffix):
    path = film(tmp_path / f"a.{suffix}", 20, codec="mpeg4")
    for name in ("a.txt", "a.jpg", "a.mpg", "a"):
        path = path.rename(tmp_path / name)
        assert read(path, 0.4) == [10, 11, 12]


def test_sound_only(tmp_path, quiet):
    paths = [
        write(tmp_path / "a.wav", melody(1.0, 44100), 44100, "PCM_16"),
        write(tmp_path / "a.flac", melody(1.0, 44100), 44100, "PCM_16"),
        write(tmp_path / "a.mp3", melody(1.0, 44100), 44100, "MPEG_LAYER_III"),
        mux(tmp_path / "a.mp4", "aac", melody(1.0, 44100), 44100),
        mux(tmp_path / "a.mkv", "aac", melody(1.0, 44100), 44100),
        with_cover(tmp_path / "cover.mp3"),
    ]
    for path in paths:
        assert reason_of(probe_video, path) == reason_of(read, path) == NO_PICTURES


class BrokenDisk(CountingFile):
    def read(self, size: int = -1) -> bytes:
        if self.inner.tell() + max(size, 0) > 60_000:
            raise OSError(5, "Input/output error")
        return super().read(size)


def grainy(index: int, width: int, height: int) -> np.ndarray:
    return (picture(index, width, height) + np.random.default_rng(index).integers(-40, 40, (height, width))).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi", "ts"])
def test_failing_disk_is_a_decode_error(tmp_path, quiet, suffix):
    path = film(tmp_path / f"a.{suffix}", 100, draw=grainy)
    assert reason_of(read, BrokenDisk(path), 3.0) == "cannot be read: Input/output error"


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mpg", "ts", "webm", "flv", "m2v", "faststart.mp4", "fragments.mp4"])
def test_truncated_film_gives_what_is_there(tmp_path, quiet, suffix):
    codec = {"avi": "mpeg4", "mpg": "mpeg1video", "m2v": "mpeg2video", "webm": "libvpx"}.get(suffix, "libx264")
    options = {"faststart.mp4": {"movflags": "faststart"}, "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}}
    path = film(tmp_path / f"a.{suffix}", 100, codec=codec, draw=grainy, container_options=options.get(suffix, {}))
    data = path.read_bytes()
    kept = []
    for part in (0.3, 0.6, 0.9):
        cut = io.BytesIO(data[: int(len(data) * part)])
        found = read(cut, 0.0, 100)
        kept.append(len(found))
        assert found[:-2] == list(range(len(found) - 2)), "the last may be damaged"
        start = (len(found) - 4) / 25
        assert read(cut, start, 10)[:2] == [len(found) - 4, len(found) - 3]
        assert reason_of(read, cut, 3.99) == "ends before 3.99 s"
        assert probe_video(cut).width == 64
    assert 4 <= kept[0] < kept[1] - 10 < kept[2] - 20 < 80


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mpg", "ts", "webm", "flv", "gif", "ivf", "mov", "mxf", "y4m"])
def test_films_cut_within_the_header(tmp_path, quiet, suffix):
    codecs = {"mkv": "libx264", "webm": "libvpx", "ivf": "libvpx", "flv": "flv", "gif": "gif", "y4m": "rawvideo"}
    codecs |= {"mpg": "mpeg1video", "mxf": "mpeg2video"}
    data = film(tmp_path / f"a.{suffix}", 30, codec=codecs.get(suffix, "mpeg4")).read_bytes()
    for length in (1, 5, 12, 40, 100, 200, 300, 500):
        cut = io.BytesIO(data[:length])
        try:
            assert read(cut, 0.0, 30)[:1] in ([0], [4095]), "a part of a small frame may have come through"
        except DecodeError as error:
            assert error.reason in (HEADER, NOT_FILM, NOTHING)


def test_mp4_without_its_index(tmp_path, quiet):
    path = film(tmp_path / "a.mp4", 30)
    data = path.read_bytes()
    cut = io.BytesIO(data[: data.rindex(b"moov") - 4])
    assert reason_of(probe_video, cut) == reason_of(read, cut) == HEADER


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_no_key_frame_at_all(tmp_path, quiet, codec):
    path = remux(film(tmp_path / "a.mp4", 50, codec=codec, gop=100), tmp_path / "b.mp4", keep=lambda i: i > 0)
    for start in (0.0, 1.0):
        if codec == "libx264":
            assert reason_of(read, path, start) == NOTHING
        else:
            assert len(read(path, start)) == 3, "damaged pictures are pictures"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_first_key_frame_missing(tmp_path, quiet, suffix):
    whole = film(tmp_path / f"a.{suffix}", 100, gop=25)
    path = remux(whole, tmp_path / f"b.{suffix}", keep=lambda i: i > 0)
    assert read(path, 0.0) == [25, 26, 27], "the film begins with the first picture"
    assert read(path, 1.2) == [55, 56, 57]
    assert reason_of(read, path, 3.5).startswith("ends before")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frames_missing_in_the_middle(tmp_path, quiet, suffix):
    whole = film(tmp_path / f"a.{suffix}", 100, gop=25, codec="mpeg4")
    path = remux(whole, tmp_path / f"b.{suffix}", keep=lambda i: not 30 <= i < 50)
    assert read(path, 0.8) == [20, 21, 22]
    if suffix != "avi":  # which only counts its frames
        assert read(path, 1.16, 6, step_seconds=0.2) == [29, 29, 29, 29, 29, 54]
        assert read(path, 3.0) == [75, 76, 77]


def jumping(folder: Path, suffix: str, seconds: float) -> Path:
    """A film of 100 frames whose second half is stamped so much later."""

    def late(i, packet):
        if i >= 50:
            ahead = int(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + ahead, packet.dts + ahead

    return remux(film(folder / f"a.{suffix}", 100, gop=25), folder / f"b.{suffix}", edit=late)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_time_stamps_that_jump_ahead(tmp_path, quiet, suffix):
    path = jumping(tmp_path, suffix, 100)
    assert read(path, 0.0) == [0, 1, 2]
    assert read(path, 1.92, 4) == [48, 49, 49, 49]
    assert read(path, 60.0) == [49, 49, 49]
    assert read(path, 103.0) == [75, 76, 77]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_time_stamps_that_jump_by_hours(tmp_path, quiet, suffix):
    path = jumping(tmp_path, suffix, 7200)
    assert read(path, 0.0) == [0, 1, 2]
    assert read(path, 7203.0) == [75, 76, 77]
    with pytest.raises(DecodeError, match=r"one frame for 7,200 s from 1\.96 s on, over 1,800 s"):
        read(path, 3600.0)
    with pytest.raises(DecodeError, match="one frame for 7,200 s"):
        list(decode_windows(path, num_frames=16, step_seconds=0.04, size=(48, 64)))


def test_a_film_of_hardly_any_frames_is_refused_by_its_header(tmp_path, quiet):
    assert probe_video(film(tmp_path / "a.mp4", 4, times=[0.0, 1500.0, 3000.0, 4500.0])).num_frames == 4
    with pytest.raises(DecodeError, match=r"one frame for .* s, over 1,800 s"):
        probe_video(film(tmp_path / "b.mp4", 4, times=[0.0, 3600.0, 7200.0, 10800.0]))


def test_time_stamps_that_fall_back(tmp_path, quiet):
    parts = [film(tmp_path / f"{i}.ts", 50, gop=25) for i in range(2)]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe_video(path).duration_seconds > 1.9
    assert read(path, 0.0, 100) == [*range(50), *range(50)], "the film goes on at the average rate"


def test_missing_time_stamps(tmp_path, quiet, monkeypatch):
    path = film(tmp_path / "a.mkv", 50, b_frames=2)
    stamps = video_stream.Film._time

    def lose(self, frame):
        if self._origin is not None and frame.pts % 120:
            frame.pts = frame.dts = None
        return stamps(self, frame)

    monkeypatch.setattr(video_stream.Film, "_time", lose)
    assert read(path, 0.0, 50) == list(range(50))
    assert read(path, 1.0) == [25, 26, 27]


def test_index_that_lies(tmp_path, quiet):
    """Every frame is called a key frame, and some of them lie elsewhere."""
    path = film(tmp_path / "a.avi", 100, codec="mpeg4", gop=25)
    data = bytearray(path.read_bytes())
    index = data.rindex(b"idx1")
    for entry in range(index + 8, len(data) - 15, 16):
        data[entry + 4 : entry + 8] = (0x10).to_bytes(4, "little")
    assert read(io.BytesIO(bytes(data)), 2.4) == [60, 61, 62]
    for entry in range(index + 8 + 16 * 50, index + 8 + 16 * 60, 16):
        data[entry + 8 : entry + 12] = (77).to_bytes(4, "little")
    try:
        assert len(read(io.BytesIO(bytes(data)), 2.4)) == 3
    except DecodeError as error:
        assert error.reason


def test_too_many_pixels(tmp_path, quiet):
    path = film(tmp_path / "a.mkv", 2, codec="ffv1", size=(16, 20000))
    assert read(path, size=(48, 64), fit="squash") == [0, 1]
    assert probe_video(path).width == 20000
    assert reason_of(read, path, max_pixels=300_000) == "20000x16 = 320000 pixels, over max_pixels = 300000"
    assert read(path, max_pixels=320_000, size=(48, 64), fit="squash") == [0, 1]
    tall = film(tmp_path / "b.mp4", 2, size=(48, 64), aspect="8")
    assert reason_of(read, tall, max_pixels=3100) == "512x48 = 24576 pixels, over max_pixels = 3100"


@pytest.mark.parametrize("edge", [30_000, 2**31 - 1])
def test_header_of_a_huge_film(tmp_path, quiet, edge):
    for codec in ("ffv1", "rawvideo", "mpeg4"):
        data = bytearray(film(tmp_path / "a.avi", 2, codec=codec).read_bytes())
        at = data.index(b"strf") + 8
        data[at + 4 : at + 12] = edge.to_bytes(4, "little") * 2
        if codec == "mpeg4":
            assert read(io.BytesIO(data)) == [0, 1], "its frames know better"
        else:
            assert reason_of(read, io.BytesIO(data)) in (HEADER, NOTHING)


def test_frames_that_grow_beyond_the_limit(tmp_path, quiet):
    parts = [film(tmp_path / f"{size[0]}.ts", 12, size=size) for size in [(48, 64), (480, 640)]]
    data = b"".join(remux(part, part.with_suffix(".h264")).read_bytes() for part in parts)
    assert len(read(io.BytesIO(data), 0.0, 24, size=(48, 64))) == 24
    assert read(io.BytesIO(data), 0.0, 24, size=(48, 64), max_pixels=4000)[:12] == list(range(12))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mpg", "webm", "flv", "gif", "m2v"])
def test_damaged_bytes_give_a_clip_or_a_decode_error(tmp_path, quiet, suffix):
    codec = {"avi": "mpeg4", "mpg": "mpeg1video", "m2v": "mpeg2video", "webm": "libvpx", "gif": "gif"}.get(suffix, "libx264")
    data = film(tmp_path / f"a.{suffix}", 40, codec=codec, b_frames=0 if codec in ("libvpx", "gif") else 2).read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for trial in range(24):
        bad = bytearray(data)
        for _ in range(trial % 4 + 1):
            start = int(rng.integers(0, 400 if trial % 3 == 0 else len(bad)))
            bad[start : start + 20] = rng.bytes(min(20, len(bad) - start))
        for begin in (0.0, 1.2):
            try:
                frames = decode_frames(
                    io.BytesIO(bytes(bad)),
                    start_seconds=begin,
                    num_frames=4,
                    step_seconds=0.04,
                    size=(24, 32),
                    max_decode_seconds=5,
                    max_pixels=1_000_000,
                )
                assert frames.pixels.shape[0] == 3
                assert 1 <= frames.pixels.shape[1] <= 4
                assert frames.pixels.shape[2:] == (24, 32)
                outcomes.add("decoded")
            except DecodeError as error:
                assert 0 < len(error.reason) < 80
        try:
            assert 0 < probe_video(io.BytesIO(bytes(bad))).duration_seconds < float("inf")
        except DecodeError as error:
            assert 0 < len(error.reason) < 80
    assert "decoded" in outcomes


def test_encrypted_film(tmp_path, quiet):
    path = film(tmp_path / "a.mp4", 50, draw=grainy)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.rindex(b"moov") - 4
    data[start:end] = np.random.default_rng(2).bytes(end - start)
    assert reason_of(read, io.BytesIO(data)) == reason_of(read, io.BytesIO(data), 1.0) == NOTHING


@pytest.mark.parametrize("suffix", ["mp4", "mpg", "h264"])
def test_decoding_stops_when_its_time_is_up(tmp_path, quiet, monkeypatch, suffix):
    path = film(tmp_path / f"a.{suffix}", 200, codec="mpeg1video" if suffix == "mpg" else "libx264")
    asked = count()
    monkeypatch.setattr("bridle.media.reading.time.monotonic", lambda: float(next(asked)))
    assert reason_of(read, path, 6.0, max_decode_seconds=20.5) == "takes longer than 20.5 s to decode"
    assert next(asked) < 40, "no further packet is read"
    assert read(path, 6.0, max_decode_seconds=float("inf")) == [150, 151, 152]


def test_noise_is_not_searched_for_ever(monkeypatch):
    class Endless(CountingFile):
        def __init__(self) -> None:
            self.place, self.bytes_read = 0, 0

        def seek(self, offset: int, whence: int = 0) -> int:
            self.place = offset if whence == 0 else self.place + offset if whence == 1 else 1 << 40
            return self.place

        def tell(self) -> int:
            return self.place

        def read(self, size: int = -1) -> bytes:
            first = self.place == 0
            self.place, self.bytes_read = self.place + size, self.bytes_read + size
            return (b"\0\0\1\xba" + NOISE[: size - 4]) if first else (NOISE * (size // len(NOISE) + 1))[:size]

    asked = count()
    monkeypatch.setattr("bridle.media.reading.time.monotonic", lambda: float(next(asked)))
    stream = Endless()
    assert reason_of(read, stream, max_decode_seconds=1000.0) in (HEADER, "takes longer than 1000 s to decode")
    assert stream.bytes_read < 1 << 26


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ValueError("no such\nshape"), "decoder failed: no such shape"),
        (RuntimeError("x" * 500), "decoder failed: " + "x" * 60),
        (MemoryError(), "decoder failed: MemoryError"),
        (av.error.PermissionError(1, "Operation not permitted"), "decoder failed: [Errno 1] Operation not permitted"),
    ],
)
def test_whatever_a_decoder_raises_is_a_decode_error(tmp_path, monkeypatch, fault, reason):
    def fail(*_, **__):
        raise fault

    path = film(tmp_path / "a.mp4", 3)
    monkeypatch.setattr("torch.from_numpy", fail)
    assert reason_of(read, path) == reason


def test_tracks_that_show_up_late(tmp_path, monkeypatch):
    class Stumbling:
        def __init__(self, container) -> None:
            self.container = container

        def __getattr__(self, name: str):
            return getattr(self.container, name)

        def demux(self, track):
            yield from (packet for packet in self.container.demux(track) if packet.size)
            raise IndexError("list index out of range")

    init = video_stream.Film.__init__
    monkeypatch.setattr(video_stream.Film, "__init__", lambda self, box, *rest: init(self, Stumbling(box), *rest))
    assert read(film(tmp_path / "a.ts", 30, b_frames=2), 1.0, 9) == [25, 26, 27, 28, 29]


@pytest.mark.parametrize("fault", [TypeError("3 arguments"), AttributeError("no x")])
def test_errors_of_the_program_are_not_hidden(tmp_path, monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    path = film(tmp_path / "a.mp4", 3)
    monkeypatch.setattr("torch.from_numpy", fail)
    with pytest.raises(type(fault), match=str(fault)):
        read(path)


def test_no_file_handle_is_left_open(tmp_path):
    good = [film(tmp_path / "a.mp4", 50), film(tmp_path / "a.mpg", 50, codec="mpeg1video")]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0\0\0\x20ftypisom" + NOISE)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good[0].read_bytes()[:1000])
    read(good[0])  # imports and caches
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(5):
        for path in good:
            read(path, 1.0)
            probe_video(path)
            assert reason_of(read, path, 9.0) == "ends before 9 s"
        for path in (bad, cut):
            assert reason_of(read, path) == HEADER
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(list(Path("/proc/self/task").iterdir())) == threads, "decoding takes the caller's thread only"
