"""Whole sets from a server on this machine: archives with the published names and layouts, unpacked and read."""

import hashlib
import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace

import pytest
from reference import published_sets as sets
from reference.web_server import Served

from bridle import cli
from bridle.commands import fetch as command
from bridle.data.protocols import PROTOCOLS, read_protocol
from bridle.errors import ConfigError, DataError
from bridle.fetch import SOURCES, fetch, fetching, find_source
from bridle.fetch.download import Limits

QUICK = Limits(wait_seconds=0.001)

# For each set: what makes it, and the folder at the top of its archive.
ARCHIVES = {
    "esc-50": (sets.esc50, "ESC-50-33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6/"),
    "urbansound8k": (sets.urbansound8k, "UrbanSound8K/"),
    "speech-commands-v1": (sets.speech_commands, "./"),
    "speech-commands-v2": (sets.speech_commands, "./"),
    "cifar-10": (sets.cifar10, "cifar-10-batches-py/"),
    "cifar-100": (sets.cifar100, "cifar-100-python/"),
}


def packed(folder, top, is_zip):
    stream = io.BytesIO()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if is_zip:
        with zipfile.ZipFile(stream, "w") as archive:
            for path in paths:
                archive.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for path in paths:
                archive.add(path, f"{top}{path.relative_to(folder).as_posix()}")
    return stream.getvalue()


def serve(site, source, contents):
    """The set with checksums of what the server has now; those that are not published stay so."""
    remotes = []
    for remote, content in zip(source.remotes, contents, strict=True):
        site.files[f"/{remote.file_name}"] = Served(content)
        kind = remote.checksum.partition(":")[0]
        remotes.append(replace(remote, checksum=f"{kind}:{hashlib.new(kind, content).hexdigest()}" if kind else "", size=0))
    return replace(source, remotes=tuple(remotes))


def tiny(site, tmp_path, name):
    """A tiny copy of a set on the server."""
    builder, top = ARCHIVES[name]
    contents = [packed(builder(tmp_path / "made"), top, name == "esc-50")]
    if name.startswith("speech"):
        contents.append(packed(sets.speech_commands_test(tmp_path / "test"), "./", False))
    return serve(site, SOURCES[name], contents)


@pytest.mark.parametrize("name", ARCHIVES)
def test_set_is_readable_after_it_was_fetched(tmp_path, site, name):
    source = tiny(site, tmp_path, name)
    folder = tmp_path / "data" / name
    done = fetch(source, folder, mirror=f"{site.url}/", limits=QUICK)
    assert done.new == tuple(remote.folder for remote in source.remotes)
    assert all(re.search(r"(md5|sha256) as expected|no checksum is published", note) for note in done.notes)
    assert sorted(path.name for path in (folder / ".fetch").iterdir()) == ["lock.json"]
    for protocol in source.protocols:
        data = read_protocol(protocol, folder)
        assert data.manifest.bad == ()
        assert len(data.manifest) >= 8
    num_requests = len(site.requests)
    again = fetch(source, folder, mirror=site.url, limits=QUICK)
    assert (again.new, again.kept, len(site.requests)) == ((), done.new, num_requests)


def test_films_of_ucf101_are_left_packed(tmp_path, site):
    made = sets.ucf101(tmp_path / "made")
    lists = packed(made / "ucfTrainTestlist", "ucfTrainTestlist/", True)
    source = serve(site, SOURCES["ucf101"], [lists, b"Rar!"])
    folder = tmp_path / "data"
    fetch(source, folder, mirror=site.url)
    assert (folder / "UCF101.rar").read_bytes() == b"Rar!"
    (made / "UCF-101").rename(folder / "UCF-101")  # what unrar does
    assert len(read_protocol("ucf101-3", folder).manifest) == 6


