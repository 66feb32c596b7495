"""What folders, tars and sidecars say about a file."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from bridle.data.layout import place
from bridle.data.manifest import read_manifest
from bridle.data.medium import IMAGE
from bridle.errors import DataError


@pytest.mark.parametrize(
    ("path", "cells"),
    [
        ("a.png", {}),
        ("dog/a.png", {"class": "dog"}),
        ("train/dog/a.png", {"class": "dog", "split": "train"}),
        ("Training/dog/a.png", {"class": "dog", "split": "train"}),
        ("val/dog/a.png", {"class": "dog", "split": "validation"}),
        ("data/validation/n01440764/a.JPEG", {"class": "n01440764", "split": "validation"}),
        ("dev/dog/a.png", {"class": "dog", "split": "validation"}),
        ("test_2/dog/a.png", {"class": "dog", "split": "test"}),
        ("testimony/dog/a.png", {"class": "dog"}),
        ("train/a.png", {"class": "train"}),  # a class may be trains
        ("train-00.tar/dog/a.png", {"class": "dog", "split": "train"}),
        ("imagenet-train-000.tar/a.png", {}),
        ("train-000.tar/a.png", {"split": "train"}),
        ("shards/val-000.tar/a.png", {"split": "validation"}),
    ],
)
def test_folders_name_class_and_split(path: str, cells: dict[str, str]) -> None:
    assert place(Path(path).parts) == cells


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def test_webdataset_members_become_columns(tmp_path: Path) -> None:
    about = {"caption": "a dog", "width": 4, "tags": ["x"], "ok": True}
    write_tar(
        tmp_path / "train-000.tar",
        {
            "0001.png": png(),
            "0001.cls": b"7\n",
            "0001.json": json.dumps(about).encode(),
            "0002.cls": b"8",
            "0002.jpg": b"no picture, which is found out when it is decoded",
            "0002.json": b"{broken",
            "b.d/0003.seg.png": png(),
            "b.d/0003.txt": "größer".encode(),
            "0004.png": png(),
            "0005.txt": b"nothing beside it",
            "0006.txt": b"x" * 70_000,
            "0006.png": png(),
        },
    )
    manifest = read_manifest(tmp_path, IMAGE)
    assert [entry.key.split("/", 1)[1] for entry in manifest.entries] == [
        "0001.png",
        "0002.jpg",
        "b.d/0003.seg.png",
        "0004.png",
        "0006.png",
    ]
    assert manifest.columns["cls"] == ["7", "8", "", "", ""]
    assert manifest.columns["caption"] == ["a dog", "", "", "", ""]
    assert manifest.columns["width"] == ["4", "", "", "", ""]
    assert manifest.columns["txt"] == ["", "", "größer", "", ""]
    assert manifest.columns["split"] == ["train"] * 5
    assert manifest.columns["class"] == ["", "", "b.d", "", ""]
    assert "tags" not in manifest.columns


@pytest.mark.parametrize("name", ["train-000.tar", "x-000.tar"])
def test_folders_above_a_source_say_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dev" / "test" / "project"
    folder.mkdir(parents=True)
    members = {"a.png": png(), "dog/b.png": png(), "val/dog/c.png": png()}
    write_tar(folder / name, members)
    alone = read_manifest(folder / name, IMAGE)
    split = "train" if name.startswith("train") else ""
    assert alone.columns == {"split": [split] * 2 + [split or "validation"], "class": ["", "dog", "dog"]}
    assert read_manifest(folder, IMAGE) == read_manifest(folder / "*.tar", IMAGE) == alone
    write_tar(folder / name.replace("0.", "1."), members)
    twice = {column: cells * 2 for column, cells in alone.columns.items()}
    for source in (folder, folder / "*.tar", f"{tmp_path}/**/*.tar", sorted(folder.iterdir()), [folder, tmp_path / "*.csv"]):
        assert read_manifest(source, IMAGE).columns == twice


def test_a_sidecar_nested_too_deeply_says_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"1.json": b"[" * 60_000, "1.png": png(), "2.json": b'{"a": 1}', "2.png": png()})
    assert read_manifest(tmp_path, IMAGE).columns == {"a": ["", "1"]}


def test_the_wrong_medium_is_told_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    hint = r"no readable sound file in .*; what is there looks like 1 picture \(recipes image-\.\.\.\)$"
    with pytest.raises(DataError, match=hint):
        read_manifest(tmp_path)
    (tmp_path / "table.csv").write_text("path\na.png\n")
    with pytest.raises(DataError, match=hint):
        read_manifest(tmp_path / "table.csv")


def test_films_are_not_told_as_sound(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mkv", "c.webm", "d.wav"):
        (tmp_path / name).touch()
    found = r"what is there looks like 1 sound file \(recipes audio-\.\.\.\) and 3 films \(recipes video-\.\.\.\)$"
    with pytest.raises(DataError, match=found):
        read_manifest(tmp_path, IMAGE)
