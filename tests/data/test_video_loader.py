"""The front end of video: which frames training and evaluation see, the cache, short films, what is in memory."""

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.video_files import film, index_of, indices

import bridle.data.video as loading
from bridle.data.batch import Sample, collate
from bridle.data.loaders import estimate_normalisation
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.data.medium import VIDEO
from bridle.data.video import VideoConfig, VideoLoader
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.media.video import decode_frames
from bridle.nn.patches import without_mean_over_time
from bridle.objectives.view import whole_view
from bridle.randomness import generator

CONFIG = VideoConfig(size=48, decode_size=60, channels=1, num_frames=8, stride=4, mean=(0.5,), std=(0.2,))
LENGTHS = (50, 20, 200, 1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of 50, 20, 200 and 1 frames at 25 per second, each of which shows its index."""
    folder = tmp_path_factory.mktemp("films")
    for i, length in enumerate(LENGTHS):
        film(folder / f"{i}.mp4", length)
    return folder


@pytest.fixture(scope="module")
def manifest(films: Path) -> Manifest:
    return read_manifest(films, VIDEO)


def test_the_manifest_knows_durations_and_rates(manifest: Manifest) -> None:
    assert [entry.duration_seconds for entry in manifest.entries] == pytest.approx([n / 25 for n in LENGTHS], abs=0.041)
    assert [entry.rate_hz for entry in manifest.entries] == pytest.approx([25] * 4, abs=0.01)


def test_a_training_clip_is_every_fourth_frame_from_a_random_start(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    starts = set()
    for seed in range(12):
        clip = loader.load(manifest.entries[0], generator(seed))
        assert clip.inputs.shape == (1, 8, 60, 60)
        seen = indices(clip.inputs)
        assert seen == list(range(seen[0], seen[0] + 32, 4))
        assert clip.start_seconds == pytest.approx(seen[0] / 25)
        assert clip.aspect == pytest.approx(64 / 48)
        starts.add(seen[0])
    assert len(starts) > 5
    assert max(starts) <= 50 - 32


def test_short_films_give_short_clips(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    assert [loader.length(entry) for entry in manifest.entries] == [8, 5, 8, 1]
    for entry, expected in ((manifest.entries[1], [0, 4, 8, 12, 16]), (manifest.entries[3], [0])):
        assert indices(loader.load(entry, generator(0)).inputs) == expected
    items = [loader.load(entry, generator(0)) for entry in manifest.entries]
    batch = collate([Sample(c.inputs, c.inputs.shape[1], i, i, c.aspect) for i, c in enumerate(items)], (2, 8, 8))
    found = loader.finish(batch, augment=True)
    assert found.inputs.shape == (4, 1, 8, 48, 48)
    for row, length in ((1, 5), (3, 1)):
        assert bool((found.inputs[row, :, length:] == found.inputs[row, :, length - 1 : length]).all()), "the last frame stays"
    assert bool((found.inputs[1, :, :1] != found.inputs[1, :, 4:5]).any())


@pytest.mark.parametrize("length", [1, 3, 7, 8])
def test_nothing_moves_in_a_still_film_whose_last_patch_is_not_full(length: int) -> None:
    still = torch.randint(0, 256, (1, 1, 48, 48), dtype=torch.uint8, generator=generator(0)).expand(-1, length, -1, -1)
    moving = torch.randint(0, 256, (1, 8, 48, 48), dtype=torch.uint8, generator=generator(1))
    batch = collate([Sample(still, length, 0, 0), Sample(moving, 8, 1, 1)], (2, 8, 8))
    view = whole_view(VideoLoader(CONFIG).finish(batch, augment=False), (2, 8, 8))
    moved = without_mean_over_time(view.patches, view.every.valid, (2, 8, 8))
    num_valid = int(view.steps[0]) * view.patches.grid.patches_per_step
    assert float(moved[0, :num_valid].abs().max()) < 1e-6
    assert float(moved[1].abs().mean()) > 0.1


def test_windows_cover_the_film_once(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    for entry, length in zip(manifest.entries, LENGTHS, strict=True):
        windows = list(loader.windows(entry))
        seen = [index for window in windows for index in indices(window.inputs)]
        wanted = list(range(0, length, 4))
        assert seen == (wanted if len(wanted) % 8 != 1 or len(wanted) == 1 else wanted[:-1])
        assert [window.start_seconds for window in windows] == pytest.approx([i * 32 / 25 for i in range(len(windows))])
        assert all(window.inputs.shape[2:] == (48, 48) for window in windows)


def test_the_cache_changes_no_number_and_holds_short_films_only(manifest: Manifest) -> None:
    config = dataclasses.replace(CONFIG, num_frames=4)  # 200 frames are more than eight clips
    cached, uncached = VideoLoader(config), VideoLoader(dataclasses.replace(config, cache_gigabytes=0.0))
    for seed in range(3):
        for entry in manifest.entries:
            ours, theirs = cached.load(entry, generator(seed)), uncached.load(entry, generator(seed))
            assert torch.equal(ours.inputs, theirs.inputs)
            assert ours.start_seconds == pytest.approx(theirs.start_seconds)
    assert cached._cache.num_bytes == sum(cached.cacheable_bytes(entry) for entry in manifest.entries)
    assert cached._cache.num_bytes == (50 + 20 + 1) * 60 * 60
    assert pickle.loads(pickle.dumps(cached))._cache.num_bytes == 0


def test_with_a_full_cache_only_the_clip_is_decoded(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    decode = VideoLoader._decoded
    monkeypatch.setattr(VideoLoader, "_decoded", lambda *request: asked.append(request[3]) or decode(*request))
    loader = VideoLoader(dataclasses.replace(CONFIG, cache_gigabytes=60 * 60 * 60 / 1e9))
    for _ in range(2):
        loader.load(manifest.entries[0], generator(0))
        loader.load(manifest.entries[1], generator(0))
    assert asked == [50, 5, 5], "50 frames fit once, 20 more do not, of which a clip takes every fourth"


def test_a_film_that_ends_early_is_the_same_with_and_without_cache(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", 100)
    whole = read_manifest(tmp_path, VIDEO).entries[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    loaders = VideoLoader(CONFIG), VideoLoader(dataclasses.replace(CONFIG, cache_gigabytes=0.0))
    starts = set()
    for seed in range(10):
        ours, theirs = (loader.load(whole, generator(seed)) for loader in loaders)
        assert torch.equal(ours.inputs, theirs.inputs)
        assert ours.start_seconds == theirs.start_seconds
        assert indices(ours.inputs)[0] == round(ours.start_seconds * 25)
        starts.add(ours.start_seconds)
    assert 0 in starts
    assert len(starts) > 3


def test_a_common_rate_shows_films_at_one_speed(films: Path, tmp_path: Path) -> None:
    film(tmp_path / "slow.mp4", 20, rate=10)
    loader = VideoLoader(dataclasses.replace(CONFIG, rate_hz=10.0, stride=2, num_frames=4))
    for folder, rate in ((tmp_path, 10), (films, 25)):
        entry = read_manifest(folder, VIDEO).entries[0]
        seen = indices(loader.load(entry, generator(0)).inputs)
        times = [index / rate for index in seen]
        assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([0.2] * 3, abs=0.041)


def test_unknown_durations_and_rates_are_read_from_the_file(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    entry = manifest.entries[0]
    unknown = Entry(entry.key, entry.path)
    assert loader.length(unknown) == 8
    assert torch.equal(loader.load(unknown, generator(1)).inputs, loader.load(entry, generator(1)).inputs)
    assert len(list(loader.windows(unknown))) == len(list(loader.windows(entry)))


def test_a_header_that_promises_too_much_does_not_cost_the_film(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    boasting = dataclasses.replace(manifest.entries[2], duration_seconds=60.0)
    assert [index for w in loader.windows(boasting) for index in indices(w.inputs)] == list(range(0, 200, 4))


def test_what_lies_behind_the_stated_duration_is_left_out(manifest: Manifest) -> None:
    short = dataclasses.replace(manifest.entries[2], duration_seconds=3.0)
    assert [index for w in VideoLoader(CONFIG).windows(short) for index in indices(w.inputs)] == list(range(0, 75, 4))


@pytest.mark.parametrize(("rate_hz", "seconds"), [(None, None), (10.0, None), (None, 0.8), (None, 1.7), (13.0, 3.0)])
def test_the_cache_changes_no_number_at_the_end_of_a_film(tmp_path: Path, rate_hz: float | None, seconds: float | None) -> None:
    for length in (23, 41):
        entry = read_manifest([film(tmp_path / f"{length}.mp4", length)], VIDEO).entries[0]
        entry = dataclasses.replace(entry, duration_seconds=seconds or entry.duration_seconds)
        for stride in (1, 3, 4):
            config = dataclasses.replace(CONFIG, stride=stride, rate_hz=rate_hz)
            cached, uncached = VideoLoader(config), VideoLoader(dataclasses.replace(config, cache_gigabytes=0.0))
            ours, theirs = cached.load(entry, generator(0)), uncached.load(entry, generator(0))
            assert torch.equal(ours.inputs, theirs.inputs)
            assert ours.start_seconds == pytest.approx(theirs.start_seconds)
            assert ours.inputs.shape[1] <= cached.length(entry)
            assert cached._cache.num_bytes > 0


def test_a_film_that_is_kept_whole_may_take_as_long_as_its_clips(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    decode = loading.decode_frames
    monkeypatch.setattr(
        loading, "decode_frames", lambda *given, **asked: limits.append(asked["max_decode_seconds"]) or decode(*given, **asked)
    )
    config = dataclasses.replace(CONFIG, max_decode_seconds=7.0)
    VideoLoader(config).load(manifest.entries[0], generator(0))
    VideoLoader(dataclasses.replace(config, cache_gigabytes=0.0)).load(manifest.entries[0], generator(0))
    assert limits == [56.0, 7.0]


def test_a_film_gives_the_same_in_memory_and_from_its_file(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 40, size=(96, 128), draw=scene, options={"crf": "1"})
    config = dataclasses.replace(CONFIG, stride=2)
    frames = decode_frames(path, num_frames=20, step_seconds=0.08).pixels.transpose(0, 1)
    loader = VideoLoader(config)
    for ours, theirs in zip(loader.windows(read_manifest([path], VIDEO).entries[0]), loader.windows_of(frames), strict=True):
        gap = (ours.inputs.float() - theirs.inputs.float()).abs()
        assert gap.mean() < 1
        assert gap.max() <= 8


def scene(index: int, width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return (128 + 100 * np.sin(x / 9 + index / 3) * np.cos(y / 7)).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (63, 65), (1001, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_in_memory_may_have_any_size(size: tuple[int, int], channels: int) -> None:
    loader = VideoLoader(dataclasses.replace(CONFIG, max_pixels=1000))  # a limit for files, not for what is in memory
    (window,) = loader.windows_of(torch.full((3, channels, *size), 77, dtype=torch.uint8))
    assert window.inputs.shape == (1, 3, 48, 48)
    assert int((window.inputs.int() - 77).abs().max()) <= 1


def test_frames_in_memory_are_windows_of_a_film(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    frames = torch.stack([torch.full((1, 48, 64), 10 * t, dtype=torch.uint8) for t in range(19)])
    windows = list(loader.windows_of(frames))
    assert [window.inputs.shape[1] for window in windows] == [8, 8, 3]
    assert [int(window.inputs[0, 0, 0, 0]) for window in windows] == [0, 80, 160]
    (single,) = loader.windows_of(frames[:1].float() / 255)
    assert single.inputs.shape == (1, 1, 48, 48)
    for item in (
        frames[0],
        torch.zeros(2, 2, 4, 4),
        torch.zeros(0, 1, 4, 4),
        torch.rand(2, 1, 4, 4) * 255,
        "no tensor",
        torch.full((2, 1, 4, 4), torch.nan),
    ):
        with pytest.raises(DataError, match="film"):
            list(loader.windows_of(item))


def test_baseline_has_a_row_for_each_frame(manifest: Manifest) -> None:
    loader = VideoLoader(CONFIG)
    (window, *_) = loader.windows(manifest.entries[0])
    rows = loader.baseline(window.inputs)
    assert rows.shape == (8, 32 * 32)
    assert index_of(rows[1].reshape(32, 32) * 255) == 4


def test_estimate_and_plan_figures(manifest: Manifest) -> None:
    found = estimate_normalisation(manifest, CONFIG)
    assert found.num_clips == 4
    assert 0.1 < found.mean[0] < 0.9
    loader = VideoLoader(CONFIG)
    assert [loader.clip_seconds(entry) for entry in manifest.entries] == pytest.approx([1.28, 0.8, 1.28, 0.04], abs=0.041)


def test_audio_only_files_are_quarantined(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    film(tmp_path / "good.mp4", 10)
    soundfile.write(tmp_path / "sound.wav", np.zeros(800), 8000)
    (tmp_path / "sound.wav").rename(tmp_path / "sound.mp4")
    manifest = read_manifest(tmp_path, VIDEO)
    assert [entry.key for entry in manifest.entries] == ["good.mp4"]
    assert [(bad.key, bad.reason) for bad in manifest.bad] == [("sound.mp4", "no video track")]
    with pytest.raises(DecodeError, match="no video track"):
        VideoLoader(CONFIG).load(Entry("sound.mp4", str(tmp_path / "sound.mp4")), generator(0))


@pytest.mark.parametrize(
    "change", [{"num_frames": 0}, {"stride": 0}, {"rate_hz": 0.0}, {"max_decode_seconds": 0.0}, {"size": 0}]
)
def test_wrong_settings_are_named(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)
