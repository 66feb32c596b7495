"""A run as ONNX files: ``encoder.onnx``, ``tokenizer.onnx`` or ``classifier.onnx``, and ``preprocessing.json``."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridle.data.loaders import content_settings
from bridle.errors import ConfigError, RunError
from bridle.export.checks import TOLERANCE, Check, check_close, check_codes, check_features, expected
from bridle.export.graph import ClassifierGraph, EncoderGraph, TokenizerGraph
from bridle.files import write_atomically
from bridle.inference import Model
from bridle.run import clip_grid

ENCODER, TOKENIZER, CLASSIFIER, PREPROCESSING = "encoder.onnx", "tokenizer.onnx", "classifier.onnx", "preprocessing.json"
_OPSET = 18
_ONE_FILE_BYTES = 1_800_000_000  # a protobuf ends at 2 GiB; above this, weights lie in a file beside it
_CENTRE = "the shorter edge resized to size, bicubic, and the centre cut out; RGB, or grey for one channel"
_FRONT_ENDS = {
    "audio": "mono in [-1, 1] at sample_rate, times full_scale; natural logarithm of the mel energies of Kaldi's filterbank, "
    "snip_edges, pre-emphasis 0.97, mean of each frame subtracted, no dither; as kaldi-native-fbank computes it",
    "image": _CENTRE,
    "video": f"every stride-th frame, of rate_hz frames per second where it is set; of each {_CENTRE}",
}
_MOST = 1 << 20  # clips and time steps that the graph is made for


def write_onnx(model: Model, folder: Path) -> None:
    """Write the files.

    Args:
        model: on the CPU, in float32.
        folder: exists.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime are not installed.
        RunError: this version of torch cannot write the graph.
    """
    _require_onnx()
    patch, grid = model.config.encoder.patch, clip_grid(model.config)
    _write_graph(EncoderGraph(model.networks.encoder, grid), model, folder / ENCODER, ("patches", "summary"))
    tokenizer = model.networks.best_tokenizer
    if tokenizer is not None:
        _write_graph(TokenizerGraph(tokenizer, patch, grid), model, folder / TOKENIZER, ("codes",))
    networks, finetune = model.networks, model.config.finetune
    if networks.classifier is not None and finetune is not None:
        graph = ClassifierGraph(networks.encoder, networks.classifier, grid, finetune)
        _write_graph(graph, model, folder / CLASSIFIER, ("probabilities",))
    write_atomically(folder / PREPROCESSING, json.dumps(preprocessing(model), indent=2) + "\n")


def preprocessing(model: Model) -> dict[str, Any]:
    """What one must know to make clips for the graphs, as plain data."""
    config = model.config
    grid, encoder = clip_grid(config), config.encoder
    tokenizer = model.networks.best_tokenizer
    longest = _longest_steps(model)
    return {
        "medium": config.medium.name,
        "front_end": _FRONT_ENDS[config.medium.name],
        "clips": content_settings(config.clips),
        "normalisation": "(x - mean) / (2 * std)" if config.audio is not None else "(x / 255 - mean) / std",
        "axes": ["batch", "channels", "time", "height", "width"],
        "clip_shape": [encoder.channels, model.loader.crop_frames, *config.clip_shape[1:]],
        "patch": list(encoder.patch),
        "grid": list(grid.shape),
        "longest_frames": None if longest is None else longest * encoder.patch[0],
        "width": encoder.width,
        "num_codebooks": None if tokenizer is None else tokenizer.quantizer.config.num_codebooks,
        "codebook_size": None if tokenizer is None else tokenizer.quantizer.config.codebook_size,
        "classes": None if config.finetune is None else list(config.finetune.classes),
        "multi_label": None if config.finetune is None else config.finetune.multi_label,
        "fingerprint": model.fingerprint,
    }


def check_onnx(model: Model, folder: Path) -> list[Check]:
    """Compare the files with the run, by onnxruntime on the CPU.

    Raises:
        RunError: numbers differ, or onnxruntime cannot compute them.
    """
    encoder = _session(folder / ENCODER)
    tokenizer = model.networks.best_tokenizer
    coder = None if tokenizer is None else _session(folder / TOKENIZER)
    judge = None if model.networks.classifier is None else _session(folder / CLASSIFIER)
    checks = []
    for run in expected(model):
        given = {"inputs": run.batch.inputs.numpy(), "lengths": run.batch.lengths.numpy()}
        patches, summary = _run(encoder, ["patches", "summary"], given)
        difference = check_features("ONNX encoder", run, patches, summary, TOLERANCE)
        words = ""
        if coder is not None and tokenizer is not None:
            (codes,) = _run(coder, ["codes"], given)
            words = check_codes("ONNX tokenizer", run, codes, tokenizer.quantizer)
        checks.append(Check("features, onnxruntime", difference, *run.name, words))
        if judge is not None and run.probabilities is not None:
            (chances,) = _run(judge, ["probabilities"], given)
            difference = check_close("probabilities of the ONNX classifier", chances, run.probabilities)
            checks.append(Check("probabilities, onnxruntime", difference, *run.name))
    return checks


def _write_graph(graph: nn.Module, model: Model, path: Path, outputs: tuple[str, ...]) -> None:
    import torch.onnx

    example, shapes = _example(model)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.eval(),
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["inputs", "lengths"],
                output_names=list(outputs),
                opset_version=_OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise RunError(
                f"torch {torch.__version__} cannot write {path.name}: {reason}; try another version of torch"
            ) from error
        assert program is not None
        _tidy(program, outputs)
        size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
        program.save(str(path), external_data=size > _ONE_FILE_BYTES)


def _example(model: Model) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """Inputs to trace with, and which of their axes are free."""
    channels, height, width = model.config.clip_shape
    time = model.config.encoder.patch[0]
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    free: dict[int, Any] = {0: batch}
    frames, longest = time, _longest_steps(model) or _MOST
    if model.loader.crop_frames > 1 and longest > 1:
        steps = torch.export.Dim("steps", min=1, max=longest)
        frames = 2 * time  # sizes of 0 and 1 are constants to the exporter
        free[2] = time * steps if time > 1 else steps
    inputs = torch.zeros(2, channels, frames, height, width)
    lengths = torch.tensor([frames, max(1, frames - time)])
    return (inputs, lengths), {"inputs": free, "lengths": {0: batch}}


def _longest_steps(model: Model) -> int | None:
    """Time steps that there are positions for; None where there is no end."""
    encoder = model.config.encoder
    return encoder.position_grid[0] if encoder.positions == "learned" and encoder.position_grid is not None else None


def _tidy(program: Any, outputs: tuple[str, ...]) -> None:
    """Name the free axes of the outputs, and drop the notes of the exporter, which hold paths of this machine."""
    import onnx_ir

    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
    for value, name in zip(graph.outputs, outputs, strict=True):
        assert value.name == name
        sizes = enumerate(value.shape)
        value.shape = onnx_ir.Shape(
            ["batch" if axis == 0 else size if isinstance(size, int) else "num_patches" for axis, size in sizes]
        )


def _session(path: Path) -> Any:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, outputs: list[str], given: dict[str, Any]) -> list[Tensor]:
    try:
        return [torch.from_numpy(value) for value in session.run(outputs, given)]
    except Exception as error:  # the library's own classes are private
        reason = str(error).strip().splitlines()[0][:200]
        raise RunError(f"onnxruntime cannot compute the {' and '.join(outputs)}: {reason}; nothing was exported") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk, which is not about what a user can change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--to onnx needs {error.name}: pip install 'bridle[onnx]'") from error
