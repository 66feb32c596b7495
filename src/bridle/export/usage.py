"""What a model card says about loading it."""

from __future__ import annotations

from bridle.export.timm_files import TIMM_NORM_EPS
from bridle.inference import Model

_HF = """\
With `pip install "bridle[transformers]"`:

```python
import bridle.export.hf
from transformers import AutoFeatureExtractor, AutoModel

bridle.export.hf.register()  # transformers does not know models of bridle by itself
extractor = AutoFeatureExtractor.from_pretrained("FOLDER")
model = AutoModel.from_pretrained("FOLDER")
inputs = {call}
output = model(**inputs)
output.last_hidden_state  # (B, N, {width}) features of the patches
output.pooler_output  # (B, {width}) {summary}
output.patch_mask  # (B, N) False for padding
output.last_hidden_state.sum(1) / output.patch_mask.sum(1)[:, None]  # (B, {width}) {mean}
{codes}```

`FOLDER` is this folder, or the name of its repository on the Hub."""
_HF_CLASSES = """

The classes:

```python
from transformers import {auto}

classifier = {auto}.from_pretrained("FOLDER")
chances = classifier(**inputs).logits.{function}
dict(zip(classifier.config.id2label.values(), chances[0].tolist()))
```"""

_ONNX = """\
With onnxruntime, and without bridle or torch:

```python
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
patches, summary = encoder.run(["patches", "summary"], {{"inputs": inputs, "lengths": lengths}})
{codes}```

`inputs` are finished clips (B, {channels}, T, {height}, {width}) float32: decoded, normalised and padded with {padding}
to a multiple of {units} along T. `lengths` (B,) int64 are their valid frames. `preprocessing.json` holds every setting that
makes them from a file.
Features of padding are 0{padded_codes}. `summary` is the {summary};
`patches.sum(1) / patches.any(-1).sum(1)[:, None]` is what `bridle embed` gives."""

_TIMM = """\
```python
{imports}

model = timm.create_model(
    "local-dir:FOLDER",  # or "hf-hub:NAME" of its repository on the Hub
    pretrained=True,
{norm})
features = model.forward_features(pictures)  # (B, {tokens}, {width})
```{why}"""
_TIMM_NORM = "    norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g}),\n"
_TIMM_WHY = "\n\n`norm_layer` is needed: `config.json` has no place for the `eps` of the norms."


def of(target: str, model: Model) -> str:
    """Markdown that says how to load an export of ``model`` for ``target``."""
    config, encoder = model.config, model.config.encoder
    summary = "features of the class token" if encoder.class_token else "mean over the patches that are no padding"
    mean = "what `bridle embed` gives" + ("" if encoder.class_token else ": the same")
    has_codes = model.networks.best_tokenizer is not None
    if target == "hf":
        call = {
            "audio": f"extractor(waveform, sampling_rate={config.audio.fbank.sample_rate if config.audio else 0})",
            "image": "extractor(picture)",
            "video": "extractor(film)",
        }[config.medium.name]
        codes = "model.tokenize(**inputs).codes  # (B, N, R), -1 for padding\n" if has_codes else ""
        text = _HF.format(call=call, width=encoder.width, codes=codes, summary=summary, mean=mean)
        if config.finetune is None:
            return text
        auto = f"AutoModelFor{config.medium.name.capitalize()}Classification"
        return text + _HF_CLASSES.format(auto=auto, function="sigmoid()" if config.finetune.multi_label else "softmax(-1)")
    if target == "onnx":
        channels, height, width = config.clip_shape
        coder = (
            'tokenizer = onnxruntime.InferenceSession("tokenizer.onnx")\n'
            '(codes,) = tokenizer.run(["codes"], {"inputs": inputs, "lengths": lengths})\n'
        )
        judge = (
            'classifier = onnxruntime.InferenceSession("classifier.onnx")\n'
            '(chances,) = classifier.run(["probabilities"], {"inputs": inputs, "lengths": lengths})\n'
        )
        return _ONNX.format(
            codes=coder if has_codes else judge if config.finetune is not None else "",
            channels=channels,
            height=height,
            width=width,
            units=encoder.patch[0],
            summary=summary,
            padding="0" if config.audio is not None else "the last frame",
            padded_codes=", its codes -1" if has_codes else "",
        )
    patches = (config.clip_shape[1] // encoder.patch[1]) * (config.clip_shape[2] // encoder.patch[2])
    tokens = f"1 + {patches}" if encoder.class_token else str(patches)
    other = encoder.norm_eps != TIMM_NORM_EPS
    return _TIMM.format(
        imports="import functools\n\nimport timm\nimport torch" if other else "import timm",
        norm=_TIMM_NORM.format(eps=encoder.norm_eps) if other else "",
        tokens=tokens,
        width=encoder.width,
        why=_TIMM_WHY if other else "",
    )