def test_lists_of_audioset_and_kinetics_are_readable(tmp_path, site):
    made = sets.audioset(tmp_path / "made")
    source = SOURCES["audioset"]
    source = serve(site, source, [(made / remote.file_name).read_bytes() for remote in source.remotes])
    fetch(source, tmp_path / "audioset", mirror=site.url)
    sets.sound(tmp_path / "audioset" / "evaluation1.wav")
    assert len(read_protocol("audioset-2m", tmp_path / "audioset").manifest) == 1
    made = sets.kinetics(tmp_path / "films")
    for name in ("kinetics-400", "kinetics-600", "kinetics-700"):
        source = SOURCES[name]
        contents = [(made / "annotations" / remote.file_name).with_suffix(".csv").read_bytes() for remote in source.remotes]
        fetch(serve(site, source, contents), tmp_path / name, mirror=site.url)
        for part in ("train", "val"):
            (tmp_path / name / part).symlink_to(made / part)
        assert len(read_protocol(name, tmp_path / name).manifest) == 2


def test_fetching_that_breaks_off_is_gone_on_with(tmp_path, site):
    source = tiny(site, tmp_path, "speech-commands-v2")
    served = site.files["/speech_commands_v0.02.tar.gz"]
    served.cuts, served.statuses = [1000], [0, 404]
    with pytest.raises(DataError, match="answers 404"):
        fetch(source, tmp_path / "data", mirror=site.url, limits=QUICK)
    assert not (tmp_path / "data" / "speech_commands_v0.02").exists()
    fetch(source, tmp_path / "data", mirror=site.url, limits=QUICK)
    assert ("/speech_commands_v0.02.tar.gz", "bytes=1000-", '"1"') in site.requests
    assert len(read_protocol("speech-commands-v2", tmp_path / "data").manifest) == 12


