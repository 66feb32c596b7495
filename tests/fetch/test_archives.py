"""Unpacking: nothing outside the folder, no links, no more than was agreed, all or nothing."""

import io
import tarfile
import zipfile

import pytest

from bridle.errors import ConfigError, DataError
from bridle.fetch import archives
from bridle.fetch.archives import extract_tar, unpack


def tar(path, members, mode="w:gz"):
    """Members are (name, content), or tar members ready made."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(kind, name="evil", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "zip"])
@pytest.mark.parametrize("top", ["", "set-1.0/"])
def test_folder_of_an_archive_gets_the_wanted_name(tmp_path, suffix, top):
    path = tmp_path / f"a.{suffix}"
    members = [(f"{top}audio/1.wav", b"one"), (f"{top}list.txt", b"two")]
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        tar(path, members, f"w:{suffix.partition('.')[2]}")
    unpack(path, tmp_path / "set", 1000)
    assert tree(tmp_path / "set") == {"audio/1.wav": b"one", "list.txt": b"two"}
    assert sorted(child.name for child in tmp_path.iterdir()) == [path.name, "set"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/b/../../../evil"])
def test_tar_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    path = tar(tmp_path / "a.tar.gz", [("good", b"x"), (name, b"x")])
    with pytest.raises(DataError, match=rf"a.tar.gz holds '{name}', which leads out of its folder"):
        unpack(path, tmp_path / "out" / "set", 1000)
    assert not list(tmp_path.rglob("evil"))
    assert not list((tmp_path / "out").iterdir())


def test_absolute_names_of_a_tar_stay_in_the_folder(tmp_path):
    outside = tmp_path / "outside"
    extract_tar(tar(tmp_path / "a.tar", [(str(outside), b"x")], "w"), tmp_path / "set")
    assert not outside.exists()


@pytest.mark.parametrize(
    "member",
    [
        special(tarfile.SYMTYPE),
        special(tarfile.SYMTYPE, target="good"),
        special(tarfile.LNKTYPE),
        special(tarfile.LNKTYPE, target="good"),
        special(tarfile.FIFOTYPE),
        special(tarfile.CHRTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member):
    path = tar(tmp_path / "a.tar", [("good", b"x"), member, ("evil/below", b"x")], "w")
    with pytest.raises(DataError, match="holds 'evil', which leads out"):
        unpack(path, tmp_path / "set", 1000)
    assert not (tmp_path / "set").exists()


def test_permissions_are_plain(tmp_path):
    info = tarfile.TarInfo("run")
    info.mode = 0o4777
    extract_tar(tar(tmp_path / "a.tar", [info], "w"), tmp_path / "set")
    assert (tmp_path / "set" / "run").stat().st_mode & 0o7022 == 0


def test_more_than_was_agreed_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar.gz", [("a", b"\0" * 600), ("b", b"\0" * 600)])
    with pytest.raises(DataError, match="unpacks to 1200 bytes or more; the limit is 1000"):
        unpack(path, tmp_path / "set", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"\0" * 1001)
    with pytest.raises(DataError, match="unpacks to 1001 bytes; the limit is 1000"):
        unpack(tmp_path / "a.zip", tmp_path / "set", 1000)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip"])
def test_what_is_no_whole_archive_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is not a whole"):
        unpack(path, tmp_path / "set", 1000)
    whole = tar(tmp_path / "whole.tar.gz", [("a", bytes(range(256)) * 100)]).read_bytes()
    for end in (0, 20, len(whole) // 2):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:end])
        with pytest.raises(DataError, match="is not a whole tar archive"):
            unpack(tmp_path / "cut.tar.gz", tmp_path / "set", 1 << 20)
    assert not (tmp_path / "set").exists()


def test_archive_without_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"a.tar holds no files"):
        unpack(tar(tmp_path / "a.tar", [], "w"), tmp_path / "set", 1000)


def test_what_a_killed_call_left_is_replaced(tmp_path):
    (tmp_path / ".part-set").mkdir()
    (tmp_path / ".part-set" / "half").write_text("x")
    unpack(tar(tmp_path / "a.tar", [("a", b"x"), ("b", b"y")], "w"), tmp_path / "set", 1000)
    assert tree(tmp_path / "set") == {"a": b"x", "b": b"y"}


def test_python_that_cannot_do_it_safely_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(archives.tarfile, "data_filter")
    with pytest.raises(ConfigError, match=r"update to 3.11.4 or newer"):
        extract_tar(tar(tmp_path / "a.tar", [("a", b"x")], "w"), tmp_path / "set")


@pytest.mark.parametrize("name", [".", "", "./."])
def test_a_file_without_a_name_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", b"x")
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(DataError, match=r"a.zip holds a file without a name, '.*'; nothing is extracted"):
        unpack(tmp_path / "a.zip", tmp_path / "set", 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_the_folder_itself_may_be_a_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("./"), b"")
        archive.writestr("./good", b"x")
        archive.writestr("other", b"y")
    unpack(tmp_path / "a.zip", tmp_path / "set", 1000)
    assert tree(tmp_path / "set") == {"good": b"x", "other": b"y"}
