"""From a model, a folder or a file to tensors by name: nothing is fetched, only tensors and plain data are unpickled."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bridle.errors import RunError

Source = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor]

_WEIGHTS, _INDEX, _PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_INSIDE = ("model", "state_dict", "module", "model_state_dict")
"""Where checkpoints keep their state dict beside optimiser and arguments."""
_LARGEST_VIEW = 1 << 30
"""Bytes of values that a tensor may have without storing them, as one that was expanded has."""


@dataclass(frozen=True)
class Stored:
    """What a source holds.

    Attributes:
        name: for messages.
        tensors: by their names in the source.
        settings: of ``config.json``; empty where there is none.
        preprocessing: of ``preprocessor_config.json``; empty where there is none.
        cfg: what lies beside the state dict, or on the model, under this name (BEATs); empty where there is none.
    """

    name: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    cfg: dict[str, Any] = field(default_factory=dict)


def open_source(source: Source) -> Stored:
    """Read a source.

    Args:
        source: a model (with its ``config``, if it is of transformers), a state dict, a folder with ``config.json`` and
            ``model.safetensors`` (whole or in shards), a ``.safetensors`` file, or a file of ``torch.save``.

    Raises:
        RunError: it does not exist, cannot be read, holds other Python objects than tensors and plain data, or no tensors.
    """
    if isinstance(source, nn.Module):
        config = getattr(source, "config", None)
        settings = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        return Stored(type(source).__name__, dict(source.state_dict()), settings, cfg=_cfg(getattr(source, "cfg", None)))
    if isinstance(source, Mapping):
        return Stored("the state dict", _tensors(source, "the state dict"), cfg=_cfg(source.get("cfg")))
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist; give a file or folder on this machine, nothing is downloaded")
    tensors, cfg = _file(path)
    return Stored(str(path), tensors, cfg=cfg)


def _folder(path: Path) -> Stored:
    if (path / _INDEX).is_file():
        weight_map = _json(path / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise RunError(f"{path / _INDEX} has no weight_map from tensors to files; download the folder again")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard or not (path / shard).is_file():
                raise RunError(f"{path / _INDEX} names '{shard}', which is not a file beside it; download the folder again")
            tensors |= _file(path / shard)[0]
    else:
        found = [path / name for name in (_WEIGHTS, _PICKLED) if (path / name).is_file()]
        if not found:
            raise RunError(f"{path} holds no {_WEIGHTS}, {_INDEX} or {_PICKLED}; give the folder of a model, or its file")
        tensors, _ = _file(found[0])  # a folder has its config.json
    settings, preprocessing = (
        _json(path / name) if (path / name).is_file() else {} for name in ("config.json", "preprocessor_config.json")
    )
    return Stored(str(path), tensors, settings, preprocessing)


def _file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what lies under ``cfg`` beside them."""
    try:
        if path.suffix == ".safetensors":
            return _tensors(load_file(path), str(path)), {}
        _check_not_compressed(path)
        # The arguments that training scripts of MAE's descent save are a Namespace: plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} is no file of tensors, or holds other Python objects, which are never unpickled here; take a .safetensors "
            "file, or save its state dict alone with torch.save in an environment you trust"
        ) from error
    except Exception as error:  # a damaged file can break the reader anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise RunError(f"{path} cannot be read ({reason}); download or copy it again") from error
    return _tensors(loaded, str(path)), _cfg(loaded.get("cfg") if isinstance(loaded, Mapping) else None)


def _check_not_compressed(path: Path) -> None:
    """torch.save compresses nothing; what somebody else compressed would be unpacked into memory, however much it is."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as members:
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
            raise RunError(f"{path} is a compressed archive, not a file of torch.save; unpack it and give what is inside")


def _cfg(found: Any) -> dict[str, Any]:
    values = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
    return {str(key): value for key, value in values.items()}


def _tensors(loaded: Any, name: str) -> dict[str, Tensor]:
    """The state dict in ``loaded``; one level of nested ones is joined by a dot."""
    if not isinstance(loaded, Mapping):
        raise RunError(f"{name} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    for inside in (*(loaded.get(key) for key in _INSIDE), loaded):
        if isinstance(inside, Mapping):
            flat = {str(key): value for key, value in inside.items()}
            for key, value in inside.items():
                if isinstance(value, Mapping):
                    flat |= {f"{key}.{inner}": tensor for inner, tensor in value.items()}
            tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
            if tensors:
                _check_stored(tensors, name)
                return tensors
    raise RunError(f"{name} holds no tensors by name; save model.state_dict()")


def _check_stored(tensors: Mapping[str, Tensor], name: str) -> None:
    """A few bytes can claim to be values without end: a tensor of strides of 0."""
    for key, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise RunError(f"{name}: '{key}' is a {tensor.layout} tensor on {tensor.device}; save it dense, on the CPU")
        if tensor.is_complex():
            raise RunError(f"{name}: '{key}' is complex; weights are real numbers: download it again")
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes > max(_LARGEST_VIEW, tensor.untyped_storage().nbytes()):
            raise RunError(f"{name}: '{key}' claims {num_bytes} bytes and stores fewer; save it with .contiguous()")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not readable JSON; download or copy it again") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} holds no JSON object; download or copy it again")
    return data
