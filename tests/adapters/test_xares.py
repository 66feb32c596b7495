"""A run as X-ARES sees it: shapes, times of the steps, long sounds, names; with X-ARES installed its own check and a task."""

import importlib
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from bridle.adapters.xares import XaresEncoder
from bridle.errors import ConfigError, DataError
from bridle.media.fbank import num_frames


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def imported(name: str):
    """A module of X-ARES, or a skip that says what is missing; torchaudio of another build than torch raises OSError."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} cannot be imported ({error}); see docs/adapters.md")


def test_shapes_and_numbers_of_a_clip(models):
    model, audio = models["audio"], noise(3, 20000)
    features = torch.stack([model.features(wave, layer=1) for wave in audio])  # (3, 8, 4, D)
    mean, time = XaresEncoder(model, layer=1), XaresEncoder(model, layer=1, pooling="time")
    assert (mean.sampling_rate, mean.output_dim, mean.hop_size_in_ms) == (16000, 32, 160)
    assert (time.output_dim, mean(audio).dtype) == (4 * 32, torch.float32)
    torch.testing.assert_close(mean(audio), features.mean(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(time(audio), features.flatten(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mean(audio[1]), mean(audio)[1:2], atol=1e-5, rtol=1e-4)
    for pooling, encoder in (("mean", mean), ("time", time)):
        torch.testing.assert_close(encoder(audio[0])[0].mean(0), model.embed(audio[0], pooling, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [16, 5, 1])
@pytest.mark.parametrize("num_samples", [1, 399, 1679, 1680, 40000, 47000, 48000, 160000, 200001])
def test_steps_keep_to_their_times(model_of_patch, num_samples, patch):
    """As many steps as the sound has in one piece: of so many frames each, the last one when half of it is there."""
    model = model_of_patch(patch)
    frames = num_frames(num_samples, model.config.audio.fbank)
    encoder = XaresEncoder(model)
    assert encoder.hop_size_in_ms == 10 * patch
    assert encoder(noise(1, num_samples)).shape == (1, max(1, (frames + patch // 2) // patch), 32)


def test_a_step_of_a_long_sound_is_that_of_its_time(model_of_patch):
    """A click after 11.04 s changes most the step that it lies in, and no step of another piece."""
    encoder = XaresEncoder(model_of_patch(16))
    audio = noise(20 * 16000)
    clicked = audio.clone()
    step = 69
    clicked[step * 2560 + 800 : step * 2560 + 1200] += 0.9
    change = (encoder(clicked) - encoder(audio))[0].norm(dim=-1)
    piece = 18  # steps in 298 frames
    assert int(change.argmax()) == step
    assert set(change.nonzero().flatten().tolist()) <= set(range(step // piece * piece, step // piece * piece + piece))


def test_padding_and_batch_change_nothing(model_of_patch):
    encoder, audio = XaresEncoder(model_of_patch(16)), noise(5, 60000)
    torch.testing.assert_close(encoder(audio), torch.cat([encoder(wave) for wave in audio]), atol=1e-5, rtol=1e-4)


def test_it_is_frozen_and_stays_as_it_is(models):
    encoder = XaresEncoder(models["audio"])
    audio = noise(1, 30000)
    before = encoder(audio)
    encoder.train()
    after = encoder(audio.requires_grad_())
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not any(module.training for module in models["audio"].networks.modules())


def test_the_class_is_named_after_what_it_gives(tiny_run, models):
    encoders = [XaresEncoder(models["audio"], layer=layer, pooling=p) for layer in (1, None) for p in ("mean", "time")]
    encoders.append(XaresEncoder.from_run(tiny_run, device="cpu"))
    names = [type(encoder).__name__ for encoder in encoders]
    assert names[0] == f"Bridle_{models['audio'].fingerprint}_mean_1_Encoder"
    assert len(set(names)) == len(names)
    assert all(isinstance(encoder, XaresEncoder) for encoder in encoders)
    assert type(XaresEncoder(models["audio"])).__name__ in names


def test_what_cannot_be_encoded_is_explained(models):
    with pytest.raises(ConfigError, match="this run encodes image; X-ARES needs a run of audio"):
        XaresEncoder(models["image"])
    with pytest.raises(ConfigError, match="pooling is 'statistics'; it must be one of mean, time"):
        XaresEncoder(models["audio"], pooling="statistics")
    with pytest.raises(ConfigError, match="layer 3 does not exist"):
        XaresEncoder(models["audio"], layer=3)
    encoder = XaresEncoder(models["audio"])
    for bad in (torch.zeros(1, 2, 100), torch.zeros(2, 0), torch.zeros(())):
        with pytest.raises(DataError, match="it must be"):
            encoder(bad)
    with pytest.raises(DataError, match="NaN"):
        encoder(torch.full((1, 16000), float("nan")))


def test_check_of_xares_itself(models):
    checker = imported("xares.audio_encoder_checker")
    assert checker.check_audio_encoder(XaresEncoder(models["audio"]))
    assert checker.check_audio_encoder(XaresEncoder(models["audio"], layer=1, pooling="time"))


def test_a_file_for_its_command_line(tiny_run, tmp_path, monkeypatch):
    utils = imported("xares.utils")
    source = (
        "from functools import partial\nfrom bridle.adapters import xares\n"
        f"MyEncoder = partial(xares.XaresEncoder.from_run, {str(tiny_run)!r}, device='cpu', layer=1)\n"
    )
    (tmp_path / "tiny_run_encoder.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = utils.attr_from_py_path("tiny_run_encoder.py", endswith="Encoder")()
    assert encoder(noise(1, 16000)).shape == (1, 6, encoder.output_dim)


@pytest.fixture
def task(monkeypatch):
    """The tasks of X-ARES. Where torchaudio cannot be imported, the two functions that they call on it stand in."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):
        torchaudio = ModuleType("torchaudio")
        torchaudio.load, torchaudio.functional = read_sound, SimpleNamespace(resample=resample)
        imported("transformers")  # which asks what else there is when it is imported
        monkeypatch.setitem(sys.modules, "torchaudio", torchaudio)
        for name in ("xares.audiowebdataset", "xares.task"):  # imported anew, and not kept with what stands in
            monkeypatch.setitem(sys.modules, name, None)
            del sys.modules[name]
    return imported("xares.task")


