"""Files of strangers: nothing in them is executed, written elsewhere or believed, and what is wrong is said in one line."""

import bz2
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference.damage import sound
from reference.state_dicts import HEADS, mae
from safetensors.torch import save_file

from bridle import files
from bridle.cli import main
from bridle.config import load_yaml, read_yaml
from bridle.data.manifest import read_manifest
from bridle.errors import ConfigError, DataError, RunError
from bridle.fetch.archives import unpack
from bridle.importing import read_encoder
from bridle.run import RunConfig
from bridle.train.weights import read_weights

MEBIBYTE = 1 << 20
Content = Callable[[Path], bytes]


class Touch:
    """A pickle of this makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


def pickled(marker: Path) -> bytes:
    return pickle.dumps({"model": Touch(marker)}, protocol=2)


def saved_by_torch(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": {"w": torch.ones(1)}, "payload": Touch(marker)}, stream)
    return stream.getvalue()


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The single line that a command says before it leaves with 1."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1, arguments
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith("checkpoint passed over")]
    assert len(lines) == 1 and lines[0].startswith("bridle: "), said
    assert len(lines[0]) < 1500
    return lines[0]


def commands(run: Path, data: Path, out: Path) -> dict[str, list[object]]:
    return {
        "inspect": ["inspect", run],
        "embed": ["embed", run, data, "--out", out / "vectors"],
        "tokenize": ["tokenize", run, data, "--out", out / "codes"],
        "evaluate": ["evaluate", run, data, "--label", "class"],
        "report": ["report", run, "--out", out / "report.html"],
        "export": ["export", run, "--to", "hf", "--out", out / "exported", "--licence", "mit"],
        "pretrain": ["pretrain", "audio-debug", "--data", data, "--out", run, "--resume", *PHASES],
    }


PHASES = ["--phases", "cold:2steps, tokenizer:2steps, encoder:2steps"]
COMMANDS = list(commands(Path(), Path(), Path()))


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


def replace_weights(run: Path, content: bytes) -> None:
    """In the run and in its checkpoints, whose manifests vouch for it."""
    (run / "model.safetensors").write_bytes(content)
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / "model.safetensors").write_bytes(content)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["files"]["model.safetensors"] = {"size": len(content), "sha256": sha256(content).hexdigest()}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", [pickled, saved_by_torch])
def test_pickled_weights_are_never_loaded(
    command: str, content: Content, run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"
    replace_weights(run, content(marker))
    line = error_of(capsys, *commands(run, tiny_folder, tmp_path)[command])
    assert "bridle reads no pickles" in line
    assert not marker.exists()


@pytest.mark.parametrize("content", [pickled, saved_by_torch])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "folder"])
def test_pickles_are_not_imported(content: Content, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, source = tmp_path / "ran", tmp_path / name
    if name == "folder":
        source.mkdir()
    (source / "pytorch_model.bin" if name == "folder" else source).write_bytes(content(marker))
    line = error_of(capsys, "import", source, "--out", tmp_path / "run")
    assert str(source) in line
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


TAGS = [
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
    "seed: !!python/object/apply:os.system ['touch {marker}']",
    "seed: !!python/object/new:os.system ['touch {marker}']",
    "seed: !!python/name:os.system",
    "seed: !!python/module:os",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_tags_of_a_configuration_construct_nothing(
    command: str, run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, whole = tmp_path / "ran", (run / "config.yaml").read_text()
    for text in TAGS:
        (run / "config.yaml").write_text(whole + "\n" + text.format(marker=marker) + "\n")
        assert "config.yaml" in error_of(capsys, *commands(run, tiny_folder, tmp_path)[command])
        assert not marker.exists()


ODD_YAML = {
    "deep": "[" * 50_000,
    "deep mapping": "{a: " * 5_000,
    "no integer": "seed: !!int abc",
    "no float": "seed: !!float abc",
    "no truth": "seed: !!bool abc",
    "13th month": "seed: 2001-13-01",
    "digits": "seed: " + "9" * 5_000,
    "hexadecimal digits": "seed: 0x" + "f" * 5_000,
    "digits of a float": "joint_weight: " + "9" * 400,
    "not a number": "joint_weight: .nan",
    "swelling": "recipe: &a [x,x,x,x,x,x,x,x,x]\nseed: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    + "\n".join(f"{name}: &c{i} [{','.join([f'*c{i - 1}' if i else '*b'] * 9)}]" for i, name in enumerate(["audio"] * 9)),
    "of itself": "&a {audio: *a}",
    "two lines": '"seed\\nmore": 1',
    "long": "seed: " + "x" * 100_000,
}


@pytest.mark.parametrize("name", ODD_YAML)
def test_odd_configurations_are_explained(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(ODD_YAML[name])
    with pytest.raises(ConfigError) as error:
        load_yaml(RunConfig, path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ODD_YAML)
def test_odd_configurations_of_a_run_are_explained(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("\n" + ODD_YAML[name] + "\n")
    error_of(capsys, "inspect", run)


def test_a_configuration_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"config.yaml cannot be read: Is a directory"):
        read_yaml(tmp_path / "config.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes.yaml is not readable YAML"):
        read_yaml(tmp_path / "bytes.yaml")


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def entry(name: str, first: int, last: int, shape: list[int] | None = None, dtype: str = "F32") -> str:
    return f'"{name}": ' + json.dumps({"dtype": dtype, "shape": shape or [1], "data_offsets": [first, last]})


CRAFTED = {
    "overlapping": header(f"{{{entry('a', 0, 8, [2])}, {entry('b', 4, 12, [2])}}}".encode(), bytes(12)),
    "twice the same bytes": header(f"{{{entry('a', 0, 4)}, {entry('b', 0, 4)}}}".encode(), bytes(4)),
    "a hole": header(f"{{{entry('a', 0, 4)}, {entry('b', 8, 12)}}}".encode(), bytes(12)),
    "one name twice": header(f"{{{entry('a', 0, 4)}, {entry('a', 4, 8)}}}".encode(), bytes(8)),
    "metadata twice": header(f'{{"__metadata__": {{}}, "__metadata__": {{}}, {entry("a", 0, 4)}}}'.encode(), bytes(4)),
    "bytes behind the last": header(f"{{{entry('a', 0, 4)}}}".encode(), bytes(400)),
    "before the first": header(f"{{{entry('a', -4, 0)}}}".encode(), bytes(4)),
    "half a number": header(f"{{{entry('a', 0, 4, [1.5])}}}".encode(), bytes(4)),  # type: ignore[list-item]
    "not utf-8": header(b'{"\xff\xfe": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "deep": header(b'{"a": ' * 100_000),
    "more than 100 MB": (101_000_000).to_bytes(8, "little") + b"{" * 1000,
    "another type than its size": header(f"{{{entry('a', 0, 4, [1], 'F64')}}}".encode(), bytes(4)),
    "no such type": header(f"{{{entry('a', 0, 4, [1], 'O32')}}}".encode(), bytes(4)),
    "metadata of numbers": header(f'{{"__metadata__": {{"step": 3}}, {entry("a", 0, 4)}}}'.encode(), bytes(4)),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_weights_are_refused(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "crafted.safetensors"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(RunError, match="is not a readable safetensors file") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    with pytest.raises(RunError):
        read_encoder(path)
    (run / "model.safetensors").write_bytes(CRAFTED[name])
    assert "model.safetensors is not a readable safetensors file" in error_of(capsys, "inspect", run)


def test_weights_of_another_kind_of_number_or_shape_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, metadata = read_weights(run / "model.safetensors")
    name = next(iter(weights))
    for changed in (weights[name][..., None], weights[name].flatten()[:1]):
        save_file(weights | {name: changed.contiguous()}, run / "model.safetensors", metadata)
        assert f"'{name}' is " in error_of(capsys, "inspect", run)
    save_file(weights | {"further": torch.ones(1)}, run / "model.safetensors", metadata)
    assert "'further' is unknown" in error_of(capsys, "inspect", run)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_weights_that_are_no_file_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    {"a pipe": os.mkfifo, "a device": lambda path: path.symlink_to("/dev/zero"), "a folder": Path.mkdir}[kind](path)
    with pytest.raises(RunError, match="is not a readable safetensors file"):
        read_weights(path)


SETTINGS = {
    "model_type": [["vit"], {}, 3],
    "hidden_act": [[], 3],
    "hidden_size": ["x", -1, [1]],
    "num_hidden_layers": [10**12, "x"],
    "num_attention_heads": [0, -1, "x", [4], 10**9],
    "image_size": [0, -4, "x", [], [12], [12, "x"], 10**9, 1e300],
    "layer_norm_eps": ["x", [], -1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
def test_odd_settings_of_weights_to_import_are_refused(name: str, value: object, tmp_path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in mae().items()}, tmp_path / "model.safetensors")
    settings = {"model_type": "vit_mae", "num_attention_heads": HEADS, "image_size": 12}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_encoder(tmp_path).family == "ViTMAE"
    (tmp_path / "config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises((RunError, ConfigError)) as error:
        read_encoder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ".."}}']
)
def test_odd_indexes_of_weights_to_import_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(RunError, match="download"):
        read_encoder(tmp_path)


def test_weights_that_would_swell_are_not_imported(tmp_path: Path) -> None:
    torch.save(mae() | {"patch_embed.proj.bias": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "strides.pt")
    with pytest.raises(RunError, match="claims 4398046511104 bytes and stores fewer"):
        read_encoder(tmp_path / "strides.pt", heads=HEADS)
    torch.save({"w": torch.zeros(MEBIBYTE)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in plain.infolist():
            small.writestr(member.filename, plain.read(member))
    assert (tmp_path / "small.pt").stat().st_size < 20_000
    with pytest.raises(RunError, match="is a compressed archive"):
        read_encoder(tmp_path / "small.pt")
    torch.save({"w": torch.zeros(3).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"w": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "complex.pt")
    for name in ("sparse", "complex"):
        with pytest.raises(RunError, match="'w' is"):
            read_encoder(tmp_path / f"{name}.pt")
    blocks = {key.replace("blocks.1.", "blocks.999999999999."): tensor for key, tensor in mae().items()}
    with pytest.raises(RunError, match="blocks before it are missing"):
        read_encoder(blocks, heads=HEADS)


def swelling_tar(path: Path, num_bytes: int, in_header: bool) -> Path:
    """A tar of a few bytes that unpacks to zeros: as a file, or as the comment in the header of one."""
    stream = io.BytesIO()
    info = tarfile.TarInfo("a.wav")
    if in_header:
        info.pax_headers = {"comment": "\0" * num_bytes}
    else:
        info.size = num_bytes
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(bytes(num_bytes)) if not in_header else None)
    packed = bz2.compress(stream.getvalue()) if path.suffix == ".bz2" else gzip.compress(stream.getvalue())
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("name", ["a.tar.bz2", "a.tar.gz"])
@pytest.mark.parametrize("in_header", [False, True])
def test_archives_that_swell_take_no_memory(name: str, in_header: bool, tmp_path: Path) -> None:
    path = swelling_tar(tmp_path / name, 64 * MEBIBYTE, in_header)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to"):
            unpack(path, tmp_path / "set", MEBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 16 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert [place.name for place in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_whose_parts_swell_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a.wav", bytes(MEBIBYTE))
    with pytest.raises(DataError, match=rf"holds 'a.wav' compressed by method {method}; repack it by deflate"):
        unpack(tmp_path / "a.zip", tmp_path / "set", 2 * MEBIBYTE)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.wav", b"sound")
    content = bytearray(stream.getvalue())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="is encrypted"):
        unpack(tmp_path / "a.zip", tmp_path / "set", MEBIBYTE)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_names_of_a_shard_reach_nothing_outside(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    whole = sound(np.random.default_rng(0))
    outside = {"../up.wav": whole, str(tmp_path / "abs.wav"): whole, "a/../../up.wav": whole}
    tar_of(folder / "shard.tar", {"good.wav": whole, **outside})
    before = sorted(tmp_path.rglob("*"))
    manifest = read_manifest(folder)
    assert [entry.key for entry in manifest.entries] == ["shard.tar/good.wav"]
    assert {file.reason for file in manifest.bad} == {"unsafe path in shard"}
    assert len(manifest.bad) == len(outside)
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["embed", str(tiny_run), str(folder), "--out", str(tmp_path / "vectors")]) == 0
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == sorted([tmp_path / "vectors", *(tmp_path / "vectors").iterdir()])
    assert not (tmp_path / "up.wav").exists() and not (tmp_path / "abs.wav").exists()


def test_a_table_may_name_any_sound_and_gives_away_nothing_else(tmp_path: Path) -> None:
    """Whoever writes a table chooses its files, also above it and behind links; what is no sound is named, never shown."""
    folder = tmp_path / "tables" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "above.wav").write_bytes(sound(np.random.default_rng(0)))
    (tmp_path / "secret.txt").write_text("the password is 12345")
    (folder / "link.wav").symlink_to(tmp_path / "above.wav")
    names = ["../../above.wav", str(tmp_path / "above.wav"), "link.wav", "../../secret.txt", str(tmp_path / "secret.txt")]
    (folder / "list.csv").write_text("path\n" + "\n".join([*names, "../../../../../../../etc/hostname", "nul\x01.wav"]) + "\n")
    manifest = read_manifest(folder / "list.csv")
    assert [entry.key for entry in manifest.entries] == names[:3]
    reasons = {file.key: file.reason for file in manifest.bad}
    assert [reasons[name] for name in names[3:]] == ["not audio", "not audio"]
    assert all("12345" not in reason and len(reason) < 60 for reason in reasons.values())


def test_links_in_a_run_are_replaced_and_what_they_lead_to_stays(
    run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("model.safetensors", "config.yaml"):
        (run / name).rename(outside / name)
        (run / name).symlink_to(outside / name)
    (outside / "latest").write_text("precious")
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "latest").symlink_to(outside / "latest")
    (outside / "folder").mkdir()
    (outside / "folder" / "file").write_text("precious")
    (run / "checkpoints" / "step-00000001").symlink_to(outside / "folder")
    (run / "checkpoints" / ".tmp-00000001-1").symlink_to(outside / "folder")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    longer = ["--phases", "cold:2steps, tokenizer:2steps, encoder:2steps, joint:2steps"]
    assert main(["pretrain", "audio-debug", "--data", str(tiny_folder), "--out", str(run), "--resume", *longer]) == 0
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before
    assert not (run / "model.safetensors").is_symlink()
    assert (run / "checkpoints" / "latest").read_text() == "step-00000008\n"
    assert main(["inspect", str(run)]) == 0


def test_devices_and_pipes_are_not_replaced_by_files(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        assert "is a device, a pipe or a socket" in error_of(capsys, "inspect", tiny_run, "--json", tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    # What /dev/stdout leads to may be a file.
    devices = tmp_path / "dev"
    devices.mkdir()
    (tmp_path / "redirected").write_text("old")
    (devices / "stdout").symlink_to(tmp_path / "redirected")
    monkeypatch.setattr(files, "_DEVICES", devices)
    assert "is a device, a pipe or a socket" in error_of(capsys, "inspect", tiny_run, "--json", devices / "stdout")
    assert (devices / "stdout").is_symlink() and (tmp_path / "redirected").read_text() == "old"


RUN_FILES = ["config.yaml", "metrics.jsonl", "history.jsonl", "quarantine.jsonl", "checkpoints/latest"]
RUN_FILES += ["state.json", "manifest.json"]
FOREIGN = {
    "empty": b"",
    "bytes": bytes(range(256)) * 4,
    "deep": b"[" * 50_000,
    "list": b"[1]\n",
    "mapping": b"{}\n",
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "history.jsonl", "quarantine.jsonl", "checkpoints/latest", "state.json", "manifest.json"],
)
def test_foreign_content_of_a_run_is_explained_or_passed_over(
    name: str, content: str, run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in ("state.json", "manifest.json"):
        for checkpoint in (run / "checkpoints").glob("step-*"):
            (checkpoint / name).write_bytes(FOREIGN[content])
    else:
        (run / name).write_bytes(FOREIGN[content])
    for command in ("inspect", "pretrain", *(["report"] if content == "deep" else [])):
        arguments = commands(run, tiny_folder, tmp_path)[command]
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert status in (0, 1)
        assert "Traceback" not in said
        if status:
            lines = [line for line in said.splitlines() if not line.startswith("checkpoint passed over")]
            assert len(lines) == 1 and lines[0].startswith("bridle: "), said


ODD_NAMES = ["", "nothing", "/dev/null", "/dev/zero", "-", "[", "{9..1}", "hf:"]
LONG_NAMES = ["a" * 5_000, "two\nlines"]


@pytest.mark.parametrize("name", ODD_NAMES + LONG_NAMES)
def test_odd_names_are_explained(
    name: str, tiny_run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for arguments in (
        ["inspect", name],
        ["embed", name, tiny_folder, "--out", out],
        ["embed", tiny_run, name, "--out", out],
        ["doctor", name],
        ["pretrain", "audio-debug", "--data", name, "--out", out],
        ["import", name, "--out", out],
        ["shard", name, "--out", out],
        ["replay", tiny_run, name],
    ):
        try:
            status: object = main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = left.code
        said = capsys.readouterr().err
        assert status in (1, 2), arguments
        assert "Traceback" not in said
        assert status == 2 or said.count("\n") == 1, said


def test_a_process_of_its_own_says_it_in_one_line_too(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "w.pt").write_bytes(pickled(marker))
    call = [sys.executable, "-m", "bridle", "import", str(tmp_path / "w.pt"), "--out", str(tmp_path / "new")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bridle: ") and done.stderr.count("\n") == 1
    assert not marker.exists()


def test_what_is_written_of_a_run_has_no_tags(tiny_run: Path) -> None:
    text = (tiny_run / "config.yaml").read_text()
    assert "!" not in text and "&" not in text
    assert yaml.safe_load(text) == read_yaml(tiny_run / "config.yaml")
