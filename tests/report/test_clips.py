"""Pictures, sounds and what is gathered from clips, of every medium."""

import base64
import io
import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from bridle.data.batch import Sample as BatchSample
from bridle.data.batch import collate
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.errors import ConfigError, DataError
from bridle.eval.codes import label_churn
from bridle.grid import PatchGrid
from bridle.inference import random_model
from bridle.objectives.masked import MaskedCodes, MaskedPatches
from bridle.objectives.view import whole_view
from bridle.randomness import derive_seed
from bridle.report import sounds
from bridle.report.clips import ClipViews
from bridle.report.codes import code_examples
from bridle.report.gathering import MAX_WINDOWS, POOLINGS, Sample, earlier_tokenizers, gather
from bridle.report.masked import masked_example
from bridle.report.neighbours import agreement, find_neighbours, project, unit_vectors
from bridle.report.pictures import Picture, draw, picture_uri, thumbnail, tile

MEDIA = ("audio", "image", "video")


def clip_with(config, place):
    """A full window of zeros whose patch at ``place`` (time, height, width) is bright, and the number of that patch."""
    channels, height, width = config.clip_shape
    frames = 8 * config.encoder.patch[0] if config.audio else getattr(config.video, "num_frames", 1)
    dtype = torch.float32 if config.audio else torch.uint8
    clip = torch.zeros(channels, frames, height, width, dtype=dtype)
    t, h, w = config.encoder.patch
    i, j, k = place
    clip[:, i * t : (i + 1) * t, j * h : (j + 1) * h, k * w : (k + 1) * w] = 1 if config.audio else 255
    return clip, (i * (height // h) + j) * (width // w) + k


@pytest.mark.parametrize(("medium", "place"), [("audio", (3, 1, 0)), ("image", (0, 2, 1)), ("video", (2, 1, 3))])
def test_a_box_holds_its_patch_and_nothing_else(models, medium, place):
    config = models[medium].config
    clip, patch = clip_with(config, place)
    picture = draw(clip, config)
    assert picture.grid.num_patches == len(picture.boxes) == len(picture.panels)
    x, y, width, height = picture.boxes[patch]
    bright = picture.pixels.sum(-1) > 500
    assert bright[y : y + height, x : x + width].all()
    assert int(bright.sum()) == width * height
    for left, top, wide, high in picture.boxes:
        assert left + wide <= picture.pixels.shape[1]
        assert top + high <= picture.pixels.shape[0]


def test_pitch_goes_upwards(models):
    config = models["audio"].config
    low, patch = clip_with(config, (0, 0, 0))
    picture = draw(low, config)
    assert picture.boxes[patch][1] == picture.pixels.shape[0] - config.encoder.patch[1]


def test_a_window_that_ends_inside_a_patch(models):
    config = models["audio"].config
    picture = draw(torch.randn(1, 40, 64, 1, generator=torch.Generator().manual_seed(0)), config)
    assert picture.grid.time == 3  # 2.5 steps, and half a step counts
    assert picture.pixels.shape == (64, 48, 3)


@pytest.mark.parametrize("medium", MEDIA)
def test_thumbnails_are_small(models, media_runs, medium):
    window = next(models[medium].loader.windows(read_manifest(media_runs[medium][1], models[medium].config.medium).entries[0]))
    small = thumbnail(window.inputs, models[medium].config)
    assert small.dtype == torch.uint8
    assert small.shape[0] <= 112
    assert small.shape[1] <= 300


def test_a_tile_shows_no_other_frame():
    """Frames of a film lie side by side; what is beside a patch at the edge of one belongs to another time."""
    pixels = torch.zeros(4, 18, 3, dtype=torch.uint8)
    pixels[:, :8], pixels[:, 10:] = 50, 200
    boxes = ((0, 0, 4, 4), (4, 0, 4, 4), (10, 0, 4, 4), (14, 0, 4, 4))
    panels = ((0, 0, 8, 4),) * 2 + ((10, 0, 8, 4),) * 2
    picture = Picture(pixels, PatchGrid(2, 1, 2), boxes, panels)
    assert set(tile(picture, 1).unique().tolist()) == {0, 50, 128, 255}  # the frame is black and white, outside is grey
    assert set(tile(picture, 2).unique().tolist()) == {0, 128, 200, 255}
    middle = tile(picture, 2)
    size = middle.shape[0] // 3
    assert (middle[size : 2 * size, size : 2 * size] == 200).all()


def test_small_pictures_lose_nothing():
    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = base64.b64decode(picture_uri(pixels).removeprefix("data:image/webp;base64,"))
    assert np.array_equal(np.array(Image.open(io.BytesIO(content)).convert("RGB")), pixels.numpy())


def test_sounds_can_be_played(tone_folder):
    entry = read_manifest(tone_folder).entries[7]
    samples = sounds.cut(entry, 16000, -0.1, 0.5)
    assert len(samples) == 8000
    joined = sounds.in_turn([samples, samples[:4]], 16000, pause_seconds=0.1)
    assert len(joined) == 8000 + 1600 + 4
    assert joined[0] == 0
    assert torch.equal(joined[100:7000], samples[100:7000])
    player = sounds.player(samples, 16000, "listen")
    content = base64.b64decode(player.partition("base64,")[2].partition('"')[0])
    decoded, rate = soundfile.read(io.BytesIO(content))
    assert rate == 16000
    assert abs(len(decoded) - 8000) < 3000  # MP3 pads
    assert np.corrcoef(decoded[2000:6000], samples[2000:6000])[0, 1] > 0.9


@pytest.mark.parametrize("medium", MEDIA)
def test_gathering_agrees_with_the_model(models, media_runs, medium):
    model, (run, folder) = models[medium], media_runs[medium]
    manifest = read_manifest(folder, model.config.medium)
    others = earlier_tokenizers(run, model.config, model)
    assert list(others) == ["cold start"]  # older checkpoints hold the same tokenizer
    sample = gather(model, manifest, manifest.columns["class"], others)
    paths = [entry.path for entry in manifest.entries]
    assert len(sample) == len(paths)
    assert sample.labels == tuple(manifest.columns["class"])
    expected = model.embed_all(paths, POOLINGS[medium])
    torch.testing.assert_close(sample.embeddings, expected, rtol=1e-4, atol=1e-5)
    codes = torch.cat([model.tokenize(path).codes for path in paths])
    assert (codes == sample.codes).float().mean() > 0.999  # in other batches a vector may round to another code
    assert sample.distances.shape == (len(codes),)
    assert torch.equal(torch.bincount(sample.places[:, 0]), torch.tensor([len(model.tokenize(path).codes) for path in paths]))
    (churn,) = sample.churn
    cold = replace_tokenizer(model)
    old = torch.cat([cold.tokenize(path).codes for path in paths])
    assert churn.levels == pytest.approx([label_churn(old[:, r], codes[:, r]) for r in range(codes.shape[1])], abs=0.02)


def replace_tokenizer(model):
    """The same model as it was before its tokenizer was trained."""
    older = random_model(model.config, model.device)
    older.networks.load_state_dict(model.networks.state_dict())
    older.networks.tokenizer.quantizer.fitted.fill_(False)
    return older


def test_nearest_patches_are_nearest(models, media_runs):
    """The distance of a patch is that of its vector to the entry of level 0."""
    model, (_, folder) = models["image"], media_runs["image"]
    manifest = read_manifest(folder, model.config.medium)
    sample = gather(model, manifest, [""] * len(manifest), {})
    entry = model.tokenizer.quantizer.codebooks[0]
    vectors = []
    for path in manifest.entries:
        (window,) = model.windows([path], [])
        view = whole_view(model.batch([window]), model.config.encoder.patch)
        vectors.append(model.tokenizer.vectors(view.patches, view.every)[0])
    distance = (torch.cat(vectors) - entry[sample.codes[:, 0]]).norm(dim=1)
    torch.testing.assert_close(sample.distances, distance, rtol=1e-4, atol=1e-5)


def test_long_files_are_cut_and_bad_ones_passed_over(models, tiny_folder, tmp_path):
    model = models["audio"]
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    soundfile.write(data / "hour.wav", np.zeros(16000 * 2 * (MAX_WINDOWS + 3), dtype=np.float32), 16000)
    (data / "bad.wav").write_bytes((data / "b" / "long.wav").read_bytes()[:40])
    entries = (Entry("bad.wav", str(data / "bad.wav"), duration_seconds=1.0), Entry("hour.wav", str(data / "hour.wav")))
    seen = []
    sample = gather(model, Manifest(entries), ["x", "y"], {}, lambda: seen.append(1))
    assert [entry.key for entry in sample.entries] == ["hour.wav"]
    assert sample.labels == ("y",)
    assert [file.key for file in sample.bad] == ["bad.wav"]
    assert int(sample.places[:, 1].max()) == MAX_WINDOWS - 1
    assert len(seen) == 2
    with pytest.raises(DataError, match=r"none of 1 files can be read; first: bad\.wav"):
        gather(model, Manifest(entries[:1]), ["x"], {})


def sample_of(codes, files, distances, labels):
    places = torch.tensor([[file, 0, patch] for patch, file in enumerate(files)])
    entries = tuple(Entry(str(i), str(i)) for i in range(len(labels)))
    return Sample(
        entries,
        tuple(labels),
        torch.zeros(len(labels), 2),
        torch.tensor(codes)[:, None],
        torch.tensor(distances),
        places,
        (),
        (),
    )


def test_codes_are_shown_by_their_nearest_patches_of_different_files():
    sample = sample_of([1, 1, 1, 1, 0], [0, 0, 1, 2, 2], [0.1, 0.2, 0.5, 0.4, 0.0], ["x", "y", "y"])
    first, second = code_examples(sample, num_places=3)
    assert (first.code, first.share) == (1, 0.8)
    assert first.places == ((0, 0, 0), (2, 0, 3), (1, 0, 2))
    assert code_examples(sample, num_places=4)[0].places[-1] == (0, 0, 1)  # the second one of file 0 comes last
    # "x" has 2 of the 4 patches of the code and 2 of 5 of all; "y" 2 of 4, and 3 of 5.
    assert (first.label, first.label_share, first.base_share) == ("x", 0.5, 0.4)
    assert (second.code, second.label) == (0, "y")
    assert [example.code for example in code_examples(sample, num_codes=1)] == [1]
    assert code_examples(replace(sample, codes=torch.zeros(0, 0, dtype=torch.int64))) == ()


def blobs(num=30, width=6):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(num, width, generator=generator)
        + 4 * (torch.arange(num) % 3)[:, None] * torch.eye(3, width)[torch.arange(num) % 3]
    )


def test_principal_components_are_those_of_scikit_learn():
    vectors = blobs()
    found, name = project(vectors, "pca", seed=0)
    expected = PCA(2).fit_transform(vectors.numpy())
    assert name == "PCA"
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected), rtol=1e-3, atol=1e-4)
    assert project(vectors[:3, :1], "auto", seed=0)[0].shape == (3, 2)


