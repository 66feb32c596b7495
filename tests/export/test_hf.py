"""transformers: the folder gives the numbers of ``bridle.load`` for files and for what is in memory, padding and all."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from reference.media_folders import write_folder
from reference.untrained_runs import small_config, write_run

import bridle
from bridle.errors import ConfigError, DataError, RunError
from bridle.export import export_run, hf
from bridle.objectives.supervised import FinetuneConfig

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'bridle[transformers]')")

MEDIA = ("audio", "image", "video")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each medium a folder of files, a run and its export."""
    folder = tmp_path_factory.mktemp("hf")
    for medium in MEDIA:
        write_folder(medium, folder / f"{medium}-data")
        write_run(folder / f"{medium}-run", small_config(medium))
        export_run(folder / f"{medium}-run", folder / medium, to="hf", licence="apache-2.0", name="Small")
    return folder


def loaded(folder: Path) -> tuple[Any, Any]:
    hf.register()
    return transformers.AutoModel.from_pretrained(folder), transformers.AutoFeatureExtractor.from_pretrained(folder)


def some_files(places: Path, medium: str) -> list[Path]:
    """Of three lengths, each shorter than a clip."""
    return sorted((places / f"{medium}-data").rglob("*.*"))[1:4]


@pytest.mark.parametrize("medium", MEDIA)
def test_files_in_a_padded_batch_get_the_numbers_of_the_run(places: Path, medium: str) -> None:
    run = bridle.load(places / f"{medium}-run", "cpu")
    model, extractor = loaded(places / medium)
    assert not model.training
    files = some_files(places, medium)
    inputs = extractor([str(path) for path in files])
    assert list(inputs) == extractor.model_input_names
    assert model.main_input_name == extractor.model_input_names[0]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    codes = model.tokenize(**inputs)
    assert torch.equal(codes.patch_mask, output.patch_mask)
    assert (medium == "image") == bool(output.patch_mask.all()), "padding is what is tested"
    assert not output.last_hidden_state[~output.patch_mask].any()
    assert bool((codes.codes[~codes.patch_mask] == -1).all())
    assert len(output.hidden_states) == model.config.num_hidden_layers == 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    for row, path in enumerate(files):
        mask = output.patch_mask[row]
        torch.testing.assert_close(output.last_hidden_state[row][mask], run.features(path).flatten(0, -2), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            output.hidden_states[0][row][mask], run.features(path, layer=1).flatten(0, -2), atol=1e-5, rtol=1e-5
        )
        assert torch.equal(codes.codes[row][mask], run.tokenize(path).codes)


