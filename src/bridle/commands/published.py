"""``--protocol NAME`` of the commands that take labels."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.commands.display import console
from bridle.data.medium import MEDIA, Medium
from bridle.data.protocols import ProtocolData, find_protocol, read_protocol
from bridle.errors import ConfigError


def read_published(name: str, sources: Sequence[str], named: Sequence[str | None], medium: Medium) -> ProtocolData:
    """A published set; what is to be known of it is printed.

    Args:
        name: of the protocol.
        sources: where it is: one folder.
        named: columns that the user named, of which there must be none.
        medium: of the run.

    Raises:
        ConfigError: columns are named, there is not one folder, no such protocol, or the set is of another medium.
        DataError: the folder does not hold the set.
    """
    if len(sources) != 1 or any(named):
        raise ConfigError(f"--protocol {name} says labels and splits itself: give the set's folder alone")
    theirs = MEDIA[find_protocol(name).medium]
    if theirs is not medium:
        raise ConfigError(f"protocol {name} is of {theirs.nouns}, and the run is of {medium.nouns}")
    data = read_protocol(name, sources[0])
    for note in data.notes:
        console().print(f"note: {note}", markup=False, soft_wrap=True)
    return data
