"""The house rules that a machine can read off the source: layers, cycles, sizes, docstrings, a light import."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bridle"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 80
NEVER_AT_IMPORT = ("av", "faiss", "matplotlib", "sklearn", "tensorboard", "torch.utils.tensorboard")

# Which unit may import which: docs/architecture.md, "Layers". A unit is a folder or a top-level module of bridle. An
# allowed name covers what is below it: "data" allows bridle.data.batch, but "data.batch" does not allow bridle.data.
BASE = {"errors", "grid", "randomness", "distributed", "config", "files", "paths", "wording"}
MODELS = BASE | {"nn", "quantize", "models"}
TRAINING = MODELS | {"media", "data", "masking", "mixing", "losses", "optim", "phases", "objectives", "train"}
RUNS = TRAINING | {"run", "networks", "windows", "prediction", "inference"}
WORK = RUNS | {
    "synthetic",
    "fetch",
    "eval",
    "recipes",
    "settings",
    "engine",
    "replaying",
    "probing",
    "pretraining",
    "finetuning",
    "importing",
}
COMMANDS = WORK | {"commands", "demo", "doctor", "flops", "export", "launch", "parquet", "report", "summary", "tables"}
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(("media", "nn", "masking", "mixing", "losses", "optim", "quantize", "phases", "synthetic"), BASE),
    "data": BASE | {"media", "mixing"},
    "models": BASE | {"nn", "quantize"},
    "fetch": BASE | {"data"},
    "flops": MODELS,
    "importing": RUNS | {"recipes"},
    "objectives": MODELS | {"losses", "masking", "mixing", "optim", "data.batch"},
    "train": BASE | {"optim", "data.batch", "objectives.base"},
    "run": TRAINING,
    "networks": TRAINING | {"run"},
    "windows": BASE,
    "prediction": TRAINING,
    "inference": TRAINING | {"run", "networks", "windows", "prediction"},
    "eval": RUNS,
    "adapters": RUNS,
    "recipes": RUNS,
    "settings": RUNS,
    "engine": RUNS,
    "probing": RUNS | {"eval"},
    "pretraining": RUNS | {"settings", "engine", "eval", "probing"},
    "replaying": RUNS | {"settings", "engine", "pretraining"},
    "finetuning": RUNS | {"settings", "engine", "eval"},
    **dict.fromkeys(("commands", "demo", "doctor", "export", "report", "summary", "tables"), COMMANDS),
    "launch": BASE,
    "parquet": RUNS,
    "cli": COMMANDS | {"__init__"},
    "__main__": {"cli"},
    "__init__": WORK,
}


def module_files(source: Path) -> dict[str, Path]:
    """File of every module, by its dotted name inside the package; the package's own file is ``__init__``."""
    files = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return files


