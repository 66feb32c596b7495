"""bridle: your own encoder, its discrete tokens and its embeddings, from a folder of recordings, pictures or films.

::

    import bridle

    bridle.pretrain(bridle.recipe("audio-small"), ["recordings/"], Path("runs/first"))
    model = bridle.load("runs/first")
    model.embed("dog.wav")        # (D,)
    model.tokenize("dog.wav")     # codes (N, R) of N patches

These names are imported when they are first used, so ``import bridle`` itself is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridle.errors import BridleError
    from bridle.importing import import_weights
    from bridle.inference import Model, load
    from bridle.pretraining import pretrain
    from bridle.recipes import recipe

    __version__: str

__all__ = ["BridleError", "Model", "__version__", "import_weights", "load", "pretrain", "recipe"]

_HOMES = {
    "BridleError": "bridle.errors",
    "Model": "bridle.inference",
    "import_weights": "bridle.importing",
    "load": "bridle.inference",
    "pretrain": "bridle.pretraining",
    "recipe": "bridle.recipes",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name == "__version__":
        value: object = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'bridle' has no attribute '{name}'; public are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bridle")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
