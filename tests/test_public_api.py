"""The names that ``import bridle`` offers, and that they cost nothing until they are used."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import bridle
from bridle.errors import BridleError
from bridle.inference import Model, load
from bridle.recipes import recipe

SOURCE = Path(bridle.__file__).parents[1]


def python(code):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert bridle.__all__ == ["BridleError", "Model", "__version__", "import_weights", "load", "pretrain", "recipe"]
    assert {*bridle.__all__} <= {*dir(bridle)}
    assert bridle.BridleError is BridleError
    assert bridle.Model is Model
    assert bridle.load is load
    assert bridle.recipe is recipe
    assert isinstance(bridle.__version__, str)
    assert bridle.__version__[0].isdigit()


def test_pretrain_is_the_function_also_after_its_module_was_imported():
    module = importlib.import_module("bridle.pretraining")
    assert isinstance(module, types.ModuleType)
    assert bridle.pretrain is module.pretrain
    code = (
        "import bridle; from bridle.engine.parts import Outcome; from bridle import pretrain; print(pretrain, bridle.pretrain)"
    )
    assert python(code).count("<function pretrain") == 2


def test_unknown_name_is_an_error_that_names_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'embedding'; public are BridleError, Model"):
        _ = bridle.embedding
    assert not hasattr(bridle, "no_such_module")


def test_import_is_light():
    code = "import sys, bridle; print(sorted({'torch', 'numpy', 'rich', 'tyro', 'pyarrow'} & sys.modules.keys()))"
    assert python(code).strip() == "[]"
