"""A manifest as one file: exact, fast to begin with, and nothing that it must not name."""

import dataclasses
import hashlib
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridle.data import index as index_module
from bridle.data.entries import Entries, Entry, Manifest, Names
from bridle.data.index import Index, Shard, read_index, read_shard_index, save_index, save_shard_index
from bridle.data.manifest import read_manifest
from bridle.data.packed import Digest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, RunError

FILE_NAMES = st.binary(max_size=12).map(os.fsdecode)
TEXTS = st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)
SECONDS = st.floats(0, 1e9)
ENTRIES = st.builds(
    Entry, FILE_NAMES, FILE_NAMES, st.integers(0, 1 << 62), st.integers(-1, 1 << 62), SECONDS, SECONDS, st.booleans()
)
LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    entries = draw(st.lists(ENTRIES, max_size=5))
    cells = st.lists(TEXTS, min_size=len(entries), max_size=len(entries))
    bad = draw(st.lists(st.builds(BadFile, FILE_NAMES, LABELS), max_size=2))
    names = st.one_of(LABELS, st.sampled_from(["key", "size", "size_", "a.b", "a", "", "column_0", "\udc80"]))
    return Manifest(tuple(entries), draw(st.dictionaries(names, cells, max_size=4)), tuple(bad))


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_a_run_reads_back_what_it_saved(tmp_path_factory, manifest):
    path = tmp_path_factory.mktemp("run") / "index.parquet"
    save_index(Index(manifest, about={"sources": ["a"]}), path)
    read = read_index(path)
    found = read.manifest
    assert read.about == {"sources": ["a"]} and read.shards == ()
    assert found == manifest
    assert list(found.columns) == list(manifest.columns)
    assert found.fingerprint == manifest.fingerprint == naive_fingerprint(manifest)
    assert [path.name for path in path.parent.iterdir()] == ["index.parquet"]


def naive_fingerprint(manifest):
    lines = (f"{entry.key}\0{entry.duration_seconds}\n" for entry in manifest.entries)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class TestEntries:
    ROWS = tuple(Entry(f"k{i}\udcff", f"/p/{i}", i, i - 1, i / 7, i / 3, i % 2 == 0) for i in range(7))

    def test_they_are_a_sequence_like_a_tuple(self):
        entries = Entries.of(self.ROWS)
        assert len(entries) == 7
        assert entries == self.ROWS
        assert entries == self.ROWS
        assert entries != self.ROWS[:-1]
        assert entries != (*self.ROWS[:-1], self.ROWS[0])
        assert entries != 7
        assert tuple(entries) == self.ROWS
        assert (entries[0], entries[-1], entries[np.int64(3)]) == (self.ROWS[0], self.ROWS[-1], self.ROWS[3])
        for part in (slice(2, 5), slice(None, None, -2), slice(5, 99), slice(3, 3)):
            assert entries[part] == self.ROWS[part]
            assert entries.keys[part] == [entry.key for entry in self.ROWS[part]]
        assert self.ROWS[2] in entries
        assert entries.index(self.ROWS[4]) == 4
        for beyond in (7, -8):
            with pytest.raises(IndexError):
                entries[beyond]
        assert repr(Entries.of(self.ROWS[:1])) == f"Entries({self.ROWS[0]!r}; 1 in all)"
        assert Entries.of(entries) is entries
        assert len(Entries.of([])) == 0

    def test_values_are_plain_python(self):
        entry = Entries.of(self.ROWS)[1]
        assert {type(value) for value in dataclasses.astuple(entry)} == {str, int, float, bool}
        assert {type(value) for value in dataclasses.astuple(next(iter(Entries.of(self.ROWS))))} == {str, int, float, bool}

    def test_they_are_sent_to_workers_as_blocks(self):
        many = Entries.of(self.ROWS * 1000)
        content = pickle.dumps(many)
        assert pickle.loads(content) == many
        assert len(content) < 7000 * 64

    def test_a_manifest_tells_columns_of_either_kind(self):
        for entries in (self.ROWS, Entries.of(self.ROWS)):
            manifest = Manifest(entries)
            assert list(manifest.keys) == [entry.key for entry in self.ROWS]
            assert manifest.durations.tolist() == [entry.duration_seconds for entry in self.ROWS]

    def test_names_hold_any_file_name(self):
        names = ["", "a", "b\udc80", "日本.wav", "a\nb"]
        assert list(Names.of(names)) == names
        assert Names.of(names)[-2] == "日本.wav"


