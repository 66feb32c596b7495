"""Parquet parts: rows, order, agreement with the Python API, resuming, unreadable files."""

import fcntl
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from reference.configs import normalised

from bridle.data.manifest import read_manifest
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError, RunError
from bridle.inference import load, random_model
from bridle.parquet import Shard, Written, read_written
from bridle.recipes import recipe
from bridle.tables import write_codes, write_embeddings


@pytest.fixture(scope="module")
def model(tiny_run):
    return load(tiny_run, "cpu")


@pytest.fixture
def manifest(tiny_folder):
    return read_manifest(tiny_folder)


def names(out):
    return sorted(path.name for path in out.iterdir())


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_codes_equal_those_of_the_model(model, manifest, tiny_folder, tmp_path):
    written = write_codes(model, manifest, tmp_path / "out", files_per_part=4)
    assert names(tmp_path / "out") == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert (
        written
        == Written(len(rows), num_parts=3, num_kept_parts=0, num_missing_parts=0, bad=())
        == read_written(tmp_path / "out")
    )
    assert list(dict.fromkeys(row["key"] for row in rows)) == [entry.key for entry in manifest.entries]
    for entry in manifest.entries:
        own = [row for row in rows if row["key"] == entry.key]
        codes = model.tokenize(tiny_folder / entry.key)
        joined = torch.tensor([code for row in own for code in row["codes"]])
        assert torch.equal(joined, codes.codes)
        assert sum(row["grid"][0] for row in own) == codes.grid.time
        for row in own:
            assert row["grid"][1:] == [codes.grid.height, codes.grid.width]
            assert len(row["codes"]) == row["grid"][0] * codes.grid.height
            assert row["fingerprint"] == model.fingerprint
    starts = [row["start_seconds"] for row in rows if row["key"] == "b/long.wav"]
    assert starts == pytest.approx([0, 2, 4], abs=0.02)


@pytest.mark.parametrize(("pooling", "layer"), [("mean", None), ("time", 2), ("statistics", 1)])
def test_embedding_of_a_short_file_is_that_of_the_model(model, manifest, tiny_folder, tmp_path, pooling, layer):
    write_embeddings(model, manifest, tmp_path, pooling=pooling, layer=layer)
    rows = pq.read_table(tmp_path).to_pylist()
    assert [row["key"] for row in rows if row["start_seconds"] == 0] == [entry.key for entry in manifest.entries]
    for row in rows:
        if row["key"] != "b/long.wav":
            expected = model.embed(tiny_folder / row["key"], pooling, layer)
            torch.testing.assert_close(torch.tensor(row["embedding"]), expected, rtol=1e-5, atol=1e-5)


def test_windows_of_a_long_file_average_to_its_embedding(model, tiny_folder, tmp_path):
    write_embeddings(model, read_manifest(tiny_folder / "b" / "long.wav"), tmp_path / "vectors")
    write_codes(model, read_manifest(tiny_folder / "b" / "long.wav"), tmp_path / "codes")
    vectors = torch.tensor([row["embedding"] for row in pq.read_table(tmp_path / "vectors").to_pylist()])
    steps = torch.tensor([float(row["grid"][0]) for row in pq.read_table(tmp_path / "codes").to_pylist()])
    mean = (vectors * steps[:, None]).sum(0) / steps.sum()
    torch.testing.assert_close(mean, model.embed(tiny_folder / "b" / "long.wav"), rtol=1e-4, atol=1e-5)


def test_schema_says_what_the_columns_mean(model, manifest, tmp_path):
    write_codes(model, manifest, tmp_path)
    schema = pq.read_schema(tmp_path / "part-00000.parquet")
    types = {field.name: str(field.type).replace("element", "item") for field in schema}
    assert types == {
        "key": "string",
        "path": "string",
        "start_seconds": "double",
        "grid": "fixed_size_list<item: int32>[3]",
        "codes": "list<item: fixed_size_list<item: uint16>[2]>",
        "fingerprint": "string",
    }
    described = json.loads(schema.metadata[b"bridle"])
    expected = {
        "kind": "codes",
        "fingerprint": model.fingerprint,
        "num_codebooks": 2,
        "codebook_size": 16,
        "medium": "audio",
        "patch": [16, 16, 1],
        "grid": [12, 4, 1],
        "num_files": 10,
    }
    assert described["clips"]["crop_seconds"] == 2.0
    assert described["clips"]["fbank"]["num_mels"] == 64
    assert {name: described[name] for name in expected} == expected


