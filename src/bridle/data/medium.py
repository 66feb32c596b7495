"""What shared code must know of a medium: how its files are called, found and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridle.data.quarantine import BadFile
from bridle.media.audio import AudioInfo, probe_audio
from bridle.media.decoders import NO_SOUND_TRACK
from bridle.media.image import ImageInfo, probe_image
from bridle.media.source import Source
from bridle.media.video import VideoInfo, probe_video

MediumName = Literal["audio", "image", "video"]
Info = AudioInfo | ImageInfo | VideoInfo


@dataclass(frozen=True)
class Medium:
    """A kind of file.

    Attributes:
        name: of its section in the settings, and first word of its recipes.
        noun: what one file is called in messages; ``nouns`` for several.
        suffixes: of its files, lower case.
        columns: usual names of a table's column of paths.
        folder: beside a table, where its relative paths are looked for, too.
        probe: reads a header.
        timed: True when files have a duration, which their header tells.
        rated: True when they have a rate of frames, too.
        absent: reason of a file that turns out to hold another medium only; in a folder it is passed over. "" for none.
    """

    name: MediumName
    noun: str
    nouns: str
    suffixes: frozenset[str]
    columns: tuple[str, ...]
    folder: str
    probe: Callable[[Source, str], Info]
    timed: bool
    rated: bool = False
    absent: str = ""

    def passes_over(self, bad: BadFile) -> bool:
        """True for a file of another medium that has one of this one's suffixes: found in a folder, it is no bad file."""
        return bool(self.absent) and bad.reason == self.absent and Path(bad.key).suffix.lower() in VIDEO.suffixes


_PATHS = ("path", "file", "filename")
_SOUND = ".wav .wave .w64 .rf64 .flac .aif .aiff .aifc .au .caf .ogg .oga .opus .mp3 .m4a .aac .wma .webm .mka"
_PICTURE = ".jpg .jpeg .jpe .jfif .png .apng .webp .tif .tiff .bmp .dib .gif"
_FILM = (
    ".mp4 .m4v .mov .qt .3gp .3g2 .f4v .ismv .mj2 .mkv .mk3d .webm .avi .divx .xvid .wmv .asf .dvr-ms .wtv .flv .ogv .ogm "
    ".rm .rmvb .mpg .mpeg .mpe .m1v .m2v .mpv .m2p .vob .ts .mts .m2ts .m2t .mxf .gxf .dv .dif .nut .nsv .ivf .obu .y4m "
    ".mjpeg .mjpg .h261 .h263 .h264 .264 .h26l .avc .hevc .h265 .265 .vvc .h266 .266 .vc1 .cavs"
)
_FILM_WITH_SOUND = ".mp4 .m4v .mov .mkv .avi .mpg .mpeg .wmv .flv .3gp"

AUDIO = Medium(
    name="audio",
    noun="sound file",
    nouns="sound files",
    suffixes=frozenset(f"{_SOUND} {_FILM_WITH_SOUND}".split()),
    columns=(*_PATHS, "audio", "filepath"),
    folder="audio",
    probe=probe_audio,
    timed=True,
    absent=NO_SOUND_TRACK,
)
IMAGE = Medium(
    name="image",
    noun="picture",
    nouns="pictures",
    suffixes=frozenset(_PICTURE.split()),
    columns=(*_PATHS, "image", "filepath"),
    folder="images",
    probe=probe_image,
    timed=False,
)
VIDEO = Medium(
    name="video",
    noun="film",
    nouns="films",
    suffixes=frozenset(_FILM.split()),
    columns=(*_PATHS, "video", "filepath"),
    folder="videos",
    probe=probe_video,
    timed=True,
    rated=True,
)
MEDIA: dict[MediumName, Medium] = {medium.name: medium for medium in (AUDIO, IMAGE, VIDEO)}
