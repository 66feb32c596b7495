"""Published sets in their own layouts, with a handful of tiny files each."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
from PIL import Image
from reference.media_folders import write_film

RATE = 16000


def sound(path: Path, seconds: float = 0.05, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, samples.astype(np.float32), RATE)
    return path


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "JPEG")
    return path


def film(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_film(path, np.random.default_rng(0), 3, 0)
    return path


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def esc50(root: Path) -> Path:
    """Five folds of a dog and rain, which are in ESC-10, and a cow, which is not; clips A and B of a recording share a fold."""
    names = (("dog", 0, True), ("rain", 10, True), ("cow", 3, False))
    rows = [
        (f"{fold}-{fold}{target}-{take}-{target}.wav", fold, target, name, is_esc10, f"{fold}{target}", take)
        for fold in range(1, 6)
        for name, target, is_esc10 in names
        for take in "AB"
    ]
    table(root / "meta" / "esc50.csv", ("filename", "fold", "target", "category", "esc10", "src_file", "take"), rows)
    for row in rows:
        sound(root / "audio" / str(row[0]))
    return root


def urbansound8k(root: Path) -> Path:
    """Ten folds of two classes."""
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    rows = [
        (f"{fold}00{number}-{number}-0-0.wav", f"{fold}00{number}", 0.0, 0.05, 1, fold, number, name)
        for fold in range(1, 11)
        for number, name in ((3, "dog_bark"), (5, "engine_idling"))
    ]
    table(root / "metadata" / "UrbanSound8K.csv", header, rows)
    for row in rows:
        sound(root / "audio" / f"fold{row[5]}" / str(row[0]))
    return root


def speech_commands(root: Path, words: Sequence[str] = ("yes", "no", "bed")) -> Path:
    """Each word by the speakers a (train), b (validation) and c (test), twice by a; two noises of 11.5 and 3.25 s."""
    for word in words:
        for name in ("a_nohash_0", "a_nohash_1", "b_nohash_0", "c_nohash_0"):
            sound(root / word / f"{name}.wav")
    text(root / "validation_list.txt", *(f"{word}/b_nohash_0.wav" for word in words))
    text(root / "testing_list.txt", *(f"{word}/c_nohash_0.wav" for word in words))
    text(root / "README.md", "words")
    text(root / "_background_noise_" / "README.md", "noise")
    sound(root / "_background_noise_" / "white_noise.wav", 11.5, seed=1)
    sound(root / "_background_noise_" / "running_tap.wav", 3.25, seed=2)
    return root


def speech_commands_test(root: Path) -> Path:
    """The published test set of 12 classes: two words and the other two classes, by speaker c."""
    for name in ("yes", "no", "_unknown_", "_silence_"):
        sound(root / name / "c_nohash_0.wav")
    return root


AUDIOSET_CLASSES = (("/m/09x0r", "Speech"), ("/m/05zppz", "Male speech, man speaking"), ("/t/dd00088", "Gush"))


def audioset(root: Path, below: str = "") -> Path:
    """The CSVs only, of four clips in the balanced part, two in the unbalanced one, two in the evaluation."""
    rows = [(number, mid, name) for number, (mid, name) in enumerate(AUDIOSET_CLASSES)]
    table(root / below / "class_labels_indices.csv", ("index", "mid", "display_name"), rows)
    parts = {
        "balanced_train": ["--PJHxphWEs", "Yabcdefghij", "abcdefghij_", "_-_-_-_-_-_"],
        "unbalanced_train": ["unbalanced1", "unbalanced2"],
        "eval": ["evaluation1", "evaluation2"],
    }
    for part, ids in parts.items():
        head = ("# Segments csv created Sun Mar  5 10:54:31 2017", f"# num_ytids={len(ids)}, num_segs={len(ids)}")
        last = "# YTID, start_seconds, end_seconds, positive_labels"
        lines = [f'{name}, 30.000, 40.000, "/m/09x0r,/m/05zppz"' for name in ids[:-1]] + [
            f'{ids[-1]}, 0.000, 10.000, "/t/dd00088"'
        ]
        text(root / below / f"{part}_segments.csv", *head, last, *lines)
    return root


class _Python2(pickle._Pickler):  # type: ignore[misc, name-defined]
    """Writes texts and bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        short = len(content) < 256
        head = (
            pickle.SHORT_BINSTRING + bytes([len(content)]) if short else pickle.BINSTRING + len(content).to_bytes(4, "little")
        )
        self.write(head + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(value: Any) -> bytes:
    """The pickle that Python 2 and the numpy of its day write."""
    stream = io.BytesIO()
    _Python2(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_pixels(name: str, num: int = 4) -> np.ndarray:
    """(num, 3072) uint8: the rows of a batch."""
    return np.random.default_rng(sum(name.encode())).integers(0, 256, (num, 3072), dtype=np.uint8)


def cifar10(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    names = ["airplane", "automobile", "bird", "cat"]
    meta = {"num_cases_per_batch": 4, "label_names": names, "num_vis": 3072}
    (root / "batches.meta").write_bytes(python2_pickle(meta))
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        files = [f"{number}.png" for number in range(4)]
        batch = {"batch_label": name, "labels": [3, 1, 2, 0], "data": cifar_pixels(name), "filenames": files}
        (root / name).write_bytes(python2_pickle(batch))
    return root


def cifar100(root: Path) -> Path:
    """Fine and coarse classes, among them those called ``train`` and ``vehicles_1``."""
    root.mkdir(parents=True, exist_ok=True)
    meta = {"fine_label_names": ["apple", "train", "pear"], "coarse_label_names": ["fruit_and_vegetables", "vehicles_1"]}
    (root / "meta").write_bytes(python2_pickle(meta))
    for name in ("train", "test"):
        batch = {"batch_label": name, "fine_labels": [1, 0, 2, 1], "coarse_labels": [1, 0, 0, 1], "data": cifar_pixels(name)}
        (root / name).write_bytes(python2_pickle(batch))
    return root


WNIDS = ("n01440764", "n02119789")


def imagenet(root: Path, flat: bool = False) -> Path:
    """Two classes with two training pictures and one validation picture each; with ``flat``, val/ has no folders."""
    for number, wnid in enumerate(WNIDS):
        for name in ("1", "2"):
            picture(root / "train" / wnid / f"{wnid}_{name}.JPEG")
        # The second class comes first, as in the challenge's own numbering.
        place = root / "val" if flat else root / "val" / wnid
        picture(place / f"ILSVRC2012_val_{2 - number:08d}.JPEG")
    return root


def kinetics(root: Path) -> Path:
    """The layout of CVDF: two training clips of which one is there, one validation clip, a test part."""
    header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
    rows = [("abseiling", "-3B32lodo2M", 59, 69, "train", 0), ("air drumming", "gone0000000", 0, 10, "train", 0)]
    table(root / "annotations" / "train.csv", header, rows)
    table(root / "annotations" / "val.csv", header, [("air drumming", "_dbcJuKJQNs", 40, 50, "val", 0)])
    table(root / "annotations" / "test.csv", header, [("abseiling", "test0000000", 1, 11, "test", 0)])
    film(root / "train" / "-3B32lodo2M_000059_000069.mp4")
    film(root / "val" / "_dbcJuKJQNs_000040_000050.mp4")
    film(root / "test" / "test0000000_000001_000011.mp4")
    return root


def ucf101(root: Path) -> Path:
    """Two classes with the groups 1 to 3; split n tests group n. One class differs in case from its films, as published."""
    classes = (("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"))
    names = [
        (f"{folder}/v_{word}_g0{group}_c01.avi", number, group)
        for number, (folder, word) in enumerate(classes, 1)
        for group in (1, 2, 3)
    ]
    for name, _, _ in names:
        film(root / "UCF-101" / name)
    lists = root / "ucfTrainTestlist"
    text(lists / "classInd.txt", *(f"{number} {folder}" for number, (folder, _) in enumerate(classes, 1)))
    for split in (1, 2, 3):
        text(lists / f"trainlist0{split}.txt", *(f"{name} {number}" for name, number, group in names if group != split))
        text(lists / f"testlist0{split}.txt", *(name for name, _, group in names if group == split))
    return root


BUILDERS = {
    "esc-50": esc50,
    "esc-10": esc50,
    "urbansound8k": urbansound8k,
    "speech-commands-v1": speech_commands,
    "speech-commands-v2": speech_commands,
    "cifar-10": cifar10,
    "cifar-100": cifar100,
    "cifar-100-coarse": cifar100,
    "imagenet": imagenet,
    "kinetics-400": kinetics,
    "kinetics-600": kinetics,
    "kinetics-700": kinetics,
    "ucf101-1": ucf101,
    "ucf101-2": ucf101,
    "ucf101-3": ucf101,
}
"""Those of the protocols that need nothing but one folder with its files."""
