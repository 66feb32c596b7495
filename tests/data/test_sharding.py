"""Any files as shards: every byte is there, for us and for WebDataset, whatever happens on the way."""

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference.video_files import film

from bridle.data import sharding
from bridle.data.entries import Entry, Manifest
from bridle.data.index import read_shard_index
from bridle.data.manifest import read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO
from bridle.data.sharding import write_shards
from bridle.data.tar_writer import NotWritten, TarWriter, member_stems
from bridle.errors import ConfigError, DataError, RunError
from bridle.media.image import ImageInfo

NAMES = ("dog/a.wav", "dog/b.c.wav", "cat/a.wav", "cat/a.flac", "cat/ünï 日本.wav", "A.WAV", "a.wav")


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / "in" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "FLAC" if name.endswith("flac") else "WAV"
        soundfile.write(path, np.sin(np.arange(1600 + number) / (number + 3)), 16000, format=kind)
    return tmp_path / "in"


def shard(folder, out, medium=AUDIO, **limits):
    return write_shards(read_manifest(folder, medium, probe=False), medium, out, **limits)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(*tars):
    """What webdataset reads, in order."""
    urls = [str(tar) for tar in tars]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


class TestReading:
    def test_a_folder_of_shards_is_the_same_source(self, folder, tmp_path):
        plain = read_manifest(folder)
        done = shard(folder, tmp_path / "out", clips_per_shard=3)
        assert (done.num_clips, done.num_shards, done.num_kept_shards, done.bad) == (7, 3, 0, ())
        assert done.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
        for source in (tmp_path / "out", tmp_path / "out" / "index.parquet"):
            manifest = read_manifest(source)
            assert manifest.fingerprint == plain.fingerprint
            assert manifest.columns == plain.columns
            for ours, theirs in zip(manifest.entries, plain.entries, strict=True):
                with ours.opened() as stream:
                    assert stream.read() == Path(theirs.path).read_bytes()
        both = read_manifest([tmp_path / "out", folder / "train/cat"])
        assert len(both) == 10
        assert both.entries[0].key == f"{tmp_path}/out/{plain.entries[0].key}"
        assert both.columns["class"][:7] == plain.columns["class"]
        assert read_manifest([tmp_path / "out/index.parquet", folder / "train/cat"]).keys[0] == both.keys[0]

    def test_webdataset_reads_every_byte(self, folder, tmp_path):
        plain = read_manifest(folder)
        shard(folder, tmp_path / "out", clips_per_shard=4)
        found = samples(*sorted((tmp_path / "out").glob("*.tar")))
        assert len({sample["__key__"] for sample in found}) == len(NAMES)
        for sample, entry in zip(found, plain.entries, strict=True):
            assert sample[Path(entry.key).suffix[1:].lower()] == Path(entry.path).read_bytes()
            row = plain.keys.index(entry.key)
            assert json.loads(sample["json"]) == {name: cells[row] for name, cells in plain.columns.items()}

    def test_a_shard_alone_is_a_tar_like_any_other(self, folder, tmp_path):
        shard(folder, tmp_path / "out")
        manifest = read_manifest(tmp_path / "out" / "shard-00000.tar")
        plain = read_manifest(folder)
        assert manifest.columns["class"] == plain.columns["class"]
        assert manifest.durations.tolist() == plain.durations.tolist()
        assert manifest.keys[0] == "shard-00000.tar/train/A.wav"

    def test_another_medium_is_told(self, folder, tmp_path):
        shard(folder, tmp_path / "out")
        with pytest.raises(DataError, match=r"out holds sound files, not pictures; take a recipe audio-"):
            read_manifest(tmp_path / "out", IMAGE)

    def test_shards_can_be_sharded_again(self, folder, tmp_path):
        shard(folder, tmp_path / "one")
        shard(tmp_path / "one", tmp_path / "two", clips_per_shard=2)
        assert read_manifest(tmp_path / "two").fingerprint == read_manifest(folder).fingerprint

    def test_films_keep_their_rate(self, tmp_path):
        (tmp_path / "in").mkdir()
        film(tmp_path / "in" / "a.mp4")
        shard(tmp_path / "in", tmp_path / "out", VIDEO)
        assert read_manifest(tmp_path / "out", VIDEO).entries[0].rate_hz > 0

    def test_no_columns_no_sidecars(self, tmp_path):
        path = tmp_path / "in" / "a.png"
        path.parent.mkdir()
        Image.new("L", (4, 4)).save(path)
        shard(path.parent, tmp_path / "out", IMAGE)
        with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
            assert tar.getnames() == ["a.png"]

    def test_a_name_without_suffix_gets_that_of_its_format(self, tmp_path):
        path = tmp_path / "picture"
        Image.new("L", (4, 4)).save(path, "PNG")
        write_shards(Manifest((Entry("hf:set:train/7", str(path)),)), IMAGE, tmp_path / "out")
        assert samples(tmp_path / "out" / "shard-00000.tar")[0]["png"] == path.read_bytes()
        assert len(read_manifest(tmp_path / "out", IMAGE)) == 1


