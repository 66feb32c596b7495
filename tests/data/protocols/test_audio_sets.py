"""Speech Commands and AudioSet: splits, silence, clips found by their names."""

import io

import numpy as np
import pytest
import soundfile
from reference import published_sets as sets

from bridle.data.protocols import read_protocol
from bridle.data.protocols.audioset import clip_id
from bridle.data.protocols.speech_commands import TEN_WORDS
from bridle.errors import DataError


def rows(data):
    """Key -> (label, split), of a set of sounds."""
    columns = data.manifest.columns
    cells = zip(columns[data.columns.label], columns["split"], strict=True)
    return {entry.key: cell for entry, cell in zip(data.manifest.entries, cells, strict=True)}


def test_words_are_split_by_the_published_lists(tmp_path):
    data = read_protocol("speech-commands-v2", sets.speech_commands(tmp_path))
    splits = {"a_nohash_0": "train", "a_nohash_1": "train", "b_nohash_0": "validation", "c_nohash_0": "test"}
    assert rows(data) == {
        f"{word}/{name}.wav": (word, split) for word in ("bed", "no", "yes") for name, split in splits.items()
    }
    assert data.columns.group == "speaker"
    assert set(data.manifest.columns["speaker"]) == {"a", "b", "c"}


def test_word_that_a_list_names_and_that_is_missing_is_a_bad_file(tmp_path):
    root = sets.speech_commands(tmp_path)
    (root / "yes" / "c_nohash_0.wav").unlink()
    (bad,) = read_protocol("speech-commands-v2", root).manifest.bad
    assert (bad.key, bad.reason) == ("yes/c_nohash_0.wav", "missing")


def test_list_of_words_is_needed(tmp_path):
    root = sets.speech_commands(tmp_path)
    (root / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"has no testing_list.txt, which speech-commands-v1 is read from"):
        read_protocol("speech-commands-v1", root)


def test_all_35_words_are_more_than_version_1_has(tmp_path):
    root = sets.speech_commands(tmp_path, [f"word{i:02d}" for i in range(31)])
    with pytest.raises(DataError, match="there are 31 classes where speech-commands-v1 has 30"):
        read_protocol("speech-commands-v1", root, probe=False)


@pytest.fixture
def twelve(tmp_path):
    sets.speech_commands_test(tmp_path / "speech_commands_test_set_v0.01")
    return sets.speech_commands(tmp_path / "speech_commands_v0.01")


def test_twelve_classes(twelve):
    data = read_protocol("speech-commands-v1-12", twelve)
    found = rows(data)
    test = {key.split("/")[1]: label for key, (label, split) in found.items() if split == "test"}
    assert test == {name: name for name in ("yes", "no", "_unknown_", "_silence_")}
    assert found["yes/a_nohash_0.wav"] == ("yes", "train")
    assert found["bed/b_nohash_0.wav"] == ("_unknown_", "validation")
    assert "yes/c_nohash_0.wav" not in found, "the words' own test clips are left out"
    silence = [split for label, split in found.values() if label == "_silence_" and split != "test"]
    assert sorted(silence) == ["train", "validation"]  # a tenth of 4 and of 2 words, rounded up
    assert data.columns.group == "speaker"
    assert data.notes == ("4 of 12 classes have clips",)


