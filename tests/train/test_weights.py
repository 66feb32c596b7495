"""Files of weights: what is written is read, shared and odd tensors, headers, and files that are none."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridle.errors import RunError
from bridle.train.weights import FORMAT_VERSION, other_version, read_weights, storable, write_weights


def weights() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    table = torch.randn(6, 4, generator=draws)
    return {
        "encoder.weight": table,
        "shared": table,
        "turned": table.T,
        "some rows": table[2:4],
        "half": torch.randn(3, generator=draws).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
        "nothing else": torch.zeros(0, 3),
        "Größe": torch.ones(2, requires_grad=True),
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, given = tmp_path / "chosen.safetensors", weights()
    write_weights(path, given, 12, {"fingerprint": "abc"})
    found, header = read_weights(path)
    assert header == {"format": "bridle", "version": str(FORMAT_VERSION), "step": "12", "fingerprint": "abc"}
    assert found.keys() == given.keys() == load_file(path).keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor.detach()), name
        assert found[name].is_contiguous() and not found[name].requires_grad
    assert [file.name for file in tmp_path.iterdir()] == ["chosen.safetensors"]


def test_the_header_cannot_be_talked_over(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"a": torch.ones(1)}, 3, {"version": "99", "step": "0", "format": "other"})
    assert read_weights(tmp_path / "w")[1] == {"format": "bridle", "version": str(FORMAT_VERSION), "step": "3"}


def test_storable_tensors_share_nothing_and_stay_what_they_are() -> None:
    given = weights()
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    found = storable(given)
    places = [tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()]
    assert len(set(places)) == len(places)
    for name, tensor in found.items():
        assert torch.equal(tensor, before[name]) and tensor.is_contiguous()
    found["shared"].zero_()
    assert bool(found["encoder.weight"].any())


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chosen.safetensors"
    write_weights(path, {"a": torch.ones(2)}, 1)
    write_weights(path, {"b": torch.zeros(2)}, 2)
    assert read_weights(path)[0].keys() == {"b"}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"chosen\.safetensors"):
        write_weights(path, {"c": torch.zeros(2)}, 3)
    monkeypatch.undo()
    assert read_weights(path)[1]["step"] == "2"
    assert [file.name for file in tmp_path.iterdir()] == ["chosen.safetensors"]
    with pytest.raises(RunError, match=r"w\.safetensors"):
        write_weights(tmp_path / "missing" / "w.safetensors", {"a": torch.ones(1)}, 1)


def test_files_of_others_are_read_and_other_formats_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert read_weights(tmp_path / "plain.safetensors")[1] == {}
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors", {"format": "bridle", "version": "1"})
    with pytest.raises(RunError, match="was written by format 1, this bridle reads 2: install a bridle that reads format 1"):
        read_weights(tmp_path / "old.safetensors")
    assert "format 9" in other_version(Path("x"), "9")


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 a pickle", b"{}", b"\xff" * 200])
def test_what_is_no_safetensors_is_never_opened_as_anything_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"is not a readable safetensors file \(.*\); bridle reads no pickles") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="does not exist"):
        read_weights(tmp_path / "gone.safetensors")
    with pytest.raises(RunError, match="is not a readable safetensors file"):
        read_weights(tmp_path)