class TestWriting:
    def test_equal_files_give_equal_bytes(self, folder, tmp_path):
        shard(folder / "train", tmp_path / "one")
        for path in (folder / "train").rglob("*.*"):
            os.utime(path, (1, 1))
        (folder / "train").rename(tmp_path / "moved")
        shard(tmp_path / "moved", tmp_path / "two")
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
        with tarfile.open(tmp_path / "one" / "shard-00000.tar") as tar:
            assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in tar} == {
                (0, 0, 0, "", 0o644)
            }

    def test_sizes_and_digests_are_those_of_the_tars(self, folder, tmp_path):
        shard(folder, tmp_path / "out", clips_per_shard=4)
        for made in read_shard_index(str(tmp_path / "out")).shards:
            content = (tmp_path / "out" / made.name).read_bytes()
            assert (made.size, made.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            assert len(content) % 10240 == 0

    def test_limits(self, folder, tmp_path):
        shard(folder, tmp_path / "bytes", shard_bytes=12_000)
        sizes = [path.stat().st_size for path in sorted((tmp_path / "bytes").glob("*.tar"))]
        assert len(sizes) > 2
        assert max(sizes) < 12_000 + 10_240, "but for the end of the tar"
        assert shard(folder, tmp_path / "tiny", shard_bytes=1).num_shards == 7
        assert shard(folder, tmp_path / "count", clips_per_shard=7).num_shards == 1
        for limits in ({"shard_bytes": 0}, {"clips_per_shard": 0}):
            with pytest.raises(ConfigError, match="both must be at least 1"):
                shard(folder, tmp_path / "none", **limits)

    def test_unreadable_files_are_set_aside(self, folder, tmp_path):
        (folder / "train/cat/0.wav").write_text("no sound")
        (folder / "train/dog/z.wav").touch()
        (folder / "train/zz.wav").symlink_to("nowhere")
        done = shard(folder, tmp_path / "out", clips_per_shard=3)
        assert [file.key for file in done.bad] == ["train/cat/0.wav", "train/dog/z.wav", "train/zz.wav"]
        manifest, plain = read_manifest(tmp_path / "out"), read_manifest(folder)
        assert manifest.bad == done.bad == plain.bad
        assert manifest.columns == plain.columns
        assert manifest.fingerprint == plain.fingerprint
        lines = (tmp_path / "out/_quarantine.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [dataclasses.asdict(file) for file in done.bad]
        assert len(samples(*sorted((tmp_path / "out").glob("*.tar")))) == 7

    def test_nothing_readable(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.wav").write_text("no sound")
        with pytest.raises(DataError, match=r"none of 1 file can be read; first: a\.wav \(not audio\)"):
            shard(tmp_path / "in", tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_file_that_shrinks_leaves_no_trace(self):
        file = io.BytesIO()
        tar = TarWriter(file)
        tar.add("a.txt", 3, [b"abc"])
        before = file.getvalue(), tar.size
        with pytest.raises(sharding.DecodeError, match="became shorter"):
            tar.add("b.txt", 5, sharding._read(io.BytesIO(b"12"), 5, "b"))
        assert (file.getvalue(), tar.size) == before
        assert tar.finish()[0] == len(file.getvalue())

    def test_a_full_disk_is_explained_and_blamed_on_no_file(self, folder, tmp_path, monkeypatch):
        def write(self, content):
            raise NotWritten(OSError(28, "No space left on device"))

        monkeypatch.setattr(TarWriter, "_write", write)
        with pytest.raises(RunError, match=r"cannot write shards to .*: No space left on device .*free disk space"):
            shard(folder, tmp_path / "out")


class TestResuming:
    def test_killed_at_every_boundary(self, folder, tmp_path):
        """A process that is killed before or after any rename; the next call ends with the same bytes."""
        shard(folder, tmp_path / "whole", clips_per_shard=3)
        expected = contents(tmp_path / "whole")
        boundaries = 0
        for after in (False, True):
            for number in range(100):
                out = tmp_path / f"out-{after}-{number}"
                if not killed_at(number, after, lambda out=out: shard(folder, out, clips_per_shard=3)):
                    break
                boundaries += 1
                kept = len(list(out.glob("shard-*.tar")))
                done = shard(folder, out, clips_per_shard=3)
                assert contents(out) == expected
                assert done.num_kept_shards >= kept - (not after)
        assert boundaries == 2 * 7, "3 records, 3 shards, 1 index"

    def test_two_calls_at_once_are_refused(self, folder, tmp_path):
        (tmp_path / "out").mkdir()
        other = os.open(tmp_path / "out", os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process writes shards to"):
            shard(folder, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        os.close(other)
        assert shard(folder, tmp_path / "out").num_clips == 7

    def test_a_finished_folder_is_left_alone(self, folder, tmp_path):
        shard(folder, tmp_path / "out", clips_per_shard=3)
        before = {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
        done = shard(folder, tmp_path / "out", clips_per_shard=3)
        assert (done.num_clips, done.num_kept_shards) == (7, 3)
        assert {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == before

    def test_shards_of_files_that_changed_are_written_anew(self, folder, tmp_path):
        assert killed_at(3, True, lambda: shard(folder, tmp_path / "out", clips_per_shard=3))
        first = read_manifest(folder, probe=False).entries[0]
        soundfile.write(first.path, np.zeros(5), 8000)
        assert shard(folder, tmp_path / "out", clips_per_shard=3).num_kept_shards == 1
        shard(folder, tmp_path / "anew", clips_per_shard=3)
        assert contents(tmp_path / "out") == contents(tmp_path / "anew")

    @pytest.mark.parametrize("name", ["notes.txt", "part-00000.parquet", "shard-00000.tar", "shard-7.tar", "index.parquet"])
    def test_a_folder_with_something_else_is_refused(self, folder, tmp_path, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_bytes(b"x" * 100)
        with pytest.raises((RunError, DataError), match=name):
            shard(folder, tmp_path / "out")
        assert contents(tmp_path / "out") == {name: b"x" * 100}

    def test_other_settings_and_other_files_are_refused(self, folder, tmp_path):
        shard(folder, tmp_path / "out", clips_per_shard=3)
        with pytest.raises(RunError, match="was written with clips_per_shard=3, not 4; choose another --out"):
            shard(folder, tmp_path / "out", clips_per_shard=4)
        (folder / "train/dog/a.wav").unlink()
        with pytest.raises(RunError, match=r"index\.parquet was written from other files; choose another --out"):
            shard(folder, tmp_path / "out", clips_per_shard=3)
        (tmp_path / "out/shard-00001.tar").write_bytes(b"")
        with pytest.raises(DataError, match="has 0 bytes instead of"):
            shard(folder, tmp_path / "out", clips_per_shard=3)


def killed_at(number, after, work):
    """Do the work in a process that is killed at a rename, before or after it; False if it comes to its end."""
    process = os.fork()
    if process == 0:
        renamed, replace = iter(range(number + 1)), os.replace

        def dying(*arguments):
            last = next(renamed) == number
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = dying
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


ANY_KEYS = st.binary(min_size=1, max_size=20).map(os.fsdecode)


@given(st.lists(st.one_of(ANY_KEYS, st.sampled_from(["a.wav", "a-2.wav", "A.wav", "b/../a", "a.b.wav", "/", "..", "a-2-2"]))))
def test_member_names_are_safe_and_unique(keys):
    stems = list(member_stems(keys))
    assert len({stem.casefold() for stem in stems}) == len(keys)
    assert list(member_stems(keys)) == stems
    for stem in stems:
        stem.encode("utf-8")
        assert not set(stem) & set('.\\:*?"<>|\0\n')
        assert all(stem.split("/"))


CELLS = st.text(st.characters(codec=None, exclude_categories=[]), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_names_and_bytes_come_back(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    files = data.draw(st.lists(st.tuples(ANY_KEYS, st.binary(min_size=1, max_size=1500)), min_size=1, max_size=6))
    entries = []
    for number, (key, content) in enumerate(files):
        (folder / str(number)).write_bytes(content)
        entries.append(Entry(key, str(folder / str(number))))
    names = data.draw(st.lists(st.text("ab.é/", max_size=3), max_size=2, unique=True))
    columns = {name: data.draw(st.lists(CELLS, min_size=len(files), max_size=len(files))) for name in names}
    medium = dataclasses.replace(IMAGE, probe=lambda source, key: ImageInfo(1, 1, "L", "PNG"))
    limits = {"clips_per_shard": data.draw(st.integers(1, 4)), "shard_bytes": data.draw(st.integers(1, 8000))}
    write_shards(Manifest(tuple(entries), columns), medium, folder / "out", **limits)

    manifest = read_manifest(folder / "out", medium)
    assert list(manifest.keys) == [key for key, _ in files]
    assert manifest.columns == columns
    tars = sorted((folder / "out").glob("*.tar"))
    for entry, sample, (_, content) in zip(manifest.entries, samples(*tars), files, strict=True):
        with entry.opened() as stream:
            assert stream.read() == content
        (ours,) = (value for name, value in sample.items() if name not in ("json", "__key__", "__url__", "__local_path__"))
        assert ours == content
        assert ("json" in sample) == bool(columns)
