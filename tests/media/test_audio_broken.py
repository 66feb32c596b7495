"""Broken files fail with a reason, without noise, hanging or leaks; what is left of a cut file is decoded."""

from __future__ import annotations

import gc
import io
import os
import struct
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from reference.sound_files import CountingFile, melody, mux, write

from bridle.errors import ConfigError, DecodeError
from bridle.media import decode_audio, probe_audio


class BrokenDisk(CountingFile):
    def read(self, size: int = -1) -> bytes:
        if self.inner.tell() + max(size, 0) > 20_000:
            raise OSError(5, "Input/output error")
        return super().read(size)


def wav_header(rate: int, channels: int, num_bytes: int) -> bytes:
    bytes_per_second = (rate * channels * 2) & 0xFFFFFFFF
    body = struct.pack("<IHHIIHH", 16, 1, channels, rate, bytes_per_second, channels * 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + num_bytes) + b"WAVEfmt " + body + b"data" + struct.pack("<I", num_bytes)


NOISE = np.random.default_rng(0).bytes(20000)
BROKEN = {
    "empty": (b"", "empty file"),
    "one-byte": (b"x", "not audio"),
    "text": (b"The quick brown fox.\n" * 1000, "not audio"),
    "noise": (NOISE, "not audio"),
    "zeros": (bytes(20000), "not audio"),
    "picture": (b"\x89PNG\r\n\x1a\n" + NOISE, "not audio"),
    "play-list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", "not audio"),
    "riff-only": (b"RIFF", "truncated or damaged header"),
    "half-header": (wav_header(16000, 1, 1000)[:30], "truncated or damaged header"),
    "id3-only": (b"ID3\x03\0\0\0\0\0\0" + bytes(100), "truncated or damaged header"),
    "no-samples": (wav_header(16000, 1, 0), "header without samples"),
    "announced-but-missing": (wav_header(16000, 1, 10**6), "header without samples"),
    "rate-0": (wav_header(0, 1, 1000) + bytes(1000), "truncated or damaged header"),
    "rate-1": (wav_header(1, 1, 1000) + bytes(1000), "absurd sample rate 1 Hz"),
    "rate-2GHz": (wav_header(2_000_000_000, 1, 1000) + bytes(1000), "absurd sample rate 2000000000 Hz"),
    "channels-0": (wav_header(16000, 0, 1000) + bytes(1000), "no channels"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "raw"])
def test_broken_files_fail_with_their_reason_and_without_noise(tmp_path, capfd, name, suffix):
    data, reason = BROKEN[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data)):
        for read in (probe_audio, decode_audio):
            with pytest.raises(DecodeError) as caught:
                read(source, key="k")
            assert caught.value.reason == reason
            assert caught.value.key == "k"
    assert capfd.readouterr() == ("", "")


def test_places_that_hold_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    wanted = {"absent.wav": "missing", ".": "is a directory", "pipe": "not a regular file", "nul\0.wav": "missing"}
    for name, reason in wanted.items():
        with pytest.raises(DecodeError) as caught:
            decode_audio(tmp_path / name)
        assert caught.value.reason == reason
        assert name.strip(".") in caught.value.key


def test_failing_disk_is_a_decode_error(tmp_path):
    path = mux(tmp_path / "a.mkv", "aac", melody(6.0, 48000), 48000)
    with pytest.raises(DecodeError, match="Input/output error"):
        decode_audio(BrokenDisk(path), key="k")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "mkv", "aac", "webm"])
def test_truncated_file_gives_what_is_there(tmp_path, capfd, suffix):
    codec = {"mkv": "aac", "aac": "aac", "webm": "libopus"}.get(suffix)
    path, cut = tmp_path / f"a.{suffix}", tmp_path / f"cut.{suffix}"
    noise = 0.05 * np.random.default_rng(0).standard_normal(48000 * 8).astype(np.float32)
    if codec:
        mux(path, codec, melody(8.0, 48000) + noise, 48000)
    else:
        subtype = {"ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_16")
        write(path, melody(8.0, 48000) + noise, 48000, subtype)
    data = path.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    whole, part = decode_audio(path).samples, decode_audio(cut).samples
    assert 0.4 * len(whole) < len(part) < 0.7 * len(whole)
    assert float((part[:-2000] - whole[: len(part) - 2000]).abs().max()) < 1e-4
    crop = decode_audio(cut, start_seconds=2.0, duration_seconds=1.0).samples
    assert float((crop - whole[32000:48000]).abs().max()) < 1e-4
    with pytest.raises(DecodeError, match=r"truncated|ends before"):
        decode_audio(cut, start_seconds=7.0, duration_seconds=1.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "mkv", "aac", "webm", "mp4"])
