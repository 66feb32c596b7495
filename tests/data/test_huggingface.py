"""Sets of the datasets library as sources: rows, classes, splits, workers, what is wrong."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.video_files import film

from bridle.data import huggingface
from bridle.data.batch import Sample
from bridle.data.dataset import ClipDataset
from bridle.data.huggingface import list_rows
from bridle.data.image import ImageConfig, ImageLoader
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO
from bridle.data.quarantine import BadFile
from bridle.data.video import VideoConfig, VideoLoader
from bridle.doctor.scan import HEAD_BYTES, scan_files
from bridle.errors import DataError

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install 'bridle[datasets]')")

CONFIG = ImageConfig(size=8, decode_size=8, channels=1, mean=(0.5,), std=(0.2,), flip=False)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two splits on disk: pictures of one grey value, in the table and beside it, and one that is broken."""
    place = tmp_path_factory.mktemp("set")
    (place / "beside.png").write_bytes(png(30))
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "width": datasets.Value("int64")}
    )
    cells = [
        {"bytes": png(10), "path": None},
        {"bytes": png(20), "path": None},
        {"bytes": None, "path": str(place / "beside.png")},
    ]
    train = {"picture": [*cells, {"bytes": b"no picture", "path": None}], "label": [0, 1, 0, None], "width": [8, 8, 8, None]}
    test = {"picture": cells[:1], "label": [1], "width": [8]}
    splits = {name: datasets.Dataset.from_dict(rows, features=features) for name, rows in (("train", train), ("test", test))}
    datasets.DatasetDict(splits).save_to_disk(str(place / "pictures"))
    return place / "pictures"


def test_rows_are_entries_with_their_classes(folder: Path) -> None:
    manifest = read_manifest(f"hf:{folder}:train", IMAGE)
    assert len(manifest) == 4
    assert manifest.columns == {"label": ["cat", "dog", "cat", ""], "width": ["8", "8", "8", ""]}
    data = ClipDataset(manifest, ImageLoader(CONFIG), 0)
    found = [data[0, row] for row in range(4)]
    assert [int(item.inputs.max()) for item in found if isinstance(item, Sample)] == [10, 20, 30]
    assert isinstance(found[3], BadFile)
    assert found[3].key == f"hf:{folder}:train/3"
    assert len(read_manifest([f"hf:{folder}:train", f"hf:{folder}:test"], IMAGE)) == 5


def test_a_split_must_be_named_where_there_are_several(folder: Path) -> None:
    with pytest.raises(DataError, match="has the splits train, test; name one, such as hf:"):
        read_manifest(f"hf:{folder}", IMAGE)
    single = f"hf:{folder / 'train'}"
    assert len(read_manifest(single, IMAGE)) == 4


def test_a_single_split_need_not_be_named(folder: Path, tmp_path: Path) -> None:
    only = datasets.DatasetDict({"test": datasets.load_from_disk(str(folder))["test"]})
    only.save_to_disk(str(tmp_path / "only"))
    assert read_manifest(f"hf:{tmp_path / 'only'}", IMAGE).columns == {"label": ["dog"], "width": ["8"]}
    assert len(read_manifest(f"hf:{tmp_path / 'only'}:test", IMAGE)) == 1
    with pytest.raises(DataError, match="has the splits test; name one"):
        read_manifest(f"hf:{tmp_path / 'only'}:train", IMAGE)
    with pytest.raises(DataError, match="slices of it are not read from a set written by save_to_disk"):
        read_manifest(f"hf:{tmp_path / 'only'}:test[:1]", IMAGE)
    with pytest.raises(DataError, match="names a configuration, 'words', which a set written by save_to_disk has not"):
        read_manifest(f"hf:{tmp_path / 'only'}:words:test", IMAGE)
    with pytest.raises(DataError, match="is a single set, not one of several splits: leave ':train' out"):
        read_manifest(f"hf:{tmp_path / 'only' / 'test'}:train", IMAGE)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name", ("name", None, None)),
        ("owner/name:train", ("owner/name", None, "train")),
        ("owner/name:clean:train.100", ("owner/name", "clean", "train.100")),
        ("name:train[:5]+test[5:]", ("name", None, "train[:5]+test[5:]")),
        ("name:clean:train[:10%]", ("name", "clean", "train[:10%]")),
        ("C:\\data\\set", ("C:\\data\\set", None, None)),
        ("run:1/set:train", ("run:1/set", None, "train")),
    ],
)
def test_parts_of_a_source(text: str, parts: tuple[str, str | None, str | None]) -> None:
    assert huggingface._parts(text) == parts


def test_a_folder_that_is_there_may_hold_colons(tmp_path: Path) -> None:
    place = tmp_path / "run:1"
    place.mkdir()
    assert huggingface._parts(f"{place}") == (str(place), None, None)
    assert huggingface._parts(f"{place}:train") == (str(place), None, "train")
    assert huggingface._parts(f"{place}:clean:train") == (str(place), "clean", "train")