def test_unknown_words_and_silence_are_a_tenth_of_the_words_each_as_in_the_reference(tmp_path):
    words = [*(f"other{i}" for i in range(12)), "yes", "no", "up", "down", "left", "right"]
    root = sets.speech_commands(tmp_path / "speech_commands_v0.02", words)
    sets.speech_commands_test(tmp_path / "speech_commands_test_set_v0.02")
    cells = list(rows(read_protocol("speech-commands-v2-12", root)).values())
    for split, num_words in (("train", 12), ("validation", 6)):
        counts = {label: cells.count((label, split)) for label in ("_unknown_", "_silence_")}
        assert counts == dict.fromkeys(counts, -(-num_words // 10))
        assert sum(part == split and not label.startswith("_") for label, part in cells) == num_words


def test_silence_is_seconds_of_the_noise_at_some_volume(tmp_path):
    root = sets.speech_commands(tmp_path / "speech_commands_v0.01", [*(f"o{i}" for i in range(4)), *TEN_WORDS])
    sets.speech_commands_test(tmp_path / "speech_commands_test_set_v0.01")
    data = read_protocol("speech-commands-v1-12", root)
    noises = {path.stem: soundfile.read(path)[0] for path in (root / "_background_noise_").glob("*.wav")}
    pieces = [entry for entry in data.manifest.entries if entry.key.startswith("_background_noise_/")]
    assert len(pieces) == 2 + 1
    for entry in pieces:
        with entry.opened() as source:
            samples, rate = soundfile.read(io.BytesIO(source.read()))
        assert (rate, len(samples)) == (16000, 16000)
        noise = noises[entry.key.split("/")[-1].rpartition("-")[0]]
        start = int(np.correlate(noise, samples, "valid").argmax())
        piece = noise[start : start + 16000]
        volume = samples @ piece / (piece @ piece)
        assert 0 <= volume < 1
        np.testing.assert_allclose(samples, volume * piece, atol=2e-4)
        border = len(noise) - len(noise) // 5
        assert (start >= border) if "/validation/" in entry.key else (start + 16000 <= border)


def test_noise_too_short_for_validation_is_one_line(twelve):
    for path in (twelve / "_background_noise_").glob("*.wav"):
        sets.sound(path, 4.0, seed=1)
    with pytest.raises(DataError, match="no noise of _background_noise_ has a second for validation"):
        read_protocol("speech-commands-v1-12", twelve)


def test_silence_is_cut_once_and_anew_when_the_noise_changes(twelve, tmp_path):
    cache = tmp_path / "cache"
    read_protocol("speech-commands-v1-12", twelve, cache=cache)
    (tar,) = cache.iterdir()
    before = tar.stat().st_mtime_ns
    read_protocol("speech-commands-v1-12", twelve, cache=cache)
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]
    sets.sound(twelve / "_background_noise_" / "white_noise.wav", 12.0, seed=3)
    read_protocol("speech-commands-v1-12", twelve, cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_twelve_classes_need_the_test_set_and_the_noise(twelve):
    with pytest.raises(DataError, match=r"has no folder speech_commands_test_set_v0.02, which speech-commands-v2-12"):
        read_protocol("speech-commands-v2-12", twelve)
    for path in (twelve / "_background_noise_").glob("*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"running_tap\.wav"):
        read_protocol("speech-commands-v1-12", twelve)
    for path in (twelve / "_background_noise_").glob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match=r"has no _background_noise_/\*.wav"):
        read_protocol("speech-commands-v1-12", twelve)


def test_cache_that_cannot_be_written_is_one_line(twelve, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="give a cache folder that can be written"):
        read_protocol("speech-commands-v1-12", twelve, cache=tmp_path / "file" / "below")


# AudioSet


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("--PJHxphWEs", "--PJHxphWEs"),
        ("Y--PJHxphWEs", "--PJHxphWEs"),
        ("--PJHxphWEs_30", "--PJHxphWEs"),
        ("--PJHxphWEs_30000", "--PJHxphWEs"),
        ("--PJHxphWEs_30.000_40.000", "--PJHxphWEs"),
        ("Y--PJHxphWEs_30_40", "--PJHxphWEs"),
        ("--PJHxphWEs_30000_40000", "--PJHxphWEs"),
        ("Yabcdefghij", "Yabcdefghij"),
        ("Yabcdefghij_", "abcdefghij_"),
        ("Yabcdefghij_30", "Yabcdefghij"),
        ("Yabcdefghij__30", "abcdefghij_"),
        ("_-_-_-_-_-_", "_-_-_-_-_-_"),
        ("_-_-_-_-_-__0_10", "_-_-_-_-_-_"),
        ("--PJHxphWEs_1_2_3", None),
        ("--PJHxphWEs-copy", None),
        ("X--PJHxphWEs", None),
        ("--PJHxphWEs_30.000_40.000_2", None),
        ("--PJHxphWÉs", None),
        ("short", None),
        ("", None),
    ],
)
def test_clip_is_found_by_its_name(stem, found):
    assert clip_id(stem) == found


