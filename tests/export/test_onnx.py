"""ONNX: files of one medium in the fast suite, the others and odd encoders in the slow one; onnxruntime reads them alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.media_folders import write_folder
from reference.untrained_runs import small_config, write_run

import bridle
from bridle.data.manifest import Entry
from bridle.errors import RunError
from bridle.export import export_run
from bridle.export.onnx_files import preprocessing
from bridle.inference import Model
from bridle.run import clip_grid

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'bridle[onnx]')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'bridle[onnx]')")

# Runs where neither torch nor bridle can be imported: finished clips in, features and codes out.
STRANGER = """
import sys
sys.modules["torch"] = sys.modules["bridle"] = None
import numpy, onnxruntime
folder, clips, out = sys.argv[1:]
given = dict(numpy.load(clips))
found = {}
for name in ("encoder", "tokenizer"):
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx")
    outputs = [output.name for output in session.get_outputs()]
    found |= dict(zip(outputs, session.run(outputs, given)))
numpy.savez(out, **found)
"""


def ask_a_stranger(folder: Path, model: Model, files: list[Path], place: Path) -> dict[str, np.ndarray]:
    """What a process without torch computes for the files, padded in one batch."""
    batch = model.batch(list(model.windows([Entry(key=str(path), path=str(path)) for path in files], [])))
    np.savez(place / "clips.npz", inputs=batch.inputs.numpy(), lengths=batch.lengths.numpy())
    arguments = [str(folder), str(place / "clips.npz"), str(place / "found.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True)
    return dict(np.load(place / "found.npz"))


def check_files(medium: str, place: Path, phases: str = "cold:1, tokenizer:1", **encoder: Any) -> None:
    """Export a run, and compare what a stranger computes for files with what the run says of each."""
    files = sorted(write_folder(medium, place / "data", 4).rglob("*.*"))[:3]
    run = write_run(place / "run", small_config(medium, phases, **encoder))
    made = export_run(run, place / "out", to="onnx")
    assert made.files == ("README.md", "encoder.onnx", "preprocessing.json", "tokenizer.onnx")
    assert len({(check.batch, check.frames) for check in made.checks}) == 3
    assert [check.codes for check in made.checks] == ["equal"] * 3
    assert 0 < max(check.difference for check in made.checks) < 1e-4
    model = bridle.load(run, "cpu")
    found = ask_a_stranger(place / "out", model, files, place)
    assert set(found) == {"patches", "summary", "codes"}
    for row, path in enumerate(files):
        features, codes = model.features(path).flatten(0, -2), model.tokenize(path).codes
        count = len(features)
        np.testing.assert_allclose(found["patches"][row][:count], features.numpy(), atol=1e-4, rtol=1e-4)
        assert not found["patches"][row][count:].any()
        assert np.array_equal(found["codes"][row][:count], codes.numpy())
        assert (found["codes"][row][count:] == -1).all()
    for file in ("encoder.onnx", "tokenizer.onnx"):
        assert str(Path(bridle.__file__).parent).encode() not in (place / "out" / file).read_bytes()
    written = json.loads((place / "out" / "preprocessing.json").read_text())
    assert written == preprocessing(model)
    assert written["patch"] == list(model.config.encoder.patch)


def kaldi_to_patches(session: Any, settings: dict[str, Any], path: Path) -> np.ndarray:
    """Features (N, D) of a sound as docs/export.md makes them: Kaldi's own filterbank, settings of the file alone."""
    import kaldi_native_fbank
    import soundfile

    audio, fbank = settings["clips"], settings["clips"]["fbank"]
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.window_type = fbank["sample_rate"], 0, "hanning"
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.use_energy = fbank["num_mels"], fbank["low_hz"], False
    front_end = kaldi_native_fbank.OnlineFbank(options)
    samples, rate = soundfile.read(path, dtype="float32")
    front_end.accept_waveform(rate, samples.tolist())
    frames = np.stack([front_end.get_frame(i) for i in range(front_end.num_frames_ready)])
    clip = (frames - audio["mean"]) / (2 * audio["std"])
    clip = np.pad(clip, ((0, -len(clip) % settings["patch"][0]), (0, 0)))[None, None, :, :, None].astype("float32")
    return session.run(None, {"inputs": clip, "lengths": np.array([len(frames)])})[0][0]


