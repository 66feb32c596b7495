import csv
from collections import Counter

import numpy as np
import pytest
import soundfile

from bridle.errors import ConfigError
from bridle.synthetic import CLASSES, synthesize, write_sound_set


@pytest.fixture(scope="module")
def sound_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    manifest = write_sound_set(folder, num_clips=60, seed=1, num_folds=3)
    with manifest.open(encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


def test_manifest_is_balanced_and_names_do_not_tell_the_class(sound_set):
    folder, rows = sound_set
    assert list(rows[0]) == ["path", "class", "fold"]
    assert Counter((row["class"], row["fold"]) for row in rows) == {(c, f): 2 for c in CLASSES for f in "123"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        "meta.csv",
        *(row["path"] for row in rows),
    }
    assert not any(name in row["path"] for row in rows for name in CLASSES)


def test_files_are_of_many_kinds_and_sound(sound_set):
    folder, rows = sound_set
    infos = [soundfile.info(folder / row["path"]) for row in rows]
    assert {info.format for info in infos} == {"WAV", "FLAC", "OGG"}
    assert {info.samplerate for info in infos} == {16000, 22050, 44100}
    assert {info.channels for info in infos} == {1, 2}
    assert all(1.99 <= info.duration <= 5.0 for info in infos)
    for row in rows:
        samples, _ = soundfile.read(folder / row["path"])
        assert np.isfinite(samples).all()
        assert 0.01 < np.abs(samples).max() <= 0.99  # loud enough for 16 bits, and never clipped


def test_clip_is_a_pure_function_of_seed_and_index(sound_set, tmp_path):
    folder, rows = sound_set
    write_sound_set(tmp_path / "again", num_clips=10, seed=1)
    write_sound_set(tmp_path / "other", num_clips=1, seed=2)
    for row in rows[:10]:
        first, rate = soundfile.read(folder / row["path"])
        again, again_rate = soundfile.read(tmp_path / "again" / row["path"])
        assert rate == again_rate
        np.testing.assert_array_equal(first, again)
    (other,) = (tmp_path / "other" / "audio").iterdir()
    assert soundfile.read(other)[0].shape != soundfile.read(folder / rows[0]["path"])[0].shape


@pytest.mark.parametrize("sound_class", CLASSES)
@pytest.mark.parametrize("seed", range(5))
def test_every_class_gives_a_clip_in_range(sound_class, seed):
    samples, rate = synthesize(sound_class, np.random.default_rng(seed))
    assert samples.dtype == np.float32
    assert samples.shape[1] in (1, 2)
    assert 2 * rate - 1 <= len(samples) <= 5 * rate
    assert 0.04 < np.abs(samples).max() < 0.71  # -26 to -3 dB


def direction(samples: np.ndarray, rate: int) -> float:
    """Positive where energy moves up in pitch: correlation with the log spectrum 30 ms later, shifted up minus down."""
    hop, frame = rate // 200, rate // 25
    frames = np.lib.stride_tricks.sliding_window_view(samples.mean(axis=1), frame)[::hop]
    edges = np.geomspace(700, 5000, 49) * frame / rate
    power = np.abs(np.fft.rfft(frames * np.hanning(frame))) ** 2
    bands = np.stack([np.interp(edges, np.arange(row.size), row) for row in power])
    bands = np.log(bands + 1e-3 * bands.mean())
    bands -= bands.mean(axis=0)
    early, late = bands[:-6], bands[6:]
    return float(sum((early[:, :-k] * late[:, k:]).mean() - (early[:, k:] * late[:, :-k]).mean() for k in (2, 4, 6)))


def test_chirps_go_the_way_their_class_says():
    for name, sign in (("rising_chirps", 1), ("falling_chirps", -1)):
        values = [sign * direction(*synthesize(name, np.random.default_rng(seed))) for seed in range(20)]
        assert sum(value > 0 for value in values) >= 18, (name, values)


def test_mean_and_deviation_of_the_spectrum_do_not_solve_the_set(tmp_path):
    """The point of the set: long-term statistics leave room for what an encoder has to learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = [], []
    for i in range(200):
        samples, rate = synthesize(CLASSES[i % 10], np.random.default_rng([7, i]))
        frame = rate // 40
        frames = samples.mean(axis=1)[: len(samples) // frame * frame].reshape(-1, frame) * np.hanning(frame)
        power = np.log(np.abs(np.fft.rfft(frames))[:, 2:180:4] ** 2 + 1e-9)
        features.append(np.concatenate([power.mean(axis=0), power.std(axis=0)]))
        labels.append(i % 10)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    accuracy = cross_val_score(probe, np.stack(features), labels, cv=4).mean()
    assert 0.2 < accuracy < 0.7


def test_a_broken_off_set_has_no_manifest(tmp_path, monkeypatch):
    write_sound_set(tmp_path, num_clips=2)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(soundfile, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sound_set(tmp_path, num_clips=4)
    assert not (tmp_path / "meta.csv").exists()


@pytest.mark.parametrize("sizes", [{"num_clips": 0}, {"num_folds": 0}])
def test_sizes_below_one_are_refused(tmp_path, sizes):
    with pytest.raises(ConfigError, match="must be at least 1"):
        write_sound_set(tmp_path, **sizes)


def test_unknown_class_is_refused():
    with pytest.raises(ConfigError, match=r"'meow' is unknown; known: rising_chirps"):
        synthesize("meow", np.random.default_rng(0))
