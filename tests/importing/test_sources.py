"""Files and folders that weights are read from; no object but tensors and plain data is ever unpickled."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference.state_dicts import HEADS, State, mae
from safetensors.torch import save_file

from bridle.errors import RunError
from bridle.importing import read_encoder


def as_safetensors(state: State, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "mae.safetensors")
    return path / "mae.safetensors"


def as_checkpoint(state: State, path: Path) -> Path:
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path / "mae.pth")
    return path / "mae.pth"


def as_folder(state: State, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    return path


@pytest.mark.parametrize("write", [as_safetensors, as_checkpoint, as_folder])
def test_every_kind_of_file_gives_the_same_weights(write: Callable[[State, Path], Path], tmp_path: Path) -> None:
    state = mae()
    imported, expected = read_encoder(write(state, tmp_path), heads=HEADS), read_encoder(state, heads=HEADS)
    assert imported.config == expected.config
    for name, tensor in expected.weights.items():
        assert torch.equal(tensor, imported.weights[name])
    if write is as_folder:
        assert (imported.mean, imported.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"model": mae(), "payload": Touch()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"model": Touch()}, protocol=2))
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(mae() | {"payload": Touch()}, folder / "pytorch_model.bin")
    for source in (tmp_path / "a.pt", tmp_path / "b.pt", folder):
        with pytest.raises(RunError, match=r"never unpickled here; take a \.safetensors file"):
            read_encoder(source, heads=HEADS)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("noise.pt", b"\x00\x01garbage", "no file of tensors"),
        ("noise.safetensors", b"garbage and more", "cannot be read"),
        ("empty.pt", b"", "cannot be read|no file of tensors"),
        ("config.json", b"{broken", "is no file of tensors"),
    ],
)
def test_files_that_are_no_weights(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_encoder(tmp_path / name)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"does not exist.*nothing is downloaded"):
        read_encoder("facebook/vit-mae-base")
    with pytest.raises(RunError, match=r"holds no model\.safetensors"):
        read_encoder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(RunError, match=r"names '\.\./secret\.safetensors', which is not a file beside it"):
        read_encoder(tmp_path)
    index.write_text("[1]")
    with pytest.raises(RunError, match="holds no JSON object"):
        read_encoder(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(RunError, match="holds a list, not a state dict"):
        read_encoder(tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(RunError, match="holds no tensors by name"):
        read_encoder(tmp_path / "none.pt")
