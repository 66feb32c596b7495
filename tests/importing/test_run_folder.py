"""Imported weights as a run: its features are theirs, pretraining goes on from them, refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
from reference.media_folders import write_folder
from reference.state_dicts import HEADS, beats, eat, mae, naive_beats, sine_table

import bridle
from bridle import cli
from bridle.errors import ConfigError, RunError
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig
from bridle.train.reporter import Silent

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'bridle[transformers]')")

CPU = torch.device("cpu")


def vit(channels: int = 3, size: int = 32) -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=size,
        patch_size=8,
        num_channels=channels,
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def videomae() -> Any:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_channels=3,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return transformers.VideoMAEModel(config)


def debug(kind: str = "image") -> RunConfig:
    config = recipe(f"{kind}-debug")
    train = dataclasses.replace(config.train, batch_size=4, precision="fp32")
    return dataclasses.replace(config, phases="cold:2steps, tokenizer:2steps, encoder:2steps", train=train)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder("image", tmp_path_factory.mktemp("pictures"))


def test_features_of_the_run_are_those_of_the_model(pictures: Path, tmp_path: Path) -> None:
    theirs = vit()
    made = bridle.import_weights(theirs, tmp_path / "run", config=debug())
    assert made.family == "ViT"
    assert any("normalisation" in note for note in made.notes)
    model = bridle.load(tmp_path / "run", "cpu")
    pixels = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs((pixels / 255 - 0.5)[None] / 0.5).last_hidden_state[0, 1:]
    torch.testing.assert_close(model.features(pixels), expected.reshape(4, 4, 32), atol=1e-4, rtol=1e-4)
    assert model.embed(next(pictures.rglob("*.png"))).shape == (32,)


def test_pretraining_goes_on_from_the_weights(pictures: Path, tmp_path: Path) -> None:
    still = dataclasses.replace(debug().encoder_optim, lr=0.0)
    config = dataclasses.replace(debug(), encoder_optim=still)
    bridle.import_weights(vit(), tmp_path / "run", config=config)
    before = bridle.load(tmp_path / "run", "cpu").networks.encoder.state_dict()
    made = bridle.load(tmp_path / "run", "cpu").config
    outcome = pretrain(made, [pictures], tmp_path / "run", resume=True, device=CPU)
    assert outcome.finished
    assert outcome.step == 6
    after = bridle.load(tmp_path / "run", "cpu")
    assert all(torch.equal(value, before[name]) for name, value in after.networks.encoder.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["1-cold"] * 2 + ["2-tokenizer"] * 2 + ["3-encoder"] * 2
    assert len(after.tokenize(next(pictures.rglob("*.png"))).codes) == 16
    other = write_folder("image", tmp_path / "other", 4)
    with pytest.raises(RunError, match="same --data"):
        pretrain(made, [other], tmp_path / "run", resume=True, device=CPU)


SOURCES = {
    "BEATs": ("audio", beats),
    "EAT": ("audio", lambda: {name: tensor for name, tensor in eat().items() if "decoder" not in name}),
    "AudioMAE": ("audio", lambda: mae(channels=1, patch=16, table=sine_table(8, 6))),
    "VideoMAE": ("video", videomae),
}


@pytest.mark.parametrize("family", SOURCES)
def test_pretraining_goes_on_from_other_families(family: str, tmp_path: Path) -> None:
    medium, source = SOURCES[family]
    data = write_folder(medium, tmp_path / "data", 4)
    base = debug(medium)
    base = dataclasses.replace(base, encoder_optim=dataclasses.replace(base.encoder_optim, lr=1e-3))
    made = bridle.import_weights(source(), tmp_path / "run", config=base, heads=4)
    assert made.family == family
    before = bridle.load(tmp_path / "run", "cpu").networks.encoder.state_dict()
    assert pretrain(made.config, [data], tmp_path / "run", resume=True, device=CPU).finished
    after = bridle.load(tmp_path / "run", "cpu")
    changed = [name for name, tensor in after.networks.encoder.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {"blocks.0.attention.query.weight", "blocks.1.mlp.2.bias"} <= set(changed)
    assert sum(1 for _ in (tmp_path / "run" / "metrics.jsonl").open()) == 6
    features = after.features(next(path for path in data.rglob("*.*")))
    assert bool(torch.isfinite(features).all())


def test_sound_to_features_of_beats(tmp_path: Path) -> None:
    """Filterbank, normalisation and encoder together: Kaldi's own filterbank, then BEATs by its formulas."""
    state = beats()
    bridle.import_weights(state, tmp_path / "run", config=debug("audio"))
    sound = write_folder("audio", tmp_path / "data", 2) / "a" / "0.wav"
    waveform = torch.from_numpy(soundfile.read(sound, dtype="float32")[0]) * 1e-3  # quiet bands tell the scale
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins, options.use_energy = 0, 128, False
    kaldi = kaldi_native_fbank.OnlineFbank(options)  # its default window is povey
    kaldi.accept_waveform(16000, (waveform * 32768).tolist())
    kaldi.input_finished()
    frames = torch.from_numpy(np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)]))
    inputs = (frames[: len(frames) // 16 * 16] - 15.41663) / (2 * 6.55582)
    expected = naive_beats(state, inputs[None, None], 800, deep=True)[0].reshape(-1, 8, 32)
    found = bridle.load(tmp_path / "run", "cpu").features(waveform)
    torch.testing.assert_close(found[: len(expected)], expected, atol=2e-3, rtol=0)


def test_the_command_takes_a_folder_and_says_what_is_missing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    vit().save_pretrained(tmp_path / "hf")
    run = str(tmp_path / "run")
    assert cli.main(["import", str(tmp_path / "hf"), "--out", run, "--recipe", "image-debug"]) == 0
    out = capsys.readouterr().out
    assert "done ViT: width 32, depth 2, patches of 1 x 8 x 8" in out
    assert f"bridle pretrain image-debug --data DATA --out {run} --resume" in out
    arguments = ["pretrain", "image-debug", "--data", str(pictures), "--out", run, "--resume"]
    assert cli.main(arguments) == 0
    assert cli.main(["inspect", run]) == 0
    assert cli.main(["import", str(tmp_path / "hf"), "--out", run]) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_settings_of_the_first_call_decide_what_is_not_the_networks(pictures: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    bridle.import_weights(vit(), run, config=dataclasses.replace(recipe("image-debug"), phases="cold:5"))
    common = ["pretrain", "image-debug", "--data", str(pictures), "--out", run, "--resume"]
    assert cli.main([*common, "--encoder.depth", "3"]) == 1
    assert cli.main([*common, "--image.size", "16"]) == 1
    changed = ["--phases", "cold:2steps", "--train.batch-size", "3", "--masks.mask-ratio", "0.5", "--seed", "7"]
    assert cli.main([*common, *changed, "--encoder-optim.weight-decay", "0.2", "--image.scale", "0.9", "1.0"]) == 0
    made = bridle.load(run, "cpu").config
    assert (made.phases, made.train.batch_size, made.masks.mask_ratio, made.seed) == ("cold:2steps", 3, 0.5, 7)
    assert (made.encoder_optim.weight_decay, made.encoder.width) == (0.2, 32)
    assert made.image is not None
    assert made.image.scale == (0.9, 1.0)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert cli.main([*common, "--train.batch-size", "4"]) == 1, "it has begun"


def test_a_first_call_that_does_not_get_far_may_be_changed_again(pictures: Path, tmp_path: Path) -> None:
    bridle.import_weights(vit(), tmp_path / "run", config=debug())
    made = bridle.load(tmp_path / "run", "cpu").config

    class Killed(Silent):
        def step(self, done: int) -> None:
            raise KeyboardInterrupt

    for width in (32, 48):
        changed = dataclasses.replace(made, predictor=dataclasses.replace(made.predictor, width=width))
        with pytest.raises(KeyboardInterrupt):
            pretrain(changed, [pictures], tmp_path / "run", resume=True, device=CPU, reporter=Killed())
        assert bridle.load(tmp_path / "run", "cpu").config.predictor.width == width


def test_an_import_that_fails_leaves_no_run_that_begins_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RunError("No space left")

    monkeypatch.setattr("bridle.importing.run_folder.save_checkpoint", full)
    with pytest.raises(RunError, match="No space left"):
        bridle.import_weights(vit(), tmp_path / "run", config=debug())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_weights_with_missing_layers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vit().save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="num_hidden_layers = 2, the weights 1; tensors are missing"):
        bridle.import_weights(tmp_path / "hf", tmp_path / "run")


def test_a_table_that_reaches_further_than_published_clips_does_not_make_them_longer(tmp_path: Path) -> None:
    state = eat()
    place = next(name for name in state if name.endswith("fixed_positional_encoder.positions"))
    state[place] = sine_table(768, 8)[None]
    made = bridle.import_weights(state, tmp_path / "run", heads=HEADS)
    assert made.config.audio is not None
    assert made.config.audio.crop_seconds == pytest.approx(10.24)
    assert any("1024 frames" in note for note in made.notes)


def test_video_and_base_recipes(tmp_path: Path) -> None:
    made = bridle.import_weights(videomae(), tmp_path / "run", config=debug("video"))
    assert made.config.video is not None
    assert (made.config.video.num_frames, made.config.video.size) == (4, 32)
    assert bridle.load(tmp_path / "run", "cpu").features(torch.zeros(4, 3, 32, 32)).shape == (2, 2, 2, 32)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for audio; the weights of ViT are for image"):
        bridle.import_weights(vit(), tmp_path / "run", config=debug("audio"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        bridle.import_weights(vit(), tmp_path / "full")