def test_copies_of_one_clip_have_a_map():
    """t-SNE in scikit-learn divides their places by a deviation of 0, and then reads outside its tree."""
    places, name = project(unit_vectors(torch.ones(20, 8)), "auto", seed=0)
    assert name == "PCA"
    assert places.abs().max() == 0


def test_tsne_is_the_same_every_time_and_optional(monkeypatch):
    first, name = project(blobs(), "auto", seed=1)
    again, _ = project(blobs(), "tsne", seed=1)
    assert name == "t-SNE"
    assert torch.equal(first, again)
    with pytest.raises(ConfigError, match="t-SNE of 3 clips"):
        project(blobs(3), "tsne", seed=0)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    assert project(blobs(), "auto", seed=0)[1] == "PCA"
    with pytest.raises(ConfigError, match=r"bridle\[demo\]"):
        project(blobs(), "tsne", seed=0)


def test_neighbours_are_those_of_scikit_learn():
    vectors = unit_vectors(blobs())
    found = find_neighbours(vectors, [0, 5], 4)
    distance, rows = NearestNeighbors(metric="cosine").fit(vectors.numpy()).kneighbors(vectors[[0, 5]].numpy(), 5)
    for near, distances, which in zip(found, distance, rows, strict=True):
        assert near.found == tuple(which[1:])
        assert near.similarity == pytest.approx(1 - distances[1:], abs=1e-5)
    assert find_neighbours(vectors[:2], [0], 5)[0].found == (1,)


