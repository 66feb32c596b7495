"""Films by torchcodec: the same frames as by PyAV. Needs torchcodec and an FFmpeg that it finds, so it is often skipped."""

from __future__ import annotations

import io
import sys
from itertools import product

import pytest
from reference.video_files import film, indices

from bridle.data.loaders import build_loader
from bridle.data.video import VideoConfig
from bridle.errors import ConfigError, DecodeError
from bridle.media.video import decode_frames
from bridle.media.video.torchcodec import require_torchcodec


def missing() -> str:
    """Why torchcodec cannot be imported; empty if it can."""
    try:
        require_torchcodec()
    except ConfigError as error:
        return str(error)
    return ""


needs_torchcodec = pytest.mark.skipif(bool(missing()), reason=missing() or "torchcodec is there")


def clip(source, start: float, count: int = 3, step: float = 0.04) -> list[int]:
    return indices(decode_frames(source, start_seconds=start, num_frames=count, step_seconds=step, decoder="torchcodec").pixels)


def test_without_torchcodec_the_setting_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ConfigError, match=r"video\.decoder=torchcodec cannot be imported .*video\.decoder=pyav"):
        build_loader(VideoConfig(decoder="torchcodec"))
    with pytest.raises(ConfigError, match=r"video\.decoder=torchcodec cannot be imported"):
        clip(film(tmp_path / "a.mp4", 3), 0.0)


def test_another_decoder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="decoder is 'decord'; it must be one of pyav, torchcodec"):
        decode_frames(film(tmp_path / "a.mp4", 3), num_frames=1, step_seconds=1, decoder="decord")  # type: ignore[arg-type]


@needs_torchcodec
@pytest.mark.parametrize(("suffix", "codec", "b_frames"), [("mp4", "libx264", 2), ("mkv", "libx264", 0), ("webm", "libvpx", 0)])
def test_every_frame_at_its_time(tmp_path, suffix, codec, b_frames):
    path = film(tmp_path / f"a.{suffix}", 50, codec=codec, b_frames=b_frames)
    assert clip(path, 0.0, 50) == list(range(50))
    for start in (7, 23, 41):
        assert clip(path, start / 25, 3, 0.08) == [start, start + 2, start + 4]
    assert clip(path, 1.88, 10) == [47, 48, 49], "fewer where the film ends"
    with pytest.raises(DecodeError, match=r"ends before 5 s"):
        clip(path, 5.0)


@needs_torchcodec
@pytest.mark.parametrize("how", [{"rotation": 90}, {"rotation": 180}, {"rotation": 270}, {"aspect": "2"}, {"aspect": "1/2"}])
def test_pictures_are_those_of_pyav(tmp_path, how):
    path = film(tmp_path / "a.mp4", 3, size=(96, 128), **how)
    for size, fit, channels in product((None, (32, 32), (20, 50)), ("squash", "centre"), (1, 3)):
        settings = {"num_frames": 3, "step_seconds": 0.04, "size": size, "fit": fit, "channels": channels}
        ours, other = (decode_frames(path, decoder=name, **settings) for name in ("pyav", "torchcodec"))
        assert ours.pixels.shape == other.pixels.shape
        assert (ours.width, ours.height, ours.start_seconds) == (other.width, other.height, other.start_seconds)
        assert (ours.pixels.float() - other.pixels.float()).abs().mean() < 4, "libswscale is run with other settings"


@needs_torchcodec
def test_streams_and_broken_files(tmp_path):
    data = film(tmp_path / "a.mkv", 100, b_frames=2).read_bytes()
    assert clip(io.BytesIO(data), 2.4) == [60, 61, 62]
    found = clip(io.BytesIO(data[: len(data) // 2]), 0.0, 100)
    assert 20 < len(found) < 100
    for bad, reason in (
        (b"", "empty file"),
        (bytes(5000), "not a video"),
        (data[:60], "truncated or damaged header|no picture"),
    ):
        with pytest.raises(DecodeError, match=reason):
            clip(io.BytesIO(bad), 0.0)
    with pytest.raises(DecodeError, match="over max_pixels = 100"):
        decode_frames(io.BytesIO(data), num_frames=1, step_seconds=1, max_pixels=100, decoder="torchcodec")
