"""Reading an encoder that was trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bridle.errors import BridleError, RunError
from bridle.importing.keymaps import BEATS, EAT, TRANSFORMERS, detect, rename
from bridle.importing.sources import Source, Stored, open_source
from bridle.importing.translate import Medium, Shape, find_shape, translate
from bridle.media.fbank import FbankConfig
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.recipes.image import IMAGENET_MEAN, IMAGENET_STD

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

_MODEL_TYPES = {"vit": "ViT", "vit_mae": "ViTMAE", "videomae": "VideoMAE", "dinov2": "DINOv2"}
_GELU = ("gelu", "gelu_python")
_AUDIO: dict[str, Normalisation] = {
    "AudioMAE": ((-4.2677393,), (4.5689974,)),
    "EAT": ((-4.268,), (4.569,)),
    "BEATs": ((15.41663,), (6.55582,)),
}
_KALDI = FbankConfig(window="povey", full_scale=32768.0)


@dataclass(frozen=True)
class Imported:
    """An encoder that was trained elsewhere.

    Attributes:
        family: what it is, e.g. ``ViTMAE``.
        medium: of the clips it was trained on.
        config: of the encoder.
        weights: float32 on the CPU, for ``Encoder(config).load_state_dict``.
        size: (time, height, width) in input units of the clips it was trained on: frames, mel bands and 1 for audio, 1, rows
            and columns for images.
        mean: of the input; of each channel in [0, 1] for images and video, of log-mel values for audio; None when unknown.
        std: like ``mean``; inputs are ``(x - mean) / std``, and for audio ``(x - mean) / (2 * std)``.
        fbank: window and scale of the filterbank of audio; its other settings are the defaults of Kaldi and of here.
        notes: in words: what was left out, and what was assumed because the weights do not tell.
    """

    family: str
    medium: Medium
    config: EncoderConfig
    weights: dict[str, Tensor]
    size: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fbank: FbankConfig
    notes: tuple[str, ...]

    def build(self) -> Encoder:
        """The encoder with its weights, in eval mode."""
        encoder = Encoder(self.config)
        encoder.load_state_dict(self.weights)
        return encoder.eval()


def read_encoder(source: Source, *, heads: int | None = None, medium: Medium | None = None) -> Imported:
    """Read the encoder of a ViT, ViTMAE, VideoMAE or DINOv2 of transformers, of MAE or AudioMAE (timm's names), EAT or BEATs.

    Args:
        source: a model, a state dict, a folder with ``config.json`` and ``model.safetensors``, a ``.safetensors`` file or a
            file of ``torch.save``; see :func:`bridle.importing.sources.open_source`.
        heads: number of attention heads, which a bare state dict does not tell; None for that of published models.
        medium: of its clips; None to tell it from the patches: three axes are video, one channel in timm's names is audio.

    Returns:
        Configuration, weights, and notes on what was left out or assumed.

    Raises:
        RunError: the source cannot be read, is of no known family, or has a part that this encoder cannot be.
        ConfigError: the number of heads is not known, or the patches are not those of the medium.
    """
    stored = open_source(source)
    try:
        return _translated(stored, heads, medium)
    except BridleError:
        raise
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # Shapes and settings of strangers go into a lot of arithmetic, which need not foresee all of them.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise RunError(f"{stored.name}: its tensors or settings make no sense ({reason}); download it again") from error


def _translated(stored: Stored, heads: int | None, medium: Medium | None) -> Imported:
    _check_settings(stored)
    family, prefix = detect(stored.tensors, stored.name)
    parts, left_out = rename(stored.tensors, family, prefix, stored.name)
    shape, assumed = find_shape(parts, family, stored.settings, heads, medium)
    config, weights, kept = translate(parts, family, shape, stored.cfg, stored.name)
    for name, found in (("num_hidden_layers", config.depth), ("hidden_size", config.width)):
        if stored.settings.get(name, found) != found:
            raise RunError(
                f"{stored.name}: config.json says {name} = {stored.settings[name]}, the weights {found}; tensors are missing"
            )
    if not config.final_norm and config.block_norm == "pre":
        kept = [*kept, "the weights hold no last norm: features are those of the last block as they are"]
    name = family.name if family in (EAT, BEATS) else _name(stored.settings, family is TRANSFORMERS, config, shape.medium)
    mean, std, note = _normalisation(name, shape, stored.preprocessing, config.channels)
    size = tuple(patches * units for patches, units in zip(shape.grid.shape, shape.patch, strict=True))
    fbank = _KALDI if family is BEATS else FbankConfig()
    notes = (*left_out, *assumed, *kept, *note)
    return Imported(name, shape.medium, config, weights, size, mean, std, fbank, notes)  # type: ignore[arg-type]


def _check_settings(stored: Stored) -> None:
    settings = stored.settings
    kind = settings.get("model_type")
    if kind is not None and kind not in _MODEL_TYPES and not str(kind).startswith("eat"):
        raise RunError(f"{stored.name} is of model_type '{kind}'; of transformers {', '.join(_MODEL_TYPES)} can be imported")
    if settings.get("hidden_act", "gelu") not in _GELU:
        raise RunError(
            f"{stored.name} has the activation '{settings['hidden_act']}', this encoder has GELU: features would differ"
        )


def _name(settings: dict[str, Any], transformers: bool, config: EncoderConfig, medium: Medium) -> str:
    if settings.get("model_type") in _MODEL_TYPES:
        return _MODEL_TYPES[settings["model_type"]]
    if medium == "video":
        return "VideoMAE"
    if medium == "audio":
        return "AudioMAE"
    if config.layer_scale is not None:
        return "DINOv2"
    if config.positions == "sine_cosine":
        return "ViTMAE" if transformers else "MAE"
    return "ViT"


def _normalisation(
    name: str, shape: Shape, preprocessing: dict[str, Any], channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, list[str]]:
    """Mean and standard deviation of the inputs: from the folder, else those of the published models, with a note."""
    mean, std = preprocessing.get("image_mean"), preprocessing.get("image_std")
    if mean is not None and std is not None:
        return tuple(map(float, mean)), tuple(map(float, std)), []
    pictures = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 and name != "ViT" else None
    known = _AUDIO.get(name) if shape.medium == "audio" else pictures
    if known is None:
        return None, None, ["normalisation of the inputs: not known; the source does not tell, and models of this kind differ"]
    return *known, [f"normalisation of the inputs: that of the published {name}; the source does not tell"]
