"""Where the demo takes its sounds from, what it downloads and refuses, how long it trains, and the whole of it."""

import csv
import hashlib
import http.server
import io
import json
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from bridle import cli
from bridle.commands import demo as command
from bridle.commands import demo_screen
from bridle.data.audio import AudioLoader
from bridle.data.manifest import read_manifest
from bridle.data.medium import MEDIA
from bridle.demo import labelled, sounds
from bridle.demo.download import Archive, download, extract
from bridle.demo.labelled import steps_in
from bridle.demo.sounds import find_sounds
from bridle.doctor.speed import PhaseTime, Speed
from bridle.errors import ConfigError, DataError, RunError
from bridle.eval.evaluate import RANDOM
from bridle.eval.gain import Gain
from bridle.recipes import RECIPES


@pytest.fixture
def sound(tone_folder):
    return tone_folder / "tone-0.wav"


@pytest.fixture
def site():
    """A web server on this machine: ``site.answers[path]`` is a body, or a function of the request handler."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = self.server.answers.get(self.path)
            if answer is None:
                self.send_error(404)
            elif callable(answer):
                answer(self)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.answers = {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sounds_at(folder, names, sound):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound, folder / name)


def esc50(folder, sound):
    """ESC-50's own layout with 6 clips, 4 of them in ESC-10; audio/x.wav and meta/esc50.csv."""
    rows = [[f"1-{i}-A-{i % 3}.wav", 1 + i % 2, i % 3, ("dog", "rain", "cow")[i % 3], i % 3 < 2] for i in range(6)]
    write_csv(folder / "meta" / "esc50.csv", ["filename", "fold", "target", "category", "esc10"], rows)
    sounds_at(folder / "audio", [row[0] for row in rows], sound)
    return folder


def esc50_zip(folder, sound, extra=()):
    esc50(folder / "ESC-50-master", sound)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted((folder / "ESC-50-master").rglob("*.*")):
            archive.write(path, path.relative_to(folder))
        for name in extra:
            archive.writestr(name, "x")
    return stream.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


# Which sounds


def test_meta_csv_of_the_users_folder_is_taken(tmp_path, sound):
    sounds_at(tmp_path / "data", ["audio/a.wav", "audio/b.wav"], sound)
    write_csv(tmp_path / "data" / "meta.csv", ["file", "label", "split"], [["a.wav", "x", "train"], ["b.wav", "y", "test"]])
    found = find_sounds(tmp_path / "data", tmp_path / "out")
    assert (found.protocol, found.reason) == ("split", f"--data {tmp_path / 'data'} was given")
    assert [(row["class"], row["split"]) for row in read_csv(found.source)] == [("x", "train"), ("y", "test")]
    assert len(read_manifest(found.source)) == 2
    assert find_sounds(tmp_path / "data" / "meta.csv", tmp_path / "out2").protocol == "split"  # the table itself


def test_layout_of_esc50_gives_its_esc10_part(tmp_path, sound):
    found = find_sounds(esc50(tmp_path / "data", sound), tmp_path / "out")
    rows = read_csv(found.source)
    assert [row["class"] for row in rows] == ["dog", "rain", "dog", "rain"]
    assert [row["fold"] for row in rows] == ["1", "2", "2", "1"]
    assert found.title.endswith("its ESC-10 part")
    assert all(Path(row["path"]).is_file() for row in rows)


def test_folder_for_each_class(tmp_path, sound):
    sounds_at(tmp_path / "data", ["dog/a.wav", "dog/old/b.wav", "rain/a.wav", "unsorted.wav"], sound)
    found = find_sounds(tmp_path / "data", tmp_path / "out")
    assert found.protocol == ""
    assert [row["class"] for row in read_csv(found.source)] == ["dog", "dog", "rain"]


def test_the_one_table_that_fits_is_taken(tmp_path, sound):
    sounds_at(tmp_path / "data", ["a.wav", "b.wav"], sound)
    write_csv(tmp_path / "data" / "notes.csv", ["what"], [["ever"]])
    write_csv(tmp_path / "data" / "list.csv", ["path", "category"], [["a.wav", "x"], ["b.wav", "y"], ["gone.wav", "y"]])
    found = find_sounds(tmp_path / "data", tmp_path / "out")
    assert [row["class"] for row in read_csv(found.source)] == ["x", "y"]
    write_csv(tmp_path / "data" / "other.csv", ["path", "category"], [["a.wav", "x"]])
    with pytest.raises(DataError, match=r"2 tables, list.csv, other.csv; give one by --data"):
        find_sounds(tmp_path / "data", tmp_path / "out")