def test_damaged_bytes_never_crash_nor_print(tmp_path, capfd, suffix):
    path = tmp_path / f"a.{suffix}"
    codec = {"m4a": "aac", "mkv": "aac", "aac": "aac", "webm": "libopus", "mp4": "aac"}.get(suffix)
    if codec:
        mux(path, codec, melody(2.0, 48000), 48000)
    else:
        subtype = {"ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_16")
        write(path, melody(2.0, 48000), 48000, subtype)
    data = path.read_bytes()
    random = np.random.default_rng(1)
    outcomes = set()
    for trial in range(12):
        bad = bytearray(data)
        start = int(random.integers(0, 200 if trial % 2 else len(bad)))
        bad[start : start + 40] = random.bytes(40)
        for begin in (0.0, 1.6):
            try:
                clip = decode_audio(io.BytesIO(bytes(bad)), start_seconds=begin, duration_seconds=0.2)
                assert 0 < len(clip.samples) <= 3200
                assert bool(torch.isfinite(clip.samples).all())
                outcomes.add("decoded")
            except DecodeError as error:
                assert 0 < len(error.reason) < 60
    assert "decoded" in outcomes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_non_finite_samples_are_an_error_where_they_lie(tmp_path, value, rate):
    samples = melody(3.0, rate)
    samples[rate // 2] = value
    path = write(tmp_path / "a.wav", samples, rate, "FLOAT")
    with pytest.raises(DecodeError, match="non-finite samples"):
        decode_audio(path)
    with pytest.raises(DecodeError, match="non-finite samples"):
        decode_audio(path, start_seconds=0.25, duration_seconds=0.5)
    assert len(decode_audio(path, start_seconds=2.0, duration_seconds=0.5).samples) == 8000


def test_samples_too_loud_for_a_power_spectrum_are_an_error(tmp_path):
    path = write(tmp_path / "a.wav", melody(0.5, 16000) * np.float32(1e30), 16000, "FLOAT")
    with pytest.raises(DecodeError, match=r"samples up to 6e\+29"):
        decode_audio(path)


def test_video_without_a_sound_track(tmp_path):
    path = mux(tmp_path / "a.mp4", None, melody(1.0, 16000), 16000, video=True)
    for read in (probe_audio, decode_audio):
        with pytest.raises(DecodeError, match="no sound track"):
            read(path)


def test_crop_behind_the_end(tmp_path):
    wav = write(tmp_path / "a.wav", melody(1.0, 44100), 44100, "PCM_16")
    m4a = mux(tmp_path / "a.m4a", "aac", melody(1.0, 44100), 44100)
    for path in (wav, m4a):
        with pytest.raises(DecodeError, match="ends before 9 s"):
            decode_audio(path, start_seconds=9.0, duration_seconds=1.0)


def test_flac_that_lies_about_its_length(tmp_path):
    path = write(tmp_path / "a.flac", melody(2.0, 48000), 48000, "PCM_16")
    whole = decode_audio(path).samples
    data = bytearray(path.read_bytes())
    for high, low in [(0x0F, None), (0x00, b"\0\0\0\0")]:  # 2**36 samples; unknown, as a pipe leaves it
        data[21] = (data[21] & 0xF0) | high
        if low is not None:
            data[22:26] = low
        path.write_bytes(data)
        assert torch.equal(decode_audio(path).samples, whole)
        crop = decode_audio(path, start_seconds=1.0, duration_seconds=0.5).samples
        assert float((crop - whole[16000:24000]).abs().max()) < 1e-4
    assert probe_audio(path).duration_seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ValueError("no such\nshape"), "decoder failed: no such shape"),
        (RuntimeError("x" * 500), "decoder failed: " + "x" * 60),
        (MemoryError(), "decoder failed: MemoryError"),
        (ZeroDivisionError("division by zero"), "decoder failed: division by zero"),
        (av.error.UnknownError(1, "odd"), "decoder failed: "),
    ],
)
def test_whatever_a_decoder_raises_is_a_decode_error(tmp_path, monkeypatch, fault, reason):
    def fail(*_, **__):
        raise fault

    path = write(tmp_path / "a.wav", melody(0.5, 44100), 44100, "PCM_16")
    whole = decode_audio(path).samples
    with monkeypatch.context() as one:
        one.setattr("soundfile.SoundFile.read", fail)
        assert torch.equal(decode_audio(path).samples, whole), "the other decoder takes over"
    monkeypatch.setattr("soxr.resample", fail)
    with pytest.raises(DecodeError) as caught:
        decode_audio(path, key="k")
    assert caught.value.reason.startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [ConfigError("soxr is not set up"), TypeError("3 arguments"), AttributeError("no x")])
def test_errors_of_the_program_are_not_hidden(tmp_path, monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    path = write(tmp_path / "a.wav", melody(0.5, 44100), 44100, "PCM_16")
    monkeypatch.setattr("soxr.resample", fail)
    with pytest.raises(type(fault), match=str(fault)):
        decode_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "m4a", "aac"])
def test_decoding_stops_when_its_time_is_up(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        write(path, melody(60.0, 44100), 44100, "PCM_16")  # more than one block
    else:
        mux(path, "aac", melody(6.0, 44100), 44100)
    asked = count()
    monkeypatch.setattr("bridle.media.reading.time.monotonic", lambda: float(next(asked)))
    with pytest.raises(DecodeError) as caught:
        decode_audio(path, start_seconds=3.0, max_decode_seconds=1.5)
    assert caught.value.reason == "takes longer than 1.5 s to decode"
    assert next(asked) < 10, "no further block is decoded"
    assert len(decode_audio(path, start_seconds=3.0).samples) > 16000, "no limit unless asked for"


def test_no_file_handle_is_left_open(tmp_path):
    good = [
        write(tmp_path / "a.wav", melody(3, 44100), 44100, "PCM_16"),
        mux(tmp_path / "a.m4a", "aac", melody(3, 44100), 44100),
    ]
    bad = tmp_path / "bad.wav"
    bad.write_bytes(NOISE)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(write(tmp_path / "b.flac", melody(3, 44100), 44100, "PCM_16").read_bytes()[:500])
    decode_audio(good[1])  # imports and caches
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        for path in good:
            decode_audio(path, start_seconds=2.0, duration_seconds=0.1)
            probe_audio(path)
        for path in (bad, cut):
            with pytest.raises(DecodeError):
                decode_audio(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
