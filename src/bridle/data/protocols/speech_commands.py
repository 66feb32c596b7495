"""Speech Commands (P. Warden, arXiv:1804.03209): all words, and the task of 12 classes with its published test set."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import soundfile

from bridle.data.manifest import Entry
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, lines_of, subfolders
from bridle.data.quarantine import BadFile
from bridle.data.shards import list_members
from bridle.errors import DataError
from bridle.files import explain_write_error, write_atomically
from bridle.media.audio import decode_audio

TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_SAMPLE_RATE = 16000
_VALIDATION_SHARE = 5


def read_words(request: Request) -> Listing:
    """Every word as its own class, split by the published lists.

    Raises:
        DataError: a list is missing.
    """
    root = request.root(*_LISTS.values())
    listing = Listing()
    for word, name, split in _clips(request, root, listing):
        listing.add(Entry(f"{word}/{name}", str(root / word / name)), _cells(word, split, name))
    return listing


def read_twelve(request: Request, *, version: str) -> Listing:
    """Ten words, ``_unknown_`` and ``_silence_``; the test clips are those of the published test set.

    Training words and validation words are those of the published lists, their test clips are left out. ``_silence_``
    is the background noise in whole seconds, the last fifth of each noise for validation.

    Args:
        request: what to read.
        version: ``v0.01`` or ``v0.02``, of the test set's folder.

    Raises:
        DataError: a list, the background noise or the test set is missing, or the noise cannot be cut.
    """
    root = request.root(*_LISTS.values())
    listing = Listing()
    for word, name, split in _clips(request, root, listing):
        if split != "test":
            cells = _cells(word if word in TEN_WORDS else UNKNOWN, split, name)
            listing.add(Entry(f"{word}/{name}", str(root / word / name)), cells)
    _add_silence(request, root, listing)
    test = _test_set(request, root, f"speech_commands_test_set_{version}")
    for folder in subfolders(test):
        for path in sorted(folder.glob("*.wav")):
            listing.add(Entry(f"{test.name}/{folder.name}/{path.name}", str(path)), _cells(folder.name, "test", path.name))
    return listing


def _clips(request: Request, root: Path, listing: Listing) -> list[tuple[str, str, str]]:
    """Word, file and split of every clip that is there; those that a list names and that are not become bad files."""
    splits: dict[str, str] = {}
    for split, name in _LISTS.items():
        splits |= dict.fromkeys(lines_of(request.file(root, name)), split)
    clips = []
    for folder in subfolders(root, lambda name: not name.startswith(("_", "speech_commands"))):
        names = sorted(path.name for path in folder.glob("*.wav"))
        clips += [(folder.name, name, splits.pop(f"{folder.name}/{name}", "train")) for name in names]
    listing.bad += [BadFile(key, "missing") for key in sorted(splits)]
    return clips


def _cells(label: str, split: str, name: str) -> dict[str, str]:
    return {"label": label, "split": split, "speaker": Path(name).stem.partition("_nohash_")[0]}


def _test_set(request: Request, root: Path, name: str) -> Path:
    for folder in (root, root.parent, request.folder):
        if (folder / name).is_dir():
            return folder / name
    raise request.lacks(root.parent, f"folder {name}")


def _add_silence(request: Request, root: Path, listing: Listing) -> None:
    noises = sorted((root / NOISE).glob("*.wav"))
    if not noises:
        raise request.lacks(root, f"{NOISE}/*.wav")
    tar = _cut(noises, request.cache_folder(root))
    for member in list_members(tar):
        split, _, name = member.name.split("/")
        entry = Entry(f"{NOISE}/{split}/{name}", str(tar), member.offset, member.size)
        listing.add(entry, {"label": SILENCE, "split": split, "speaker": f"{name.rpartition('-')[0]} {split}"})


def _cut(noises: list[Path], cache: Path) -> Path:
    """A tar of whole seconds, ``train/_silence_/NOISE-0000.wav``; its name holds a digest of the noises."""
    digest = hashlib.sha256()
    for path in noises:
        digest.update(path.name.encode() + path.read_bytes())
    tar = cache / f"silence-{digest.hexdigest()[:16]}.tar"
    if not tar.is_file():
        try:
            write_atomically(tar, lambda target: _write_seconds(noises, target))
        except OSError as error:
            raise DataError(explain_write_error(error, cache, tar.name)) from error
    return tar


def _write_seconds(noises: list[Path], target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        for path in noises:
            samples = decode_audio(path, sample_rate=_SAMPLE_RATE).samples.numpy()
            num_seconds = len(samples) // _SAMPLE_RATE
            for second in range(num_seconds):
                split = "validation" if second >= num_seconds - num_seconds // _VALIDATION_SHARE else "train"
                stream = io.BytesIO()
                piece = samples[second * _SAMPLE_RATE : (second + 1) * _SAMPLE_RATE]
                soundfile.write(stream, piece, _SAMPLE_RATE, format="WAV", subtype="FLOAT")
                member = tarfile.TarInfo(f"{split}/{SILENCE}/{path.stem}-{second:04d}.wav")
                member.size = stream.tell()
                stream.seek(0)
                tar.addfile(member, stream)
