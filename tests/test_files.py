"""Atomic writes: old content or new, no left-overs, never through a hard link."""

import errno
import os

import pytest

from bridle.files import explain_write_error, free_bytes, fsync, link_or_copy, write_atomically


def test_writes_bytes_text_and_by_function(tmp_path):
    for content, expected in ((b"\x00\xff", b"\x00\xff"), ("é\n", "é\n".encode()), (lambda p: p.write_text("x"), b"x")):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_keeps_old_content_and_leaves_nothing(tmp_path, monkeypatch, call):
    write_atomically(tmp_path / "file", "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_stale_link_of_same_process_id_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / f".tmp-file-{os.getpid()}").hardlink_to(precious)
    write_atomically(tmp_path / "file", "new")
    assert precious.read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_link_falls_back_to_copy(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("content")
    link_or_copy(source, tmp_path / "link")
    assert (tmp_path / "link").samefile(source)

    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    link_or_copy(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"
    assert not (tmp_path / "copy").samefile(source)


def test_link_refuses_an_existing_target(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "target"


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_fsync_forgives_only_file_systems_without_it(tmp_path, monkeypatch, code, passes):
    def fail(_):
        raise OSError(code, "no sync")

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        fsync(tmp_path)
    else:
        with pytest.raises(OSError, match="no sync"):
            fsync(tmp_path)


def test_free_bytes_of_a_missing_folder(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OSError(errno.ENOSPC, ""), os.strerror(errno.ENOSPC), "free disk space"),
        (OSError(errno.EROFS, ""), os.strerror(errno.EROFS), "mount it writable"),
        (RuntimeError("I/O error: bad (os error 27)"), os.strerror(errno.EFBIG), "ulimit -f"),
        (RuntimeError("strange"), "strange", "check the disk"),
    ],
)
def test_explanation_names_reason_space_and_remedy(tmp_path, error, reason, remedy):
    text = explain_write_error(error, tmp_path, "the thing")
    assert text.startswith(f"cannot write the thing to {tmp_path}: {reason} (")
    assert "MB free); " in text
    assert remedy in text
