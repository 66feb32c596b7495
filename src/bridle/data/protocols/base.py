"""What a protocol is, what it is asked for and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridle.data.columns import Columns
from bridle.data.manifest import Manifest
from bridle.data.medium import MEDIA, Medium, MediumName
from bridle.data.protocols.listing import Listing, subfolders
from bridle.errors import DataError

Metric = Literal["accuracy", "mAP"]


@dataclass(frozen=True)
class About:
    """A published set.

    Attributes:
        title: its name as its authors write it.
        licence: what may be done with it, as its authors say; one line.
        home: address of its home page.
        citation: authors, title and year of what is to be cited.
    """

    title: str
    licence: str
    home: str
    citation: str


@dataclass(frozen=True)
class Request:
    """What a protocol is to read.

    Attributes:
        name: of the protocol, for messages.
        folder: the set's own folder, or the one that holds it.
        cache: where pictures or sounds that must be converted are kept; None for ``.bridle`` in the set's folder.
    """

    name: str
    folder: Path
    cache: Path | None = None

    def folders(self) -> Iterator[Path]:
        """The folder, then those in it, where the set may lie; they are not looked for before they are needed.

        Raises:
            DataError: it is no folder.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is no folder; give the one that holds {self.name}, or get it by: bridle fetch {self.name}"
            )
        yield self.folder
        yield from subfolders(self.folder)

    def root(self, *markers: str) -> Path:
        """The first of :meth:`folders` that has one of the files; a marker that ends in ``/`` is a folder.

        Raises:
            DataError: there is none.
        """
        for folder in self.folders():
            if any((folder / name).is_dir() if name.endswith("/") else (folder / name).is_file() for name in markers):
                return folder
        raise self.lacks(self.folder, " or ".join(markers))

    def file(self, root: Path, name: str, *below: str) -> Path:
        """The file of a name in the root or one of its folders.

        Raises:
            DataError: there is none.
        """
        for folder in ("", *below):
            if (root / folder / name).is_file():
                return root / folder / name
        raise self.lacks(root, name)

    def lacks(self, folder: Path, name: str) -> DataError:
        """The error that something the protocol is read from is not there."""
        return DataError(f"{folder} has no {name}, which {self.name} is read from; get it by: bridle fetch {self.name}")

    def cache_folder(self, root: Path) -> Path:
        """Where what must be converted is kept; created if missing.

        Raises:
            DataError: it cannot be created.
        """
        folder = self.cache if self.cache is not None else root / ".bridle"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot create {folder}: {error.strerror}; give a cache folder that can be written") from error
        return folder


@dataclass(frozen=True)
class Protocol:
    """A published set with its labels and its split.

    Attributes:
        name: by which it is asked for.
        about: the set.
        medium: of its files.
        num_classes: that it has.
        label: column with the class, or with several labels.
        read: lists the clips.
        fold: column with the official fold, or None.
        split: column that says train, validation or test, or None.
        group: column whose equal values stay on one side of a split, or None.
        separator: between the labels of a clip; "" where each has a single one.
        metric: what the field reports.
    """

    name: str
    about: About
    medium: MediumName
    num_classes: int
    label: str
    read: Callable[[Request], Listing]
    fold: str | None = None
    split: str | None = None
    group: str | None = None
    separator: str = ""
    metric: Metric = "accuracy"

    @property
    def multi_label(self) -> bool:
        """Whether a clip has several labels."""
        return bool(self.separator)


@dataclass(frozen=True)
class ProtocolData:
    """A set as a protocol found it on the disk.

    Attributes:
        protocol: by which it was read.
        manifest: clips with their columns, and bad files.
        columns: which of its columns say what. There is no ``group`` where an official split tears groups.
        num_missing: clips not on the disk, of a set of which nobody has all.
        notes: what a reader of a result must know.
    """

    protocol: Protocol
    manifest: Manifest
    columns: Columns
    num_missing: int = 0
    notes: tuple[str, ...] = ()

    @property
    def medium(self) -> Medium:
        """Of the clips."""
        return MEDIA[self.protocol.medium]