def test_agreement_is_the_share_of_neighbours_of_the_same_label():
    vectors = unit_vectors(blobs())
    labels = [str(i % 3) for i in range(30)]
    _, rows = NearestNeighbors(metric="cosine").fit(vectors.numpy()).kneighbors(n_neighbors=5)
    expected = np.mean([labels[i] == labels[j] for i, row in enumerate(rows) for j in row])
    assert agreement(vectors, labels) == pytest.approx(expected)
    assert agreement(vectors, [""] * 29 + ["a"]) is None


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("kind", ["cold", "encoder", "patches"])
def test_masked_examples_agree_with_the_objective(models, media_runs, medium, kind):
    model = models[medium]
    if kind == "patches":
        model = random_model(replace(model.config, phases="patches:1"), model.device)
    entry = read_manifest(media_runs[medium][1], model.config.medium).entries[3]
    window = replace(next(model.windows([entry], [])), index=7)
    example = masked_example(model, window, kind, seed=5)
    states = Counter(example.states)
    assert sum(states.values()) == example.picture.grid.num_patches
    assert sum(bool(word) for word in example.words) == states["right"] + states["wrong"]
    config = replace(model.config.masks, num_masks=1)
    seed = derive_seed(5, "report mask", 7)
    sample = BatchSample(window.inputs, window.inputs.shape[1], seed, 0, window.aspect)
    batch = model.loader.finish(collate([sample], model.config.encoder.patch), augment=False)
    networks = model.networks
    if kind == "patches":
        counts = MaskedPatches(networks.encoder, networks.predictor, networks.patch_head, config).counts(batch, 0)
        assert states["right"] + states["wrong"] == counts["patch"]
        return
    tokenizer = networks.cold if kind == "cold" else networks.tokenizer
    objective = MaskedCodes(networks.encoder, networks.predictor, networks.head, tokenizer, config)
    with torch.no_grad():
        output = objective(batch, 0)
    count = objective.counts(batch, 0)["accuracy/0"]
    assert states["right"] + states["wrong"] == count
    assert states["right"] == pytest.approx(float(output.metrics["accuracy/0"]))
    assert [share * count for share in example.right] == pytest.approx(
        [float(output.metrics[f"accuracy/{level}"]) for level in range(len(example.right))], abs=1e-3
    )


def test_padding_of_a_mask_is_not_counted(models, media_runs):
    """Every patch has one state, also where the mask of a clip is filled up to a static count."""
    model = models["audio"]
    entry = read_manifest(media_runs["audio"][1]).entries[0]  # the shortest
    example = masked_example(model, next(model.windows([entry], [])), "encoder", seed=0)
    assert math.isclose(
        Counter(example.states)["right"] / sum(bool(word) for word in example.words), example.right[0], abs_tol=1e-6
    )


def test_views_say_where_a_patch_is(models, media_runs):
    model = models["audio"]
    manifest = read_manifest(media_runs["audio"][1])
    sample = gather(model, manifest, [""] * len(manifest), {})
    last = next(i for i, entry in enumerate(sample.entries) if entry.duration_seconds == 5)
    views = ClipViews(model, sample)
    assert f"{sample.entries[last].key} at 2.16 s" in views.tile(last, 1, 4)  # second window, second time step
    assert views.moments(((last, 1, 4),), "listen").startswith("<audio")
    assert ClipViews(models["image"], sample).moments(((0, 0, 0),), "listen") is None
