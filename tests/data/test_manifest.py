import csv
import dataclasses
import itertools
import pickle
import shutil
import string
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.sound_files import melody, mux

from bridle.data.entries import Entries
from bridle.data.manifest import Entry, likely_medium, read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO
from bridle.data.sharding import write_shards
from bridle.errors import DataError, DecodeError
from bridle.media.video import VideoInfo


def write_wav(path, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(int(16000 * seconds)) / 10).astype(np.float32) * 0.1, 16000)
    return path


def keys(manifest):
    return [entry.key for entry in manifest.entries]


@pytest.fixture
def folder(tmp_path):
    for name, seconds in [("b.wav", 0.2), ("a/z.flac", 0.3), ("a/y.WAV", 0.4), ("c/d/e.ogg", 0.5)]:
        write_wav(tmp_path / "set" / name, seconds)
    return tmp_path / "set"


class TestFolder:
    def test_sorted_keys_paths_and_durations(self, folder):
        manifest = read_manifest(folder)
        assert keys(manifest) == ["a/y.WAV", "a/z.flac", "b.wav", "c/d/e.ogg"]
        assert [round(e.duration_seconds, 6) for e in manifest.entries] == [0.4, 0.3, 0.2, 0.5]
        assert [e.path for e in manifest.entries] == [str(folder / key) for key in keys(manifest)]
        assert manifest.entries[0].open() == str(folder / "a/y.WAV")
        assert (len(manifest), manifest.num_files, manifest.bad, manifest.columns) == (
            4,
            4,
            (),
            {"class": ["a", "a", "", "d"]},
        )

    def test_other_and_hidden_files_are_passed_over(self, folder):
        (folder / "notes.txt").write_text("hello")
        (folder / "noext").write_text("hello")
        for name in (".hidden.wav", "._b.wav", ".git/x.wav", "a/.cache/x.wav"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"junk")
        manifest = read_manifest(folder)
        assert len(manifest) == 4
        assert manifest.bad == ()

    def test_sound_tracks_of_films_are_read_and_silent_films_passed_over(self, folder):
        mux(folder / "film.mp4", "aac", melody(1.0, 16000), 16000, video=True)
        mux(folder / "c/silent.mov", None, melody(1.0, 16000), 16000, video=True)
        (folder / "torn.mkv").write_bytes(b"no film")
        manifest = read_manifest(folder)
        assert keys(manifest) == ["a/y.WAV", "a/z.flac", "b.wav", "c/d/e.ogg", "film.mp4"]
        assert manifest.entries[-1].duration_seconds == pytest.approx(1.0, abs=0.1)
        assert [file.key for file in manifest.bad] == ["torn.mkv"]
        (folder / "table.csv").write_text("path,word\nfilm.mp4,a\nc/silent.mov,b\n")
        assert [file.key for file in read_manifest(folder / "table.csv").bad] == ["c/silent.mov"]
        with pytest.raises(DataError, match="no readable sound file"):
            read_manifest(folder / "c" / "silent.mov")

    def test_unreadable_sounds_are_bad(self, folder):
        (folder / "a/empty.wav").touch()
        (folder / "a/text.flac").write_text("not sound")
        (folder / "z.wav").symlink_to(folder / "nowhere.wav")
        manifest = read_manifest(folder)
        assert len(manifest) == 4
        assert [file.key for file in manifest.bad] == ["a/empty.wav", "a/text.flac", "z.wav"]
        assert all(file.reason for file in manifest.bad)
        assert manifest.num_files == 7

    def test_links_to_folders_are_followed_once_and_loops_end(self, folder, tmp_path):
        write_wav(tmp_path / "elsewhere" / "far.wav")
        (folder / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
        (folder / "a" / "up").symlink_to(folder)
        (folder / "zz").symlink_to(folder / "c")
        assert keys(read_manifest(folder)) == ["a/y.WAV", "a/z.flac", "b.wav", "c/d/e.ogg", "link/far.wav"]

    def test_without_probe_durations_are_unknown(self, folder):
        (folder / "broken.wav").write_bytes(b"junk")
        manifest = read_manifest(folder, probe=False)
        assert len(manifest) == 5
        assert {entry.duration_seconds for entry in manifest.entries} == {0.0}

    def test_number_of_threads_changes_nothing(self, folder):
        (folder / "broken.wav").write_bytes(b"junk")
        assert read_manifest(folder, num_threads=1) == read_manifest(folder, num_threads=7)

    def test_waiting_for_a_disk_in_threads_changes_nothing(self, folder, monkeypatch):
        (folder / "broken.wav").write_bytes(b"junk")
        plain = read_manifest(folder / "**/*.*")
        used = []

        def probe(source, key):
            time.sleep(0.01)
            used.append(key)
            return AUDIO.probe(source, key)

        monkeypatch.setattr("bridle.data.manifest._PROBE_TASK", 2)
        assert read_manifest(folder / "**/*.*", dataclasses.replace(AUDIO, probe=probe), num_threads=3) == plain
        assert len(used) == 5

    def test_entries_are_held_in_columns(self, folder):
        manifest = read_manifest(folder)
        assert isinstance(manifest.entries, Entries)
        assert isinstance(read_manifest(folder / "b.wav").entries, Entries)

    def test_where_a_table_looks_for_its_paths_is_said(self, tmp_path):
        table = tmp_path / "in" / "table.csv"
        table.parent.mkdir()
        table.write_text("path\nelsewhere/a.wav\n")
        with pytest.raises(DataError, match=r"relative to its folder or the one above, which hold no elsewhere/a\.wav;"):
            read_manifest(table)
        (tmp_path / "b.wav").symlink_to(tmp_path / "nowhere.wav")
        with pytest.raises(DataError, match=r"first b\.wav \(missing\); looked for"):
            read_manifest(tmp_path)

    def test_nothing_found(self, tmp_path):
        with pytest.raises(DataError, match=r"no readable sound file in .*looked for .*\.flac"):
            read_manifest(tmp_path)
        (tmp_path / "x.wav").touch()
        with pytest.raises(DataError, match=r"1 unreadable, first x\.wav \("):
            read_manifest(tmp_path)

    def test_missing_and_unknown_sources(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere does not exist; give"):
            read_manifest(tmp_path / "nowhere")
        (tmp_path / "a.txt").touch()
        with pytest.raises(DataError, match=r"a\.txt is no known kind of source"):
            read_manifest(tmp_path / "a.txt")
        with pytest.raises(DataError, match="empty list"):
            read_manifest([])


class TestSeveral:
    def test_keys_begin_with_the_source(self, folder, tmp_path):
        other = tmp_path / "other"
        write_wav(other / "b.wav")
        manifest = read_manifest([folder, str(other), other / "b.wav"])
        assert keys(manifest)[:3] == [f"{folder}/a/y.WAV", f"{folder}/a/z.flac", f"{folder}/b.wav"]
        assert keys(manifest)[-2:] == [f"{other}/b.wav", f"{other}/b.wav"], "one file twice is two clips"

    def test_columns_are_joined(self, folder, tmp_path):
        for name, header in (("m.csv", "path,label,duration_seconds"), ("n.csv", "path,fold,duration_seconds")):
            (folder / name).write_text(f"{header}\nb.wav,7,0.2\n")
        manifest = read_manifest([folder / "m.csv", folder / "a", folder / "n.csv"])
        assert manifest.columns["label"] == ["7", "", "", ""]
        assert manifest.columns["fold"] == ["", "", "", "7"]
        assert keys(manifest)[0] == f"{folder}/b.wav"

    def test_glob(self, folder):
        assert keys(read_manifest(folder / "a" / "*.flac")) == ["z.flac"]
        assert keys(read_manifest(f"{folder}/*/*.*")) == [f"{folder}/a/y.WAV", f"{folder}/a/z.flac"]
        with pytest.raises(DataError, match="no readable sound file"):
            read_manifest(f"{folder}/*.mp3")

    def test_single_file(self, folder):
        assert keys(read_manifest(folder / "b.wav")) == ["b.wav"]


class TestTable:
    def test_columns_paths_and_trusted_durations(self, folder):
        text = 'label,file,duration_seconds,note\n3,b.wav,12.5,"a, ""b"""\n4,a/z.flac,,\n\n,,,\n'
        (folder / "meta.csv").write_text(text, encoding="utf-8-sig")
        manifest = read_manifest(folder / "meta.csv")
        assert keys(manifest) == ["b.wav", "a/z.flac"]
        assert manifest.columns == {"label": ["3", "4"], "duration_seconds": ["12.5", ""], "note": ['a, "b"', ""]}
        assert [round(e.duration_seconds, 6) for e in manifest.entries] == [12.5, 0.3], "the column is trusted, not probed"

    @pytest.mark.parametrize("place", ["", "audio/", "../", "../audio/"])
    def test_relative_paths_are_found_around_the_table(self, tmp_path, place):
        table = tmp_path / "set" / "meta" / "esc.csv"
        wav = write_wav(table.parent / place / "1-100.wav")
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("filename,fold\n1-100.wav,1\n")
        (entry,) = read_manifest(table).entries
        assert entry.key == "1-100.wav"
        assert wav.samefile(entry.path)

    def test_absolute_paths(self, folder, tmp_path):
        (tmp_path / "m.csv").write_text(f"path\n{folder / 'b.wav'}\n")
        assert keys(read_manifest(tmp_path / "m.csv")) == [str(folder / "b.wav")]

    def test_bad_rows_leave_the_columns_aligned(self, folder):
        (folder / "a/broken.wav").write_bytes(b"junk")
        rows = ["path,label", "nowhere.wav,0", "b.wav,1", "a/broken.wav,2", ",3", "a/z.flac,4"]
        (folder / "m.csv").write_text("\n".join(rows))
        manifest = read_manifest(folder / "m.csv")
        assert keys(manifest) == ["b.wav", "a/z.flac"]
        assert manifest.columns["label"] == ["1", "4"]
        reasons = {file.key: file.reason for file in manifest.bad}
        assert reasons["nowhere.wav"] == "missing"
        assert reasons[f"{folder / 'm.csv'} line 5"] == "empty path"
        assert "a/broken.wav" in reasons

    def test_path_column(self, folder):
        (folder / "m.csv").write_text("path,clip_name\na/z.flac,b.wav\n")
        assert keys(read_manifest(folder / "m.csv")) == ["a/z.flac"]
        assert keys(read_manifest(folder / "m.csv", path_column="clip_name")) == ["b.wav"]
        with pytest.raises(DataError, match=r"no column 'clipname'; its columns are path, clip_name; did you mean 'clip_name'"):
            read_manifest(folder / "m.csv", path_column="clipname")
        (folder / "m.csv").write_text("sound,label\nb.wav,1\n")
        with pytest.raises(DataError, match=r"none of the path columns path, file, .* its columns are sound, label"):
            read_manifest(folder / "m.csv")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"path\n\xff\xfe.wav\n", "UTF-8"),
            (b'path\n"open.wav\n', "not a UTF-8 comma-separated table"),
            (b"path,label\nb.wav,1,2\n", "line 2 has 3 cells for 2 columns"),
            (b"path,duration_seconds\nb.wav,long\n", "line 2: duration_seconds is 'long'"),
            (b"path,duration_seconds\nb.wav,-1\n", "duration_seconds is '-1'"),
            (b"path,duration_seconds\nb.wav,nan\n", "duration_seconds is 'nan'"),
        ],
    )
    def test_malformed_tables(self, folder, content, message):
        (folder / "m.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_manifest(folder / "m.csv")

    @pytest.mark.parametrize("medium", [VIDEO, AUDIO, IMAGE], ids=lambda medium: medium.name)
    def test_only_films_are_probed_where_the_duration_is_known(self, tmp_path, medium):
        num_probed = itertools.count()

        def probe(source, key):
            next(num_probed)
            if key == "torn":
                raise DecodeError(key, "not a video")
            return VideoInfo(2.0, 64, 48, 12.5, 25, "h264", "mov")

        for name in ("a", "b", "torn"):
            (tmp_path / name).touch()
        (tmp_path / "m.csv").write_text("path,duration_seconds,label\ntorn,3,0\na,7.5,1\nb,,2\n")
        manifest = read_manifest(tmp_path / "m.csv", dataclasses.replace(medium, probe=probe))
        if medium is VIDEO:
            assert [(entry.duration_seconds, entry.rate_hz) for entry in manifest.entries] == [(7.5, 12.5), (2.0, 12.5)]
            assert manifest.columns["label"] == ["1", "2"]
            assert [file.key for file in manifest.bad] == ["torn"]
        assert next(num_probed) == {"video": 3, "audio": 1, "image": 0}[medium.name]

    def test_parquet(self, folder):
        columns = {
            "label": [1, None],
            "path": ["b.wav", "a/z.flac"],
            "duration_seconds": pa.array([1.5, None], pa.float32()),
            "raw": [b"\x00", b"\x01"],
            "vector": [[1.0], [2.0]],
        }
        pq.write_table(pa.table(columns), folder / "m.parquet")
        manifest = read_manifest(folder / "m.parquet")
        assert keys(manifest) == ["b.wav", "a/z.flac"]
        assert manifest.columns == {"label": ["1", ""], "duration_seconds": ["1.5", ""]}
        assert [round(e.duration_seconds, 6) for e in manifest.entries] == [1.5, 0.3]
        (folder / "m.parquet").write_bytes(b"junk")
        with pytest.raises(DataError, match="not a readable parquet table"):
            read_manifest(folder / "m.parquet")


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.text(string.ascii_letters + " ,'\"éß日本🎵;&%", min_size=1, max_size=12).map(lambda s: f"x{s}.wav")


@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES, CELLS, CELLS, st.integers(0, 2)), min_size=1, max_size=8))
def test_any_csv_that_a_writer_writes_is_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    for name, *_ in rows:
        (folder / name).touch()
    with (folder / "m.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["first", "path", "second", "duration_seconds"])
        for name, first, second, blank_lines in rows:
            writer.writerow([first, name, second, "1.0"])
            stream.write("\r\n" * blank_lines)
    manifest = read_manifest(folder / "m.csv")
    assert keys(manifest) == [name for name, *_ in rows]
    assert manifest.columns["first"] == [row[1] for row in rows]
    assert manifest.columns["second"] == [row[2] for row in rows]
    shutil.rmtree(folder)


class TestTar:
    @pytest.fixture
    def tar(self, folder, tmp_path):
        path = tmp_path / "shards" / "s-0.tar"
        path.parent.mkdir()
        shutil.make_archive(str(path.with_suffix("")), "tar", folder)
        return path

    def test_members_are_the_files(self, folder, tar):
        manifest = read_manifest(tar)
        plain = {entry.key: entry for entry in read_manifest(folder).entries}
        assert sorted(keys(manifest)) == sorted(f"s-0.tar/{key}" for key in plain)
        for entry in manifest.entries:
            twin = plain[entry.key.removeprefix("s-0.tar/")]
            assert entry.duration_seconds == twin.duration_seconds
            with entry.opened() as window:
                assert window.read() == (folder / twin.key).read_bytes()

    def test_folders_hold_shards_and_files(self, folder, tar):
        shutil.copy(tar, tar.with_name("s-1.tar"))
        write_wav(tar.with_name("r.wav"))
        found = keys(read_manifest(tar.parent))
        assert found[0] == "r.wav"
        assert [key.split("/")[0] for key in found[1:]] == ["s-0.tar"] * 4 + ["s-1.tar"] * 4
        assert len(read_manifest(f"{tar.parent}/s-*.tar")) == 8

    def test_unsafe_members_and_broken_shards_are_bad(self, tar, folder):
        import tarfile

        with tarfile.open(tar, "a") as archive:
            archive.add(folder / "b.wav", "../b.wav", filter=lambda info: info)
        tar.with_name("t.tar").write_bytes(b"junk" * 1000)
        manifest = read_manifest(tar.parent)
        assert len(manifest) == 4
        assert [(f.key, f.reason[:12]) for f in manifest.bad] == [
            ("s-0.tar/../b.wav", "unsafe path "),
            ("t.tar", "not a whole "),
        ]
        with pytest.raises(DataError, match=r"1 unreadable, first t\.tar"):
            read_manifest(tar.with_name("t.tar"))


def test_entries_survive_pickling():
    entry = Entry("k", "/p.tar", 512, 10, 1.5)
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_real_table(real_data):
    manifest = read_manifest(real_data / "esc10" / "meta.csv")
    assert len(manifest) == 400
    assert manifest.bad == ()
    assert set(manifest.columns["fold"]) == set("12345")
    assert sum(entry.duration_seconds for entry in manifest.entries) == pytest.approx(400 * 5, rel=0.01)


def test_pictures_are_not_looked_for_among_sounds(tmp_path):
    names = [f"{number}.wav" for number in range(3)]
    for name in names:
        write_wav(tmp_path / name)
    table = tmp_path / "meta.csv"
    table.write_text("path,word\n" + "".join(f"{name},a\n" for name in names))
    with pytest.raises(DataError, match=r"is called like a picture; what is there looks like 3 sound files \(recipes audio-"):
        read_manifest(table, IMAGE)
    (tmp_path / "0.png").touch()
    table.write_text(table.read_text() + "0.png,a\n")
    assert len(read_manifest(table, IMAGE)) == 4
    odd = tmp_path / "odd.csv"
    odd.write_text("path\n0.dcm\n")
    (tmp_path / "0.dcm").touch()
    assert len(read_manifest(odd, IMAGE)) == 1


@pytest.fixture
def shards(folder, tmp_path):
    """The folder as three shards with an index."""
    write_shards(read_manifest(folder, probe=False), AUDIO, tmp_path / "shards", clips_per_shard=2)
    return tmp_path / "shards"


class TestPatterns:
    def test_ranges_as_webdataset_has_them(self, folder, tmp_path):
        for number in range(8, 12):
            shutil.make_archive(str(tmp_path / f"s-{number:03}"), "tar", folder / "c")
        assert len(read_manifest(f"{tmp_path}/s-{{008..010}}.tar")) == 3
        assert len(read_manifest(f"{tmp_path}/s-00{{8..9}}.tar")) == 2
        found = read_manifest(f"{tmp_path}/s-{{01..01}}{{0..1}}.tar")
        assert keys(found) == [f"{tmp_path}/s-010.tar/d/e.ogg", f"{tmp_path}/s-011.tar/d/e.ogg"]
        with pytest.raises(DataError, match=r"s-012\.tar does not exist"):
            read_manifest(f"{tmp_path}/s-{{008..012}}.tar")

    def test_ranges_are_bounded(self):
        for pattern in ("{3..1}", "{0..99999999999}", "{000..999}{000..999}{0..9}"):
            with pytest.raises(DataError, match="names; it must be 1 to 100000"):
                read_manifest(pattern)

    def test_what_is_called_so_is_no_pattern(self, folder):
        write_wav(folder / "x{0..1}.wav")
        assert keys(read_manifest(folder / "x{0..1}.wav")) == ["x{0..1}.wav"]


def upload(folder, url):
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe(f"{url}/{path.name}", path.read_bytes())
    return url


class TestUrls:
    def test_shards_with_an_index(self, folder, shards, tmp_path):
        plain = read_manifest(folder)
        for url in (upload(shards, f"memory://{tmp_path}/up"), f"file://{shards}"):
            for source in (url, f"{url}/", f"{url}/index.parquet"):
                manifest = read_manifest(source)
                assert manifest.fingerprint == plain.fingerprint
                assert manifest.columns == plain.columns
            for ours, theirs in zip(manifest.entries, plain.entries, strict=True):
                with ours.opened() as stream:
                    assert stream.read() == Path(theirs.path).read_bytes()
            assert read_manifest([url, folder / "b.wav"]).keys[:2] == [f"{url}/a/y.WAV", f"{url}/a/z.flac"]
            with pytest.raises(DataError, match="holds sound files, not films"):
                read_manifest(url, VIDEO)
            assert likely_medium([url]) is AUDIO

    def test_shards_without_an_index(self, folder, shards, tmp_path):
        (shards / "index.parquet").unlink()
        plain = read_manifest(shards)
        url = upload(shards, f"memory://{tmp_path}/bare")
        assert read_manifest(url).keys[:] == plain.keys[:]
        assert read_manifest(url).durations.tolist() == plain.durations.tolist()
        assert read_manifest(url).columns == plain.columns
        assert len(read_manifest(f"{url}/shard-{{00000..00001}}.tar")) == 4
        assert keys(read_manifest(f"{url}/shard-00000.tar")) == ["shard-00000.tar/a/y.wav", "shard-00000.tar/a/z.flac"]
        both = read_manifest([f"{url}/shard-00001.tar", folder / "b.wav"])
        assert both.entries[0].key == f"{url}/shard-00001.tar/b.wav"

    def test_what_is_not_there_or_not_readable(self, tmp_path):
        url = f"memory://{tmp_path}/none"
        with pytest.raises(DataError, match=r"cannot be listed: .*check the address"):
            read_manifest(url)
        with pytest.raises(DataError, match=r"1 unreadable, first s\.tar \(.*missing"):
            read_manifest(f"{url}/s.tar")
        fsspec.filesystem("memory").pipe(f"{url}/a.wav", b"x")
        with pytest.raises(DataError, match=r"holds no index\.parquet and no \.tar; write shards \(bridle shard\)"):
            read_manifest(url)


class TestWebDataset:
    def test_shards_of_its_writers_are_read(self, folder, tmp_path):
        plain = read_manifest(folder)
        rows = []
        for number, entry in enumerate(plain.entries):
            content = Path(entry.path).read_bytes()
            suffix = entry.key.rpartition(".")[2].lower()
            about = {"word": entry.key, "length": number}
            rows.append({"__key__": f"{number:06}", suffix: content, "cls": number % 2, "txt": "a text", "json": about})
        with webdataset.ShardWriter(f"{tmp_path}/w-%03d.tar", maxcount=3, verbose=0) as writer:
            for row in rows:
                writer.write(dict(row))
        with webdataset.TarWriter(f"{tmp_path}/one.tar") as writer:
            for row in rows:
                writer.write(dict(row))
        for source in (f"{tmp_path}/w-{{000..001}}.tar", tmp_path / "one.tar"):
            manifest = read_manifest(source)
            assert manifest.columns["cls"] == ["0", "1", "0", "1"]
            assert manifest.columns["word"] == keys(plain)
            assert manifest.columns["txt"] == ["a text"] * 4
            assert manifest.columns["length"] == ["0", "1", "2", "3"]
            for entry, row in zip(manifest.entries, rows, strict=True):
                with entry.opened() as stream:
                    assert stream.read() in row.values()
