"""The demo's pictures and films: what is in the files, that labels and splits are as told, and the whole of both demos."""

import csv
import json
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from reference.video_files import all_frames

from bridle import cli
from bridle.data.image import ImageLoader
from bridle.data.manifest import read_manifest
from bridle.data.medium import IMAGE, VIDEO
from bridle.data.video import VideoLoader
from bridle.demo import digits
from bridle.demo.digits import DIRECTIONS, FILM_SIZE, NUM_FRAMES, RATE_HZ, draw_film, find_films, find_pictures, read_digits
from bridle.errors import ConfigError
from bridle.eval.evaluate import RANDOM
from bridle.media.video import probe_video
from bridle.randomness import derive_seed


def film_generator(seed, film):
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "film", film)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return find_pictures(tmp_path_factory.mktemp("pictures"), seed=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "NUM_FILMS", 400)
        found = find_films(tmp_path_factory.mktemp("films"), seed=1)
    with found.source.open(newline="") as stream:
        return found, list(csv.DictReader(stream))


# Pictures


def test_every_digit_is_a_picture_in_the_folder_of_its_split_and_class(pictures):
    pixels, labels = read_digits()
    assert (pixels.shape, pixels.min(), pixels.max(), len(labels)) == ((1797, 8, 8), 0, 255, 1797)
    manifest = read_manifest(pictures.source, IMAGE)
    rows = [int(entry.key.split("/")[-1].removesuffix(".png")) for entry in manifest.entries]
    assert sorted(rows) == list(range(1797))  # each once, so none in both splits
    assert manifest.columns["class"] == [str(labels[row]) for row in rows]
    assert set(manifest.columns) == {*pictures.labels, pictures.protocol}
    for entry, row in zip(manifest.entries, rows, strict=True):
        with Image.open(entry.path) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), pixels[row])


def test_three_of_ten_pictures_of_each_class_are_test_pictures(pictures):
    columns = read_manifest(pictures.source, IMAGE).columns
    counts = Counter(zip(columns["class"], columns["split"], strict=True))
    for digit in "0123456789":
        test, train = counts[digit, "test"], counts[digit, "train"]
        assert abs(test - 0.3 * (test + train)) < 1
    assert set(columns["split"]) == {"train", "test"}