def test_large_set_is_sampled_by_the_seed(tmp_path, sound, monkeypatch):
    monkeypatch.setattr(sounds, "MAX_CLIPS", 7)
    sounds_at(tmp_path / "data", [f"{name}/{i}.wav" for name in "ab" for i in range(5)], sound)
    first, again, other = (find_sounds(tmp_path / "data", tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert len(read_csv(first.source)) == 7
    assert first.title.endswith("7 of 10 clips drawn by seed 0")
    assert read_csv(first.source) == read_csv(again.source) != read_csv(other.source)


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        (["a.wav", "b.wav"], None, "has no labels: it needs a CSV table"),
        (["dog/a.wav", "dog/b.wav"], None, "has no labels: it needs a CSV table"),
        (["a.wav"], [["path", "word"], ["a.wav", "x"]], "none of the label columns class, category"),
        (["a.wav", "b.wav"], [["path", "class"], ["a.wav", "x"], ["b.wav", ""]], "fewer than 2 classes in 1 labelled clips"),
    ],
)
def test_data_without_labels_is_an_error(tmp_path, sound, names, table, message):
    sounds_at(tmp_path / "data", names, sound)
    if table:
        write_csv(tmp_path / "data" / "meta.csv", *([table[0], table[1:]]))
    with pytest.raises(DataError, match=message):
        find_sounds(tmp_path / "data", tmp_path / "out")


def test_esc10_is_downloaded_once(tmp_path, sound, site):
    site.answers["/master.zip"] = body = esc50_zip(tmp_path / "source", sound)
    told = []
    archive = Archive(f"{site.url}/master.zip", md5(body))
    found = find_sounds(None, tmp_path / "out", archive=archive, on_bytes=lambda *sizes: told.append(sizes))
    assert found.reason == f"127.0.0.1 answered; md5 {md5(body)}, as expected"
    assert told[-1] == (len(body), len(body))
    rows = read_csv(found.source)
    assert [row["class"] for row in rows] == ["dog", "rain", "dog", "rain"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.wav")) == [f"1-{i}-A-{i % 3}.wav" for i in (0, 1, 3, 4)]
    assert not list((tmp_path / "out").rglob("*.zip*"))
    site.answers.clear()
    again = find_sounds(None, tmp_path / "out", archive=archive)
    assert (again.source, again.protocol, again.reason) == (found.source, "fold", "it was downloaded before")


def test_synthetic_set_is_the_last_resort_and_is_kept(tmp_path, site, monkeypatch):
    monkeypatch.setattr(sounds, "NUM_SYNTHETIC_CLIPS", 10)
    found = find_sounds(None, tmp_path, archive=Archive(f"{site.url}/gone.zip", ""), seed=3)
    assert found.reason == f"ESC-10 could not be downloaded: 127.0.0.1 answers 404 (Not Found) for {site.url}/gone.zip"
    assert (len(read_csv(found.source)), found.protocol) == (10, "fold")
    before = found.source.stat().st_mtime_ns
    again = find_sounds(None, tmp_path, archive=None, seed=3)
    assert (again.source, again.reason) == (found.source, "no download was wanted")
    assert again.source.stat().st_mtime_ns == before


def test_archive_that_is_not_esc50_leads_to_the_synthetic_set(tmp_path, site, monkeypatch):
    monkeypatch.setattr(sounds, "NUM_SYNTHETIC_CLIPS", 10)
    stream = io.BytesIO()
    zipfile.ZipFile(stream, "w").close()
    empty = stream.getvalue()
    for body, known, message in [
        (b"no zip", md5(b"no zip"), "a whole zip"),
        (empty, md5(empty), "it is not ESC-50"),
        (empty, md5(b"no zip"), f"is {md5(empty)}, not {md5(b'no zip')}"),
    ]:
        site.answers["/a.zip"] = body
        found = find_sounds(None, tmp_path, archive=Archive(f"{site.url}/a.zip", known))
        assert message in found.reason and found.title.startswith("synthetic")


# Downloads and archives


def test_download_checks_the_checksum(tmp_path, site):
    site.answers["/file"] = body = b"0123456789" * 1000
    download(f"{site.url}/file", tmp_path / "new" / "file", md5=md5(body))
    assert (tmp_path / "new" / "file").read_bytes() == body
    with pytest.raises(DataError, match=f"is {md5(body)}, not 00"):
        download(f"{site.url}/file", tmp_path / "other", md5="00")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_host_that_never_answers_is_given_up(tmp_path, site):
    release = threading.Event()
    site.answers["/file"] = lambda handler: release.wait()
    try:
        with pytest.raises(DataError, match=r"127.0.0.1 did not answer within 0.05 s"):
            download(f"{site.url}/file", tmp_path / "file", md5="", answer_seconds=0.05)
    finally:
        release.set()


def broken_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)
    handler.close_connection = True


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x" * 5_000_000)


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (broken_off, {}, "broke off"),
        (b"x" * 1001, {"max_bytes": 1000}, "1001 bytes or more; the limit is 1000"),
        (endless, {"max_bytes": 1_500_000}, "2097152 bytes or more; the limit is 1500000"),
        (b"x" * 10, {"max_seconds": -1.0}, "too slow"),
    ],
)
def test_download_that_goes_wrong_leaves_nothing(tmp_path, site, answer, settings, message):
    site.answers["/file"] = answer
    with pytest.raises(DataError, match=message):
        download(f"{site.url}/file", tmp_path / "file", md5=md5(b""), **settings)
    assert not list(tmp_path.iterdir())


