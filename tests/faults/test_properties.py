"""Whatever stands in a file: it is read as what it is, or explained. Examples are the same in every run."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridle.config import from_dict, load_yaml, to_dict, to_yaml
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.quarantine import Quarantine
from bridle.errors import BridleError, ConfigError, DataError, RunError
from bridle.fetch.archives import unpack
from bridle.inference import Model, load
from bridle.recipes import RECIPES, recipe
from bridle.run import RunConfig, RunFolder
from bridle.summary import summarise
from bridle.tables import write_codes
from bridle.train.checkpoint import latest_checkpoint, load_checkpoint
from bridle.train.history import read_history
from bridle.train.metrics import read_metrics


def mutate(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """The content with parts of it replaced, taken out, put in, or cut off, each at a fraction of its length."""
    changed = bytearray(content)
    for kind, where, what in changes:
        place = int(where * len(changed))
        if kind == "replace":
            changed[place : place + len(what)] = what
        elif kind == "remove":
            del changed[place : place + len(what)]
        elif kind == "insert":
            changed[place:place] = what
        else:
            del changed[place:]
    return bytes(changed)


WORDS = [b"\0", b"\xff", b"\xff" * 8, b"\n", b"{", b"[" * 3000, b'"', b"null", b"-1", b"9" * 30, b"NaN", b"\x80\x04.", b"\r"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["replace", "replace", "remove", "insert", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=3,
)


def explained(call: Callable[[], object], *kinds: type[BridleError], names: bytes = b"") -> object:
    """What the call returns; the error if it is one of these kinds, in one line unless ``names`` that it tells have several."""
    try:
        return call()
    except kinds as error:
        assert str(error)
        assert "\n" not in str(error) or b"\n" in names
        return error


# --- manifests ---

CELLS = st.one_of(
    st.sampled_from(
        ["tone-0.wav", "tone-1.wav", "gone.wav", "", "../x", "/etc/hostname", '"', "1.5", "nan", "-1", "1e999", "é"]
    ),
    st.text(max_size=6),
)
TABLES = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='path,"\n\r;\t a.wv\ufeff', max_size=60).map(str.encode),
    st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=5).map(
        lambda rows: "\n".join(["path,duration_seconds", *(",".join(row) for row in rows)]).encode("utf-8", "surrogatepass")
    ),
)


@settings(max_examples=150)
@given(TABLES)
@example(b"path\n" + b"a" * 200_000)
@example(b'path\n"' + b"a\n" * 2000)
@example(b"path\na\0b.wav\n")
@example(b"path,path\ntone-0.wav,x\n")
def test_any_table_is_a_manifest_or_explained(
    tone_folder: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("table")
    for name in ("tone-0.wav", "tone-1.wav"):
        (folder / name).symlink_to(tone_folder / name)
    (folder / "list.csv").write_bytes(content)
    found = explained(lambda: read_manifest(folder / "list.csv"), DataError, names=content)
    if isinstance(found, Manifest):
        assert {Path(entry.key).name for entry in found.entries} <= {"tone-0.wav", "tone-1.wav"}
        assert all(len(cells) == len(found) for cells in found.columns.values())
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["list.parquet", "shard.tar"])
def test_any_damage_of_a_source_is_explained(kind: str, tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("sources")
    for name in ("tone-0.wav", "tone-1.wav"):
        shutil.copy(tone_folder / name, folder)
    if kind == "list.parquet":
        pq.write_table(pa.table({"path": ["tone-0.wav", "tone-1.wav"], "class": ["a", None]}), folder / kind)
    else:
        with tarfile.open(folder / kind, "w") as archive:
            archive.add(folder / "tone-0.wav", "tone-0.wav")
            archive.add(folder / "tone-1.wav", "tone-1.wav")
    whole = (folder / kind).read_bytes()
    names = {entry.key for entry in read_manifest(folder / kind).entries}

    @settings(max_examples=60)
    @given(CHANGES)
    def check(changes: list[tuple[str, float, bytes]]) -> None:
        (folder / kind).write_bytes(mutate(whole, changes))
        found = explained(lambda: read_manifest(folder / kind), DataError)
        assert isinstance(found, DataError) or (isinstance(found, Manifest) and len(found.entries) <= len(names))

    check()


# --- configurations ---

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(2**60, 2**2000),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["cold:1", "cold:1steps", "random", "mean", [16, 16, 1], [0, 0, 0], [-1], 1e-30, 0, -1, 1, 2]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(data: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The names on the way to every setting and group of settings."""
    found = []
    for name, value in data.items():
        found.append((*above, name))
        if isinstance(value, dict):
            found += places(value, (*above, name))
    return found


