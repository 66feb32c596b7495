"""Runs in mteb itself: tiny tasks of each medium against probes of our own, retrieval, results kept apart, other modalities."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bridle.adapters.mteb import MtebEncoder
from bridle.errors import ConfigError, DataError

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install 'bridle[mteb]')")
datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install 'bridle[datasets]')")

from mteb.abstasks.classification import AbsTaskClassification  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models.models_protocols import EncoderProtocol  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

FEATURES = {"audio": datasets.Audio, "image": datasets.Image, "video": datasets.Video}
KINDS = {"audio": "AudioClassification", "image": "ImageClassification", "video": "VideoClassification"}


def metadata(kind: str, modality: str, score: str = "accuracy") -> TaskMetadata:
    return TaskMetadata(
        type=kind,
        name=f"Tiny{kind}",
        description="A dozen items of each of two classes.",
        dataset={"path": "none", "revision": "1"},
        reference=None,
        main_score=score,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=[modality],
        category={"audio": "a2c", "image": "i2c", "video": "v2c"}[modality],
    )


def file_set(medium: str, files: list[Path], as_bytes: bool, **columns: list):
    """A set of mteb's: files by their path, or within it."""
    cells = [{"bytes": f.read_bytes() if as_bytes else None, "path": f.name if as_bytes else str(f)} for f in files]
    return datasets.Dataset.from_dict({medium: cells, **columns}).cast_column(medium, FEATURES[medium]())


def classification(medium: str, files: list[Path], labels: list[int]) -> AbsTaskClassification:
    """Trains on the first half, whose files are in the set, and tests on the other, whose files lie beside it."""

    class Tiny(AbsTaskClassification):
        input_column_name = medium
        samples_per_label = len(files)
        n_experiments = 1

        def load_data(self, **_):
            half = len(files) // 2
            self.dataset = datasets.DatasetDict(
                {
                    "train": file_set(medium, files[:half], True, label=labels[:half]),
                    "test": file_set(medium, files[half:], False, label=labels[half:]),
                }
            )
            self.data_loaded = True

    Tiny.metadata = metadata(KINDS[medium], medium)
    return Tiny()


def evaluate(encoder: MtebEncoder, task, **options):
    return mteb.evaluate(encoder, task, show_progress_bar=False, **{"cache": None, "co2_tracker": False} | options)


@pytest.mark.parametrize(("medium", "pooling"), [("audio", "time"), ("image", "mean"), ("video", "mean")])
def test_a_classification_task_scores_as_our_own_probe(models, labelled, medium, pooling):
    files, labels = labelled(medium)
    half, model = len(files) // 2, models[medium]
    result = evaluate(MtebEncoder(model, pooling=pooling), classification(medium, files, labels))
    (scores,) = result.task_results[0].scores["test"]

    vectors = torch.stack([model.embed(file, pooling) for file in files]).numpy()
    probe = LogisticRegression(max_iter=100).fit(vectors[:half], labels[:half])
    assert scores["accuracy"] == pytest.approx(probe.score(vectors[half:], labels[half:]))
    assert scores["accuracy"] >= 0.75  # chance is 0.5


