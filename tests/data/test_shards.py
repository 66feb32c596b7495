import io
import os
import tarfile

import fsspec
import pytest

from bridle.data.entries import Entry
from bridle.data.shards import Member, list_members, open_window, read_member


def write_tar(path, members, mode="w", format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes) pairs and ready TarInfo objects."""
    with tarfile.open(path, mode, format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_windows_hold_the_members(tmp_path, format):
    long_name = "x" * 90 + "/" + "y" * 90 + ".wav"
    contents = [("a.wav", b"first"), ("./deep/b.wav", os.urandom(2000)), (long_name, b""), ("c.txt", b"third")]
    path = write_tar(tmp_path / "shard.tar", contents, format=format)
    members = list(list_members(path))
    assert [m.name for m in members] == ["a.wav", "deep/b.wav", long_name, "c.txt"]
    for member, (_, content) in zip(members, contents, strict=True):
        assert member.fault == ""
        with open_window(str(path), member.offset, member.size) as window:
            assert window.read() == content
            assert window.read() == b"", "a window ends with its member"


def test_a_window_is_a_seekable_file_of_its_own(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789abcdef")
    reference = io.BytesIO(b"456789ab")
    with open_window(str(path), 4, 8) as window:
        assert window.seekable()
        assert window.readable()
        assert not window.writable()
        for offset, whence, size in [
            (0, 0, 3),
            (-2, 2, 5),
            (1, 0, -1),
            (2, 0, 2),
            (1, 1, 1),
            (0, 2, 1),
            (20, 0, 1),
            (0, 0, 8),
        ]:
            assert window.seek(offset, whence) == reference.seek(offset, whence)
            assert window.read(size) == reference.read(size)
            assert window.tell() == reference.tell()
        with pytest.raises(ValueError, match="negative"):
            window.seek(-9, 2)
    with pytest.raises(ValueError, match="closed"):
        window.read()


def test_links_and_special_members_are_passed_over(tmp_path):
    members = [
        special("soft.wav", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.wav", tarfile.LNKTYPE, "a.wav"),
        special("folder.wav", tarfile.DIRTYPE),
        special("pipe.wav", tarfile.FIFOTYPE),
        special("device.wav", tarfile.CHRTYPE),
        ("._a.wav", b"finder"),
        (".hidden/a.wav", b"x"),
        ("a.wav", b"content"),
    ]
    assert [m.name for m in list_members(write_tar(tmp_path / "s.tar", members))] == ["a.wav"]


@pytest.mark.parametrize("name", ["../up.wav", "a/../../up.wav", "/abs.wav", "a/.."])
def test_names_that_point_outside_are_faults(tmp_path, name):
    path = write_tar(tmp_path / "s.tar", [(name, b"x"), ("ok.wav", b"y")])
    assert [m.fault for m in list_members(path)] == ["unsafe path in shard", ""]
    assert [p.name for p in tmp_path.iterdir()] == ["s.tar"], "nothing is written"


def test_a_cut_off_tar_gives_its_whole_members_first(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.wav", b"a" * 600), ("b.wav", b"b" * 6000)])
    path.write_bytes(path.read_bytes()[:3000])
    found = []
    with pytest.raises(tarfile.TarError):
        found.extend(list_members(path))  # extend keeps what came before the error
    assert [(m.name, m.fault) for m in found] == [("a.wav", ""), ("b.wav", "truncated")]


def test_compressed_or_other_files_are_refused(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.wav", b"a")], mode="w:gz")
    with pytest.raises(tarfile.TarError):
        list(list_members(path))


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_tar_may_be_a_url(tmp_path, scheme):
    contents = [("a.wav", os.urandom(700)), ("b/c.wav", os.urandom(20_000)), ("../up.wav", b"x")]
    path = write_tar(tmp_path / "s.tar", contents)
    url = f"{scheme}://{tmp_path}/s.tar"
    if scheme == "memory":
        fsspec.filesystem("memory").pipe(f"{tmp_path}/s.tar", path.read_bytes())
    members = list(list_members(url))
    assert members == list(list_members(path))
    for member, (_, content) in zip(members[:2], contents, strict=False):
        assert read_member(url, member) == content
        with Entry("k", url, member.offset, member.size).opened() as stream:
            stream.seek(-5, io.SEEK_END)
            assert stream.read() == content[-5:]
    with pytest.raises(FileNotFoundError):
        open_window(f"{scheme}://{tmp_path}/none.tar", 0, 5)
    with pytest.raises(FileNotFoundError):
        list(list_members(f"{scheme}://{tmp_path}/none.tar"))


def test_a_local_name_may_look_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:").mkdir()
    (tmp_path / "a:" / "s").write_bytes(b"0123")
    assert read_member("a://s", Member("m", 1, 2)) == b"12"


def test_members_are_not_kept_in_memory(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(f"{number}.wav", b"") for number in range(50)])
    with pytest.MonkeyPatch.context() as patch:
        lengths, original = [], tarfile.TarFile.next
        patch.setattr(tarfile.TarFile, "next", lambda tar: lengths.append(len(tar.members)) or original(tar))
        assert len(list(list_members(path))) == 50
    assert max(lengths) <= 1