@pytest.mark.parametrize("below", ["", "metadata"])
def test_audioset_counts_what_is_not_there(tmp_path, below):
    sets.audioset(tmp_path, below)
    sets.sound(tmp_path / "balanced_train" / "Y--PJHxphWEs_30.000_40.000.flac")
    sets.sound(tmp_path / "balanced_train" / "00" / "abcdefghij_.ogg")
    sets.sound(tmp_path / "unbalanced" / "unbalanced2.wav")
    sets.sound(tmp_path / "eval" / "evaluation1.wav")
    sets.sound(tmp_path / "eval" / "again" / "evaluation1_30000.wav")
    sets.sound(tmp_path / "eval" / "somethingelse.wav")
    small, large = (read_protocol(name, tmp_path) for name in ("audioset-20k", "audioset-2m"))
    assert [small.manifest.columns[name] for name in ("ytid", "split", "start_seconds", "mids")] == [
        ["--PJHxphWEs", "abcdefghij_", "evaluation1"],
        ["train", "train", "test"],
        ["30.000"] * 3,
        ["/m/09x0r,/m/05zppz"] * 3,
    ]
    assert set(small.manifest.columns["labels"]) == {"Speech;Male speech, man speaking"}
    assert small.manifest.entries[0].key == "balanced_train/Y--PJHxphWEs_30.000_40.000.flac"
    assert (small.num_missing, large.num_missing) == (3, 4)
    assert "4 of 8 clips of the published lists are not on the disk" in large.notes
    assert large.manifest.columns["part"] == ["balanced", "balanced", "unbalanced", "eval"]


def test_what_is_wrong_with_the_lists_is_said(tmp_path):
    sets.audioset(tmp_path)
    sets.sound(tmp_path / "evaluation1.wav")
    train = tmp_path / "balanced_train_segments.csv"
    whole = train.read_text()
    train.write_text(whole + 'a, 0.000, 10.000, "/m/unknown"\n')
    with pytest.raises(DataError, match=r"segment a has the label '/m/unknown', which class_labels_indices.csv lacks"):
        read_protocol("audioset-20k", tmp_path)
    train.write_text(whole + "a, 0.000, /m/09x0r\n")
    with pytest.raises(DataError, match="has 3 cells; a segment has 4"):
        read_protocol("audioset-20k", tmp_path)
    train.unlink()
    with pytest.raises(DataError, match=r"has no balanced_train_segments.csv, which audioset-20k is read from"):
        read_protocol("audioset-20k", tmp_path)
    train.write_text(whole)
    (tmp_path / "unbalanced_train_segments.csv").unlink()
    assert len(read_protocol("audioset-20k", tmp_path).manifest) == 1
    with pytest.raises(DataError, match=r"has no unbalanced_train_segments.csv"):
        read_protocol("audioset-2m", tmp_path)
    sets.table(tmp_path / "class_labels_indices.csv", ("index", "mid", "display_name"), [(0, "/m/09x0r", "a;b")])
    with pytest.raises(DataError, match="has the class 'a;b'"):
        read_protocol("audioset-20k", tmp_path)


def test_no_clip_at_all_is_an_error(tmp_path):
    sets.audioset(tmp_path)
    with pytest.raises(DataError, match="has the lists of audioset-20k but no clip that can be read: 6 are not there"):
        read_protocol("audioset-20k", tmp_path)