def test_embeddings_are_those_of_the_files_in_their_order(models, labelled):
    for medium, (pooling, layer) in {"audio": ("statistics", 1), "image": ("grid", 2), "video": ("grid motion", 1)}.items():
        files, _ = labelled(medium)
        encoder = MtebEncoder(models[medium], pooling=pooling, layer=layer)
        task = classification(medium, files, [0] * len(files))
        task.load_data()
        found = []
        for split in ("train", "test"):
            inputs = mteb._create_dataloaders.create_dataloader(
                task.dataset[split], task_metadata=task.metadata, input_column=medium, batch_size=5
            )
            options = {"task_metadata": task.metadata, "hf_split": split, "hf_subset": "default", "show_progress_bar": False}
            found.append(encoder.encode(inputs, batch_size=5, **options))
        found = np.concatenate(found)
        assert found.dtype == np.float32
        assert found.shape == (len(files), encoder.mteb_model_meta.embed_dim)
        expected = models[medium].embed_all(files, pooling, layer).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_retrieval_finds_the_same_sound(models, labelled):
    files = labelled("audio")[0][:6]

    class Tiny(AbsTaskRetrieval):
        metadata = metadata("Any2AnyRetrieval", "audio", "ndcg_at_10").model_copy(update={"category": "a2a"})

        def load_data(self, **_):
            def rows(letter):
                return file_set("audio", files, True, id=[f"{letter}{i}" for i in range(6)], modality=["audio"] * 6)

            self.queries, self.corpus = (datasets.DatasetDict({"test": rows(letter)}) for letter in "qd")
            self.relevant_docs = {"test": {f"q{i}": {f"d{i}": 1} for i in range(6)}}
            self.data_loaded = True

    result = evaluate(MtebEncoder(models["audio"]), Tiny())
    (scores,) = result.task_results[0].scores["test"]
    assert scores["ndcg_at_1"] == 1.0


def test_similarity_is_the_cosine(models):
    encoder = MtebEncoder(models["image"])
    a, b = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    torch.testing.assert_close(torch.as_tensor(encoder.similarity(a, b)), expected)
    torch.testing.assert_close(torch.as_tensor(encoder.similarity_pairwise(a.numpy(), b.numpy())), expected.diagonal())


def test_a_run_folder_and_what_mteb_keeps_of_it(tiny_run, models):
    encoder = MtebEncoder.from_run(tiny_run, pooling="statistics", layer=1, device="cpu")
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.modalities) == (f"bridle/{tiny_run.name}", encoder.model.fingerprint, ["audio"])
    assert meta.embed_dim == 2 * 4 * encoder.model.width
    assert meta.n_parameters == sum(p.numel() for p in encoder.model.networks.encoder.parameters())
    assert meta.loader is None
    json.dumps(meta.to_dict())
    others = [MtebEncoder(encoder.model), MtebEncoder(encoder.model, pooling="statistics", layer=2)]
    assert len({each.mteb_model_meta.experiment_name for each in (encoder, *others)}) == 3
    assert {each.mteb_model_meta.name for each in others} == {"bridle/audio-debug"}


def test_results_are_kept_by_model_pooling_and_layer(models, labelled, tmp_path):
    files, labels = labelled("image")
    cache = mteb.ResultCache(cache_path=tmp_path)
    for encoder in (MtebEncoder(models["image"]), MtebEncoder(models["image"], layer=1)):
        evaluate(encoder, classification("image", files, labels), cache=cache)
    results = sorted(tmp_path.rglob("TinyImageClassification.json"))
    assert len(results) == 2
    assert all(models["image"].fingerprint in result.parts for result in results)


def test_other_modalities_and_settings_are_refused(models, labelled):
    files, labels = labelled("image")
    encoder = MtebEncoder(models["audio"])
    with pytest.raises(ValueError, match=r"supports \['audio'\]"):
        evaluate(encoder, classification("image", files, labels))
    words = mteb._create_dataloaders._create_dataloader_from_texts(["a dog", "a cat"])
    task = metadata("AudioClassification", "audio")
    options = {"task_metadata": task, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    with pytest.raises(DataError, match="the task gives text, and this run encodes audio"):
        encoder.encode(words, **options)
    with pytest.raises(ConfigError, match="precision is 'int8'"):
        encoder.encode(words, precision="int8", **options)
    with pytest.raises(ConfigError, match="pooling is 'max'"):
        MtebEncoder(models["audio"], pooling="max")
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        MtebEncoder(models["audio"], layer=9)
    with pytest.raises(ConfigError, match="pictures do not move"):
        MtebEncoder(models["image"], pooling="grid motion")
    with pytest.raises(ConfigError, match="organisation/name"):
        MtebEncoder(models["audio"], name="mine")
