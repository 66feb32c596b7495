"""Where published sets are, their checksums as their publishers or well-kept tools state them, and how to get the rest."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from bridle.data.protocols import PROTOCOLS, About
from bridle.data.protocols.registry import plain_name
from bridle.errors import ConfigError

_SPEECH_COMMANDS = "https://storage.googleapis.com/download.tensorflow.org/data"
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_UCF101 = "https://www.crcv.ucf.edu/data/UCF101"
_AUDIOSET = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
_KINETICS = "https://s3.amazonaws.com/kinetics"


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    Attributes:
        url: its address.
        checksum: ``md5:`` or ``sha256:`` and hexadecimal digits; "" where none is published.
        size: bytes, about; for the look at the disk only.
        folder: that it is unpacked to, below the folder of the set; "" for a file that stays as it is.
        name: under which it is kept; the last part of the address if "".
    """

    url: str
    checksum: str = ""
    size: int = 0
    folder: str = ""
    name: str = ""

    @property
    def file_name(self) -> str:
        """Under which it is kept."""
        return self.name or self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A published set on the web.

    Attributes:
        name: by which it is asked for.
        protocols: that read it.
        remotes: what can be downloaded.
        remaining: lines that say how to get what cannot be, or how to unpack it; none where nothing is lacking.
    """

    name: str
    protocols: tuple[str, ...]
    remotes: tuple[Remote, ...] = ()
    remaining: tuple[str, ...] = ()

    @property
    def about(self) -> About:
        """The set: licence, home page and what is to be cited."""
        return PROTOCOLS[self.protocols[0]].about

    @property
    def size(self) -> int:
        """Bytes to download, about."""
        return sum(remote.size for remote in self.remotes)


def _speech_commands(version: int, size: int, checksum: str, test_size: int, test_checksum: str) -> Source:
    folder, test = f"speech_commands_v0.0{version}", f"speech_commands_test_set_v0.0{version}"
    remotes = (
        Remote(f"{_SPEECH_COMMANDS}/{folder}.tar.gz", checksum, size, folder),
        Remote(f"{_SPEECH_COMMANDS}/{test}.tar.gz", test_checksum, test_size, test),
    )
    name = f"speech-commands-v{version}"
    return Source(name, (name, f"{name}-12"), remotes)


def _kinetics(num_classes: int, folder: str, suffix: str, script: str) -> Source:
    name = f"kinetics-{num_classes}"
    parts = (f"train.{suffix}", f"val.{suffix}")
    remotes = tuple(Remote(f"{_KINETICS}/{folder}/annotations/{part}", size=40_000_000) for part in parts)
    remaining = (
        "These are the lists. The films were taken from YouTube; CVDF keeps copies of them, some hundreds of gigabytes:",
        "  git clone https://github.com/cvdfoundation/kinetics-dataset",
        f"  its {script}_downloader.sh and {script}_extractor.sh give the folders train and val: put them beside the lists.",
    )
    return Source(name, (name,), remotes, remaining)


_AUDIOSET_PARTS = {"balanced_train": 2_000_000, "unbalanced_train": 110_000_000, "eval": 2_000_000}

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "esc-50",
            ("esc-50", "esc-10"),
            (
                Remote(
                    "https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip",
                    "md5:071b44018315e034b2c6e8064543d19c",
                    650_000_000,
                    "ESC-50",
                    "ESC-50.zip",
                ),
            ),
        ),
        Source(
            "urbansound8k",
            ("urbansound8k",),
            (
                Remote(
                    "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
                    "md5:9aa69802bbf37fb986f71ec1483a196e",
                    6_020_000_000,
                    "UrbanSound8K",
                ),
            ),
        ),
        _speech_commands(
            1,
            1_490_000_000,
            "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
            80_000_000,
            "",
        ),
        _speech_commands(
            2,
            2_428_923_189,
            "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            112_563_277,
            "sha256:cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df",
        ),
        Source(
            "audioset",
            ("audioset-20k", "audioset-2m"),
            (
                *(Remote(f"{_AUDIOSET}/{part}_segments.csv", size=size) for part, size in _AUDIOSET_PARTS.items()),
                Remote(f"{_AUDIOSET}/class_labels_indices.csv", size=20_000),
            ),
            (
                "These are the lists. The clips are 10 s of YouTube films; whether you may copy them is for you to find out.",
                "Put those that you have anywhere below this folder: YTID.wav, YYTID.flac, YTID_30.000_40.000.m4a and the",
                "like are found by their id. Clips that are not there are counted and left out.",
            ),
        ),
        Source(
            "cifar-10",
            ("cifar-10",),
            (
                Remote(
                    f"{_CIFAR}/cifar-10-python.tar.gz",
                    "md5:c58f30108f718f92721af3b95e74349a",
                    170_498_071,
                    "cifar-10-batches-py",
                ),
            ),
        ),
        Source(
            "cifar-100",
            ("cifar-100", "cifar-100-coarse"),
            (
                Remote(
                    f"{_CIFAR}/cifar-100-python.tar.gz",
                    "md5:eb9058c3a382ffc7106e4002c42a8d85",
                    169_001_437,
                    "cifar-100-python",
                ),
            ),
        ),
        Source(
            "imagenet",
            ("imagenet",),
            (),
            (
                "ImageNet is given to those who register and agree to its terms: https://image-net.org/download.php",
                "Of ILSVRC2012, take the training images, the validation images and the development kit of tasks 1 and 2. Then",
                "  train/: unpack ILSVRC2012_img_train.tar, and each tar in it into a folder of its name, such as n01440764;",
                "  val/: unpack ILSVRC2012_img_val.tar as it is;",
                "  unpack the development kit beside train and val, and pip install 'bridle[demo]', which reads its meta.mat.",
                "The copy at https://www.kaggle.com/c/imagenet-object-localization-challenge is read as it is unpacked.",
            ),
        ),
        _kinetics(400, "400", "csv", "k400"),
        _kinetics(600, "600", "txt", "k600"),
        _kinetics(700, "700_2020", "csv", "k700_2020"),
        Source(
            "ucf101",
            ("ucf101-1", "ucf101-2", "ucf101-3"),
            (
                Remote(
                    f"{_UCF101}/UCF101TrainTestSplits-RecognitionTask.zip",
                    "sha256:5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
                    113_943,
                    "ucfTrainTestlist",
                ),
                Remote(f"{_UCF101}/UCF101.rar", size=6_940_000_000),
            ),
            (
                "The films are a rar archive, which needs a program of its own, such as unrar. In this folder:",
                "  unrar x UCF101.rar",
                "gives the folder UCF-101; afterwards UCF101.rar can be removed.",
            ),
        ),
    )
}
"""Every set by its name."""


def find_source(name: str) -> Source:
    """The set of a name, or the one that a protocol of this name reads, whatever its case and hyphens.

    Raises:
        ConfigError: there is none.
    """
    known = {plain_name(key): source for source in SOURCES.values() for key in (*source.protocols, source.name)}
    found = known.get(plain_name(name))
    if found is None:
        near = difflib.get_close_matches(plain_name(name), known, n=1)
        hint = f"did you mean '{known[near[0]].name}'?" if near else f"known are {', '.join(SOURCES)}"
        raise ConfigError(f"there is no set '{name}'; {hint}")
    return found