def test_doctor_counts_the_bytes_of_rows(tmp_path: Path) -> None:
    files = [png(1) + bytes(HEAD_BYTES), png(1) + bytes(HEAD_BYTES + 9), png(1) + bytes(HEAD_BYTES), png(1)]
    (tmp_path / "beside.png").write_bytes(files[3])
    cells = [{"bytes": content, "path": None} for content in files[:3]] + [
        {"bytes": None, "path": str(tmp_path / "beside.png")}
    ]
    features = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": cells}, features=features).save_to_disk(str(tmp_path / "set"))
    scan = scan_files([f"hf:{tmp_path / 'set'}"], IMAGE)
    assert scan.num_bytes == sum(map(len, files))
    assert scan.num_copies == 1, "the first and the third; the second only begins like them"


def test_a_folder_of_parquet_files_as_the_hub_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    place = tmp_path / "a:b" / "set"
    for split, labels in (("train", [0, 1]), ("test", [1])):
        (place / "data").mkdir(parents=True, exist_ok=True)
        rows = {"image": [{"bytes": png(10 + label), "path": None} for label in labels], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(place / "data" / f"{split}-00000-of-00001.parquet"))
    manifest = read_manifest(f"hf:{place}:train", IMAGE)
    assert manifest.columns == {"label": ["cat", "dog"]}
    sample = ClipDataset(manifest, ImageLoader(CONFIG), 0)[0, 1]
    assert isinstance(sample, Sample)
    assert int(sample.inputs.max()) == 11
    assert len(read_manifest(f"hf:{place}:default:test", IMAGE)) == 1
    assert len(read_manifest(f"hf:{place}:train[:1]", IMAGE)) == 1
    with pytest.raises(DataError, match="has the splits train, test; name one"):
        read_manifest(f"hf:{place}", IMAGE)
    with pytest.raises(DataError, match="cannot be opened"):
        read_manifest(f"hf:{place}:other:test", IMAGE)
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: data/train*\n- config_name: two\n  data_files: data/test*\n---\n"
    )
    huggingface._open.cache_clear()
    with pytest.raises(DataError, match=r"'one', 'two'.*; write hf:.*:CONFIGURATION:SPLIT"):
        read_manifest(f"hf:{place}", IMAGE)
    assert len(read_manifest(f"hf:{place}:one:train", IMAGE)) == 2


def test_other_media_and_missing_sets_are_explained(folder: Path, tmp_path: Path) -> None:
    for medium in (AUDIO, VIDEO):
        with pytest.raises(DataError, match=r"no column of type (Audio|Video); its columns are picture, label, width"):
            list(list_rows(f"hf:{folder}:train", medium.name))
    with pytest.raises(DataError, match="cannot be opened"):
        read_manifest(f"hf:{tmp_path}", IMAGE)


def test_rows_that_hold_nothing_or_are_gone_are_bad_files(tmp_path: Path) -> None:
    features = datasets.Features({"picture": datasets.Image()})
    cells = [{"bytes": png(1), "path": None}, None]
    datasets.Dataset.from_dict({"picture": cells}, features=features).save_to_disk(str(tmp_path / "set"))
    manifest = read_manifest(f"hf:{tmp_path / 'set'}", IMAGE)
    data = ClipDataset(manifest, ImageLoader(CONFIG), 0)
    assert isinstance(data[0, 0], Sample)
    assert data[0, 1] == BadFile(f"hf:{tmp_path / 'set'}/1", "the row holds no file")
    lost = Manifest((Entry("x", f"hf:{tmp_path / 'nowhere'}#picture", 0, 0),))
    assert isinstance(ClipDataset(lost, ImageLoader(CONFIG), 0)[0, 0], BadFile)


def test_sounds_of_a_set(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(np.arange(4000, dtype=np.int16).tobytes())
    rows = {"audio": [{"bytes": stream.getvalue(), "path": None}], "word": ["yes"]}  # to encode sound takes another library
    data = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    data.save_to_disk(str(tmp_path / "set"))
    manifest = read_manifest(f"hf:{tmp_path / 'set'}")
    assert manifest.entries[0].duration_seconds == 0.5
    assert manifest.columns == {"word": ["yes"]}


def test_films_of_a_set(tmp_path: Path) -> None:
    content = film(tmp_path / "a.mp4", 30).read_bytes()
    rows = {"clip": [{"bytes": content, "path": None}, {"bytes": content[:100], "path": None}], "word": ["yes", "no"]}
    data = datasets.Dataset.from_dict(rows).cast_column("clip", datasets.Video(decode=False))
    data.save_to_disk(str(tmp_path / "set"))
    manifest = read_manifest(f"hf:{tmp_path / 'set'}", VIDEO)
    assert manifest.columns == {"word": ["yes"]}
    assert [bad.key for bad in manifest.bad] == [f"hf:{tmp_path / 'set'}/1"]
    loader = VideoLoader(VideoConfig(size=16, decode_size=16, num_frames=4, stride=2, mean=(0.5,) * 3, std=(0.2,) * 3))
    sample = ClipDataset(manifest, loader, 0)[0, 0]
    assert isinstance(sample, Sample)
    assert sample.inputs.shape == (3, 4, 16, 16)
