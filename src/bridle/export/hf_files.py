"""A run as a folder that transformers loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bridle.config import to_dict
from bridle.errors import RunError
from bridle.export import hf
from bridle.export.card import bridle_version
from bridle.export.checks import Check, Expected, check_close, check_codes, check_features, expected
from bridle.inference import Model, Window
from bridle.randomness import generator


def write_hf(model: Model, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Args:
        model: on the CPU, in float32.
        folder: exists.

    Raises:
        ConfigError: transformers is not installed.
    """
    hf.register()
    from bridle.export.hf.configuration import BridleConfig
    from bridle.export.hf.extractor import BridleFeatureExtractor
    from bridle.export.hf.model import BridleForClassification, BridleModel

    networks, medium = model.networks, model.config.medium.name
    tokenizer = networks.best_tokenizer
    config = BridleConfig(
        run=to_dict(model.config),
        tokenizer=None if tokenizer is None else "tokenizer" if tokenizer is networks.tokenizer else "cold",
        fingerprint=model.fingerprint,
        bridle_version=bridle_version(),
        **_labels(model),
    )
    made: BridleForClassification | BridleModel
    if networks.classifier is not None:
        made = BridleForClassification(config)
        made.classifier.load_state_dict(networks.classifier.state_dict())
    else:
        made = BridleModel(config)
        if made.tokenizer is not None and tokenizer is not None:
            made.tokenizer.load_state_dict(tokenizer.state_dict())
    made.encoder.load_state_dict(networks.encoder.state_dict())
    with _no_bars():
        made.save_pretrained(folder)
    BridleFeatureExtractor.of_run(model.config.clips, medium, model.config.encoder.patch).save_pretrained(folder)


def _labels(model: Model) -> dict[str, Any]:
    """Classes of a fine-tuned run, as transformers names them."""
    finetune = model.config.finetune
    if finetune is None:
        return {}
    kind = "multi_label_classification" if finetune.multi_label else "single_label_classification"
    return {
        "id2label": dict(enumerate(finetune.classes)),
        "label2id": {name: index for index, name in enumerate(finetune.classes)},
        "problem_type": kind,
    }


def check_hf(model: Model, folder: Path) -> list[Check]:
    """Load the folder by the Auto classes and compare it with the run: configuration and weights bit for bit.

    Raises:
        RunError: anything differs.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    from bridle.export.hf.extractor import as_transformers

    with _no_bars():
        made = AutoModel.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    if config.run_config != model.config:
        raise RunError("config.json does not give back the configuration of the run; nothing was exported")
    checks = [
        Check(f"weights, {_check_weights(model, made)} tensors", 0.0),
        _check_extractor(model, folder, AutoFeatureExtractor),
    ]
    for run in expected(model):
        clips = as_transformers(model.config.medium.name, run.batch.inputs)
        given = {made.main_input_name: clips, "lengths": run.batch.lengths}
        with torch.no_grad():
            output = made(**given)
        difference = check_features("transformers model", run, output.last_hidden_state, output.pooler_output)
        words = ""
        if made.tokenizer is not None:
            words = check_codes("transformers model", run, made.tokenize(**given).codes, made.tokenizer.quantizer)
        checks.append(Check("features, AutoModel", difference, *run.name, words))
        if run.probabilities is not None:
            checks.append(_check_classifier(model, folder, run, given))
    return checks


def _check_classifier(model: Model, folder: Path, run: Expected, given: dict[str, Any]) -> Check:
    """Probabilities by the Auto class of the medium."""
    import transformers

    assert model.config.finetune is not None
    assert run.probabilities is not None
    name = f"AutoModelFor{model.config.medium.name.capitalize()}Classification"
    with _no_bars(), torch.no_grad():
        made = getattr(transformers, name).from_pretrained(folder)
        logits = made(**given).logits
    if tuple(made.config.id2label.values()) != model.config.finetune.classes:
        raise RunError("config.json does not give back the classes of the run; nothing was exported")
    found = logits.sigmoid() if model.config.finetune.multi_label else logits.softmax(-1)
    what = "probabilities, classifier"
    return Check(what, check_close(what, found, run.probabilities), *run.name)


def _check_weights(model: Model, made: Any) -> int:
    """Number of tensors, all of them equal."""
    wanted = {f"encoder.{name}": tensor for name, tensor in model.networks.encoder.state_dict().items()}
    if (tokenizer := model.networks.best_tokenizer) is not None:
        wanted |= {f"tokenizer.{name}": tensor for name, tensor in tokenizer.state_dict().items()}
    found = made.state_dict()  # of AutoModel; a classifier is compared by its probabilities
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name]):
            raise RunError(f"'{name}' of the transformers model is not that of the run; nothing was exported")
    return len(found)


def _check_extractor(model: Model, folder: Path, auto: Any) -> Check:
    """The feature extractor beside the front end of the run, on something in memory."""
    from bridle.export.hf.extractor import as_transformers

    channels, frames = model.config.encoder.channels, model.loader.crop_frames
    draws = generator(0, "export check")
    audio = model.config.audio
    item: torch.Tensor
    if audio is not None:
        item = torch.rand(round(audio.crop_seconds * audio.fbank.sample_rate * 2 / 3), generator=draws) - 0.5
    else:
        size = (channels, 50, 70) if model.config.image is not None else (frames, channels, 50, 70)
        item = torch.randint(0, 256, size, generator=draws, dtype=torch.uint8)
    extractor = auto.from_pretrained(folder)
    found = extractor(item, sampling_rate=None if audio is None else audio.fbank.sample_rate)
    clips = model.loader.windows_of(item)
    batch = model.batch([Window(0, clip.start_seconds, clip.inputs, clip.aspect) for clip in clips])
    wanted = as_transformers(model.config.medium.name, batch.inputs)
    what = "clips, AutoFeatureExtractor"
    return Check(what, check_close(what, found[extractor.model_input_names[0]], wanted), 1, batch.inputs.shape[2])


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