def test_archive_that_is_there_is_only_unpacked(tmp_path, site):
    source = tiny(site, tmp_path, "cifar-10")
    folder = tmp_path / "data"
    fetch(source, folder, mirror=site.url, keep_archives=True)
    assert (folder / ".fetch" / "cifar-10-python.tar.gz").is_file()
    (folder / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    site.files.clear()
    assert fetch(source, folder, mirror=site.url).new == ("cifar-10-batches-py",)
    assert len(site.requests) == 1
    assert not (folder / ".fetch" / "cifar-10-python.tar.gz").exists()


def test_archive_that_was_not_recorded_is_not_trusted(tmp_path, site):
    source = tiny(site, tmp_path, "cifar-10")
    archive = tmp_path / "data" / ".fetch" / "cifar-10-python.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"of unknown origin")
    fetch(source, tmp_path / "data", mirror=site.url)
    assert len(read_protocol("cifar-10", tmp_path / "data").manifest) == 24


def test_wrong_checksum_leaves_no_set(tmp_path, site):
    source = tiny(site, tmp_path, "cifar-10")
    site.files["/cifar-10-python.tar.gz"].body += b"\0"
    with pytest.raises(DataError, match=r"md5 of .*cifar-10-python.tar.gz is \w+, not \w+; it is not the file"):
        fetch(source, tmp_path / "data", mirror=site.url)
    assert [path.name for path in (tmp_path / "data").rglob("*")] == [".fetch"]


def test_file_without_checksum_must_stay_the_same(tmp_path, site):
    made = sets.audioset(tmp_path / "made")
    source = SOURCES["audioset"]
    source = serve(site, source, [(made / remote.file_name).read_bytes() for remote in source.remotes])
    folder = tmp_path / "data"
    fetch(source, folder, mirror=site.url)
    content = (folder / "eval_segments.csv").read_bytes()
    lock = json.loads((folder / ".fetch" / "lock.json").read_text())
    assert lock["eval_segments.csv"] == {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "checksum": "not published",
    }
    (folder / "eval_segments.csv").unlink()
    assert fetch(source, folder, mirror=site.url).new == ("eval_segments.csv",)
    (folder / "eval_segments.csv").unlink()
    site.files["/eval_segments.csv"].body += b"# more\n"
    for _ in range(2):  # it is not taken the second time either
        with pytest.raises(
            DataError, match=r"when it was downloaded first it had .*: if its publisher changed it, remove .*lock.json"
        ):
            fetch(source, folder, mirror=site.url)
        assert not (folder / "eval_segments.csv").exists()
    (folder / ".fetch" / "lock.json").write_text("no json")
    with pytest.raises(DataError, match=r"lock.json is not readable JSON"):
        fetch(source, folder, mirror=site.url)


def test_room_is_looked_for_first(tmp_path, site, monkeypatch):
    monkeypatch.setattr(fetching, "free_bytes", lambda path: 5_000_000_000)
    with pytest.raises(
        DataError, match=r"about 7.6 GB are needed in .*, for archives and what is in them, and 5.0 GB are free"
    ):
        fetch(SOURCES["speech-commands-v2"], tmp_path / "data", mirror=site.url)
    assert site.requests == []


def test_folder_that_cannot_be_written_is_one_line(tmp_path, site):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write the files of cifar-10 to .*: Not a directory"):
        fetch(SOURCES["cifar-10"], tmp_path / "file" / "data", mirror=site.url)


def test_every_protocol_is_read_from_one_set():
    read = [protocol for source in SOURCES.values() for protocol in source.protocols]
    assert sorted(read) == sorted(PROTOCOLS)
    for name, source in SOURCES.items():
        assert source.name == name
        assert len({PROTOCOLS[protocol].about for protocol in source.protocols}) == 1
        assert source.remotes or source.remaining
        for protocol in source.protocols:
            assert find_source(protocol) is source
    assert find_source("UCF-101") is SOURCES["ucf101"]
    with pytest.raises(ConfigError, match=r"there is no set 'cifar11'; did you mean 'cifar-10'\?"):
        find_source("cifar11")


def test_addresses_and_checksums_are_well_formed():
    lengths = {"md5": 32, "sha256": 64}
    for source in SOURCES.values():
        names = [remote.file_name for remote in source.remotes]
        assert len(set(names)) == len(names)
        for remote in source.remotes:
            assert remote.url.startswith("https://") and remote.size > 0
            if remote.checksum:
                kind, _, digits = remote.checksum.partition(":")
                assert re.fullmatch(rf"[0-9a-f]{{{lengths[kind]}}}", digits)


# The command


def test_command_shows_the_licence_first(tmp_path, site, monkeypatch, capsys):
    source = tiny(site, tmp_path, "cifar-10")
    monkeypatch.setattr(command, "find_source", lambda name: source)
    folder = tmp_path / "data"
    assert cli.main(["fetch", "cifar-10", "--out", str(folder), "--mirror", site.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "licence: none is stated; the author asks to be cited"
    assert lines[-2:] == [f"done cifar-10: {folder}", "read by: cifar-10"]
    assert any("md5 as expected" in line for line in lines)
    assert cli.main(["fetch", "cifar-10", "--out", str(folder), "--mirror", site.url]) == 0
    assert f"is there already: {folder / 'cifar-10-batches-py'}" in capsys.readouterr().out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["fetch", "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert shown.count("\n  bridle fetch ") >= 2
    assert "--mirror URL" in shown and "(default: )" not in shown


def test_command_lists_and_explains(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["fetch"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*SOURCES, "by registration", "lists only", "0.7 GB"))
    assert cli.main(["fetch", "imagenet", "--out", str(tmp_path / "x")]) == 0
    assert "https://image-net.org/download.php" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_command_says_what_went_wrong_in_one_line(tmp_path, site, capsys):
    assert cli.main(["fetch", "cifar-10", "--out", str(tmp_path / "data"), "--mirror", site.url]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bridle: 127.0.0.1 answers 404")
    assert error.count("\n") == 1
    assert cli.main(["fetch", "nothing-of-this-name"]) == 1
    assert capsys.readouterr().err.startswith("bridle: there is no set 'nothing-of-this-name'; known are esc-50")
