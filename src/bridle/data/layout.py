"""What the places of files say: the folders they lie in, and the members of a shard that lie beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from bridle.data.shards import Member, read_member

_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}
_SPLIT_NAME = re.compile(r"(train|val|dev|test)(?:ing|id|idation)?(?![a-z])", re.IGNORECASE)
SIDECARS = (".cls", ".txt", ".json")
_MAX_SIDECAR_BYTES = 1 << 16


def by_key(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Runs of members with one key: the name up to the first dot behind the last slash, as WebDataset has it."""
    for _, group in groupby(members, lambda member: re.sub(r"(?<=[^/])\.[^/]*$", "", member.name)):
        yield list(group)


def read_sidecar(path: str | Path, member: Member) -> dict[str, str]:
    """Columns from a member beside a file: ``.cls`` and ``.txt`` whole, of ``.json`` the numbers and texts at its top."""
    if member.size > _MAX_SIDECAR_BYTES:
        return {}
    text = read_member(path, member).decode("utf-8", "replace").strip()
    suffix = Path(member.name).suffix.lower()
    if suffix != ".json":
        return {suffix.removeprefix("."): text}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return {}
    cells = content.items() if isinstance(content, dict) else ()
    return {str(name): str(value) for name, value in cells if isinstance(value, str | int | float)}


def place(parts: Sequence[str]) -> dict[str, str]:
    """What the folders of a file say: its class is the last one, unless that is a tar; its split the first so called."""
    cells = {}
    if len(parts) > 1 and not parts[-2].lower().endswith(".tar"):
        cells["class"] = parts[-2]
    above = parts[:-2] if "class" in cells else parts[:-1]
    split = next((match for match in map(_SPLIT_NAME.match, above) if match), None)
    return cells | ({"split": _SPLITS[split[1].lower()]} if split else {})
