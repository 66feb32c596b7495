"""What mteb's loaders hold: files undecoded and as bytes, waveforms at any rate, what is missing."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from reference.sound_files import melody
from torch.utils.data import DataLoader

from bridle.adapters.batches import items_of
from bridle.adapters.mteb import MtebEncoder
from bridle.errors import ConfigError, DataError
from bridle.media.audio import decode_audio

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install 'bridle[datasets]')")


def loader(data, **options):
    """Lists by column, as mteb collates what differs in size."""
    return DataLoader(
        data, batch_size=2, collate_fn=lambda rows: {key: [row[key] for row in rows] for key in rows[0]}, **options
    )


def files_of(paths, feature, column, as_bytes=False):
    cells = [
        {"bytes": path.read_bytes(), "path": path.name} if as_bytes else {"bytes": None, "path": str(path)} for path in paths
    ]
    data = datasets.Dataset.from_dict({column: cells, "label": list(range(len(paths)))})
    return data.cast_column(column, feature)


def wav(samples, rate, path):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def test_files_are_handed_on_undecoded(tmp_path):
    paths = [wav(melody(0.3, 8000), 8000, tmp_path / f"{i}.wav") for i in range(3)]
    found = list(items_of(loader(files_of(paths, datasets.Audio(), "audio")), "audio", 16000, tmp_path))
    assert found == [str(path) for path in paths]


@pytest.mark.parametrize(("column", "feature"), [("audio", "Audio"), ("video", "Video"), ("image", "Image")])
def test_bytes_lie_in_a_file_while_their_item_is_used(tmp_path, column, feature):
    paths = [tmp_path / name for name in ("one.ab", "two.cd")]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i] * 10))
    place = tmp_path / "place"
    place.mkdir()
    data = files_of(paths, getattr(datasets, feature)(), column, as_bytes=True)
    seen = []
    for item in items_of(loader(data), column, 16000, place):
        assert list(place.iterdir()) == [item]
        seen.append((item.name, item.read_bytes()))
    assert seen == [("row-0.ab", bytes(10)), ("row-1.cd", bytes([1] * 10))]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 8000, 44100])
def test_waveforms_are_resampled_as_files_are(tmp_path, rate, channels):
    samples = np.stack([melody(0.5, rate), 0.3 * melody(0.5, rate)][:channels], axis=1)
    expected = decode_audio(wav(samples, rate, tmp_path / "a.wav"), sample_rate=16000).samples
    for array in (samples.T, samples.T.astype(np.float64)):
        (item,) = items_of(loader([{"audio": {"array": array, "sampling_rate": rate}}]), "audio", 16000, tmp_path)
        assert item.shape == expected.shape
        torch.testing.assert_close(item.float(), expected, atol=1e-5, rtol=0)


def test_decoded_items_and_other_orders_come_from_the_batches(tmp_path):
    pictures = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(3)]
    found = list(items_of(loader([{"image": picture} for picture in pictures]), "image", 0, tmp_path))
    assert all(a is b for a, b in zip(found, pictures, strict=True))
    data = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    backwards = loader(data, sampler=[2, 1, 0])
    assert [item.getpixel((0, 0))[0] for item in items_of(backwards, "image", 0, tmp_path)] == [2, 1, 0]


def test_what_is_missing_is_explained(tmp_path):
    texts = loader([{"text": "a dog", "id": "1"}])
    with pytest.raises(DataError, match=r"^the task gives text, and this run encodes audio; choose tasks of audio$"):
        list(items_of(texts, "audio", 16000, tmp_path))
    with pytest.raises(DataError, match=r"^the task gives id, and this run encodes audio"):
        list(items_of(loader([{"id": "1"}]), "audio", 16000, tmp_path))
    sounds = files_of([tmp_path / "not-read.wav"], datasets.Audio(), "audio")
    with pytest.raises(DataError, match=r"^the task gives audio, and this run encodes image"):
        list(items_of(loader(sounds), "image", 0, tmp_path))
    with pytest.raises(DataError, match=r"^row 1 has no image; leave it out of the task$"):
        list(items_of(loader([{"image": Image.new("L", (2, 2))}, {"image": None}]), "image", 0, tmp_path))


def test_an_empty_row_of_files_is_named(tmp_path):
    good = {"bytes": None, "path": str(tmp_path / "a.wav")}
    for empty in (None, {"bytes": None, "path": None}):
        data = datasets.Dataset.from_dict({"audio": [good, empty]}).cast_column("audio", datasets.Audio())
        items = items_of(loader(data), "audio", 16000, tmp_path)
        assert next(items) == good["path"]
        with pytest.raises(DataError, match="row 1 has no audio"):
            next(items)


def test_items_of_no_known_kind_are_left_to_the_model(models, tmp_path):
    for cell in (3, {"array": [0.0]}, {"array": np.zeros(100, np.int16), "sampling_rate": 16000}):
        items = items_of(loader([{"audio": cell}]), "audio", 16000, tmp_path)
        with pytest.raises(DataError, match=r"a sound must be|a waveform must be"):
            models["audio"].embed_all(items)


def test_a_broken_file_is_named_by_its_row(models, tmp_path):
    good = io.BytesIO()
    soundfile.write(good, melody(0.5, 16000), 16000, format="WAV")
    cells = [{"bytes": content, "path": None} for content in (good.getvalue(), b"nothing")]
    data = datasets.Dataset.from_dict({"audio": cells}).cast_column("audio", datasets.Audio())
    with pytest.raises(DataError, match="row-1: not audio"):
        models["audio"].embed_all(items_of(loader(data), "audio", 16000, tmp_path))


def test_without_mteb_the_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'bridle\[mteb\]'"):
        MtebEncoder(models["audio"])
    assert Path(sys.modules["bridle.adapters.mteb"].__file__).name == "mteb.py"
