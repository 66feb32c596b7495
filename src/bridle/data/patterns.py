"""Sources as users write them, with patterns, to the single ones they stand for."""

from __future__ import annotations

import glob
import re
from itertools import chain
from pathlib import Path

from bridle.data import huggingface
from bridle.data.shards import is_remote
from bridle.errors import DataError

_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_MAX_NAMES = 100_000


def expand(source: str) -> list[str]:
    """The sources that one stands for: by ``{000..123}``, as WebDataset has it, and, on a local disk, ``*``, ``?``, ``[ab]``.

    What exists under its name is no pattern.

    Raises:
        DataError: a range counts down, or there are more than 100 000 names.
    """
    if is_remote(source):
        return [url.rstrip("/") for url in _counted(source)]
    path = Path(source)
    if path.exists() or huggingface.is_set(source):
        return [str(path)]
    # Path.glob wants a relative pattern below a known folder; this one takes patterns as the user wrote them.
    return list(
        chain.from_iterable(
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
            for name in _counted(str(path))
        )
    )


def _counted(pattern: str) -> list[str]:
    names = [pattern]
    while match := _RANGE.search(names[0]):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) * len(names) <= _MAX_NAMES:
            many = f"{len(numbers) * len(names)} names; it must be 1 to {_MAX_NAMES}"
            raise DataError(f"{pattern} stands for {many}, such as {{000..123}}")
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        names = [_RANGE.sub(f"{number:0{width}}", name, count=1) for name in names for number in numbers]
    return names
