"""Checkpoints: what goes in comes out; what is damaged, foreign or of another version is refused by name."""

import hashlib
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridle.errors import ConfigError, RunError
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint, read_state, save_checkpoint
from bridle.train.weights import read_weights


def save(run: Path, step: int, value: float | None = None, **options):
    weights = {"w": torch.full((3, 4), float(step if value is None else value)), "n": torch.tensor(step)}
    optimizer = {"w/exp_avg": torch.full((3, 4), 0.5)}
    return save_checkpoint(run, step, weights=weights, optimizer=optimizer, state={"step": step}, **options)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def rewrite_manifest(path: Path, **changes):
    """A manifest that agrees with the files, as an attacker would write it."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_roundtrip_of_dtypes_strides_and_shared_storage(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    weights = {
        "plain": base,
        "transposed": base.t(),
        "tied": base,
        "slice": base[2:4, 1:3],
        "row": base[0],
        "expanded": base[:1].expand(4, 5),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flag": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "half": base.to(torch.bfloat16),
        "double": base.double(),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    expected = {name: tensor.detach().clone() for name, tensor in weights.items()}
    state = {"phase": "encoder", "epoch": 3, "list": [1, None, 0.1], "nested": {"flag": True}}
    path = save_checkpoint(tmp_path / "new" / "run", 12, weights=weights, optimizer={"a/b": base}, state=state)
    checkpoint = load_checkpoint(path)
    assert (path.name, checkpoint.step, checkpoint.state) == ("step-00000012", 12, state)
    assert checkpoint.weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert checkpoint.weights[name].dtype == tensor.dtype, name
        assert torch.equal(checkpoint.weights[name], tensor), name
        assert torch.equal(weights[name].detach(), tensor), name
    assert torch.equal(checkpoint.optimizer["a/b"], base)


def test_folder_is_as_documented(tmp_path):
    path = save(tmp_path, 5, metadata={"fingerprint": "abc"})
    files = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(file.name for file in path.iterdir()) == files
    assert names(tmp_path) == ["latest", "step-00000005"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000005\n"
    assert latest_checkpoint(tmp_path) == path
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["step"]) == ("bridle-checkpoint", 2, 5)
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert len({(path / name).stat().st_mode for name in files}) == 1
    tensors, metadata = read_weights(tmp_path / "model.safetensors")
    assert metadata == {"format": "bridle", "version": "2", "step": "5", "fingerprint": "abc"}
    assert torch.equal(tensors["w"], torch.full((3, 4), 5.0))


def test_run_weights_follow_the_newest_and_outlive_their_checkpoint(tmp_path):
    for step in range(4):
        path = save(tmp_path, step, keep=1)
        assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], torch.full((3, 4), float(step)))
    shutil.rmtree(path)
    assert read_weights(tmp_path / "model.safetensors")[0]["n"].item() == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoints", "model.safetensors"]


def test_loaded_tensors_outlive_the_file(tmp_path):
    path = save(tmp_path, 1) / "model.safetensors"
    tensors, _ = read_weights(path)
    path.write_bytes(b"")  # truncated in place, as `cp other model.safetensors` does
    assert torch.equal(tensors["w"], torch.ones(3, 4))


def test_keep_removes_the_oldest_and_left_overs(tmp_path):
    (tmp_path / "checkpoints" / ".tmp-00000001-99").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-latest-99").write_text("x")
    (tmp_path / ".tmp-model.safetensors-99").write_text("x")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    for step in (1, 2, 30, 4_000_000_000):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["latest", "notes.txt", "step-00000030", "step-4000000000"]
    assert not (tmp_path / ".tmp-model.safetensors-99").exists()


def test_broken_checkpoints_do_not_count_as_kept(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    (paths[2] / "state.json").unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003", "step-00000004"]


def test_steps_after_a_roll_back_go_first(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    path = save(tmp_path, 15)
    assert latest_checkpoint(tmp_path) == path
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000015", "step-00000030"]
    save(tmp_path, 18)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000015", "step-00000018"]


def test_same_step_again_replaces(tmp_path):
    save(tmp_path, 6)
    for value in (70.0, 71.0, 72.0):
        save(tmp_path, 7, value)
        path = latest_checkpoint(tmp_path)
        assert path is not None
        assert load_checkpoint(path).step == 7
        assert load_checkpoint(path).weights["w"][0, 0].item() == value
        assert len(names(tmp_path)) == 3
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], torch.full((3, 4), 72.0))


def test_failed_removal_is_no_error(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1)

    def fail(*_, **options):
        if not options.get("ignore_errors"):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", fail)
    for step in (1, 2, 3):
        path = save(tmp_path, step, keep=1)
        assert latest_checkpoint(tmp_path) == path
        assert load_checkpoint(path).step == step
    assert "cannot remove" in caplog.text
    monkeypatch.undo()
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["latest", "step-00000004"]


def test_no_checkpoint_yet(tmp_path):
    assert latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoints" / ".tmp-00000001-99").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None


def remove_manifest(path):
    (path / "manifest.json").unlink()


def cut_manifest(path):
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:50])


def cut_weights(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])


def remove_state(path):
    (path / "state.json").unlink()


def empty_manifest(path):
    (path / "manifest.json").write_text("[]")


def foreign_manifest(path):
    (path / "manifest.json").write_text('{"format": "other", "version": 1}')


def deep_manifest(path):
    (path / "manifest.json").write_text("[" * 200_000)


@pytest.mark.parametrize(
    "damage",
    [remove_manifest, cut_manifest, cut_weights, remove_state, empty_manifest, foreign_manifest, deep_manifest],
)
def test_half_written_is_passed_over_and_refused(tmp_path, damage, caplog):
    previous, path = save(tmp_path, 1), save(tmp_path, 2)
    damage(path)
    assert latest_checkpoint(tmp_path) == previous
    assert "checkpoint passed over" in caplog.text
    with pytest.raises(RunError, match=r"step-00000002 is half written or damaged .*; remove it to resume"):
        load_checkpoint(path)
    damage(previous)
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole \(step-00000002, step-00000001\)"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("pointer", [None, b"", b"step-00000009\n", b"../../etc", b"\xff\xfe", b"\x00" * 4096])
def test_broken_pointer(tmp_path, pointer):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink() if pointer is None else latest.write_bytes(pointer)
    assert latest_checkpoint(tmp_path) == path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_one_flipped_bit_is_refused(tmp_path, name):
    path = save(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    content[-2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} differs from its sha256"):
        load_checkpoint(path)


def test_other_version_is_named_and_never_passed_over(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    rewrite_manifest(path, version=7)
    assert latest_checkpoint(tmp_path) == path
    with pytest.raises(RunError, match="written by format 7, this bridle reads 2: install a bridle that reads format 7"):
        load_checkpoint(path)
    with pytest.raises(RunError, match="written by format 7"):
        read_state(path)
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", {"format": "bridle", "version": "7"})
    with pytest.raises(RunError, match="written by format 7, this bridle reads 2"):
        read_weights(tmp_path / "x.safetensors")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickles_are_refused_unread(tmp_path, writer):
    path = save(tmp_path, 1)
    for name in ("model.safetensors", "optimizer.safetensors"):
        with (path / name).open("wb") as file:
            (pickle.dump if writer == "pickle" else torch.save)({"w": Bomb(tmp_path / "ran")}, file)
    rewrite_manifest(path)
    for read, target in ((load_checkpoint, path), (read_weights, path / "model.safetensors")):
        with pytest.raises(RunError, match=r"is not a readable safetensors file .*bridle reads no pickles"):
            read(target)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("state", ["[1]", "{", "[" * 200_000, "\ud800"])
def test_crafted_state_is_refused(tmp_path, state):
    path = save(tmp_path, 1)
    (path / "state.json").write_bytes(state.encode("utf-8", "surrogatepass"))
    rewrite_manifest(path)
    with pytest.raises(RunError, match="half written or damaged"):
        load_checkpoint(path)


def header(entries) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        (100_000_000).to_bytes(8, "little") + b"{}",
        header({"a": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 60]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}) + bytes(8),
        header({"a": {"dtype": "O8", "shape": [1], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(8),
        header([1, 2]),
    ],
)
def test_crafted_header_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="is not a readable safetensors file"):
        read_weights(tmp_path / "x.safetensors")


def test_any_flipped_bytes_load_or_raise_a_run_error(tmp_path):
    original = (save(tmp_path, 1) / "model.safetensors").read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(original)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / "x.safetensors").write_bytes(content)
        try:
            read_weights(tmp_path / "x.safetensors")
        except RunError:
            refused += 1
    assert refused > 100


def test_missing_weights(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        read_weights(tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="half written or damaged"):
        load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize(("step", "keep"), [(-1, 3), (1, 0)])
def test_out_of_range(tmp_path, step, keep):
    with pytest.raises(ConfigError, match=f"step is {step} and keep {keep}"):
        save(tmp_path, step, keep=keep)


def test_state_that_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, weights={}, optimizer={}, state={"x": object()})
    assert list(tmp_path.iterdir()) == []