def put(data: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *below = place
    return data | {name: put(data[name], tuple(below), value) if below else value}


PLACES = {name: places(to_dict(recipe(name))) for name in RECIPES}


@settings(max_examples=200)
@given(st.sampled_from(sorted(RECIPES)), st.data())
def test_any_change_of_a_recipe_is_a_configuration_or_explained(name: str, data: st.DataObject) -> None:
    changed = to_dict(recipe(name))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([place for place in PLACES[name] if _is_there(changed, place)]))
        changed = put(changed, place, data.draw(VALUES))
    explained(lambda: from_dict(RunConfig, changed), ConfigError)


def _is_there(data: Any, place: tuple[str, ...]) -> bool:
    for name in place:
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True


@settings(max_examples=100)
@given(VALUES)
def test_anything_is_a_configuration_or_explained(data: Any) -> None:
    explained(lambda: from_dict(RunConfig, data), ConfigError)


VALID: list[tuple[tuple[str, ...], st.SearchStrategy[Any]]] = [
    (("seed",), st.integers(-(2**63), 2**63 - 1)),
    (("phases",), st.sampled_from(["cold:3", "cold:2steps, tokenizer:1, encoder:9steps lr=3e-4", "patches:1", "joint:1steps"])),
    (("joint_weight",), st.floats(0, 1e6)),
    (("renew",), st.sampled_from(["head", "predictor", "encoder"])),
    (("encoder", "depth"), st.integers(1, 40)),
    (("encoder", "norm_eps"), st.floats(1e-12, 1e-3)),
    (("quantizer", "codebook_size"), st.integers(2, 2048)),
    (("encoder_optim", "lr"), st.floats(0, 1)),
    (("train", "batch_size"), st.integers(1, 10**6)),
    (("train", "max_bad_fraction"), st.floats(0, 1)),
]


@settings(max_examples=60)
@given(st.sampled_from(sorted(RECIPES)), st.data())
def test_every_valid_change_of_a_recipe_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    changed = to_dict(recipe(name))
    for place, values in data.draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=4)):
        changed = put(changed, place, data.draw(values))
    config = from_dict(RunConfig, changed)
    path = tmp_path_factory.getbasetemp() / "roundtrip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_yaml(RunConfig, path) == config


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=80), st.text(alphabet="&*!{}[]:,-|>?@`'\"#%\n abseed0123.x", max_size=60)))
@example("? [seed]\n: 1")
@example("&a [*a]")
@example("seed: 1:2:3")
@example("<<: [{seed: 1}, 3]")
def test_any_text_is_a_configuration_or_explained(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    explained(lambda: load_yaml(RunConfig, path), ConfigError)


# --- a run ---


def test_any_damage_of_a_checkpoint_is_found(tiny_run: Path, tmp_path: Path) -> None:
    newest = latest_checkpoint(tiny_run)
    assert newest is not None
    whole = {path.name: path.read_bytes() for path in newest.iterdir()}
    before, path = load_checkpoint(newest), tmp_path / newest.name
    path.mkdir()

    @settings(max_examples=200)
    @given(st.sampled_from(sorted(whole)), CHANGES)
    def check(name: str, changes: list[tuple[str, float, bytes]]) -> None:
        for file, content in whole.items():
            (path / file).write_bytes(mutate(content, changes) if file == name else content)
        found = explained(lambda: load_checkpoint(path), RunError, ConfigError)
        if not isinstance(found, BridleError):
            assert (found.step, found.state) == (before.step, before.state)  # type: ignore[attr-defined]
            for ours, theirs in ((found.weights, before.weights), (found.optimizer, before.optimizer)):  # type: ignore[attr-defined]
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(value, theirs[key]) for key, value in ours.items())

    check()