def imported_names(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, name inside the package) of every import of the package, also in functions and under TYPE_CHECKING."""
    package = ["bridle", *module.split(".")]
    if path.name != "__init__.py" or module == "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [str(part.value) for part in node.args[:1] if isinstance(part, ast.Constant)]
        for name in names:
            if name == "bridle" or name.startswith("bridle."):
                yield node.lineno, name.removeprefix("bridle").removeprefix(".")


def arrows(source: Path) -> Iterator[tuple[str, int, str]]:
    """(importing module, line, imported module) inside the package; a name that is no module stands for its parent."""
    files = module_files(source)
    for module, path in files.items():
        for line, name in imported_names(module, path):
            target = name
            while target and target not in files:
                target = target.rpartition(".")[0]
            yield module, line, target or (name if "." in name else "__init__")


def layer_violations(source: Path) -> list[str]:
    """One line for each unit without a row in the table and for each import that the table does not allow."""
    strangers = sorted({module.split(".")[0] for module in module_files(source)} - ALLOWED.keys())
    found = [f"bridle.{unit} has no row: add it to ALLOWED in {Path(__file__).name} and to the docs" for unit in strangers]
    for module, line, target in arrows(source):
        unit = module.split(".")[0]
        covers = (target == name or target.startswith(f"{name}.") for name in {*ALLOWED.get(unit, ()), unit})
        if unit in ALLOWED and not any(covers):
            found.append(f"bridle.{module} line {line} imports bridle.{target}; {unit} may import {sorted(ALLOWED[unit])}")
    return found


def cycles(source: Path) -> list[list[str]]:
    """Every import cycle between files that a depth-first walk meets, as a path that ends where it began."""
    graph: dict[str, set[str]] = {module: set() for module in module_files(source)}
    for module, _, target in arrows(source):
        graph[module].add(target)
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in graph:
        walk(module, [])
    return found


def style_violations(source: Path) -> list[str]:
    """One line for each break of the rules on size, docstrings, print and heavy imports at the top of a file."""
    found = []
    for module, path in module_files(source).items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if len(text.splitlines()) > MAX_FILE_LINES:
            found.append(f"{module} has {len(text.splitlines())} lines, more than {MAX_FILE_LINES}: split it")
        if tree.body and ast.get_docstring(tree) is None:
            found.append(f"{module} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{module}.{node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}: split it")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{module} line {node.lineno} calls print; log or return instead")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if not node.name.startswith("_") and ast.get_docstring(node) is None:
                    found.append(f"{module}.{node.name} has no docstring")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                imported = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                heavy = [n for n in imported if n and any(f"{n}.".startswith(f"{h}.") for h in NEVER_AT_IMPORT)]
                found += [f"{module} imports {name} at its top; import it where it is used" for name in heavy]
    return found


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A package of the given files, by their path without suffix."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_imports_go_downwards():
    violations = layer_violations(SOURCE)
    assert not violations, "\n".join(violations)


def test_no_import_cycles():
    assert cycles(SOURCE) == []


def test_house_rules():
    violations = style_violations(SOURCE)
    assert not violations, "\n".join(violations)


def test_table_is_a_hierarchy():
    """No two units may import each other, but for siblings of equal rows, where the cycle check stands guard."""
    for unit, names in ALLOWED.items():
        for other in {name.split(".")[0] for name in names}:
            back = {name.split(".")[0] for name in ALLOWED[other]}
            assert unit not in back or ALLOWED[unit] == ALLOWED[other], f"{unit} <-> {other}"


@pytest.mark.parametrize(
    "statement",
    [
        "import bridle.train.loop",
        "from bridle.train import loop",
        "from bridle.train.loop import fit",
        "from bridle import train",
        "from ..train import loop",
        "def f():\n    from bridle.train.loop import fit",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bridle.train.loop import fit",
        "import importlib\nimportlib.import_module('bridle.train.loop')",
    ],
)
def test_planted_upward_arrow_is_caught(tmp_path, statement):
    source = plant(tmp_path, {"nn/block": statement, "train/__init__": "", "train/loop": ""})
    (violation,) = layer_violations(source)
    assert "bridle.nn.block" in violation
    assert "imports bridle.train" in violation


def test_allowed_part_of_a_unit_does_not_allow_the_rest(tmp_path):
    text = "from bridle.data.batch import Batch\nfrom bridle.data.manifest import Manifest"
    files = {"train/loop": text, "data/batch": "", "data/manifest": ""}
    (violation,) = layer_violations(plant(tmp_path, files))
    assert "bridle.train.loop line 2 imports bridle.data.manifest" in violation


def test_unknown_unit_is_told_to_join_the_table(tmp_path):
    (violation,) = layer_violations(plant(tmp_path, {"embed/store": "import bridle.errors", "errors": ""}))
    assert violation.startswith("bridle.embed has no row: add it to ALLOWED")


def test_planted_cycle_is_caught(tmp_path):
    files = {"nn/a": "from bridle.nn import b", "nn/b": "def f():\n    import bridle.nn.c", "nn/c": "from . import a"}
    source = plant(tmp_path, files | {"nn/__init__": ""})
    assert cycles(source) == [["nn.a", "nn.b", "nn.c", "nn.a"]]
    assert layer_violations(source) == []


def test_planted_breaks_of_style_are_caught(tmp_path):
    long = "def f():\n    '''Long.'''\n" + "    x = 1\n" * MAX_FUNCTION_LINES + "y = 1\n" * MAX_FILE_LINES
    files = {"grid": "import sklearn.svm\nclass A:\n    pass\nprint(1)\n", "errors": "'''Errors.'''\n" + long}
    source = plant(tmp_path, files)
    assert [line.split(":")[0] for line in style_violations(source)] == [
        "errors has 433 lines, more than 350",
        "errors.f has 82 lines, more than 80",
        "grid has no docstring",
        "grid line 4 calls print; log or return instead",
        "grid imports sklearn.svm at its top; import it where it is used",
        "grid.A has no docstring",
    ]


def test_import_of_bridle_is_light():
    code = f"import bridle, sys; print([name for name in {NEVER_AT_IMPORT} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
