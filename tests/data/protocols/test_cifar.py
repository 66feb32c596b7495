"""CIFAR: pickles of Python 2 as they are published, and that no pickle runs anything."""

import os
import pickle
import pickletools

import numpy as np
import pytest
from PIL import Image
from reference import published_sets as sets

from bridle.data.protocols import pickles, read_protocol
from bridle.data.protocols.pickles import read_pickle
from bridle.errors import DataError


def pictures(data):
    """Split, labels, and (N, 32, 32, 3) pixels of a read set, in the order of its names."""
    found = []
    for entry in data.manifest.entries:
        with entry.opened() as source, Image.open(source) as image:
            found.append(np.asarray(image))
    return np.stack(found)


def test_pictures_are_the_published_ones(tmp_path):
    root = sets.cifar10(tmp_path / "cifar-10-batches-py")
    data = read_protocol("cifar-10", root)
    keys = [entry.key for entry in data.manifest.entries]
    assert keys[:2] == ["train/cat/data_batch_1-00000.bmp", "train/automobile/data_batch_1-00001.bmp"]
    # The naive way, which trusts the files, and takes values one by one.
    rows, labels, splits = [], [], []
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        batch = pickle.loads((root / name).read_bytes(), encoding="bytes")
        rows += [list(row) for row in batch[b"data"]]
        labels += [("airplane", "automobile", "bird", "cat")[number] for number in batch[b"labels"]]
        splits += ["test" if name == "test_batch" else "train"] * len(batch[b"labels"])
    found = pictures(data)
    for picture, row in zip(found, rows, strict=True):
        for channel, y, x in [(0, 0, 0), (0, 0, 31), (1, 0, 0), (1, 31, 5), (2, 31, 31)]:
            assert picture[y, x, channel] == row[1024 * channel + 32 * y + x]
    naive = np.array(rows, dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(found, naive)
    assert (data.manifest.columns["label"], data.manifest.columns["split"]) == (labels, splits)
    assert data.notes == ("4 of 10 classes have clips",)


def test_both_kinds_of_classes_of_cifar_100(tmp_path):
    root = sets.cifar100(tmp_path)
    fine, coarse = read_protocol("cifar-100", root), read_protocol("cifar-100-coarse", root)
    assert fine.manifest.columns[fine.columns.label][:4] == ["train", "apple", "pear", "train"]
    assert coarse.manifest.columns[coarse.columns.label][:4] == ["vehicles_1", *["fruit_and_vegetables"] * 2, "vehicles_1"]
    assert coarse.manifest.columns["split"] == ["train"] * 4 + ["test"] * 4
    np.testing.assert_array_equal(pictures(fine)[0], sets.cifar_pixels("train")[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_pictures_are_written_once_where_the_user_wants_them(tmp_path):
    root, cache = sets.cifar10(tmp_path / "set"), tmp_path / "cache"
    read_protocol("cifar-10", root, cache=cache)
    assert not (root / ".bridle").exists()
    (tar,) = cache.iterdir()
    before = tar.stat().st_mtime_ns
    read_protocol("cifar-10", root, cache=cache)
    assert tar.stat().st_mtime_ns == before
    batch = {"labels": [0], "data": sets.cifar_pixels("other", 1)}
    (root / "test_batch").write_bytes(sets.python2_pickle(batch))
    data = read_protocol("cifar-10", root, cache=cache)
    assert len(data.manifest) == 21
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [0]}, "'data' is NoneType; it must be"),
        ({"labels": [0], "data": np.zeros((1, 8), np.uint8)}, r"'data' is \(1, 8\); it must be \(pictures, 3072\) bytes"),
        ({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)}, "not one class number for each of its 1 pictures"),
        ({"labels": ["cat"], "data": np.zeros((1, 3072), np.uint8)}, "not one class number for each"),
        ({"labels": [4], "data": np.zeros((1, 3072), np.uint8)}, "has class number 4; there are 4 classes, from 0"),
        ({"labels": [-1], "data": np.zeros((1, 3072), np.uint8)}, "has class number -1"),
        ([1, 2], "holds a list, not a mapping"),
    ],
)
def test_batch_of_another_kind_is_an_error(tmp_path, batch, message):
    root = sets.cifar10(tmp_path)
    (root / "data_batch_3").write_bytes(sets.python2_pickle(batch))
    with pytest.raises(DataError, match=message) as error:
        read_protocol("cifar-10", root)
    assert "data_batch_3" in str(error.value)
    assert list((root / ".bridle").iterdir()) == [], "half a tar is left"


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".hidden"])
def test_class_name_that_is_a_path_is_refused(tmp_path, name):
    root = sets.cifar10(tmp_path)
    (root / "batches.meta").write_bytes(sets.python2_pickle({"label_names": ["a", "b", "c", name]}))
    with pytest.raises(DataError, match="is no name of a class"):
        read_protocol("cifar-10", root)


