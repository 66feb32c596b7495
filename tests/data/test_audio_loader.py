import pickle
import shutil
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import soundfile
import torch

from bridle.data.audio import AudioConfig, AudioLoader
from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.loaders import estimate_normalisation
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.data.sampler import EpochOrder
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.media.audio import decode_audio
from bridle.media.fbank import Fbank, FbankConfig, num_frames
from bridle.randomness import generator

FBANK = FbankConfig(num_mels=32)
CONFIG = AudioConfig(fbank=FBANK, crop_seconds=1.0, mean=-5.0, std=4.0)
PLAIN = replace(CONFIG, shift=False, gain=False)


def write_noise(path, seconds, rate=16000, seed=0):
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * 0.05
    soundfile.write(path, noise.astype(np.float32), rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six files of 0.01 to 3.2 s, wav, flac and ogg, two of them at another rate."""
    folder = tmp_path_factory.mktemp("sounds")
    for i, (seconds, rate, kind) in enumerate(
        [
            (0.01, 16000, "wav"),
            (0.4, 16000, "flac"),
            (0.9, 22050, "ogg"),
            (1.0, 16000, "wav"),
            (2.5, 16000, "wav"),
            (3.2, 8000, "flac"),
        ]
    ):
        write_noise(folder / f"{i}.{kind}", seconds, rate, seed=i)
    return folder


@pytest.fixture(scope="module")
def manifest(sounds):
    return read_manifest(sounds)


def log_mel(path):
    return Fbank(FBANK)(decode_audio(path).samples)


def test_shapes_lengths_and_normalisation(manifest):
    loader = AudioLoader(PLAIN)
    assert loader.crop_frames == num_frames(16000, FBANK) == 98
    assert loader.frame_shape == (1, 32, 1)
    lengths = [loader.length(entry) for entry in manifest.entries]
    assert lengths == [1, 38, 88, 98, 98, 98]
    for entry, length in zip(manifest.entries, lengths, strict=True):
        clip = loader.load(entry, generator(0))
        assert clip.inputs.shape == (1, length, 32, 1)
        assert clip.inputs.dtype == torch.float32
    inputs = loader.load(manifest.entries[3], generator(0)).inputs
    assert torch.equal(inputs[0, :, :, 0], (log_mel(manifest.entries[3].path) - -5.0) / 8.0)


def test_a_clip_shorter_than_a_frame_is_padded_with_silence(manifest):
    samples = decode_audio(manifest.entries[0].path).samples
    assert samples.shape == (160,)
    padded = torch.cat([samples, torch.zeros(400 - 160)])
    inputs = AudioLoader(PLAIN).load(manifest.entries[0], generator(0)).inputs
    assert torch.equal(inputs[0, :, :, 0], (Fbank(FBANK)(padded) + 5) / 8)


def test_crops_start_at_hops_and_equal_the_crop_of_the_log_mel(manifest):
    loader = AudioLoader(PLAIN)
    whole = (log_mel(manifest.entries[4].path) + 5) / 8
    starts = set()
    for seed in range(20):
        clip = loader.load(manifest.entries[4], generator(seed))
        frame = clip.start_seconds / 0.010
        assert frame == pytest.approx(round(frame), abs=1e-6)
        starts.add(round(frame))
        expected = whole[round(frame) : round(frame) + 98]
        assert torch.allclose(clip.inputs[0, :, :, 0], expected, atol=1e-5)
    assert len(starts) > 10
    assert max(starts) <= len(whole) - 98


def test_augmentation_follows_the_generator_alone(manifest):
    loader = AudioLoader(CONFIG)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [loader.load(entry, generator(1, i)).inputs for i, entry in enumerate(manifest.entries)]
    assert torch.equal(torch.get_rng_state(), before)
    again = [AudioLoader(CONFIG).load(entry, generator(1, i)).inputs for i, entry in enumerate(manifest.entries)]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[3], loader.load(manifest.entries[3], generator(2)).inputs)


@pytest.mark.parametrize("setting", ["shift", "gain"])
def test_each_augmentation_can_be_switched_off(manifest, setting):
    entry = manifest.entries[3]
    plain = AudioLoader(PLAIN).load(entry, generator(0)).inputs
    augmented = AudioLoader(replace(PLAIN, **{setting: True})).load(entry, generator(0)).inputs
    assert augmented.shape == plain.shape
    assert not torch.equal(augmented, plain)


def test_the_cache_changes_no_number(manifest):
    cached, uncached = AudioLoader(CONFIG), AudioLoader(replace(CONFIG, cache_gigabytes=0.0))
    for epoch in range(3):
        for i, entry in enumerate(manifest.entries):
            first, second = (loader.load(entry, generator(epoch, i)) for loader in (cached, uncached))
            assert torch.equal(first.inputs, second.inputs)
            assert first.start_seconds == second.start_seconds


def test_the_cache_spares_decoding_and_keeps_to_its_bound(tmp_path):
    paths = [write_noise(tmp_path / f"{i}.wav", 0.5, seed=i) for i in range(3)]
    manifest = read_manifest(tmp_path)
    size = 48 * 32 * 4
    loader = AudioLoader(replace(CONFIG, cache_gigabytes=2.5 * size / 1e9))
    first = [loader.load(entry, generator(0)).inputs for entry in manifest.entries]
    for path in paths:
        path.unlink()
    for entry, expected in zip(manifest.entries[:2], first[:2], strict=True):
        assert torch.equal(loader.load(entry, generator(0)).inputs, expected)
    with pytest.raises(DecodeError, match="missing"):
        loader.load(manifest.entries[2], generator(0))
    with pytest.raises(DecodeError, match="missing"):  # another process starts with an empty cache
        pickle.loads(pickle.dumps(loader)).load(manifest.entries[0], generator(0))


def test_equal_keys_of_two_files_do_not_meet_in_the_cache(tmp_path):
    entries = [Entry("x.wav", str(write_noise(tmp_path / f"{i}.wav", 0.5, seed=i)), duration_seconds=0.5) for i in (0, 1)]
    loader = AudioLoader(PLAIN)
    first, second = (loader.load(entry, generator(0)).inputs for entry in entries)
    assert not torch.equal(first, second)


def test_tar_members_equal_the_plain_files(sounds, manifest, tmp_path):
    shutil.make_archive(str(tmp_path / "s"), "tar", sounds)
    shard = {entry.key.removeprefix("s.tar/"): entry for entry in read_manifest(tmp_path).entries}
    loader = AudioLoader(CONFIG)
    for entry in reversed(manifest.entries):
        plain, member = (loader.load(e, generator(4)) for e in (entry, shard[entry.key]))
        assert torch.equal(plain.inputs, member.inputs)
        assert plain.start_seconds == member.start_seconds


def test_windows_tile_the_file(manifest):
    loader = AudioLoader(CONFIG)
    for entry, expected in zip(manifest.entries, [[0], [0], [0], [0], [0, 1, 2], [0, 1, 2, 3]], strict=True):
        found = list(loader.windows(entry))
        assert [window.start_seconds for window in found] == expected
        assert all(window.inputs.shape == (1, 98, 32, 1) for window in found[:-1])
    windows = list(loader.windows(manifest.entries[4]))
    whole = (log_mel(manifest.entries[4].path) + 5) / 8
    assert windows[-1].inputs.shape[1] == 48
    for window in windows:
        frame = round(window.start_seconds * 100)
        expected = whole[frame : frame + window.inputs.shape[1]]
        assert torch.allclose(window.inputs[0, :, :, 0], expected, atol=1e-5)


def test_windows_of_a_waveform_are_those_of_its_file(manifest):
    loader = AudioLoader(CONFIG)
    for entry in manifest.entries:
        of_file, of_waveform = loader.windows(entry), loader.windows_of(decode_audio(entry.path).samples)
        for one, two in zip(of_file, of_waveform, strict=True):
            assert one.start_seconds == two.start_seconds
            assert torch.allclose(one.inputs, two.inputs, atol=2e-3), "but for resampling"


def test_dither_follows_the_generator_and_spares_windows(manifest):
    dithered = AudioLoader(replace(PLAIN, fbank=replace(FBANK, dither=0.1)))
    for entry in (manifest.entries[3], manifest.entries[4]):
        one, same, other = (dithered.load(entry, generator(seed)).inputs for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        windows = zip(dithered.windows(entry), AudioLoader(PLAIN).windows(entry), strict=True)
        assert all(torch.equal(first.inputs, second.inputs) for first, second in windows)


def test_a_last_window_of_a_few_frames_is_dropped_unless_it_is_the_only_one(tmp_path):
    loader = AudioLoader(PLAIN)
    for seconds, lengths in [(0.03, [1]), (1.03, [98]), (1.094, [98]), (1.095, [98, 8]), (2.0, [98, 98]), (2.03, [98, 98])]:
        path = write_noise(tmp_path / "x.wav", seconds)
        for duration in (seconds, 0.0, seconds + 0.2):  # known, read from the header, too long
            if seconds == 2.0 and duration > 2.0:
                continue  # a third window would begin behind the end of the file, which is an error
            found = list(loader.windows(Entry("x", str(path), duration_seconds=duration)))
            assert [clip.inputs.shape[1] for clip in found] == lengths, (seconds, duration)
        of_waveform = list(loader.windows_of(decode_audio(path).samples))
        assert [clip.inputs.shape[1] for clip in of_waveform] == lengths


def test_crops_below_the_smallest_last_window_still_tile_the_file(tmp_path):
    loader = AudioLoader(replace(PLAIN, crop_seconds=0.045))  # 3 frames
    path = write_noise(tmp_path / "x.wav", 0.2)
    assert [clip.inputs.shape[1] for clip in loader.windows(Entry("x", str(path)))] == [3] * 4


def test_a_decode_that_takes_too_long_is_a_bad_file(manifest, monkeypatch):
    loader = AudioLoader(replace(PLAIN, max_decode_seconds=7.0))
    seconds = count()
    monkeypatch.setattr("bridle.media.reading.time.monotonic", lambda: 10.0 * next(seconds))
    with pytest.raises(DecodeError, match=r"3\.wav: takes longer than 7 s to decode"):
        loader.load(manifest.entries[3], generator(0))


def test_durations_that_lie(tmp_path):
    loader = AudioLoader(PLAIN)
    path = write_noise(tmp_path / "x.wav", 1.5)
    long, short, unknown = (Entry("x", str(path), duration_seconds=seconds) for seconds in (100.0, 0.2, 0.0))
    assert [w.start_seconds for w in loader.windows(long)] == [0, 1]
    assert loader.load(short, generator(0)).inputs.shape[1] == 98, "never more than a crop"
    assert loader.length(unknown) == 98
    assert loader.load(unknown, generator(0)).start_seconds == 0
    found = [ClipDataset(Manifest((long,)), loader, 0)[epoch, 0] for epoch in range(8)]
    assert any("ends before" in getattr(item, "reason", "") for item in found)


def test_estimate_equals_the_moments_of_all_values(manifest, sounds, tmp_path):
    short = Manifest(manifest.entries[:4])
    values = torch.cat(
        [AudioLoader(replace(PLAIN, mean=0.0, std=0.5)).load(e, generator(0)).inputs.flatten() for e in short.entries]
    )
    found = estimate_normalisation(short, replace(CONFIG, mean=None, std=None))
    assert found.mean == (pytest.approx(values.double().mean().item(), abs=1e-9),)
    assert found.std == (pytest.approx(values.double().std(correction=0).item(), abs=1e-9),)
    assert found.num_clips == 4
    some = estimate_normalisation(manifest, CONFIG, num_clips=3, seed=1)
    assert some.num_clips == 3
    assert some == estimate_normalisation(manifest, CONFIG, num_clips=3, seed=1)
    assert some != estimate_normalisation(manifest, CONFIG, num_clips=3, seed=2)


def test_estimate_passes_over_bad_files(manifest, tmp_path):
    bad = Entry("bad", str(tmp_path / "nowhere.wav"), duration_seconds=1.0)
    mixed = Manifest((bad, *manifest.entries, bad))
    assert estimate_normalisation(mixed, CONFIG).num_clips == 6
    with pytest.raises(DataError, match="none of 2 files can be decoded; first: bad: missing"):
        estimate_normalisation(Manifest((bad, bad)), CONFIG)
    with pytest.raises(ConfigError, match="num_clips is 0"):
        estimate_normalisation(mixed, CONFIG, num_clips=0)


def test_estimate_of_silence(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(16000), 16000)
    with pytest.raises(DataError, match="the files hold nothing"):
        estimate_normalisation(read_manifest(tmp_path), CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_seconds": 0.01}, "crop_seconds is 0.01"),
        ({"mean": None}, "set both"),
        ({"std": 0.0}, "std is 0.0"),
        ({"cache_gigabytes": -1.0}, "cache_gigabytes is -1.0"),
        ({"max_decode_seconds": 0.0}, "max_decode_seconds is 0.0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **settings)


def test_a_loader_needs_a_normalisation():
    with pytest.raises(ConfigError, match="estimate_normalisation"):
        AudioLoader(AudioConfig())


def test_batches_of_real_files_do_not_depend_on_workers(sounds, tmp_path):
    shutil.copytree(sounds, tmp_path, dirs_exist_ok=True)
    manifest = read_manifest(tmp_path)
    (tmp_path / "4.wav").write_bytes(b"junk")
    data = ClipDataset(manifest, AudioLoader(CONFIG), seed=3)
    order = EpochOrder(data.lengths(), 2, data.loader.crop_frames, 16, seed=3)
    settings = {"start_step": 1, "num_steps": 8, "rank": 0, "world_size": 1, "patch": (16, 16, 1)}
    streams = [list(batch_loader(data, order, num_workers=n, **settings)) for n in (0, 2)]
    for one, two in zip(*streams, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.lengths, two.lengths)
        assert torch.equal(one.seeds, two.seeds)
        assert one.bad == two.bad
    assert {file.reason for batch in streams[0] for file in batch.bad} == {"not audio"}


def test_the_number_of_threads_is_left_alone_and_changes_nothing(manifest):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = AudioLoader(CONFIG).load(manifest.entries[4], generator(0)).inputs
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert torch.equal(AudioLoader(CONFIG).load(manifest.entries[4], generator(0)).inputs, two)
    finally:
        torch.set_num_threads(threads)
