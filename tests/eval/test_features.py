"""One pass over the files gives what the model's own methods give file by file."""

import shutil
from dataclasses import replace

import pytest
import torch

from bridle.data.audio import AudioLoader
from bridle.data.manifest import Manifest, read_manifest
from bridle.errors import ConfigError, DataError, DecodeError, QuantizerError
from bridle.eval import code_features
from bridle.eval.codes import bag_of_codes, code_report, label_churn
from bridle.eval.features import BAG_OF_CODES, collect_features, default_layers
from bridle.inference import load, random_model
from bridle.objectives.view import whole_view


@pytest.fixture(scope="module")
def model(tiny_run):
    return load(tiny_run, "cpu")


@pytest.fixture(scope="module")
def manifest(tiny_folder):
    return read_manifest(tiny_folder)


@pytest.fixture(scope="module")
def collected(model, manifest):
    models = {"run": model, "random": random_model(model.config, model.device)}
    return collect_features(models, manifest, batch_size=4)


def test_encoder_rows_are_the_embeddings_of_the_model(model, manifest, collected):
    assert collected.rows == tuple(range(len(manifest)))
    assert collected.bad == ()
    for name, encoder in (("run", model), ("random", random_model(model.config, model.device))):
        for pooling in ("mean", "time", "statistics"):
            expected = torch.stack([encoder.embed(entry.path, pooling) for entry in manifest.entries])
            torch.testing.assert_close(collected.features[name][pooling], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(collected.features["run"]["mean"], collected.features["random"]["mean"])


def test_layers_are_chosen_and_named(model, manifest):
    deeper = replace(model.config, encoder=replace(model.config.encoder, depth=4))
    deep = random_model(deeper, model.device)
    assert [default_layers(depth) for depth in (1, 2, 4, 6, 12)] == [(1,), (2,), (3, 4), (5, 6), (9, 12)]
    found = collect_features({"deep": deep}, manifest).features["deep"]
    assert list(found) == [f"{p} of layer 3" for p in ("mean", "time", "statistics")] + ["mean", "time", "statistics"]
    expected = torch.stack([deep.embed(entry.path, "statistics", layer=3) for entry in manifest.entries])
    torch.testing.assert_close(found["statistics of layer 3"], expected, rtol=1e-4, atol=1e-5)
    assert list(collect_features({"deep": deep}, manifest, layers=[1]).features["deep"]) == [
        f"{p} of layer 1" for p in ("mean", "time", "statistics")
    ]
    with pytest.raises(ConfigError, match="no layer is asked for"):
        collect_features({"deep": deep}, manifest, layers=[])
    with pytest.raises(ConfigError, match="layer 5 does not exist; the encoder has layers 1 to 4"):
        collect_features({"deep": deep}, manifest, layers=[5])


def test_log_mel_rows_are_statistics_of_all_frames(model, manifest, collected):
    for entry, row in zip(manifest.entries, collected.features[AudioLoader.baseline_name]["clip"], strict=True):
        frames = torch.cat([clip.inputs[0, :, :, 0] for clip in model.loader.windows(entry)])
        torch.testing.assert_close(row, torch.cat([frames.mean(0), frames.std(0, correction=0)]), rtol=1e-4, atol=1e-5)


def test_bags_and_statistics_are_those_of_the_codes(model, manifest, collected):
    codes = [model.tokenize(entry.path).codes for entry in manifest.entries]
    expected = torch.stack([bag_of_codes(rows, 16) for rows in codes])
    torch.testing.assert_close(collected.features[BAG_OF_CODES]["clip"], expected)
    windows = [found for _, found in model.encode_codes(model.windows(manifest.entries, []))]
    positions = torch.cat([torch.arange(len(found.codes)) for found in windows])
    assert collected.codes.report == code_report(torch.cat(codes), positions, 16)
    assert collected.codes.tokenizer == "trained"
    cold, before = model.networks.cold, []
    for window in model.windows(manifest.entries, []):
        view = whole_view(model.batch([window]), model.config.encoder.patch)
        before.append(cold.quantizer.encode(view.pick(cold.vectors(view.patches, view.every))))
    pairs = zip(torch.cat(before).unbind(1), torch.cat(codes).unbind(1), strict=True)
    assert collected.codes.churn == pytest.approx([label_churn(old, new) for old, new in pairs], abs=1e-9)
    assert 0 < min(collected.codes.churn) < 1


def test_residual_is_the_energy_left_after_each_level(model, manifest, monkeypatch):
    tokenizer, vectors = model.networks.best_tokenizer, []
    quantizer = tokenizer.quantizer
    quantizer.register_forward_pre_hook(lambda module, inputs: vectors.append(inputs[0]))
    try:
        found = collect_features({"run": model}, manifest).codes.residual
    finally:
        quantizer._forward_pre_hooks.clear()
    z = torch.cat(vectors)
    codes, left, expected = quantizer.encode(z), z.double(), []
    for level in range(2):
        left = left - quantizer.codebooks[level][codes[:, level]]
        expected.append(float(left.square().sum() / z.double().square().sum()))
    assert found == pytest.approx(expected, rel=1e-4)


def test_batch_size_changes_nothing_beyond_rounding(model, manifest, collected):
    alone = collect_features({"run": model}, manifest, batch_size=1)
    for pooling, rows in alone.features["run"].items():
        torch.testing.assert_close(rows, collected.features["run"][pooling], rtol=1e-4, atol=1e-5)
    assert alone.codes.report == collected.codes.report


def test_every_file_is_decoded_once_and_encoded_before_the_last_is_read(model, manifest, monkeypatch):
    events = []
    original, encode = AudioLoader.windows, type(model).encode
    monkeypatch.setattr(AudioLoader, "windows", lambda self, entry: events.append(entry.key) or original(self, entry))
    monkeypatch.setattr(
        type(model), "encode", lambda self, group, *rest: events.append(len(group)) or encode(self, group, *rest)
    )
    models = {"run": model, "random": random_model(model.config, model.device)}
    done = []
    collect_features(models, manifest, batch_size=3, on_file=lambda: done.append(len(events)))
    assert [event for event in events if isinstance(event, str)] == [entry.key for entry in manifest.entries]
    assert [event for event in events if isinstance(event, int)] == [3, 3] * 4  # 12 windows, two models
    assert events.index(3) < events.index(manifest.entries[-1].key)
    assert len(done) == len(manifest)


def test_unreadable_files_are_left_out_also_those_that_break_off(model, tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    manifest = read_manifest(folder)
    (folder / manifest.entries[0].key).write_bytes(b"nothing")
    original = AudioLoader.windows

    def break_off(self, entry):
        for clip in original(self, entry):
            yield clip
            if entry.key == "b/long.wav":
                raise DecodeError(entry.key, "truncated")

    monkeypatch.setattr(AudioLoader, "windows", break_off)
    found = collect_features({"run": model}, manifest, batch_size=2)
    lost = {manifest.entries[0].key, "b/long.wav"}
    assert {manifest.entries[row].key for row in found.rows} == {entry.key for entry in manifest.entries} - lost
    assert {file.key for file in found.bad} == lost
    for row, vector in zip(found.rows, found.features["run"]["mean"], strict=True):
        expected = model.embed(manifest.entries[row].path)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_without_a_fitted_tokenizer_there_are_no_codes(model, manifest):
    found = collect_features({"random": random_model(model.config, model.device)}, manifest)
    assert found.codes is None
    assert set(found.features) == {AudioLoader.baseline_name, "random"}


def test_codes_of_a_large_set_are_a_sample_of_its_windows(model, manifest, collected, monkeypatch):
    monkeypatch.setattr(code_features, "CODE_WINDOWS", 3)
    small, again, other = (collect_features({"run": model}, manifest, seed=seed).codes for seed in (0, 0, 1))
    assert small == again
    assert small.report != other.report
    assert 3 <= small.report.num_patches < collected.codes.report.num_patches
    assert small.residual == pytest.approx(collected.codes.residual)  # of all windows


def test_errors_say_what_is_wrong(model, manifest, tmp_path):
    with pytest.raises(DataError, match="0 models"):
        collect_features({}, manifest)
    other = replace(model.config, audio=replace(model.config.audio, mean=0.0))
    with pytest.raises(DataError, match="'other' and 'run' differ in their front end"):
        collect_features({"run": model, "other": random_model(other, model.device)}, manifest)
    gone = Manifest(tuple(replace(entry, path=str(tmp_path / "gone")) for entry in manifest.entries))
    with pytest.raises(DataError, match=r"none of 10 files can be read; first: a/.*missing"):
        collect_features({"run": model}, gone)


def test_vectors_that_are_not_finite_are_an_error(tiny_run, manifest):
    broken = load(tiny_run, "cpu")
    broken.networks.best_tokenizer.neck[2].bias.data.fill_(float("nan"))
    with pytest.raises(QuantizerError, match="not finite"):
        collect_features({"run": broken}, manifest)
