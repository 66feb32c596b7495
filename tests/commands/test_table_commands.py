"""``bridle tokenize`` and ``bridle embed``: the same numbers as the Python API, and what is said."""

import shutil

import pyarrow.parquet as pq
import pytest
import torch

from bridle.cli import main
from bridle.inference import load


def test_tokenize_and_embed_give_the_numbers_of_the_model(tiny_run, tiny_folder, tmp_path, capsys):
    codes, vectors = tmp_path / "codes", tmp_path / "vectors"
    assert main(["tokenize", str(tiny_run), str(tiny_folder), "--out", str(codes)]) == 0
    assert "done 12 rows in 1 part" in capsys.readouterr().out
    assert (
        main(["embed", str(tiny_run), str(tiny_folder), "--out", str(vectors), "--pooling", "statistics", "--layer", "1"]) == 0
    )
    model = load(tiny_run)
    rows = {row["path"]: row for row in pq.read_table(codes).to_pylist()}
    embeddings = {row["path"]: row for row in pq.read_table(vectors).to_pylist()}
    assert len(rows) == len(embeddings) == 10
    for name in sorted(rows.keys() - {"b/long.wav"}):
        tokenized = model.tokenize(tiny_folder / name)
        assert torch.equal(torch.tensor(rows[name]["codes"]), tokenized.codes)
        assert tuple(rows[name]["grid"]) == tokenized.grid.shape
        embedding = torch.tensor(embeddings[name]["embedding"])
        torch.testing.assert_close(embedding, model.embed(tiny_folder / name, "statistics", layer=1), rtol=1e-5, atol=1e-5)


def test_continuing_says_what_was_kept(tiny_run, tiny_folder, tmp_path, capsys):
    call = ["embed", str(tiny_run), str(tiny_folder), "--out", str(tmp_path), "--files-per-part", "4"]
    assert main(call) == 0
    (tmp_path / "part-00002.parquet").unlink()
    capsys.readouterr()
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "parts of an earlier call that were kept: 2" in out
    assert "done 12 rows in 3 parts" in out


def test_unreadable_files_are_printed(tiny_run, tiny_folder, tmp_path, capsys):
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    (data / "text.wav").write_text("no sound")
    assert main(["tokenize", str(tiny_run), str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "unreadable files: 1" in out
    assert "text.wav: not audio" in out
    assert (tmp_path / "out" / "_quarantine.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("command", ["tokenize", "embed"])
def test_wrong_calls_are_one_line(command, tiny_run, tiny_folder, tmp_path, capsys):
    def fails(*arguments):
        assert main([command, *map(str, arguments), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("bridle: ")
        assert error.count("\n") == 1
        return error

    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in fails(tmp_path / "no-run", tiny_folder)
    assert "no readable sound file" in fails(tiny_run, tmp_path / "empty")
    assert "does not exist" in fails(tiny_run, tmp_path / "nothing")
    assert "there is no DATA" in fails(tiny_run)
    half = shutil.copytree(tiny_run, tmp_path / "half")
    (half / "model.safetensors").unlink()
    assert "no checkpoint was written yet" in fails(half, tiny_folder)
    (half / "model.safetensors").write_bytes(b"torn")
    assert "not a readable safetensors file" in fails(half, tiny_folder)
    assert not (tmp_path / "out").exists()


def test_parts_of_another_model_stop_the_command(tiny_run, tiny_folder, tmp_path, capsys):
    assert main(["embed", str(tiny_run), str(tiny_folder), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["tokenize", str(tiny_run), str(tiny_folder), "--out", str(tmp_path)]) == 1
    assert "kind=embeddings, not codes; choose another --out" in capsys.readouterr().err


def test_unknown_setting_names_the_nearest(tiny_run, tiny_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["embed", str(tiny_run), str(tiny_folder), "--out", "x", "--poling", "time"])
    assert stop.value.code == 2
    assert "--pooling" in capsys.readouterr().err
