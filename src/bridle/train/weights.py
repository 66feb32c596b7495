"""Files of weights: safetensors with a header that says which format they are of. Loading never unpickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bridle.errors import RunError
from bridle.files import explain_write_error, write_atomically

FORMAT_VERSION = 2
"""Of weights and checkpoints."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU, owning their memory) and header strings of a safetensors file.

    Raises:
        RunError: the file is missing, not safetensors (a pickle is refused, never opened), or of another bridle format.
    """
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise RunError(f"{path} is not a readable safetensors file (no regular file); bridle reads no pickles")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # Cloned: the tensors are mapped from the file, and a file overwritten in place would kill the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; give a run folder's model.safetensors") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is not a readable safetensors file ({reason}); bridle reads no pickles") from error
    version = metadata.get("version", "")
    if metadata.get("format") == "bridle" and version != str(FORMAT_VERSION):
        raise RunError(other_version(path, version))
    return tensors, metadata


def write_weights(path: Path, weights: Mapping[str, Tensor], step: int, metadata: Mapping[str, str] | None = None) -> None:
    """Replace a file of weights as a whole.

    Args:
        path: the file; its folder must exist.
        weights: by name.
        step: finished steps of the run.
        metadata: strings for the header besides.

    Raises:
        RunError: it cannot be written; the old file stays.
    """
    header = {**(metadata or {}), **weights_header(step)}
    try:
        write_atomically(path, save(storable(weights), header))
    except (OSError, SafetensorError) as error:
        raise RunError(explain_write_error(error, path.parent, path.name)) from error


def weights_header(step: int) -> dict[str, str]:
    """What the header of every file of weights says."""
    return {"format": "bridle", "version": str(FORMAT_VERSION), "step": str(step)}


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no storage twice."""
    result: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().to("cpu").contiguous()
        if stored.untyped_storage().data_ptr() in storages:
            stored = stored.clone()
        storages.add(stored.untyped_storage().data_ptr())
        result[name] = stored
    return result


def other_version(path: Path, version: str) -> str:
    """What is said of a file of another format."""
    remedy = f"install a bridle that reads format {version}"
    return f"{path} was written by format {version}, this bridle reads {FORMAT_VERSION}: {remedy}"
