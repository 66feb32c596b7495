"""The front end of images: shapes, what training and evaluation see, memory, the cache, what is in memory."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bridle.data.batch import collate
from bridle.data.dataset import ClipDataset
from bridle.data.image import ImageConfig, ImageLoader
from bridle.data.loaders import estimate_normalisation, plain
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.data.medium import IMAGE
from bridle.data.pixels import BASELINE_SIZE
from bridle.errors import ConfigError, DataError, DecodeError
from bridle.randomness import generator

CONFIG = ImageConfig(size=16, decode_size=20, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PATCH = (1, 8, 8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two classes, of several shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate(((20, 20), (40, 30), (16, 64), (50, 25), (20, 20), (33, 47))):
        path = folder / "train" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def manifest(pictures: Path) -> Manifest:
    return read_manifest(pictures, IMAGE)


def test_training_clips_are_whole_pictures_squashed(manifest: Manifest) -> None:
    loader = ImageLoader(CONFIG)
    for entry in manifest.entries:
        clip = loader.load(entry, generator(0))
        with Image.open(entry.path) as image:
            expected = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            assert clip.aspect == image.width / image.height
        assert clip.inputs.shape == (3, 1, *loader.frame_shape[1:])
        assert clip.inputs.dtype == loader.dtype
        assert np.array_equal(clip.inputs[:, 0].numpy(), expected)


def test_windows_are_the_centre_and_equal_what_is_in_memory(manifest: Manifest) -> None:
    loader = ImageLoader(CONFIG)
    for entry in manifest.entries:
        (of_file,) = loader.windows(entry)
        with Image.open(entry.path) as image:
            image.load()
            (of_image,) = loader.windows_of(image)
            pixels = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)
        (of_bytes,) = loader.windows_of(pixels)
        (of_floats,) = loader.windows_of(pixels / 255)
        assert of_file.inputs.shape == (3, 1, 16, 16)
        for other in (of_image, of_bytes, of_floats):
            assert torch.equal(of_file.inputs, other.inputs)
            assert of_file.aspect == other.aspect


def test_a_batch_is_finished_by_crop_flip_and_normalisation(manifest: Manifest) -> None:
    loader = ImageLoader(CONFIG)
    data = ClipDataset(manifest, loader, 0)
    batch = collate([data[0, i] for i in range(6)], PATCH)
    assert batch.inputs.dtype == torch.uint8
    assert batch.aspects.tolist() == pytest.approx([0.75, 0.5, 47 / 33, 1, 4, 1], abs=1e-6)
    found = loader.finish(batch, augment=True)
    assert found.inputs.shape == (6, 3, 1, 16, 16)
    assert found.inputs.dtype == torch.float32
    again = loader.finish(batch, augment=True)
    assert torch.equal(found.inputs, again.inputs)
    other = loader.finish(collate([data[1, i] for i in range(6)], PATCH), augment=True)
    assert not torch.allclose(found.inputs, other.inputs)
    back = found.inputs * torch.tensor(CONFIG.std).view(1, 3, 1, 1, 1) + torch.tensor(CONFIG.mean).view(1, 3, 1, 1, 1)
    assert float(back.min()) >= -1e-6
    assert float(back.max()) <= 1 + 1e-6


def test_a_clip_does_not_depend_on_its_batch(manifest: Manifest) -> None:
    loader = ImageLoader(CONFIG)
    data = ClipDataset(manifest, loader, 0)
    together = loader.finish(collate([data[0, i] for i in range(6)], PATCH), augment=True).inputs
    for i in range(6):
        alone = loader.finish(collate([data[0, i]], PATCH), augment=True).inputs
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_evaluation_is_not_augmented(manifest: Manifest) -> None:
    loader = ImageLoader(CONFIG)
    (window,) = loader.windows(manifest.entries[0])
    batch = collate([ClipDataset(manifest, loader, 0)[0, 0]], PATCH)
    batch = replace(batch, inputs=window.inputs[None])
    found = loader.finish(batch, augment=False).inputs[0]
    expected = (window.inputs / 255 - torch.tensor(CONFIG.mean).view(3, 1, 1, 1)) / torch.tensor(CONFIG.std).view(3, 1, 1, 1)
    torch.testing.assert_close(found, expected)


def test_the_cache_changes_no_number_and_keeps_to_its_bound(pictures: Path, tmp_path: Path) -> None:
    manifest = read_manifest(pictures, IMAGE)
    cached, uncached = ImageLoader(CONFIG), ImageLoader(replace(CONFIG, cache_gigabytes=0.0))
    for _ in range(2):
        for entry in manifest.entries:
            assert torch.equal(cached.load(entry, generator(0)).inputs, uncached.load(entry, generator(0)).inputs)
    assert cached._cache.num_bytes == sum(cached.cacheable_bytes(entry) for entry in manifest.entries) == 6 * 3 * 20 * 20
    assert uncached._cache.num_bytes == 0
    assert pickle.loads(pickle.dumps(cached))._cache.num_bytes == 0
    gone = Entry("gone.png", str(tmp_path / "gone.png"))
    Image.new("RGB", (5, 5)).save(gone.path)
    before = cached.load(gone, generator(0)).inputs
    Path(gone.path).unlink()
    assert torch.equal(cached.load(gone, generator(0)).inputs, before)
    with pytest.raises(DecodeError, match="missing"):
        uncached.load(gone, generator(0))


def test_grey(manifest: Manifest) -> None:
    loader = ImageLoader(ImageConfig(size=16, decode_size=20, channels=1, mean=(0.5,), std=(0.2,)))
    assert loader.frame_shape == (1, 20, 20)
    assert loader.load(manifest.entries[0], generator(0)).inputs.shape == (1, 1, 20, 20)
    (window,) = loader.windows_of(torch.zeros(1, 9, 9))
    assert window.inputs.shape == (1, 1, 16, 16)


def test_estimate_is_that_of_all_pixels(manifest: Manifest) -> None:
    found = estimate_normalisation(manifest, CONFIG)
    loader = ImageLoader(plain(CONFIG))  # type: ignore[arg-type]
    pixels = torch.cat([loader.load(entry, generator(0)).inputs.flatten(1) for entry in manifest.entries], dim=1) / 255
    assert found.mean == pytest.approx(pixels.double().mean(1).tolist(), abs=1e-6)
    assert found.std == pytest.approx(pixels.double().std(1, correction=0).tolist(), abs=1e-6)


def test_baseline_is_the_pixels_averaged_when_there_are_many() -> None:
    small = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    loader = ImageLoader(CONFIG)
    torch.testing.assert_close(loader.baseline(small), small[:, 0].flatten()[None] / 255)
    large = torch.arange(64, dtype=torch.uint8).repeat_interleave(4).expand(3, 1, 128, -1)[..., :128]
    assert loader.baseline(large).shape == (1, 3 * BASELINE_SIZE**2)
    torch.testing.assert_close(loader.baseline(large)[0, :32], large[0, 0, 0].reshape(32, 4).float().mean(1) / 255)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    loader = ImageLoader(CONFIG)
    for item in (torch.zeros(3, 4), torch.zeros(4, 5, 5), torch.zeros(3, 0, 4), torch.full((3, 4, 4), torch.nan), 5, None):
        with pytest.raises(DataError, match="picture"):
            list(loader.windows_of(item))
    with pytest.raises(DataError, match="picture"):
        list(loader.windows_of(torch.zeros(3, 4, 4, dtype=torch.int64)))
    for values in (torch.full((3, 4, 4), 255.0), torch.randn(3, 40, 40)):
        with pytest.raises(DataError, match=r"a picture holds floats from .* to .*; divide by 255, or undo the normalisation"):
            list(loader.windows_of(values))
    (clip,) = loader.windows_of(torch.full((3, 4, 4), 1.0005))
    assert int(clip.inputs.min()) == 255
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DecodeError):
        loader.load(Entry("text.png", str(tmp_path / "text.png")), generator(0))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"channels": 2},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.4)},
        {"ratio": (0.0, 1.0)},
        {"mean": None},
        {"mean": (0.5,)},
        {"std": (0.1, 0.0, 0.1)},
        {"cache_gigabytes": -1.0},
        {"max_pixels": 0},
        {"max_decode_seconds": 0.0},
    ],
)
def test_wrong_settings_are_named(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_folders_say_class_and_split(manifest: Manifest) -> None:
    assert manifest.columns["class"] == ["cat"] * 3 + ["dog"] * 3
    assert manifest.columns["split"] == ["train"] * 6