def test_sound(tmp_path: Path) -> None:
    check_files("audio", tmp_path, "cold:1", depth=1)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    assert [item.name for item in session.get_inputs()] == ["inputs", "lengths"]
    assert [item.shape for item in session.get_outputs()] == [["batch", "num_patches", 32], ["batch", 32]]
    path = sorted((tmp_path / "data").rglob("*.wav"))[0]
    patches = kaldi_to_patches(session, json.loads((tmp_path / "out" / "preprocessing.json").read_text()), path)
    features = bridle.load(tmp_path / "run", "cpu").features(path).flatten(0, -2).numpy()
    np.testing.assert_allclose(patches[: len(features)], features, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("medium", "encoder"),
    [
        ("audio", {}),
        ("image", {}),
        ("video", {}),
        ("video", {"positions": "sequence", "class_token": False, "position_grid": (4, 3, 5)}),
        ("audio", {"positions": "learned", "position_grid": (14, 3, 1), "layer_scale": 0.1}),
        (
            "audio",
            {
                "class_token": False,
                "positions": "convolved",
                "position_kernel": (5, 4),
                "relative_positions": (16, 20),
                "embed_width": 24,
                "block_norm": "deep",
            },
        ),
    ],
)
def test_every_medium_and_odd_encoders(medium: str, encoder: dict[str, Any], tmp_path: Path) -> None:
    check_files(medium, tmp_path, **encoder)


@pytest.mark.slow
def test_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for encoders that are too large for one file; they are found after the folder has moved."""
    from bridle.export import onnx_files

    monkeypatch.setattr(onnx_files, "_ONE_FILE_BYTES", 0)
    run = write_run(tmp_path / "run", small_config("video", "cold:1", depth=1))
    made = export_run(run, tmp_path / "out", to="onnx")
    assert {"encoder.onnx.data", "tokenizer.onnx.data"} <= set(made.files)
    files = sorted(write_folder("video", tmp_path / "data", 2).rglob("*.*"))
    found = ask_a_stranger(tmp_path / "out", bridle.load(run, "cpu"), files[:1], tmp_path)
    assert np.isfinite(found["patches"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["cold:1", "patches:1"])
def test_a_random_tokenizer_and_none(phases: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_config("video", phases, depth=1))
    made = export_run(run, tmp_path / "out", to="onnx")
    has_codes = phases == "cold:1"
    assert ("tokenizer.onnx" in made.files) == has_codes
    assert {check.codes for check in made.checks} == ({"equal"} if has_codes else {""})
    assert any("no fitted tokenizer" in note for note in made.notes) != has_codes


def test_a_graph_that_forgets_padding_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real graph costs seconds to write; a stand-in with the same names shows that the numbers decide."""
    from bridle.export import exporting, onnx_files

    class Session:
        def __init__(self, path: Path) -> None:
            self.graph = graphs[path.name]

        def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
            inputs, lengths = (torch.from_numpy(given[name]) for name in ("inputs", "lengths"))
            with torch.no_grad():
                found = self.graph(inputs, torch.full_like(lengths, inputs.shape[2]))
            return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]

    run = write_run(tmp_path / "run", small_config("audio", "cold:1"))
    model = bridle.load(run, "cpu")
    assert model.networks.cold is not None
    grid = clip_grid(model.config)
    graphs: dict[str, torch.nn.Module] = {
        "encoder.onnx": onnx_files.EncoderGraph(model.networks.encoder, grid),
        "tokenizer.onnx": onnx_files.TokenizerGraph(model.networks.cold, model.config.encoder.patch, grid),
    }
    monkeypatch.setattr(onnx_files, "_session", Session)
    monkeypatch.setattr(exporting, "write_onnx", lambda model, folder: None)
    with pytest.raises(RunError, match="features of the ONNX encoder differ by up to"):
        export_run(run, tmp_path / "out", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def fails(self: Session, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("no kernel for it\nand a second line")

    monkeypatch.setattr(Session, "run", fails)
    with pytest.raises(RunError, match="onnxruntime cannot compute the patches and summary: no kernel for it; nothing"):
        export_run(run, tmp_path / "out", to="onnx")