def test_finished_parts_are_kept_and_missing_ones_made_alike(model, manifest, tmp_path):
    write_codes(model, manifest, tmp_path, files_per_part=3)
    before = content(tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    (tmp_path / ".tmp-part-00001.parquet-1").write_bytes(b"left by a killed call")
    (tmp_path / "part-00002.parquet").write_bytes(before["part-00002.parquet"][:-7])
    done = []
    written = write_codes(model, manifest, tmp_path, files_per_part=3, progress=done.append)
    assert content(tmp_path) == before
    assert (written.num_kept_parts, written.num_parts) == (2, 4)
    assert done == sorted(done)
    assert done[-1] == len(manifest)


def test_a_call_that_is_cut_short_is_continued(model, manifest, tmp_path):
    write_codes(model, manifest, tmp_path / "whole", files_per_part=3)

    def interrupt(done):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_codes(model, manifest, tmp_path / "cut", files_per_part=3, progress=interrupt)
    assert names(tmp_path / "cut") == ["part-00000.parquet"]
    assert write_codes(model, manifest, tmp_path / "cut", files_per_part=3).num_kept_parts == 1
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_parts_of_something_else_are_never_mixed(model, manifest, tmp_path):
    write_embeddings(model, manifest, tmp_path)
    before = content(tmp_path)
    other = random_model(model.config, torch.device("cpu"))
    fewer = replace(manifest, entries=(*manifest.entries[1:], manifest.entries[0]))
    with pytest.raises(RunError, match=f"by another model, {model.fingerprint}, not {other.fingerprint}; choose another --out"):
        write_embeddings(other, manifest, tmp_path)
    with pytest.raises(RunError, match="pooling=mean, not time"):
        write_embeddings(model, manifest, tmp_path, pooling="time")
    with pytest.raises(RunError, match="kind=embeddings, not codes"):
        write_codes(model, manifest, tmp_path)
    with pytest.raises(RunError, match="files_per_part=1000, not 5"):
        write_embeddings(model, manifest, tmp_path, files_per_part=5)
    with pytest.raises(RunError, match="from other files"):
        write_embeddings(model, fewer, tmp_path)
    assert content(tmp_path) == before


def test_unreadable_files_are_set_aside(model, tiny_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_folder, data)
    manifest = read_manifest(data)
    (data / "a" / "sound-0.wav").unlink()
    (data / "b" / "sound-1.wav").write_bytes(b"no sound at all")
    out = tmp_path / "out"
    written = write_codes(model, manifest, out, files_per_part=4)
    assert {(file.key, file.reason) for file in written.bad} == {("a/sound-0.wav", "missing"), ("b/sound-1.wav", "not audio")}
    assert {row["key"] for row in pq.read_table(out).to_pylist()} == {
        entry.key for entry in manifest.entries if entry.key not in ("a/sound-0.wav", "b/sound-1.wav")
    }
    lines = (out / "_quarantine.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"key": "a/sound-0.wav", "reason": "missing"}
    assert len(lines) == 2
    assert write_codes(model, manifest, out, files_per_part=4) == replace(written, num_kept_parts=3)


def test_a_file_that_breaks_in_the_middle_keeps_what_came_before(model, tmp_path):
    sound = 0.1 * np.random.default_rng(0).standard_normal(5 * 16000)
    sound[-100] = np.nan
    soundfile.write(tmp_path / "broken.wav", sound, 16000, subtype="FLOAT")
    written = write_codes(model, read_manifest(tmp_path), tmp_path / "out")
    assert written.bad == (BadFile("broken.wav", "non-finite samples"),)
    assert [row["start_seconds"] for row in pq.read_table(tmp_path / "out").to_pylist()] == pytest.approx([0, 2], abs=0.02)


def test_nothing_readable_is_an_error_and_leaves_no_part(model, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match=r"none of 10 files can be read; first: a/sound-0.wav \(missing\)"):
        write_codes(model, manifest, tmp_path / "out", files_per_part=4)
    assert names(tmp_path / "out") == ["_quarantine.jsonl"]


def test_wrong_calls(model, manifest, tmp_path):
    with pytest.raises(ConfigError, match="files_per_part is 0"):
        write_codes(model, manifest, tmp_path, files_per_part=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write parquet parts to"):
        write_codes(model, manifest, tmp_path / "file")
    untrained = random_model(normalised(recipe("audio-debug"), 0.0, 1.0), torch.device("cpu"))
    with pytest.raises(RunError, match="no fitted tokenizer"):
        write_codes(untrained, manifest, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_write_what_one_call_writes_and_the_last_one_lists_bad_files(order, model, tiny_folder, tmp_path):
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    manifest = read_manifest(data)
    (data / "a" / "sound-0.wav").unlink()
    (data / "b" / "sound-7.wav").write_bytes(b"no sound at all")
    whole = write_codes(model, manifest, tmp_path / "whole", files_per_part=2)
    assert whole.num_parts == 5
    out = tmp_path / "out"
    for index in order:
        done = []
        written = write_codes(model, manifest, out, files_per_part=2, shard=Shard(index, 3), progress=done.append)
        own = [number for number in range(5) if number % 3 == index]
        assert done[-1] == 2 * len(own)
        assert {f"part-{number:05d}.parquet" for number in own} <= set(names(out))
        assert (out / "_quarantine.jsonl").exists() == (index == order[-1])
        assert (written.num_kept_parts, written.num_parts + written.num_missing_parts) == (0, 5)
    assert written == whole == read_written(out)
    assert content(out) == content(tmp_path / "whole")


def test_a_shard_keeps_what_is_there_and_leaves_others_alone(model, manifest, tmp_path):
    write_codes(model, manifest, tmp_path, files_per_part=3)
    before = content(tmp_path)
    for number in (1, 2):
        (tmp_path / f"part-0000{number}.parquet").unlink()
    mine, others = ".tmp-part-00002.parquet-1", ".tmp-part-00001.parquet-1"
    for name in (mine, others):
        (tmp_path / name).write_bytes(b"half a part")
    written = write_codes(model, manifest, tmp_path, files_per_part=3, shard=Shard(0, 2))
    assert (written.num_parts, written.num_kept_parts, written.num_missing_parts) == (3, 1, 1)
    assert mine not in names(tmp_path) and others in names(tmp_path)
    assert write_codes(model, manifest, tmp_path, files_per_part=3, shard=Shard(1, 2)).num_missing_parts == 0
    assert content(tmp_path) == before


def test_a_part_that_another_call_is_writing_is_left_to_it(model, manifest, tmp_path):
    with (tmp_path / ".lock-part-00001.parquet").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / ".tmp-part-00001.parquet-1").write_bytes(b"its work")
        written = write_codes(model, manifest, tmp_path, files_per_part=4)
        assert (written.num_parts, written.num_missing_parts) == (2, 1)
        assert {".lock-part-00001.parquet", ".tmp-part-00001.parquet-1"} < set(names(tmp_path))
    assert write_codes(model, manifest, tmp_path, files_per_part=4).num_missing_parts == 0  # it was killed
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_a_file_system_without_locks_is_no_obstacle(model, manifest, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    write_codes(model, manifest, tmp_path, files_per_part=4)
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_shards_of_other_files_or_settings_are_not_mixed(model, manifest, tmp_path):
    write_codes(model, manifest, tmp_path, files_per_part=1, shard=Shard(7, 10))
    with pytest.raises(RunError, match="files_per_part=1, not 5"):
        write_codes(model, manifest, tmp_path, files_per_part=5, shard=Shard(0, 2))
    assert names(tmp_path) == ["part-00007.parquet"]
    assert read_written(tmp_path).num_missing_parts == 9
    for index, number in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match=f"shard index {index}"):
            Shard(index, number)


def test_nothing_readable_is_found_by_the_last_shard(model, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    out = tmp_path / "out"
    assert write_codes(model, manifest, out, files_per_part=5, shard=Shard(0, 2)).num_rows == 0
    with pytest.raises(DataError, match="none of 10 files can be read"):
        write_codes(model, manifest, out, files_per_part=5, shard=Shard(1, 2))
    assert names(out) == ["_quarantine.jsonl"]