def test_a_checkpoint_of_another_step_than_its_weights_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    newest = latest_checkpoint(tiny_run)
    assert newest is not None
    path = shutil.copytree(newest, tmp_path / newest.name)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"step": manifest["step"] + 1}))
    with pytest.raises(RunError, match="half written or damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "history.jsonl", "quarantine.jsonl", "config.yaml", "checkpoints/latest"])
def test_any_damage_of_a_run_is_explained_or_passed_over(name: str, tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [json.dumps({"key": f"é-{i}.wav", "reason": "not audio", "found": "decoding"}) for i in range(5)]
    (run / "quarantine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = (run / name).read_bytes()
    readers: dict[str, Callable[[], object]] = {
        "metrics.jsonl": lambda: read_metrics(run),
        "history.jsonl": lambda: read_history(run),
        "quarantine.jsonl": lambda: Quarantine(run / "quarantine.jsonl", 100, 0.5),
        "config.yaml": lambda: RunFolder(run).read_config(),
        "checkpoints/latest": lambda: latest_checkpoint(run),
    }

    @settings(max_examples=50)
    @given(CHANGES)
    def check(changes: list[tuple[str, float, bytes]]) -> None:
        (run / name).write_bytes(mutate(whole, changes))
        found = explained(readers[name], RunError, ConfigError)
        if name == "history.jsonl":
            assert isinstance(found, tuple), "lines that are damaged are passed over"
        if name == "quarantine.jsonl":
            assert isinstance(found, Quarantine) and len(found) <= len(whole)

    check()
    if name != "quarantine.jsonl":
        (run / name).write_bytes(mutate(whole, [("replace", 0.5, b"\xff")]))
        explained(lambda: summarise(run), RunError, ConfigError)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return load(tiny_run, "cpu")


def test_damaged_parts_are_missing_or_explained(model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    """What is no whole part is written anew: codes are never others."""
    manifest, out = read_manifest(tiny_folder), tmp_path / "codes"
    write_codes(model, manifest, out, files_per_part=4)
    expected = pq.read_table(out).to_pylist()
    part = out / "part-00001.parquet"
    whole = part.read_bytes()
    foreign = st.one_of(st.binary(max_size=50), st.binary(max_size=20).map(lambda content: b"PAR1" + content + b"PAR1"))
    cut = st.floats(0, 1, exclude_max=True).map(lambda where: whole[: int(where * len(whole))])
    end = CHANGES.map(lambda changes: whole[:-8] + mutate(whole[-8:], changes))

    @settings(max_examples=25)
    @given(st.one_of(foreign, cut, end))
    @example(bytes(len(whole)))
    @example(whole + whole[:100])
    def check(content: bytes) -> None:
        part.write_bytes(content)
        found = explained(partial(write_codes, model, manifest, out, files_per_part=4), RunError)
        if isinstance(found, RunError):
            assert "part-00001.parquet" in str(found)
        else:
            assert pq.read_table(out).to_pylist() == expected

    check()
    pq.write_table(pq.read_table(out / "part-00000.parquet"), part)  # has no word on its files
    found = explained(partial(write_codes, model, manifest, out, files_per_part=4), RunError)
    assert isinstance(found, RunError) or pq.read_table(out).to_pylist() == expected


# --- archives ---


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_any_damage_of_an_archive_is_explained_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    archive, out = tmp_path / f"a.{kind}", tmp_path / "set"
    (tmp_path / "sound.wav").write_bytes(bytes(range(256)) * 4)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
            members.write(tmp_path / "sound.wav", "folder/é.wav")
            members.writestr("list.txt", "x")
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as members:
            members.add(tmp_path / "sound.wav", "folder/é.wav")
            members.add(tmp_path / "sound.wav", "folder/" + "long" * 40)
    (tmp_path / "sound.wav").unlink()
    whole = archive.read_bytes()

    @settings(max_examples=80)
    @given(CHANGES)
    def check(changes: list[tuple[str, float, bytes]]) -> None:
        archive.write_bytes(mutate(whole, changes))
        found = explained(lambda: unpack(archive, out, 1 << 20), DataError)
        assert out.exists() != isinstance(found, DataError)
        assert {path.name for path in tmp_path.iterdir()} <= {archive.name, out.name}
        shutil.rmtree(out, ignore_errors=True)

    check()
