"""Speech Commands (P. Warden, arXiv:1804.03209): all words, and the task of 12 classes with its published test set."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from bridle.data.manifest import Entry
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, lines_of, subfolders
from bridle.data.quarantine import BadFile
from bridle.data.shards import list_members
from bridle.errors import DataError
from bridle.files import explain_write_error, write_atomically
from bridle.media.audio import decode_audio
from bridle.randomness import counter_uniform, derive_seed, permutation

TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_SAMPLE_RATE = 16000
_VALIDATION_SHARE = 5
_PARTS = ("train", "validation")


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

    Training and validation words are those of the published lists, whose test clips are left out. To them come, in each part,
    as in TensorFlow's reference (``speech_commands/input_data.py``, percentages of 10 each) a tenth as many clips of other
    words, ``_unknown_``, and a tenth as many random seconds of the background noise at random volumes in [0, 1],
    ``_silence_``; so they are about as frequent as one of the words, as they are in the published test set. The reference
    draws noise anew every time; here what is drawn is fixed, and the last fifth of each noise is for validation alone.

    Args:
        request: what to read.
        version: ``v0.01`` or ``v0.02``, of the test set's folder.

    Raises:
        DataError: a list, the background noise or the test set is missing, or the noise cannot be cut.
    """
    root = request.root(*_LISTS.values())
    listing = Listing()
    clips = [clip for clip in _clips(request, root, listing) if clip[2] != "test"]
    counts: dict[str, int] = {}
    for split in _PARTS:
        words = [clip for clip in clips if clip[2] == split and clip[0] in TEN_WORDS]
        others = [clip for clip in clips if clip[2] == split and clip[0] not in TEN_WORDS]
        counts[split] = math.ceil(len(words) / 10)
        drawn = permutation(len(others), "speech commands", "unknown", split)[: counts[split]].sort().values.tolist()
        for word, name, _ in words + [others[i] for i in drawn]:
            cells = _cells(word if word in TEN_WORDS else UNKNOWN, split, name)
            listing.add(Entry(f"{word}/{name}", str(root / word / name)), cells)
    _add_silence(request, root, listing, counts)
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


def _add_silence(request: Request, root: Path, listing: Listing, counts: Mapping[str, int]) -> None:
    noises = sorted((root / NOISE).glob("*.wav"))
    if not noises:
        raise request.lacks(root, f"{NOISE}/*.wav")
    tar = _cut(noises, request.cache_folder(root), counts)
    for member in list_members(tar):
        split, _, name = member.name.split("/")
        entry = Entry(f"{NOISE}/{split}/{name}", str(tar), member.offset, member.size)
        listing.add(entry, {"label": SILENCE, "split": split, "speaker": f"{name.rpartition('-')[0]} {split}"})


def _cut(noises: list[Path], cache: Path, counts: Mapping[str, int]) -> Path:
    """A tar of seconds, ``train/_silence_/NOISE-00000.wav``; its name holds a digest of the noises and how many there are."""
    digest = hashlib.sha256(repr(sorted(counts.items())).encode())
    for path in noises:
        digest.update(path.name.encode() + path.read_bytes())
    tar = cache / f"silence-{digest.hexdigest()[:16]}.tar"
    if not tar.is_file():
        samples = {path.stem: decode_audio(path, sample_rate=_SAMPLE_RATE).samples for path in noises}
        try:
            write_atomically(tar, lambda target: _write_seconds(samples, counts, target))
        except OSError as error:
            raise DataError(explain_write_error(error, cache, tar.name)) from error
    return tar


def _write_seconds(noises: Mapping[str, Tensor], counts: Mapping[str, int], target: Path) -> None:
    """So many random seconds for each part, in 16 bits as the noises are.

    Raises:
        DataError: no noise has a second for a part.
    """
    with tarfile.open(target, "w") as tar:
        for split, count in counts.items():
            parts = {name: part for name, samples in noises.items() if len(part := _part_of(samples, split)) >= _SAMPLE_RATE}
            if not parts and count:
                raise DataError(
                    f"no noise of {NOISE} has a second for {split}; a fifth of each is for validation, so add longer ones"
                )
            drawn = counter_uniform(torch.tensor([derive_seed("speech commands", "silence", split)]), 3 * count)[0]
            for number, (which, start, volume) in enumerate(drawn.reshape(count, 3).tolist()):
                name = list(parts)[int(which * len(parts))]
                first = int(start * (len(parts[name]) - _SAMPLE_RATE + 1))
                stream = io.BytesIO()
                piece = volume * parts[name][first : first + _SAMPLE_RATE]
                soundfile.write(stream, piece.numpy(), _SAMPLE_RATE, format="WAV", subtype="PCM_16")
                member = tarfile.TarInfo(f"{split}/{SILENCE}/{name}-{number:05d}.wav")
                member.size = stream.tell()
                stream.seek(0)
                tar.addfile(member, stream)


def _part_of(samples: Tensor, split: str) -> Tensor:
    """What of a noise is for training, or for validation."""
    border = len(samples) - len(samples) // _VALIDATION_SHARE
    return samples[border:] if split == "validation" else samples[:border]