def test_the_summary_is_that_of_the_encoder(places: Path) -> None:
    model, extractor = loaded(places / "image")
    inputs = extractor([str(path) for path in some_files(places, "image")])
    alone = [model(pixel_values=row[None]).pooler_output for row in inputs["pixel_values"]]
    torch.testing.assert_close(model(**inputs).pooler_output, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("medium", MEDIA)
def test_saving_and_loading_changes_no_bit(places: Path, medium: str, tmp_path: Path) -> None:
    model, extractor = loaded(places / medium)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    again, same = loaded(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    for name in ("config.json", "preprocessor_config.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (places / medium, tmp_path))
        assert first == second
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    inputs = extractor(str(some_files(places, medium)[0]))
    assert all(torch.equal(inputs[name], same(str(some_files(places, medium)[0]))[name]) for name in inputs)
    assert torch.equal(again(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.run_config == bridle.load(places / f"{medium}-run", "cpu").config
    assert config.model_type == "bridle"
    assert isinstance(transformers.AutoProcessor.from_pretrained(tmp_path), type(extractor))


def test_what_a_picture_may_be(places: Path) -> None:
    _, extractor = loaded(places / "image")
    path = some_files(places, "image")[0]
    picture = Image.open(path).convert("RGB")
    last = np.array(picture)
    first = torch.from_numpy(last).movedim(-1, 0)
    wanted = extractor(str(path))["pixel_values"]
    for item in (path, picture, last, first, first.numpy(), first / 255, [picture], first[None], [last]):
        assert torch.equal(extractor(item)["pixel_values"], wanted)
    assert extractor([picture, last])["pixel_values"].shape == (2, 3, 32, 32)
    assert np.array_equal(extractor(picture, return_tensors="np")["pixel_values"], wanted.numpy())
    grey = extractor(np.array(picture.convert("L")))["pixel_values"]
    assert torch.equal(grey, extractor(picture.convert("L"))["pixel_values"])


def test_what_a_film_may_be(places: Path) -> None:
    _, extractor = loaded(places / "video")
    frames = torch.randint(0, 256, (6, 3, 40, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    last = frames.movedim(1, -1).numpy()
    pictures = [Image.fromarray(frame) for frame in last]
    wanted = extractor(frames)
    assert wanted["pixel_values"].shape == (1, 6, 3, 32, 32)
    for item in (last, pictures, list(last), [frames], [pictures], frames[None], list(frames)):
        assert torch.equal(extractor(item)["pixel_values"], wanted["pixel_values"])
    two = extractor([frames, frames[:3]])
    assert two["lengths"].tolist() == [6, 3]
    with pytest.raises(DataError, match="item 1 is longer than a clip of 8 frames"):
        extractor([frames, torch.cat([frames, frames])])


def test_what_a_sound_may_be(places: Path, tmp_path: Path) -> None:
    model, extractor = loaded(places / "audio")
    assert extractor.sampling_rate == 16000
    path = some_files(places, "audio")[0]
    sound, rate = soundfile.read(path, dtype="float32")
    wanted = extractor(path)["input_values"]
    assert wanted.ndim == 3
    for item in (sound, torch.from_numpy(sound), sound.astype(np.float64), sound.tolist(), [sound], sound[None]):
        assert torch.equal(extractor(item, sampling_rate=rate)["input_values"], wanted)
    double = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", double, 44100, subtype="FLOAT")
    resampled = extractor(double, sampling_rate=44100)["input_values"]
    torch.testing.assert_close(resampled, extractor(tmp_path / "a.wav")["input_values"], atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="say sampling_rate=16000"):
        extractor(sound)
    long = np.tile(sound, 1 + 5 * 16000 // len(sound))[: 5 * 16000]
    with pytest.raises(DataError, match="item 0 is longer than a clip of 2 s; cut it, or give it alone with windows=True"):
        extractor(long, sampling_rate=rate)
    rows = extractor(long, sampling_rate=rate, windows=True)
    mask = model(**rows).patch_mask
    run = bridle.load(places / "audio-run", "cpu")
    assert torch.equal(model.tokenize(**rows).codes[mask], run.tokenize(torch.from_numpy(long)).codes)
    with pytest.raises(DataError, match="there are 2 items; give 1 with windows=True"):
        extractor([sound, sound], sampling_rate=rate, windows=True)
    with pytest.raises(DataError, match="there are 0 items"):
        extractor([], sampling_rate=rate)
    with pytest.raises(ConfigError, match="return_tensors is 'tf'"):
        extractor(sound, sampling_rate=rate, return_tensors="tf")


def test_wrong_inputs_are_one_line(places: Path) -> None:
    model, extractor = loaded(places / "audio")
    inputs = extractor(some_files(places, "audio"))
    for wrong, message in (
        ({"pixel_values": torch.zeros(1, 3, 32, 32)}, "this is a model of audio; give input_values"),
        ({**inputs, "pixel_values": torch.zeros(1, 3, 32, 32)}, "and no other"),
        ({"input_values": inputs["input_values"][0]}, r"not \(B, T, F\)"),
        ({**inputs, "lengths": inputs["lengths"][:1]}, "do not fit 3 clips"),
        ({**inputs, "lengths": inputs["lengths"] + 1000}, "do not fit 3 clips of"),
        ({"input_values": inputs["input_values"][:, :-1]}, "pad or crop it to a multiple"),
    ):
        with pytest.raises(DataError, match=message):
            model(**wrong)
    pictures, _ = loaded(places / "image")
    with pytest.raises(DataError, match=r"pixel_values are \(1, 1, 32, 32\), not \(B, 3, H, W\)"):
        pictures(pixel_values=torch.zeros(1, 1, 32, 32))
    with pytest.raises(ConfigError, match=r"the weights are torch.bfloat16; load them with dtype=torch.float32"):
        model.to(torch.bfloat16)(**inputs)


def test_gradients_reach_every_weight_of_the_encoder(places: Path) -> None:
    model, extractor = loaded(places / "video")
    inputs = extractor(some_files(places, "video"))
    output = model.train()(**inputs)
    (output.last_hidden_state.square().sum() + output.pooler_output.sum()).backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in model.encoder.parameters())


def test_autocast_computes_near_the_same(places: Path) -> None:
    model, extractor = loaded(places / "image")
    inputs = extractor(some_files(places, "image"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(**inputs).pooler_output
    torch.testing.assert_close(half.float(), model(**inputs).pooler_output.detach(), atol=0.2, rtol=0.1)


def test_a_random_tokenizer_and_none(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for phases, kind in (("cold:1", "cold"), ("patches:1", None)):
        run, out = tmp_path / f"run-{kind}", tmp_path / f"out-{kind}"
        write_run(run, small_config("image", phases))
        made = export_run(run, out, to="hf", licence="mit")
        model, extractor = loaded(out)
        assert model.config.tokenizer == kind
        if kind is None:
            assert any("no fitted tokenizer" in note for note in made.notes)
            with pytest.raises(RunError, match="this model has no tokenizer"):
                model.tokenize(**extractor(pixels))
        else:
            assert not made.notes
            found = model.tokenize(**extractor(pixels)).codes[0]
            assert torch.equal(found, bridle.load(run, "cpu").tokenize(pixels).codes)


def test_a_configuration_of_another_version_is_refused(places: Path, tmp_path: Path) -> None:
    config = json.loads((places / "image" / "config.json").read_text())
    config["run"]["encoder"]["no_such_setting"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    hf.register()
    with pytest.raises(ConfigError, match=r"unknown setting 'encoder\.no_such_setting'"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_spoiled_weights_are_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    from bridle.export import exporting

    def spoiled(model: Any, folder: Path) -> None:
        original(model, folder)
        weights = load_file(folder / "model.safetensors")
        weights["encoder.norm.bias"][0] += 1e-6
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    original = exporting.write_hf
    monkeypatch.setattr(exporting, "write_hf", spoiled)
    run = write_run(tmp_path / "run", small_config("image", "cold:1"))
    with pytest.raises(RunError, match=r"'encoder.norm.bias' of the transformers model is not that of the run"):
        export_run(run, tmp_path / "out", to="hf", licence="mit")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_registering_twice_and_importing_are_nothing(places: Path) -> None:
    hf.register()
    hf.register()
    code = "import sys, bridle.export.hf; print([name for name in ('transformers', 'onnx', 'timm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_model_from_a_configuration_alone_is_a_new_one(places: Path) -> None:
    hf.register()
    config = transformers.AutoConfig.from_pretrained(places / "image")
    made = transformers.AutoModel.from_config(config).eval()
    assert bool(torch.isfinite(made(pixel_values=torch.zeros(1, 3, 32, 32)).pooler_output).all())
    default = type(config)()
    assert default.run_config.audio is not None
    assert dataclasses.asdict(default.run_config)["encoder"]["width"] == default.hidden_size


def test_integers_and_several_channels_are_refused(places: Path) -> None:
    _, extractor = loaded(places / "audio")
    sound = (0.1 * np.random.default_rng(0).standard_normal((8000, 2))).astype(np.float32)
    whole = (32768 * sound[:, 0]).astype(np.int16)
    for rate in (16000, 44100):  # before anything is resampled
        for item in (whole, torch.from_numpy(whole), whole.tolist(), [whole]):
            message = r"the waveform is int(16|64); give floats in \[-1, 1\]: divide samples of 16 bits by 32768$"
            with pytest.raises(DataError, match=message):
                extractor(item, sampling_rate=rate)
        for item, shape in ((sound, r"\(8000, 2\)"), ([sound.T], r"\(2, 8000\)"), (torch.from_numpy(sound), r"\(8000, 2\)")):
            with pytest.raises(DataError, match=rf"the waveform is {shape}; give \(S,\) of one channel, such as the mean"):
                extractor(item, sampling_rate=rate)
    right = extractor(whole.astype(np.float32) / 32768, sampling_rate=16000)["input_values"]
    torch.testing.assert_close(right, extractor(sound[:, 0], sampling_rate=16000)["input_values"], atol=0.1, rtol=0)
    assert extractor(sound.T, sampling_rate=16000)["input_values"].shape[0] == 2, "a batch of two"


def test_the_names_and_settings_that_users_of_transformers_give(places: Path) -> None:
    _, extractor = loaded(places / "audio")
    sound = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    wanted = extractor(sound, sampling_rate=16000)["input_values"]
    for given in ({"raw_speech": sound}, {"audio": sound}, {"raw_speech": [sound], "padding": True, "return_tensors": "pt"}):
        assert torch.equal(extractor(**given, sampling_rate=16000)["input_values"], wanted)
    _, pictures = loaded(places / "image")
    picture = Image.open(some_files(places, "image")[0])
    assert torch.equal(pictures(images=picture, padding="longest")["pixel_values"], pictures(picture)["pixel_values"])
    for wrong, message in (
        ({"padding": "max_length"}, "padding is 'max_length'; a batch is padded to its longest item"),
        ({"max_length": 100}, "this extractor of audio has no max_length; give the items first, or as raw_speech"),
        ({"images": sound}, "this extractor of audio has no images"),
        ({"audio": sound}, "the items are given 2 times; give them once"),
    ):
        with pytest.raises(ConfigError, match=message):
            extractor(sound, sampling_rate=16000, **wrong)
    with pytest.raises(ConfigError, match="the items are given 0 times"):
        extractor(sampling_rate=16000)


def classifying(medium: str, folder: Path) -> Path:
    """A fine-tuned run, exported."""
    finetune = FinetuneConfig(label="class", classes=("a", "b", "c"))
    config = dataclasses.replace(small_config(medium), phases="supervised:1", finetune=finetune)
    export_run(write_run(folder / f"{medium}-tuned", config), folder / f"{medium}-classes", to="hf", licence="mit")
    return folder / f"{medium}-classes"


def test_tuples_layers_and_attentions(places: Path, tmp_path: Path) -> None:
    model, extractor = loaded(places / "image")
    inputs = extractor(some_files(places, "image"))
    output = model(**inputs, output_hidden_states=True)
    pair = model(**inputs, return_dict=False)
    assert isinstance(pair, tuple) and torch.equal(pair[0], output.last_hidden_state)
    classifier = transformers.AutoModelForImageClassification.from_pretrained(classifying("image", tmp_path))
    found = classifier(**inputs, output_hidden_states=True, labels=torch.tensor([0, 1, 2]))
    assert len(found.hidden_states) == 2 and found.hidden_states[0].shape == output.hidden_states[0].shape
    assert classifier(**inputs).hidden_states is None
    loss, logits = classifier(**inputs, labels=torch.tensor([0, 1, 2]), return_dict=False)
    assert torch.equal(loss, found.loss) and torch.equal(logits, found.logits)
    for each in (model, classifier):
        with pytest.raises(ConfigError, match="the encoder does not give its attentions; leave output_attentions out"):
            each(**inputs, output_attentions=True)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_vector_of_embed_is_the_mean_of_the_patches(class_token: bool, places: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_config("audio", class_token=class_token))
    export_run(run, tmp_path / "out", to="hf", licence="mit")
    model, extractor = loaded(tmp_path / "out")
    files = some_files(places, "audio")
    with torch.no_grad():
        output = model(**extractor(files))
    means = output.last_hidden_state.sum(1) / output.patch_mask.sum(1)[:, None]
    own = bridle.load(run, "cpu")
    torch.testing.assert_close(means, torch.stack([own.embed(path) for path in files]), atol=1e-5, rtol=1e-5)
    assert torch.allclose(output.pooler_output, means, atol=1e-4) != class_token
    card = (tmp_path / "out" / "README.md").read_text()
    assert "output.last_hidden_state.sum(1) / output.patch_mask.sum(1)[:, None]" in card
    assert ("features of the class token" in card) == class_token


def test_pipelines_of_sounds_and_pictures(places: Path, tmp_path: Path) -> None:
    hf.register()
    sound = (0.1 * np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
    pipe = transformers.pipeline("audio-classification", model=str(classifying("audio", tmp_path)))
    run = bridle.load(tmp_path / "audio-tuned", "cpu")
    for found, item in zip(pipe([sound, sound[:9000]], batch_size=2), (sound, sound[:9000]), strict=True):
        wanted = run.predict(torch.from_numpy(item))
        assert [row["label"] for row in found] == [name for name, _ in wanted.top(3)]
        assert [row["score"] for row in found] == pytest.approx([chance for _, chance in wanted.top(3)], abs=1e-5)
    picture = Image.open(some_files(places, "image")[0]).convert("RGB")
    pipe = transformers.pipeline("image-classification", model=str(classifying("image", tmp_path)))
    wanted = bridle.load(tmp_path / "image-tuned", "cpu").predict(picture)
    assert [row["score"] for row in pipe(picture)] == pytest.approx([chance for _, chance in wanted.top(3)], abs=1e-5)
    pipe.save_pretrained(tmp_path / "again")
    assert transformers.pipeline("image-classification", model=str(tmp_path / "again"))(picture) == pipe(picture)
    assert type(transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "again")) is type(loaded(places / "image")[1])
    vectors = transformers.pipeline("image-feature-extraction", model=str(places / "image"), pool=True)(picture)
    model, extractor = loaded(places / "image")
    torch.testing.assert_close(torch.tensor(vectors), model(**extractor(picture)).pooler_output.detach(), atol=1e-5, rtol=0)
