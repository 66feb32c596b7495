"""The protocols by name, and the one call that reads a set."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from bridle.data.columns import Columns
from bridle.data.manifest import Manifest
from bridle.data.medium import MEDIA
from bridle.data.protocols import cifar
from bridle.data.protocols.audioset import SEPARATOR, read_audioset
from bridle.data.protocols.base import About, Protocol, ProtocolData, Request
from bridle.data.protocols.imagenet import read_imagenet
from bridle.data.protocols.kinetics import read_kinetics
from bridle.data.protocols.sound_tables import read_esc, read_urbansound8k
from bridle.data.protocols.speech_commands import read_twelve, read_words
from bridle.data.protocols.ucf101 import read_ucf101
from bridle.errors import ConfigError, DataError

ESC = About(
    "ESC-50",
    "CC BY-NC; its ESC-10 part CC BY; the clips' authors are named in its LICENSE",
    "https://github.com/karolpiczak/ESC-50",
    "K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015",
)
URBANSOUND8K = About(
    "UrbanSound8K",
    "CC BY-NC; the clips' authors are named in its FREESOUNDCREDITS.txt",
    "https://urbansounddataset.weebly.com/urbansound8k.html",
    "J. Salamon, C. Jacoby, J. P. Bello, A Dataset and Taxonomy for Urban Sound Research, ACM Multimedia 2014",
)
SPEECH_COMMANDS = About(
    "Speech Commands",
    "CC BY 4.0",
    "https://www.tensorflow.org/datasets/catalog/speech_commands",
    "P. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, arXiv:1804.03209, 2018",
)
AUDIOSET = About(
    "AudioSet",
    "the lists CC BY 4.0, the ontology CC BY-SA 4.0; the clips belong to those who made them, under YouTube's terms",
    "https://research.google.com/audioset/",
    "J. F. Gemmeke et al., Audio Set: An Ontology and Human-Labeled Dataset for Audio Events, ICASSP 2017",
)
CIFAR = About(
    "CIFAR-10 and CIFAR-100",
    "none is stated; the author asks to be cited",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
)
IMAGENET = About(
    "ImageNet (ILSVRC 2012)",
    "terms of access: non-commercial research and education only",
    "https://image-net.org/download.php",
    "O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
)
KINETICS = About(
    "Kinetics",
    "the lists CC BY 4.0; the films belong to those who made them, under YouTube's terms",
    "https://github.com/cvdfoundation/kinetics-dataset",
    "W. Kay et al., The Kinetics Human Action Video Dataset, arXiv:1705.06950, 2017",
)
UCF101 = About(
    "UCF101",
    "none is stated; the films were taken from YouTube",
    "https://www.crcv.ucf.edu/data/UCF101.php",
    "K. Soomro et al., UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, arXiv:1212.0402, 2012",
)


def _esc(name: str, num_classes: int, only_esc10: bool) -> Protocol:
    read = partial(read_esc, only_esc10=only_esc10)
    return Protocol(name, ESC, "audio", num_classes, "category", read, fold="fold", group="src_file")


def _words(name: str, num_classes: int) -> Protocol:
    return Protocol(name, SPEECH_COMMANDS, "audio", num_classes, "label", read_words, split="split", group="speaker")


def _twelve(name: str, version: str) -> Protocol:
    read = partial(read_twelve, version=version)
    return Protocol(name, SPEECH_COMMANDS, "audio", 12, "label", read, split="split", group="speaker")


def _audioset(name: str, *parts: str) -> Protocol:
    read = partial(read_audioset, parts=parts)
    return Protocol(name, AUDIOSET, "audio", 527, "labels", read, split="split", separator=SEPARATOR, metric="mAP")


def _cifar(name: str, num_classes: int, label: str, batches: cifar.Batches) -> Protocol:
    return Protocol(name, CIFAR, "image", num_classes, label, partial(cifar.read_cifar, batches=batches), split="split")


def _kinetics(num_classes: int) -> Protocol:
    return Protocol(f"kinetics-{num_classes}", KINETICS, "video", num_classes, "label", read_kinetics, split="split")


def _ucf101(number: int) -> Protocol:
    read = partial(read_ucf101, number=number)
    return Protocol(f"ucf101-{number}", UCF101, "video", 101, "class", read, split="split", group="group")


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _esc("esc-50", 50, only_esc10=False),
        _esc("esc-10", 10, only_esc10=True),
        Protocol("urbansound8k", URBANSOUND8K, "audio", 10, "class", read_urbansound8k, fold="fold", group="fsID"),
        _words("speech-commands-v1", 30),
        _words("speech-commands-v2", 35),
        _twelve("speech-commands-v1-12", "v0.01"),
        _twelve("speech-commands-v2-12", "v0.02"),
        _audioset("audioset-20k", "balanced", "eval"),
        _audioset("audioset-2m", "balanced", "unbalanced", "eval"),
        _cifar("cifar-10", 10, "label", cifar.CIFAR10),
        _cifar("cifar-100", 100, "fine", cifar.CIFAR100),
        _cifar("cifar-100-coarse", 20, "coarse", cifar.CIFAR100),
        Protocol("imagenet", IMAGENET, "image", 1000, "wnid", read_imagenet, split="split"),
        *(_kinetics(num_classes) for num_classes in (400, 600, 700)),
        *(_ucf101(number) for number in (1, 2, 3)),
    )
}
"""Every protocol by its name."""


def plain_name(name: str) -> str:
    """A name as names are compared: lower case, without hyphens and the like."""
    return re.sub(r"[\W_]+", "", name.lower())


def find_protocol(name: str) -> Protocol:
    """The protocol of a name, whatever its case and hyphens.

    Raises:
        ConfigError: there is none.
    """
    known = {plain_name(key): protocol for key, protocol in PROTOCOLS.items()}
    found = known.get(plain_name(name))
    if found is None:
        near = difflib.get_close_matches(plain_name(name), known, n=1)
        hint = f"did you mean '{known[near[0]].name}'?" if near else f"known are {', '.join(PROTOCOLS)}"
        raise ConfigError(f"there is no protocol '{name}'; {hint}")
    return found


def read_protocol(
    name: str, folder: str | Path, *, cache: str | Path | None = None, probe: bool = True, num_threads: int = 8
) -> ProtocolData:
    """Read a published set from a folder in the layout in which it is published.

    Args:
        name: of the protocol.
        folder: the set's own folder, or the one that holds it.
        cache: where pictures of CIFAR, and noise cut for Speech Commands, are kept; None for ``.bridle`` in the set's folder.
        probe: read the headers of sounds and films, so that durations are known and broken files found.
        num_threads: for that.

    Raises:
        ConfigError: there is no such protocol.
        DataError: the folder is not there, a table or list of the set is missing or malformed, no clip is on the disk, or
            there are more classes than the set has.
    """
    protocol = find_protocol(name)
    listing = protocol.read(Request(protocol.name, Path(folder), None if cache is None else Path(cache)))
    manifest = listing.manifest(MEDIA[protocol.medium], probe, num_threads)
    if not manifest.entries:
        first = f", the first unreadable one is {manifest.bad[0].key} ({manifest.bad[0].reason})" if manifest.bad else ""
        raise DataError(
            f"{folder} has the lists of {protocol.name} but no clip that can be read: "
            f"{listing.num_missing + len(manifest.bad)} are not there or unreadable{first}; "
            f"'bridle fetch {protocol.name}' says how to get them"
        )
    columns, notes = _columns(protocol, manifest)
    notes = [*listing.notes, *_counts(protocol, manifest, listing.num_missing), *notes]
    return ProtocolData(protocol, manifest, columns, listing.num_missing, tuple(notes))


def _counts(protocol: Protocol, manifest: Manifest, num_missing: int) -> list[str]:
    """Notes about clips and classes that are not there.

    Raises:
        DataError: more classes than the set has.
    """
    cells = set(manifest.columns[protocol.label])
    classes = {label for cell in cells for label in cell.split(protocol.separator)} if protocol.multi_label else cells
    if len(classes) > protocol.num_classes:
        raise DataError(
            f"there are {len(classes)} classes where {protocol.name} has {protocol.num_classes}, such as '{max(classes)}'; "
            "take the protocol of the set that is there"
        )
    notes = []
    if num_missing:
        notes.append(f"{num_missing} of {num_missing + manifest.num_files} clips of the published lists are not on the disk")
    if len(classes) < protocol.num_classes:
        notes.append(f"{len(classes)} of {protocol.num_classes} classes have clips")
    return notes


def _columns(protocol: Protocol, manifest: Manifest) -> tuple[Columns, list[str]]:
    """Which columns say what; no group where the official split itself does not keep groups together, with a note."""
    columns = Columns(protocol.label, protocol.fold, protocol.split, protocol.group)
    part = protocol.fold or protocol.split
    if protocol.group is None or part is None:
        return columns, []
    sides = manifest.columns[part]
    if protocol.split is not None:  # validation clips may train in the end
        sides = ["test" if side == "test" else "train" for side in sides]
    pairs = set(zip(manifest.columns[protocol.group], sides, strict=True))
    torn = sorted(group for group, count in Counter(group for group, _ in pairs).items() if count > 1)
    if torn:
        note = f"{len(torn)} groups of column '{protocol.group}', such as '{torn[0]}', are in several parts as published"
        return replace(columns, group=None), [f"{note}; groups are not kept together"]
    return columns, []