def test_pictures_are_written_once_and_follow_from_the_seed(pictures, tmp_path):
    def names(found):
        return sorted(path.relative_to(found.source).as_posix() for path in found.source.rglob("*.png"))

    same, other = (find_pictures(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert names(same) == names(pictures) != names(other)
    stamp = same.source.stat().st_mtime_ns
    again = find_pictures(tmp_path / "1", seed=1)
    assert (again.source, again.source.stat().st_mtime_ns) == (same.source, stamp)
    assert again.reason == "they were written before"


def test_half_written_set_is_written_anew(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(digits, "_encode", fail)
    with pytest.raises(OSError, match="disk full"):
        find_films(tmp_path)
    monkeypatch.setattr(digits, "_encode", lambda path, frames: path.touch())
    monkeypatch.setattr(digits, "NUM_FILMS", 20)
    found = find_films(tmp_path)
    assert found.reason != "they were written before"
    assert [path.name for path in tmp_path.iterdir()] == ["moving-digits-0"]


def test_without_scikit_learn_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"scikit-learn, which is not installed: pip install 'bridle\[demo\]'"):
        find_pictures(tmp_path)


# Films


def test_no_handwritten_digit_is_in_two_films(films):
    _, labels = read_digits()
    found, rows = films
    assert len({row["picture"] for row in rows}) == len(rows) == 400
    assert all(row["digit"] == str(labels[int(row["picture"])]) for row in rows)
    manifest = read_manifest(found.source, VIDEO)
    assert not manifest.bad
    assert {*found.labels, found.protocol} <= set(manifest.columns)


def test_digits_directions_and_splits_are_balanced(films):
    _, rows = films
    counts = Counter((row["digit"], row["direction"], row["split"]) for row in rows)
    assert counts == {
        (digit, way, split): count
        for digit in "0123456789"
        for way in DIRECTIONS
        for split, count in (("train", 7), ("test", 3))
    }


def test_films_decode_to_what_was_drawn(films):
    pixels, _ = read_digits()
    found, rows = films
    for film in (0, 17, 399):
        path = found.source.parent / rows[film]["path"]
        info = probe_video(str(path), "film")
        assert (info.width, info.height, info.rate_hz) == (FILM_SIZE, FILM_SIZE, RATE_HZ)
        assert Fraction(info.duration_seconds).limit_denominator(100) == Fraction(NUM_FRAMES, RATE_HZ)
        drawn = draw_film(pixels[int(rows[film]["picture"])], rows[film]["direction"], film_generator(1, film))
        decoded = np.stack([frame.mean(axis=2) for frame in all_frames(path)])
        assert np.abs(decoded - drawn).mean() < 2.5
        errors = np.abs(decoded - drawn).mean(axis=(1, 2))
        assert errors.max() < 1.2 * errors.min()  # no frame tells by its quality how late it is


def test_digit_moves_as_its_label_says(films):
    found, rows = films
    for row in rows[:40]:
        frames = np.stack([frame.mean(axis=2) for frame in all_frames(found.source.parent / row["path"])])
        ink = np.clip(frames - 80, 0, None)
        weight = ink.sum(axis=(1, 2))
        across = (ink.sum(axis=1) @ np.arange(FILM_SIZE)) / weight
        down = (ink.sum(axis=2) @ np.arange(FILM_SIZE)) / weight
        moved = np.array([across[-1] - across[0], down[-1] - down[0]]) / (NUM_FRAMES - 1)
        direction = np.array(DIRECTIONS[row["direction"]])
        assert 0.15 < moved @ direction < 0.45
        assert abs(moved @ direction[::-1]) < 0.02


def test_whole_digit_is_in_sight_all_the_time():
    block = np.full((8, 8), 255, np.uint8)
    for film in range(40):
        frames = draw_film(block, list(DIRECTIONS)[film % 4], film_generator(0, film)).astype(float)
        area = np.clip(frames - digits._GROUND, 0, None).sum(axis=(1, 2)) / digits._INK
        assert abs(area - area.mean()).max() < 0.03 * area.mean()


def test_frames_backwards_are_a_film_of_the_other_direction(monkeypatch):
    """Single frames and means over time do not tell which of two opposite ways it was."""
    monkeypatch.setattr(digits, "_NOISE", 0.0)
    pixels, _ = read_digits()
    for one, other in (("left", "right"), ("up", "down")):
        there, back = (draw_film(pixels[0], way, film_generator(0, 0)).astype(int) for way in (one, other))
        assert np.abs(there[::-1] - back).max() <= 2  # rounded
        assert np.abs(there - back).max() > 50


def test_films_follow_from_the_seed(films, tmp_path, monkeypatch):
    found, rows = films
    monkeypatch.setattr(digits, "NUM_FILMS", 20)
    same, other = (find_films(tmp_path / str(seed), seed=seed).source for seed in (1, 2))
    for row in rows[:20]:
        assert (same.parent / row["path"]).read_bytes() == (found.source.parent / row["path"]).read_bytes()
    assert same.read_text().splitlines() == found.source.read_text().splitlines()[:21]
    assert same.read_text() != other.read_text()


# The whole of it


def whole_demo(tmp_path, capsys, medium, *more):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--medium", medium, "--out", str(out), "--steps", "2", *more]) == 0
    return out, capsys.readouterr().out


@pytest.mark.slow
def test_whole_demo_of_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    out, printed = whole_demo(tmp_path, capsys, "image")
    for text in ("handwritten digits", "$ bridle pretrain image-demo", "--label class --split split", "4 Write codes"):
        assert text in printed
    last = printed.split("minutes in all")[1]
    for text in (
        "1797 pictures",
        "10 classes of 'class'",
        "pretrained encoder",
        RANDOM,
        ImageLoader.baseline_name,
        "its codes",
    ):
        assert text in last
    names = {"codes", "embeddings", "run", "pictures", "demo.json", "doctor.json", "evaluation.json"}
    assert {path.name for path in out.iterdir()} == names


@pytest.mark.slow
def test_whole_demo_of_films_ends_in_a_table_for_each_label(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(digits, "NUM_FILMS", 120)
    out, printed = whole_demo(tmp_path, capsys, "video")
    for text in ("$ bridle pretrain video-demo", "Judge it by digit", "Judge it by direction", "6 Write embeddings"):
        assert text in printed
    last = printed.split("minutes in all")[1]
    for text in ("120 films", "10 classes of 'digit'", "4 classes of 'direction'"):
        assert text in last
    for text in ("pretrained encoder", RANDOM, VideoLoader.baseline_name, "its codes, counted"):
        assert last.count(text) >= 2
    assert json.loads((out / "demo.json").read_text())["steps"] == 2
    names = {"codes", "embeddings", "run", "films", "demo.json", "doctor.json"}
    assert {path.name for path in out.iterdir()} == {*names, "evaluation-digit.json", "evaluation-direction.json"}