def read_sound(file):
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), rate


def resample(audio, rate, wanted):
    return torch.from_numpy(soxr.resample(audio.numpy().T, rate, wanted).T)


def test_a_task_of_xares(models, labelled, tmp_path, task):
    """Encoding, linear probe and kNN by X-ARES on two classes of sounds, from tar files like those it downloads."""
    files, labels = labelled("audio")
    place = tmp_path / "tiny"
    place.mkdir()
    half = len(files) // 2
    for split, rows in (("train", range(half)), ("valid", range(half)), ("test", range(half, len(files)))):
        write_tar(place / f"{split}-000.tar", [files[i] for i in rows], [labels[i] for i in rows])
    (place / ".audio_tar_ready").touch()
    encoder = XaresEncoder(models["audio"], pooling="time")
    with torch.random.fork_rng():  # a task seeds torch and numpy
        state, threads = np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
        config = task.TaskConfig(
            name="tiny",
            env_root=tmp_path,
            encoder=encoder,
            output_dim=2,
            epochs=10,
            learning_rate=1e-2,
            label_processor=lambda cell: cell["label"],
            num_encoder_workers=0,
            eval_weight=half,
        )
        (mlp, size), (knn, _) = task.XaresTask(config).run()
        np.random.set_state(state)  # noqa: NPY002
        torch.set_num_threads(threads)
    assert size == half
    assert min(mlp, knn) >= 0.75  # chance is 0.5
    assert (place / "checkpoints" / type(encoder).__name__).is_dir()


def write_tar(path: Path, files: list[Path], labels: list[int]) -> None:
    """Sounds as flac and their labels, in the layout of X-ARES."""
    with tarfile.open(path, "w") as tar:
        for file, label in zip(files, labels, strict=True):
            samples, rate = soundfile.read(file)
            flac = io.BytesIO()
            soundfile.write(flac, samples, rate, format="FLAC")
            for suffix, content in (("flac", flac.getvalue()), ("json", json.dumps({"label": label}).encode())):
                member = tarfile.TarInfo(f"{file.stem}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
