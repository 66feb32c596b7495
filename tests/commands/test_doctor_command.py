"""``bridle doctor``."""

import json
import shutil

import numpy as np
import soundfile
from PIL import Image
from reference.media_folders import write_film

from bridle.cli import main


def write_sound(path, *, broken=False):
    """A second of noise; a broken one holds a value that is no number, which its header does not tell."""
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    sound[8000] = np.nan if broken else 0
    soundfile.write(path, sound, 16000, subtype="FLOAT")


def doctor(*arguments):
    return main(["doctor", *map(str, arguments), "--recipe", "audio-debug"])


def test_says_ready_and_how(tiny_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    assert doctor(tiny_folder, "--json", tmp_path / "report.json") == 0
    out = capsys.readouterr().out
    for expected in (
        "10 sound files, 10 readable as far as seen, 15 s, ",
        "16000 Hz: 4   ",
        "wav/pcm_16: 8   flac/pcm_16: 2",
        "10 files, of which 0 broken, 0 silent, 0 cut short",
        "1 s - 2 s",
        "10 clips of up to 2 s, 80 % of the time, 2 steps",
        "estimated time",
        "what to do",
        "ready to train",
        f"bridle pretrain audio-debug --data {tiny_folder} --out runs/first",
    ):
        assert expected in out, expected
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["files"]["num_files"] == 10
    assert [phase["kind"] for phase in report["speed"]["phases"]] == ["cold", "tokenizer", "encoder", "joint"]


def test_the_first_ten_broken_files_are_named_and_training_would_not_start(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    for i in range(12):
        (data / f"text-{i:02d}.wav").write_text("no sound")
    (data / "empty.wav").write_bytes(b"")
    assert doctor(data, "--no-speed") == 1
    out = capsys.readouterr().out
    assert "unreadable: 13" in out
    assert "text-08.wav" in out
    assert "text-09.wav" not in out
    assert "training would not start: 13 of 23 files are unreadable (limit 1)" in out
    assert "ready to train" not in out
    assert "estimated time" not in out


def test_all_decodes_all(tiny_folder, capsys):
    assert doctor(tiny_folder, "--no-speed", "--decode", 3) == 0
    assert "3 files, of which" in capsys.readouterr().out
    assert doctor(tiny_folder, "--no-speed", "--decode", 3, "--all") == 0
    assert "10 files, of which" in capsys.readouterr().out


def test_counts_agree_where_files_break_when_they_are_decoded(tmp_path, capsys, monkeypatch):
    """What breaks only then has a good header, so it was counted as readable in one line and not in another."""
    monkeypatch.setenv("COLUMNS", "120")
    for i in range(5):
        write_sound(tmp_path / f"{i}.wav", broken=i == 0)
    doctor(tmp_path, "--no-speed")
    out = capsys.readouterr().out
    for expected in (
        "5 sound files, 4 readable as far as seen, 4 s, ",
        "16000 Hz: 4",
        "5 files, of which 1 broken, 0 silent",
        "1 s ████████████████████████████████████████ 4",
        "4 clips of up to 1 s, 100 % of the time, 1 step, ",
        "unreadable: 1",
    ):
        assert expected in out, expected


def test_a_single_file_is_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    write_sound(tmp_path / "0.wav")
    doctor(tmp_path, "--no-speed")
    out = capsys.readouterr().out
    for expected in ("1 sound file, readable as far as seen, ", "1 file, of which", "1 clip of up to 1 s", "1 step, "):
        assert expected in out, expected


def test_other_media_are_mentioned(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    for i in range(3):
        write_film(data / f"{i}.mp4", np.random.default_rng(i), 3, 0)  # without a sound track
    Image.new("RGB", (8, 8)).save(data / "cover.jpg")
    doctor(data, "--no-speed", "--json", tmp_path / "report.json")
    out = capsys.readouterr().out
    assert "10 sound files, 10 readable" in out
    assert "beside them: 3 films, left out (recipes video-...)" in out
    assert "beside them: 1 picture, left out (recipes image-...)" in out
    assert json.loads((tmp_path / "report.json").read_text())["others"] == {"image": 1, "video": 3}
    doctor(tiny_folder, "--no-speed")
    assert "beside them" not in capsys.readouterr().out


def test_films_are_not_to_be_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    write_film(tmp_path / "0.mp4", np.random.default_rng(0), 100, 0)
    main(["doctor", str(tmp_path), "--recipe", "video-debug", "--no-speed"])
    out = capsys.readouterr().out
    assert "ask for more epochs, or for frames further apart, such as --video.stride" in out
    assert "cut long files" not in out


def test_a_table_names_its_column_of_paths(tiny_folder, tmp_path, capsys):
    files = sorted(tiny_folder.rglob("*.wav"))
    table = tmp_path / "meta.csv"
    table.write_text("where\n" + "".join(f"{path}\n" for path in files))
    assert doctor(table, "--no-speed") == 1
    assert "--path" in capsys.readouterr().err
    assert doctor(table, "--no-speed", "--path", "where") == 0
    assert f"{len(files)} sound files" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table.write_text("where\na.png\n")
    main(["doctor", str(table), "--no-speed", "--path", "where"])
    assert "1 picture, readable" in capsys.readouterr().out  # which medium it is is seen by that column, too


def test_wrong_calls_are_one_line(tiny_folder, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        ([tmp_path / "empty"], "no readable sound file"),
        ([tmp_path / "text.wav"], "the one file is not readable: text.wav (not audio)"),
        ([tmp_path / "nothing"], "does not exist"),
        ([], "there is no DATA"),
        ([tiny_folder, "--decode", "-1"], "num_decoded is -1"),
    ):
        assert doctor(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
        assert expected in error
    assert main(["doctor", str(tiny_folder), "--recipe", "audio-smal"]) == 1
    assert "there is no recipe 'audio-smal'" in capsys.readouterr().err
