"""Arguments that several commands have, and how a command's are read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from bridle.errors import ConfigError
from bridle.files import explain_write_error, write_atomically

T = TypeVar("T")

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Run folder, as given to 'pretrain --out'.")]
Data = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="DATA [DATA ...]",
        help="Folders (searched recursively), CSV or parquet tables, tar shards, a URL of them, files or hf:NAME:SPLIT.",
        help_behavior_hint="(at least one)",
    ),
]
JsonFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Also write everything as JSON to FILE.")]


def parse(kind: type[T], arguments: Sequence[str], prog: str, description: str) -> T:
    """The arguments of a command; leaves the process with status 0 after --help and 2 after a wrong call.

    Args:
        kind: dataclass of the arguments.
        arguments: as the user gave them.
        prog: name of the command.
        description: one paragraph and examples, for --help.

    Raises:
        ConfigError: there is no DATA where the command needs some.
    """
    parsed = tyro.cli(kind, args=list(arguments), prog=prog, description=description)
    if getattr(parsed, "data", None) == ():
        raise ConfigError(f"there is no DATA to read; name a folder of recordings, pictures or films: {prog} ... FOLDER/")
    return parsed


def recipe_list(recipes: Mapping[str, Callable[[], object]]) -> str:
    """The recipes by name, with the first lines of their docstrings, for --help."""
    width = max(map(len, recipes)) + 2
    items = ((f"  {name:<{width}}", (make.__doc__ or "").splitlines()[0]) for name, make in recipes.items())
    indent = " " * (width + 2)
    return "\n".join(
        textwrap.fill(text.replace("``", ""), 79, initial_indent=start, subsequent_indent=indent) for start, text in items
    )


def write_json(path: Path, text: str) -> None:
    """Write the file of ``--json``, whose folder must exist.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise ConfigError(explain_write_error(error, path.parent, path.name)) from error