def test_missing_batch_is_named(tmp_path):
    root = sets.cifar10(tmp_path)
    (root / "data_batch_4").unlink()
    with pytest.raises(DataError, match="has no data_batch_4, which cifar-10 is read from"):
        read_protocol("cifar-10", root)


# Pickles


def test_tiny_batches_are_pickles_of_python_2(tmp_path):
    names = {opcode.name for opcode, _, _ in pickletools.genops(sets.python2_pickle({"data": np.zeros((2, 3072), np.uint8)}))}
    assert {"BINSTRING", "SHORT_BINSTRING", "GLOBAL"} <= names
    assert not {name for name in names if "UNICODE" in name or "BINBYTES" in name}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_pickle_itself_reads_them(tmp_path, protocol, order):
    values = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5), dtype=np.uint8), order=order)
    whole = {"data": values, "labels": [1, 2**40, -3], "text": "é"}
    if protocol == 2:
        content = sets.python2_pickle(whole)
        expected = {key.decode(): value for key, value in pickle.loads(content, encoding="bytes").items()}
    else:
        content, expected = pickle.dumps(whole, protocol), whole
    (tmp_path / "x").write_bytes(content)
    found = read_pickle(tmp_path / "x")
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["data"], values)
    assert (found["labels"], found["text"]) == (expected["labels"], expected["text"])


class Runs:
    def __init__(self, function, *arguments):
        self.how = (function, arguments)

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "function", [os.system, os.mkdir, eval, exec, getattr, __import__], ids=lambda function: function.__name__
)
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, function, protocol):
    marker = tmp_path / "marker"
    arguments = {
        "system": (f"touch {marker}",),
        "mkdir": (str(marker),),
        "eval": (f"open({str(marker)!r}, 'w')",),
        "exec": (f"open({str(marker)!r}, 'w')",),
        "getattr": (os, "mkdir"),
        "__import__": ("os",),
    }[function.__name__]
    if function is getattr:
        content = b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR."
    else:
        content = pickle.dumps({"data": Runs(function, *arguments)}, protocol)
    root = sets.cifar10(tmp_path / "set")
    (root / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1 is no pickle of plain values and arrays of bytes: it names \w+\.\w+"):
        read_protocol("cifar-10", root)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([print, eval], dtype=object), "it names builtins"),
        (np.array([1, "x"], dtype=object), "not of bytes"),
        (np.zeros(3, np.float32), "not of bytes"),
        (np.zeros(3, [("x", "u1")]), "not of bytes"),
        (np.float64(1), r"it names numpy\._core\.multiarray\.scalar"),
        (np.ma.zeros(3, np.uint8), "it names numpy"),
        (bytearray(b"x"), r"it names builtins\.bytearray"),
    ],
)
def test_anything_but_arrays_of_bytes_is_refused(tmp_path, value, message):
    (tmp_path / "x").write_bytes(pickle.dumps({"data": value}, 3))
    with pytest.raises(DataError, match=message):
        read_pickle(tmp_path / "x")


def reconstruct(state: bytes) -> bytes:
    """A pickle of an array with the given pickled state."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return b"\x80\x02}U\x04data" + array + state + b"bs."


DTYPE = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"


@pytest.mark.parametrize(
    "state",
    [
        b"(I1\n(I1000000000000\nt" + DTYPE + b"I00\nU\x02xxt",  # larger than its bytes
        b"(I1\n(I2\nt" + DTYPE + b"I00\nI1000000000000\nt",  # a number instead of bytes
        b"(I1\n(I2\ntS'u1'\nI00\nU\x02xxt",  # no type
        b"(I1\n(I-1\nt" + DTYPE + b"I00\nNt",
        b"(t",
        b"}",
        b"N",
    ],
)
def test_array_with_a_wrong_state_is_refused(tmp_path, state):
    (tmp_path / "x").write_bytes(reconstruct(state))
    with pytest.raises(DataError, match="is no pickle of plain values and arrays of bytes"):
        read_pickle(tmp_path / "x")
    (tmp_path / "x").write_bytes(reconstruct(b"(I1\n(I2\nt" + DTYPE + b"I00\nU\x02xyt"))
    assert bytes(read_pickle(tmp_path / "x")["data"]) == b"xy"


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02}U\x04data", b"\x80\x02(", b"\x80\xff."])
def test_broken_pickle_is_an_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="is no pickle of plain values"):
        read_pickle(tmp_path / "x")


def test_every_cut_of_a_batch_is_an_error(tmp_path):
    content = sets.python2_pickle({"labels": [1, 2], "data": np.zeros((1, 4), np.uint8)})
    for end in range(len(content)):
        (tmp_path / "x").write_bytes(content[:end])
        with pytest.raises(DataError):
            read_pickle(tmp_path / "x")


def test_large_or_missing_pickle_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BYTES", 10)
    (tmp_path / "x").write_bytes(pickle.dumps({"x": "y" * 100}))
    with pytest.raises(DataError, match="bytes; the limit is 10"):
        read_pickle(tmp_path / "x")
    with pytest.raises(DataError, match="No such file"):
        read_pickle(tmp_path / "gone")
