"""Decoding: every format, rate and layout; crops equal the whole; reads of long files are bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reference.sound_files import CountingFile, melody, mux, tone, write

from bridle.errors import ConfigError
from bridle.media import decode_audio, probe_audio

WAV_KINDS = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]
SOUNDFILE_KINDS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("opus", "OPUS")]
SOUNDFILE_KINDS += [("mp3", "MPEG_LAYER_III")]
MUXED = [("m4a", "aac"), ("aac", "aac"), ("webm", "libopus"), ("mkv", "aac"), ("mp4", "aac"), ("mov", "pcm_s24le")]


def peak_hz(samples: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples), periodic=True)).abs()
    return float(spectrum.argmax()) * rate / len(samples)


@pytest.mark.parametrize("subtype", WAV_KINDS)
def test_wav_of_every_depth_is_decoded_to_its_resolution(tmp_path, subtype):
    wanted = melody(0.5, 16000)
    path = write(tmp_path / "a.wav", wanted, 16000, subtype)
    clip = decode_audio(path)
    assert clip.samples.dtype == torch.float32
    assert clip.sample_rate == 16000
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15}.get(subtype, 2e-7)
    assert np.abs(clip.samples.numpy() - wanted).max() <= step


@pytest.mark.parametrize(("suffix", "subtype"), SOUNDFILE_KINDS)
def test_soundfile_formats(tmp_path, suffix, subtype):
    path = write(tmp_path / f"a.{suffix}", tone(1000, 1.5, 48000), 48000, subtype)
    info = probe_audio(path)
    clip = decode_audio(path)
    assert info.duration_seconds == pytest.approx(1.5, abs=0.05)
    assert (info.sample_rate, info.num_channels) == (48000, 1)
    assert len(clip.samples) == pytest.approx(24000, abs=800)
    assert peak_hz(clip.samples[4000:20000], 16000) == pytest.approx(1000, abs=2)
    assert float(clip.samples[4000:20000].abs().max()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("suffix", "codec"), MUXED)
@pytest.mark.parametrize("channels", [1, 2])
def test_ffmpeg_formats(tmp_path, suffix, codec, channels):
    path = mux(tmp_path / f"a.{suffix}", codec, tone(1000, 2, 48000), 48000, video=suffix == "mp4", channels=channels)
    info = probe_audio(path)
    clip = decode_audio(path)
    assert info.duration_seconds == pytest.approx(2, abs=0.3)  # raw aac estimates it from the bit rate
    assert (info.sample_rate, info.num_channels) == (48000, channels)
    assert len(clip.samples) == pytest.approx(32000, abs=800)
    assert peak_hz(clip.samples[4000:20000], 16000) == pytest.approx(1000, abs=2)
    assert float(clip.samples[4000:20000].abs().max()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 22051])
def test_resampling_keeps_time_level_and_frequency(tmp_path, rate):
    path = write(tmp_path / "a.wav", tone(1500, 1.0, rate), rate, "FLOAT")
    samples = decode_audio(path).samples
    wanted = torch.from_numpy(tone(1500, 1.0, 16000))
    assert len(samples) == 16000
    assert float((samples - wanted)[800:-800].abs().max()) < 1e-4


@pytest.mark.parametrize("hz", [8300, 9000, 12000, 20000])
def test_resampling_down_does_not_alias(tmp_path, hz):
    path = write(tmp_path / "a.wav", tone(hz, 1.0, 48000), 48000, "FLOAT")
    assert float(decode_audio(path).samples[800:-800].abs().max()) < 1e-4


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(tmp_path, channels):
    columns = np.stack([melody(0.3, 16000) * (c + 1) / channels for c in range(channels)], axis=1)
    path = write(tmp_path / "a.wav", columns, 16000, "FLOAT")
    assert probe_audio(path).num_channels == channels
    np.testing.assert_allclose(decode_audio(path).samples.numpy(), columns.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [44100, 48000, 16000, 8000, 22051, 96000])
def test_crop_equals_the_same_crop_of_the_whole(tmp_path, rate):
    path = write(tmp_path / "a.wav", melody(4.0, rate), rate, "FLOAT")
    whole = decode_audio(path).samples
    for start, duration in [(0.0, 0.5), (0.01, 0.2), (1.2345, 1.0), (2.99, 1.0), (3.7, 5.0)]:
        clip = decode_audio(path, start_seconds=start, duration_seconds=duration)
        first = round(start * 16000)
        wanted = whole[first : first + round(duration * 16000)]
        assert len(clip.samples) == len(wanted)
        assert clip.start_seconds == first / 16000
        assert float((clip.samples - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize(("suffix", "subtype"), SOUNDFILE_KINDS)
def test_seek_is_sample_exact_in_soundfile_formats(tmp_path, suffix, subtype):
    path = write(tmp_path / f"a.{suffix}", melody(8.0, 48000), 48000, subtype)
    assert_crops_equal_whole(path, 48000, 1e-4)
    assert_crops_equal_whole(path, 16000, 1e-4)


@pytest.mark.parametrize(("suffix", "codec"), MUXED)
@pytest.mark.parametrize("rate", [44100, 48000])
def test_seek_is_sample_exact_in_ffmpeg_formats(tmp_path, suffix, codec, rate):
    if codec == "libopus" and rate != 48000:
        rate = 24000
    path = mux(tmp_path / f"a.{suffix}", codec, melody(8.0, rate), rate, video=suffix == "mp4")
    assert_crops_equal_whole(path, 48000 if codec == "libopus" else rate, 1e-4)
    assert_crops_equal_whole(path, 16000, 1e-4)


def assert_crops_equal_whole(path: Path, rate: int, limit: float) -> None:
    whole = decode_audio(path, sample_rate=rate).samples
    for start in (0.0, 0.3, 2.1234, 5.5, 6.9):
        clip = decode_audio(path, sample_rate=rate, start_seconds=start, duration_seconds=0.7)
        first = round(start * rate)
        assert len(clip.samples) == round(0.7 * rate)
        assert float((clip.samples - whole[first : first + len(clip.samples)]).abs().max()) < limit


def test_mp3_of_variable_bit_rate_seeks_exactly(tmp_path):
    loud = np.random.default_rng(0).standard_normal(48000).astype(np.float32) * 0.2
    samples = np.concatenate([loud, np.zeros(96000, np.float32), loud, melody(4, 48000)])
    path = tmp_path / "a.mp3"
    soundfile.write(path, samples, 48000, bitrate_mode="VARIABLE", compression_level=0.5)
    assert_crops_equal_whole(path, 48000, 1e-4)


def test_mp3_samples_and_length_equal_libsndfile(tmp_path):
    path = write(tmp_path / "a.mp3", melody(2.0, 44100), 44100, "MPEG_LAYER_III")
    wanted, _ = soundfile.read(path, dtype="float32")
    ours = decode_audio(path, sample_rate=44100).samples.numpy()
    assert len(ours) == len(wanted)
    assert np.abs(ours - wanted).max() < 5e-5


@pytest.mark.parametrize("offset_seconds", [0.0, 1.01])
@pytest.mark.parametrize("duration", [0.1, 0.33333, 1.0, 0.00007])
def test_number_of_samples_is_exact(tmp_path, duration, offset_seconds):
    path = write(tmp_path / "a.wav", melody(3.0, 44100), 44100, "PCM_16")
    clip = decode_audio(path, start_seconds=offset_seconds, duration_seconds=duration)
    assert len(clip.samples) == round(duration * 16000)


def test_short_file_crop_from_zero_equals_whole(tmp_path):
    path = write(tmp_path / "a.flac", melody(0.2, 44100), 44100, "PCM_16")
    assert torch.equal(decode_audio(path).samples, decode_audio(path, duration_seconds=10.0).samples)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "m4a", "webm", "mp4"])
def test_reads_of_a_long_file_are_bounded(tmp_path, suffix):
    samples = 0.1 * np.random.default_rng(0).standard_normal(48000 * 40).astype(np.float32) + melody(40, 48000)
    path = tmp_path / f"a.{suffix}"
    if suffix in ("m4a", "webm", "mp4"):
        mux(path, "libopus" if suffix == "webm" else "aac", samples, 48000, video=suffix == "mp4")
    else:
        write(path, samples, 48000, {"ogg": "VORBIS", "opus": "OPUS"}.get(suffix, "PCM_16"))
    stream = CountingFile(path)
    clip = decode_audio(stream, start_seconds=25.0, duration_seconds=1.0)
    assert len(clip.samples) == 16000
    assert stream.bytes_read < 0.6 * path.stat().st_size
    header = CountingFile(path)
    probe_audio(header)
    assert header.bytes_read < 0.4 * path.stat().st_size


def test_recording_that_was_never_finished(tmp_path):
    path = tmp_path / "a.webm"
    mux(path, "libopus", melody(12.0, 48000), 48000, container_options={"live": "1"})  # no duration, no index
    assert probe_audio(path).duration_seconds == pytest.approx(12.0, abs=0.05)
    assert_crops_equal_whole(path, 48000, 1e-4)


def test_mp3_reads_no_further_than_the_crop(tmp_path):
    path = tmp_path / "a.mp3"
    noise = 0.1 * np.random.default_rng(0).standard_normal(48000 * 30).astype(np.float32)
    write(path, noise, 48000, "MPEG_LAYER_III")
    stream = CountingFile(path)
    decode_audio(stream, start_seconds=5.0, duration_seconds=1.0)
    assert stream.bytes_read < 0.5 * path.stat().st_size


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_streams_within_a_larger_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        mux(path, "aac", melody(3.0, 44100), 44100)
    else:
        write(path, melody(3.0, 44100), 44100, {"ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_16"))
    data = path.read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(os.urandom(1536) + data + os.urandom(512))
    wanted = decode_audio(path, start_seconds=2.0, duration_seconds=0.5).samples
    stream = CountingFile(shard, 1536, len(data))
    stream.seek(7)  # wherever the stream stands, it is read from its start
    assert torch.equal(decode_audio(stream, start_seconds=2.0, duration_seconds=0.5).samples, wanted)
    assert probe_audio(stream) == probe_audio(path)
    with path.open("rb") as buffered:
        assert torch.equal(decode_audio(buffered, start_seconds=2.0, duration_seconds=0.5).samples, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"start_seconds": -1.0},
        {"start_seconds": float("nan")},
        {"sample_rate": 0},
        {"duration_seconds": 0.0},
        {"duration_seconds": float("inf")},
        {"duration_seconds": 1e-9},
    ],
)
def test_wrong_settings_are_named(tmp_path, settings):
    path = write(tmp_path / "a.wav", melody(0.2, 16000), 16000, "PCM_16")
    with pytest.raises(ConfigError, match=next(iter(settings))):
        decode_audio(path, **settings)


@pytest.mark.skipif("BRIDLE_TEST_DATA" not in os.environ, reason="BRIDLE_TEST_DATA names no folder of real recordings")
def test_real_recordings(capfd):
    root = Path(os.environ["BRIDLE_TEST_DATA"])
    paths = [p for name in ("esc10", "fsdd", "grid_s1") for p in sorted((root / name / "audio").iterdir())[:3]]
    for path in paths:
        info, clip = probe_audio(path), decode_audio(path)
        assert len(clip.samples) / 16000 == pytest.approx(info.duration_seconds, abs=0.1)
        start = info.duration_seconds / 3
        crop = decode_audio(path, start_seconds=start, duration_seconds=start).samples
        first = round(start * 16000)
        assert float((crop - clip.samples[first : first + len(crop)]).abs().max()) < 1e-3
    assert capfd.readouterr() == ("", "")