def shard_folder(folder: Path, **changes) -> Path:
    """Two shards of zeros and their index, with other values where they are given."""
    folder.mkdir(exist_ok=True)
    for name in ("shard-00000.tar", "shard-00001.tar"):
        (folder / name).write_bytes(bytes(100))
    rows = {
        "key": ["a.wav", "b.wav", "c\udcff.wav"],
        "path": ["shard-00000.tar", "shard-00001.tar", "shard-00001.tar"],
        "offset": [10, 0, 90],
        "size": [20, 90, 10],
        "duration_seconds": [1.5, 0.0, 2.0],
        "rate_hz": [0.0, 0.0, 25.0],
    }
    shards = changes.pop("shards", (Shard("shard-00000.tar", 100, "0" * 64), Shard("shard-00001.tar", 100, "1" * 64)))
    rows |= changes
    entries = tuple(Entry(*values, found=True) for values in zip(*rows.values(), strict=True))
    manifest = Manifest(entries, {"class": ["x", "y", "x"]}, (BadFile("d.wav", "empty file"),))
    save_shard_index(Index(manifest, shards, {"medium": "audio"}), folder / "index.parquet")
    return folder


class TestShards:
    def test_clips_are_found_in_the_folder_wherever_it_is(self, tmp_path, monkeypatch):
        shard_folder(tmp_path / "first").rename(tmp_path / "second")
        index = read_shard_index(str(tmp_path / "second"))
        second = tmp_path / "second/shard-00001.tar"
        assert index.manifest.entries[2] == Entry("c\udcff.wav", str(second), 90, 10, 2.0, 25.0, found=True)
        assert index.manifest.columns == {"class": ["x", "y", "x"]}
        assert index.manifest.columns["class"][0] is index.manifest.columns["class"][2], "equal cells are one object"
        assert index.manifest.bad == (BadFile("d.wav", "empty file"),)
        assert [shard.sha256[0] for shard in index.shards] == ["0", "1"]
        assert index.about == {"medium": "audio"}
        monkeypatch.chdir(tmp_path / "second")
        assert read_shard_index("index.parquet").manifest.entries[0].path == "shard-00000.tar"
        monkeypatch.chdir(tmp_path)
        assert read_shard_index("second/").manifest.entries[0].path == "second/shard-00000.tar"

    def test_other_tools_read_it(self, tmp_path):
        table = pq.read_table(shard_folder(tmp_path) / "index.parquet")
        assert table.column_names == ["key", "shard", "offset", "size", "duration_seconds", "rate_hz", "class"]
        assert table.column("shard").to_pylist()[0] == "shard-00000.tar"
        assert table.column("class").type == pa.large_string()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"offset": [10, -1, 90]}, "has offset -1 in row 1; it must be 0 or more"),
            ({"offset": [10, 0, 91]}, "has offset 91 in row 2; it must be so that the clip ends within its shard"),
            ({"size": [20, -1, 10]}, "has size -1 in row 1; it must be 0 or more"),
            ({"size": [1 << 62, 90, 10], "offset": [1 << 62, 0, 90]}, "within its shard"),
            ({"duration_seconds": [math.nan, 0.0, 2.0]}, "has duration_seconds nan in row 0; it must be 0 or more"),
            ({"duration_seconds": [1.5, -1.0, 2.0]}, "has duration_seconds -1.0 in row 1"),
            ({"rate_hz": [0.0, math.inf, 25.0]}, "has rate_hz inf in row 1"),
            (
                {"path": ["shard-00000.tar", "shard-00001.tar", "more.tar"]},
                "clips in 'more.tar', which is none of",
            ),
            ({"shards": (Shard("shard-00000.tar", -5, ""), Shard("shard-00001.tar", 100, ""))}, "has -5 bytes; it must be"),
            (
                {"shards": (Shard("shard-00000.tar", 1 << 70, ""), Shard("shard-00001.tar", 100, ""))},
                "has 100 bytes instead of",
            ),
        ],
    )
    def test_values_that_cannot_be_are_refused(self, tmp_path, changes, message):
        with pytest.raises(DataError, match=message) as caught:
            read_shard_index(str(shard_folder(tmp_path, **changes)))
        assert "\n" not in str(caught.value)
        assert "bridle shard" in str(caught.value)

    @pytest.mark.parametrize(
        "name", ["../up.tar", "/etc/passwd", "a/../../up.tar", "", ".", "a//b.tar", "x\\y", "memory://x", "a::b"]
    )
    def test_names_that_lead_outside_are_refused(self, tmp_path, name):
        (tmp_path / "up.tar").write_bytes(bytes(100))
        folder = shard_folder(tmp_path / "in", shards=(Shard(name, 100, ""),), path=[name] * 3)
        with pytest.raises(DataError, match="it must be the name of a file in its folder"):
            read_shard_index(str(folder))

    def test_links_that_lead_outside_are_refused(self, tmp_path):
        folder = shard_folder(tmp_path / "in")
        (folder / "shard-00001.tar").rename(tmp_path / "out.tar")
        (folder / "shard-00001.tar").symlink_to(tmp_path / "out.tar")
        with pytest.raises(DataError, match=r"is a link to .*out\.tar, outside of its folder"):
            read_shard_index(str(folder))
        (tmp_path / "link").symlink_to(folder)
        (folder / "shard-00001.tar").unlink()
        (folder / "shard-00001.tar").write_bytes(bytes(100))
        assert len(read_shard_index(str(tmp_path / "link")).manifest) == 3, "the folder itself may be a link"

    def test_shards_that_are_not_whole_are_named(self, tmp_path):
        folder = shard_folder(tmp_path)
        (folder / "shard-00001.tar").write_bytes(bytes(99))
        with pytest.raises(DataError, match=r"shard-00001\.tar has 99 bytes instead of 100; copy it again, or"):
            read_shard_index(str(folder))
        (folder / "shard-00001.tar").unlink()
        with pytest.raises(DataError, match=r"shard-00001\.tar is missing; copy it again, or"):
            read_shard_index(str(folder))

    def test_where_there_is_none(self, tmp_path):
        assert read_shard_index(str(tmp_path)) is None
        assert read_shard_index(str(tmp_path / "index.parquet")) is None
        pq.write_table(pa.table({"path": ["a.wav"]}), tmp_path / "index.parquet")
        assert read_shard_index(str(tmp_path)) is None, "a table of the user's"