def test_other_addresses_than_the_webs_are_refused(tmp_path, sound):
    with pytest.raises(DataError, match="no http or https address"):
        download(sound.as_uri(), tmp_path / "file", md5="")


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_archive_that_leads_out_of_its_folder_is_refused(tmp_path, sound, name):
    (tmp_path / "archive.zip").write_bytes(esc50_zip(tmp_path / "source", sound, extra=[name]))
    with pytest.raises(DataError, match="leads out of its folder; nothing is extracted"):
        extract(tmp_path / "archive.zip", tmp_path / "out", lambda name: True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("evil.txt"))


def test_archive_with_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="leads out"):
        extract(tmp_path / "archive.zip", tmp_path / "out", lambda name: True)


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 1_000_000)
        archive.writestr("b", "small")
    with pytest.raises(DataError, match="unpacks to 1000005 bytes; the limit is 1000"):
        extract(tmp_path / "archive.zip", tmp_path / "out", lambda name: True, max_bytes=1000)
    extract(tmp_path / "archive.zip", tmp_path / "out", lambda name: name == "b", max_bytes=1000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


# Time, words and the command


def test_steps_that_fit_into_the_time():
    def speed(step_seconds, read_seconds):
        phase = PhaseTime("cold", "500 steps", 500, 9.0, 64, 9.0, 500 * step_seconds)
        return Speed("cpu", "fp32", (phase,), read_seconds, 0.0, 0.0)

    assert steps_in(180.0, speed(0.5, 10.0)) == 320
    assert steps_in(180.0, speed(0.511, 10.0)) == 310  # whole tens
    assert steps_in(10.0, speed(0.5, 10.0)) == labelled.LEAST_STEPS


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([(0.1, 0.3), (0.05, 0.2)], "clearly better"),
        ([(0.1, 0.3), (-0.05, 0.2)], "better, but not beyond doubt"),
        ([(0.1, 0.3), (-0.2, 0.1)], "clearly better by kNN only"),
        ([(0.1, 0.3), (-0.2, -0.1)], "no better by every probe"),
        ([(-0.1, 0.3), (-0.2, 0.1)], "no better by every probe"),
        ([(-0.3, 0.1), (-0.2, -0.1)], "no better"),
        ([(-0.3, -0.1), (-0.2, -0.1)], "clearly worse"),
    ],
)
def test_words_claim_no_more_than_the_intervals(ends, words):
    probes = ("knn", "linear")
    gains = [Gain(probe, RANDOM, (low + high) / 2, low, high) for probe, (low, high) in zip(probes, ends, strict=True)]
    assert demo_screen.in_words(gains).plain == words


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(RunError, match="is not the folder of an earlier demo; choose another --out"):
        command.main(["--out", str(tmp_path), "--offline"])
    assert (tmp_path / "run" / "precious").read_text() == "x"


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--steps", "0"]])
def test_no_time_is_an_error(tmp_path, wrong):
    with pytest.raises(ConfigError, match="must be above 0"):
        command.main(["--out", str(tmp_path / "out"), *wrong])


def test_there_is_a_demo_of_every_medium():
    assert command.COURSES.keys() == MEDIA.keys()
    for medium, course in command.COURSES.items():
        config = RECIPES[course.recipe]()
        assert config.medium.name == medium
        assert len(config.plan) == 1
        assert course.minutes is not None or config.plan[0].unit == "steps", "the length does not depend on the data"
        assert course.following.split()[2] in RECIPES


def test_own_pictures_are_not_taken(tmp_path):
    with pytest.raises(ConfigError, match=r"is for sounds; on your own pictures try: bridle pretrain image-small"):
        command.main(["--medium", "image", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_whole_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sounds, "NUM_SYNTHETIC_CLIPS", 40)
    out, picture = tmp_path / "demo", tmp_path / "screen.svg"
    arguments = ["demo", "--out", str(out), "--offline", "--minutes", "0.02", "--picture", str(picture)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for text in ("no download was wanted", "$ bridle doctor", "$ bridle pretrain audio-demo", "$ bridle evaluate"):
        assert text in printed
    for text in (
        "pretrained encoder",
        RANDOM,
        AudioLoader.baseline_name,
        "gain over",
        "codes: 4 levels of 256",
        "bridle inspect",
    ):
        assert text in printed.split("minutes in all")[1]
    assert {path.name for path in out.iterdir()} == {
        *("codes", "embeddings", "run", "sounds"),
        *("demo.json", "doctor.json", "evaluation.json"),
    }
    assert json.loads((out / "demo.json").read_text())["steps"] == labelled.LEAST_STEPS
    assert "<svg" in picture.read_text()
    assert cli.main([*arguments[:-2], "--steps", "1"]) == 0  # a second demo replaces the first one's results
    assert json.loads((out / "demo.json").read_text())["steps"] == 1
