"""``bridle tokenize`` and ``bridle embed``: the same numbers as the Python API, and what is said."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from reference.untrained_runs import small_config, write_run

from bridle import tables
from bridle.cli import main
from bridle.commands import writing
from bridle.errors import ConfigError
from bridle.inference import load
from bridle.objectives.supervised import FinetuneConfig
from bridle.train.weights import write_weights


def test_tokenize_and_embed_give_the_numbers_of_the_model(tiny_run, tiny_folder, tmp_path, capsys):
    codes, vectors = tmp_path / "codes", tmp_path / "vectors"
    assert main(["tokenize", str(tiny_run), str(tiny_folder), "--out", str(codes)]) == 0
    assert "done 12 rows in 1 part" in capsys.readouterr().out
    assert (
        main(["embed", str(tiny_run), str(tiny_folder), "--out", str(vectors), "--pooling", "statistics", "--layer", "1"]) == 0
    )
    model = load(tiny_run)
    rows = {row["key"]: row for row in pq.read_table(codes).to_pylist()}
    embeddings = {row["key"]: row for row in pq.read_table(vectors).to_pylist()}
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


def call(command, run, *data, out, **flags):
    """``bridle embed``, ``tokenize`` or ``predict``; the rows that were written."""
    settings = [text for name, value in flags.items() for text in (f"--{name}", value)]
    assert main([command, str(run), *map(str, data), "--out", str(out), "--device", "cpu", *settings]) == 0
    return pq.read_table(out).to_pylist()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    finetune = FinetuneConfig(label="kind", classes=("a", "b"))
    config = replace(small_config("audio"), phases="supervised:3steps", finetune=finetune)
    return write_run(tmp_path_factory.mktemp("tuned") / "run", config, steps=(3, 3))


@pytest.mark.parametrize("command", ["tokenize", "embed", "predict"])
def test_rows_say_which_file_they_are_of(command, tiny_run, tuned, tiny_folder, tmp_path):
    run, out = (tuned, tmp_path / "rows.parquet") if command == "predict" else (tiny_run, tmp_path / "rows")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_folder / "a" / "sound-0.wav", tmp_path / folder / "1.wav")
    files = [tmp_path / folder / "1.wav" for folder in ("one", "two")]
    (row,) = call(command, run, tmp_path / "two", out=out)
    assert (row["key"], row["path"]) == ("1.wav", str(files[1]))
    (tmp_path / "meta.csv").write_text("where,kind\none/1.wav,a\ntwo/1.wav,b\n")
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    rows = call(command, run, tmp_path / "meta.csv", out=out, path="where")
    assert [(row["key"], row["path"]) for row in rows] == [("one/1.wav", str(files[0])), ("two/1.wav", str(files[1]))]
    assert main([command, str(run), str(tmp_path / "meta.csv"), "--out", str(tmp_path / "no.csv"), "--path", "wher"]) == 1


def test_the_size_of_parts_is_that_of_the_library():
    assert writing.FILES_PER_PART == tables.FILES_PER_PART  # named twice, for the commands do not import torch to say it


def test_parts_without_keys_are_not_mixed_with_others(tiny_run, tiny_folder, tmp_path, capsys):
    call("embed", tiny_run, tiny_folder, out=tmp_path / "out")
    part = tmp_path / "out" / "part-00000.parquet"
    table = pq.read_table(part)
    described = json.loads(table.schema.metadata[b"bridle"])
    assert described.pop("columns") == table.schema.names
    metadata = {b"bridle": json.dumps(described), b"bridle.bad": b"[]"}
    pq.write_table(table.drop_columns(["key"]).replace_schema_metadata(metadata), part)
    assert main(["embed", str(tiny_run), str(tiny_folder), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "was written with columns=None" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tokenize", "embed", "predict"])
def test_an_unfinished_run_says_whose_weights_are_used(command, tuned, tiny_folder, tmp_path, capsys):
    if command == "predict":
        run = write_run(tmp_path / "run", load(tuned, "cpu").config, steps=(1, 3))
    else:
        run = write_run(tmp_path / "run", small_config("audio", "cold:3steps"), steps=(1, 3))
    out = tmp_path / ("rows.parquet" if command == "predict" else "rows")
    call(command, run, tiny_folder / "a", out=out)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "training is not finished (1 of 3 steps): these are the weights of step 1"
    if command == "predict":
        networks = load(run, "cpu").networks
        write_weights(run / "chosen.safetensors", networks.state_dict(), 1)
        call(command, run, tiny_folder / "a", out=out)
        assert "these are the weights of step 1, which validation chose so far" in capsys.readouterr().out
        call(command, tuned, tiny_folder / "a", out=out)
        assert "not finished" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["tokenize", "embed", "predict"])
def test_a_place_that_cannot_be_written_is_told_before_the_model_is_read(command, tmp_path, tiny_folder, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("not read")
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "rows.csv"
    assert main([command, str(run), str(tiny_folder), "--out", str(out)]) == 1
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err
    assert main([command, str(run), str(tmp_path / "gone"), "--out", str(tmp_path / "rows.csv")]) == 1
    assert "gone does not exist" in capsys.readouterr().err


def test_brackets_and_single_rows_are_shown_as_they_are(tiny_run, tiny_folder, tmp_path, capsys):
    data, out = tmp_path / "[red]data", tmp_path / "out [1]"
    data.mkdir()
    shutil.copy(tiny_folder / "a" / "sound-0.wav", data)
    (data / "[b]bad.wav").write_text("no sound")
    call("embed", tiny_run, data, out=out)
    shown = capsys.readouterr().out
    assert f"done 1 row in 1 part: {out}\n" in shown
    assert f"unreadable files: 1, listed in {out / '_quarantine.jsonl'}\n  [b]bad.wav: not audio" in shown


def test_a_run_without_tokenizer_is_told_before_anything_is_drawn(tuned, tiny_folder, tmp_path, capsys):
    assert main(["tokenize", str(tuned), str(tiny_folder), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "take the pretrained run that it began from" in said.err and said.out == ""


def process(command, run, data, out, *more, **environment):
    """The command as a process of its own, a part for each two files."""
    call = [sys.executable, "-m", "bridle", command, str(run), str(data), "--out", str(out), "--files-per-part", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*call, "--device", "cpu", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def with_bad_files(tiny_folder, tmp_path_factory):
    data = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("bad") / "data")
    (data / "a" / "text.wav").write_text("no sound")
    return data


@pytest.fixture(scope="module")
def whole(tiny_run, with_bad_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "codes"
    _, error = process("tokenize", tiny_run, with_bad_files, out).communicate(timeout=120)
    assert error == ""
    assert len(list(out.glob("part-*.parquet"))) == 5 and (out / "_quarantine.jsonl").exists()
    return out


@pytest.mark.slow
def test_two_shards_at_the_same_time_and_one_of_them_killed_give_what_one_call_gives(tiny_run, with_bad_files, whole, tmp_path):
    out = tmp_path / "codes"
    killed = process("tokenize", tiny_run, with_bad_files, out, "--shard", "1/2")
    other = process("tokenize", tiny_run, with_bad_files, out, "--shard", "2/2")
    deadline = time.monotonic() + 120
    while not any(out.glob("*part-00000.parquet*")):  # it is being written, or just was
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    said, error = other.communicate(timeout=120)
    assert (other.returncode, error) == (0, "")
    parts = len(list(out.glob("part-*.parquet")))
    if parts < 5:  # usually; but a kill may come after the last part
        assert "of 5 (shard 2/2); the others are not all there yet" in said
    again = process("tokenize", tiny_run, with_bad_files, out, "--shard", "1/2")
    said, error = again.communicate(timeout=120)
    assert (again.returncode, error) == (0, "")
    assert "done 12 rows in 5 parts" in said
    assert content(out) == content(whole)


@pytest.mark.slow
def test_several_processes_of_one_call_give_what_one_gives(tiny_run, with_bad_files, whole, tmp_path):
    out = tmp_path / "codes"
    call = process("tokenize", tiny_run, with_bad_files, out, "--num-processes", "2")
    said, error = call.communicate(timeout=120)
    assert (call.returncode, error) == (0, "")
    assert said.count("done 12 rows in 5 parts") == said.count("unreadable files: 1") == 1
    assert content(out) == content(whole)


def test_a_killed_process_of_several_is_started_again(tiny_run, with_bad_files, whole, tmp_path):
    out = tmp_path / "codes"
    call = process("tokenize", tiny_run, with_bad_files, out, "--num-processes", "2")
    children = Path(f"/proc/{call.pid}/task/{call.pid}/children")
    while len(found := children.read_text().split()) < 2:
        assert call.poll() is None
        time.sleep(0.01)
    os.kill(int(found[1]), signal.SIGKILL)
    said, error = call.communicate(timeout=120)
    assert error == "bridle: process 1 was killed by SIGKILL; all 2 start again (restart 1 of 3)\n"
    assert call.returncode == 0 and "done 12 rows in 5 parts" in said
    assert content(out) == content(whole)


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", ""])
def test_shards_count_from_one(text):
    with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
        writing.read_shard(text)


def test_ranks_share_the_shard_of_their_machine(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [writing.read_shard(text) for text in (None, "1/4", "4/4")] == [(0, 1), (0, 4), (3, 4)]
    found = []
    for machine in (1, 2, 3):
        for rank in (0, 1):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            index, number = writing.read_shard(f"{machine}/3")
            assert number == 6 and index % 3 == machine - 1  # whatever its processes are, a machine has the same parts
            found.append(index)
    assert sorted(found) == list(range(6))


def test_more_shards_than_parts_are_told(tiny_run, tiny_folder, tmp_path, capsys):
    call("embed", tiny_run, tiny_folder, out=tmp_path / "out", shard="1/3")
    shown = capsys.readouterr().out
    assert "note: 1 part for 3 shards; --files-per-part 3 gives each its share" in shown
    assert "done 12 rows in 1 part" in shown
