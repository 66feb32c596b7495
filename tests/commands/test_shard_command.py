"""``bridle shard``: what is said, what is refused, and a run that takes the shards for the folder."""

import shutil

import pyarrow.parquet as pq
import pytest

from bridle.cli import main
from bridle.data.manifest import read_manifest


def test_shards_stand_for_the_folder(tiny_run, tiny_folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert main(["shard", str(tiny_folder), "--out", str(shards), "--clips-per-shard", "4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "done 10 sound files in 3 shards, " in out
    assert f"next: bridle pretrain audio-small --data {shards} --out runs/first" in out
    assert read_manifest(shards).fingerprint == read_manifest(tiny_folder).fingerprint
    tables = []
    for data in (tiny_folder, shards):
        assert main(["embed", str(tiny_run), str(data), "--out", str(tmp_path / "vectors")]) == 0
        tables.append(pq.read_table(tmp_path / "vectors").select(["key", "start_seconds", "embedding"]))
        shutil.rmtree(tmp_path / "vectors")
    assert tables[0].equals(tables[1])


def test_the_same_call_again_keeps_what_is_there(tiny_folder, tmp_path, capsys):
    call = ["shard", str(tiny_folder), "--out", str(tmp_path / "out"), "--shard-megabytes", "0.05"]
    assert main(call) == 0
    assert "earlier call" not in capsys.readouterr().out
    assert main(call) == 0
    number = len(list((tmp_path / "out").glob("*.tar")))
    assert number > 1
    assert f"shards of an earlier call that were kept: {number}" in capsys.readouterr().out


def test_unreadable_files_are_listed(tiny_folder, tmp_path, capsys):
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    (data / "text.wav").write_text("no sound")
    assert main(["shard", str(data), "--medium", "audio", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "unreadable files: 1, listed in" in out
    assert "text.wav: not audio" in out
    assert (tmp_path / "out" / "_quarantine.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["FOLDER", "--out", "FOLDER/shards"], "lies in FOLDER, which is read; choose a folder outside of it"),
        (["FOLDER", "--out", "s3://bucket/shards"], "is a URL; write to a local folder, and copy it there"),
        (["FOLDER", "--out", "FOLDER/b/long.wav"], "is a file, so the folder"),
        (["FOLDER/none", "--out", "OUT"], "none does not exist"),
        (["FOLDER", "--out", "OUT", "--medium", "image"], "no readable picture"),
        (["FOLDER", "--out", "OUT", "--clips-per-shard", "0"], "both must be at least 1"),
        (["--out", "OUT"], "there is no DATA to read"),
    ],
)
def test_wrong_calls_are_explained_in_a_line(tiny_folder, tmp_path, capsys, call, message):
    def filled(text):
        return text.replace("FOLDER", str(tiny_folder)).replace("OUT", str(tmp_path / "out"))

    assert main(["shard", *map(filled, call)]) == 1
    said = capsys.readouterr().err
    assert filled(message) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
