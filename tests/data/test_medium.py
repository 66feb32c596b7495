"""Which files of a folder are of a medium, to judge by their names."""

from pathlib import Path

import av
import pytest
from reference.video_files import film

from bridle.data.manifest import read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO
from bridle.media.image import decode_image
from bridle.media.video import file as video_file

FILES = {
    "3g2": "h263",
    "asf": "msmpeg4",
    "divx": "mpeg4",
    "dv": "dvvideo",
    "f4v": "libx264",
    "ivf": "libvpx",
    "m2v": "mpeg2video",
    "mxf": "mpeg2video",
    "ogm": "libvpx",
    "rm": "rv20",
    "y4m": "rawvideo",
}
CONTAINERS = {"divx": "avi", "f4v": "mp4", "ogm": "ogg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short film of each suffix."""
    place = tmp_path_factory.mktemp("films")
    for suffix, codec in FILES.items():
        how = {"format": CONTAINERS[suffix]} if suffix in CONTAINERS else {}
        film(place / f"film.{suffix}", 3, codec=codec, **how)
    return place


def test_films_of_every_container_are_found_and_read(folder: Path) -> None:
    manifest = read_manifest(folder, VIDEO)
    assert [entry.key for entry in manifest.entries] == [f"film.{suffix}" for suffix in FILES]
    assert manifest.bad == ()
    assert all(entry.duration_seconds > 0 and entry.rate_hz > 0 for entry in manifest.entries)


def test_every_suffix_that_ffmpeg_knows_of_a_film_is_looked_for() -> None:
    names = video_file._FILMS.split(",")
    known = {f".{ending}" for name in names for ending in av.ContainerFormat(name, "r").extensions}
    sounds_and_stills = {".mka", ".mks", ".m4a", ".m4b", ".isma", ".ogg", ".gif", ".avif", ".heic", ".heif", ".mpo"}
    others = {".avs", ".ism", ".psp"}  # scripts, lists of pieces, and what is a drawing far more often
    assert known - VIDEO.suffixes == sounds_and_stills | others


def test_moving_pictures_stay_pictures() -> None:
    assert {".gif", ".apng", ".png", ".webp"} <= IMAGE.suffixes
    assert not IMAGE.suffixes & VIDEO.suffixes
    assert AUDIO.suffixes & VIDEO.suffixes >= {".mp4", ".mkv", ".webm"}


def test_an_animated_picture_counts_once(tmp_path: Path) -> None:
    film(tmp_path / "film.apng", 3, codec="apng")
    film(tmp_path / "film.gif", 3, codec="gif")
    assert [entry.key for entry in read_manifest(tmp_path, IMAGE).entries] == ["film.apng", "film.gif"]
    assert [decode_image(tmp_path / name).pixels.shape for name in ("film.apng", "film.gif")] == [(3, 48, 64)] * 2