def rewritten(path: Path, change) -> None:
    """The index with other columns or another header; the digest is made to fit."""
    table, texts = pq.read_table(path), dict(pq.read_metadata(path).metadata)
    header = json.loads(texts[b"bridle.index"])
    table = change(table, header) or table
    text = json.dumps(header)
    digest = Digest(text.encode())
    for column in table.columns:
        digest.add(column.combine_chunks())
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"bridle.index": text, "bridle.digest": digest.text})


def with_column(name, values):
    def change(table, _):
        return table.set_column(table.column_names.index(name), name, values)

    return change


def with_header(**values):
    def change(_, header):
        header.update(values)

    return change


class TestFormat:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (with_header(version=2), "has version 2 of its format, this bridle reads 1; install"),
            (with_header(format="other"), "is no index of a folder of shards"),
            (with_header(kind="files"), "is no index of a folder of shards but the files of a run"),
            (with_header(kind=[1]), "is "),
            (with_header(columns=[]), "has the columns key, shard, .*; they must begin with key, shard"),
            (with_header(columns=7), "is damaged"),
            (with_header(shards=[["a", "b"]]), "is damaged"),
            (with_header(shards=[["a", "b", "c"]]), "is damaged"),
            (with_header(shards=None), "is damaged"),
            (with_header(bad=[["a"]]), "is damaged"),
            (with_header(bad=7), "is damaged"),
            (with_header(about=7), "is damaged"),
            (lambda table, _: table.drop_columns(["offset"]), "they must begin with"),
            (lambda table, _: table.rename_columns(["kee", *table.column_names[1:]]), "they must begin with"),
            (with_column("offset", pa.array([10.0, 0.0, 90.0])), "a column offset of double instead of int64"),
            (with_column("size", pa.array([20, 90, 10], pa.int32())), "a column size of int32 instead of int64"),
            (with_column("duration_seconds", pa.array([None, 0.0, 2.0])), "a column has 1 empty cells"),
            (with_column("key", pa.array([1, 2, 3])), "a column of int64 instead of text"),
            (with_column("shard", pa.array([1, 2, 3])), "a column of int64 instead of text"),
            (with_column("class", pa.array([1, 2, 3])), "is damaged"),
            (with_column("class", pa.array([b"\xff", b"", b""], pa.large_binary())), "is damaged"),
        ],
    )
    def test_what_is_not_as_it_is_written_is_refused(self, tmp_path, change, message):
        shard_folder(tmp_path)
        rewritten(tmp_path / "index.parquet", lambda table, header: None)
        assert len(read_shard_index(str(tmp_path)).manifest) == 3
        rewritten(tmp_path / "index.parquet", change)
        with pytest.raises(DataError, match=message) as caught:
            read_shard_index(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_other_values_than_were_written_are_noticed(self, tmp_path):
        path = shard_folder(tmp_path) / "index.parquet"
        texts, table = pq.read_metadata(path).metadata, pq.read_table(path)
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table.set_column(2, "offset", pa.array([11, 0, 90])))
            writer.add_key_value_metadata({name: texts[name] for name in (b"bridle.index", b"bridle.digest")})
        with pytest.raises(DataError, match="is damaged: what it holds is not what was written"):
            read_shard_index(str(tmp_path))
        pq.write_table(table, path)
        with pytest.raises(DataError, match="is damaged"):
            read_shard_index(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"junk" * 100, b"PAR1" + bytes(50) + b"PAR1"])
    def test_what_is_no_parquet_is_refused(self, tmp_path, content):
        (tmp_path / "index.parquet").write_bytes(content)
        with pytest.raises(DataError, match="is not a readable parquet table"):
            read_shard_index(str(tmp_path))
        with pytest.raises(DataError, match="is not a readable parquet table"):
            read_index(tmp_path / "index.parquet")

    def test_a_run_reads_its_own_alone(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            read_index(tmp_path / "index.parquet")
        with pytest.raises(DataError, match="is no index of the files of a run but a folder of shards"):
            read_index(shard_folder(tmp_path / "shards") / "index.parquet")
        save_index(Index(Manifest((Entry("a", "/a"),))), tmp_path / "index.parquet")
        with pytest.raises(DataError, match="is no index of a folder of shards but the files of a run"):
            read_shard_index(str(tmp_path))

    def test_what_cannot_be_written_is_explained(self, tmp_path):
        with pytest.raises(RunError, match=r"cannot write index\.parquet to .*No such file"):
            save_index(Index(Manifest((Entry("a", "/a"),))), tmp_path / "nowhere" / "index.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = shard_folder(tmp_path_factory.mktemp("shards"))
    return folder, (folder / "index.parquet").read_bytes(), read_shard_index(str(folder))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_says_the_same(whole, data):
    folder, content, index = whole
    kind = data.draw(st.sampled_from(["flip", "cut", "fill", "insert"]))
    place = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=8))
    damaged = {
        "flip": content[:place] + bytes([content[place] ^ piece[0]]) + content[place + 1 :],
        "cut": content[:place],
        "fill": content[:place] + piece + content[place + len(piece) :],
        "insert": content[:place] + piece + content[place:],
    }[kind]
    (folder / "index.parquet").write_bytes(damaged)
    try:
        found = read_shard_index(str(folder))
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found == index


@pytest.mark.parametrize("medium", [None, [], {"a": 1}, "smells"])
def test_an_unknown_medium_is_refused(tmp_path, medium):
    shard_folder(tmp_path)
    rewritten(tmp_path / "index.parquet", with_header(about={"medium": medium}))
    with pytest.raises(DataError, match=r"holds .*, not sound files; take a recipe"):
        read_manifest(tmp_path)


def test_one_file_is_read(tmp_path, monkeypatch):
    folder = shard_folder(tmp_path)
    read = []
    monkeypatch.setattr(index_module, "_read_bytes", lambda place: read.append(place) or Path(place).read_bytes())
    assert len(read_shard_index(str(folder)).manifest) == 3
    assert read == [f"{folder}/index.parquet"]
