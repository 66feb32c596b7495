"""Files that would never end, or take for ever: pipes, devices, sockets, links in circles, and files that decode slowly."""

import dataclasses
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from reference.configs import normalised
from reference.damage import RATE, film_bytes, picture, sound, wav_header
from reference.video_files import film

from bridle.data.audio import AudioConfig
from bridle.data.image import ImageConfig
from bridle.data.manifest import Manifest, likely_medium, read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO, Medium
from bridle.data.video import VideoConfig
from bridle.errors import DataError
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig

pytestmark = pytest.mark.timeout(120)  # what hangs fails
HEALTHY, LIMIT, SLOW = 8, 2.0, "takes longer than 2 s to decode"


def healthy(medium: str, folder: Path) -> Path:
    folder.mkdir()
    for i in range(HEALTHY):
        random = np.random.default_rng(i)
        content = sound(random) if medium == "audio" else picture(random) if medium == "image" else film_bytes(folder, "mp4")
        (folder / f"healthy-{i}.{ {'audio': 'wav', 'image': 'png', 'video': 'mp4'}[medium] }").write_bytes(content)
    (folder / "source.mp4").unlink(missing_ok=True)
    return folder


def debug(medium: str) -> RunConfig:
    """One epoch; two seconds for each clip."""
    config = dataclasses.replace(recipe(f"{medium}-debug"), phases="cold:1")
    config = normalised(config, *((-8.0, 4.0) if medium == "audio" else (0.5, 0.25)))
    train = dataclasses.replace(config.train, precision="fp32", checkpoint_every_steps=1000, max_bad_fraction=0.9)
    clips = dataclasses.replace(config.clips, max_decode_seconds=LIMIT)
    return dataclasses.replace(config.with_clips(clips), train=train)


def quarantined(run: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


@pytest.fixture
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a pipe that nobody writes to, a socket, a device, and links to them and to nowhere."""
    folder = tmp_path / "no files"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # the path of a socket must be short
        listening.bind("socket")
        (folder / "device").symlink_to("/dev/zero")
        (folder / "nowhere").symlink_to("gone")
        yield folder


NO_FILES = {"pipe": "not a regular file", "socket": "not a regular file", "device": "not a regular file", "nowhere": "missing"}


@pytest.mark.parametrize(("medium", "suffix"), [(AUDIO, "wav"), (IMAGE, "png"), (VIDEO, "mp4")])
def test_links_to_what_is_no_file_are_unreadable(medium: Medium, suffix: str, no_files: Path, tmp_path: Path) -> None:
    folder = healthy(medium.name, tmp_path / "data")
    for name in NO_FILES:
        (folder / f"{name}.{suffix}").symlink_to(no_files / name)
    (folder / f"folder.{suffix}").mkdir()
    assert likely_medium([folder]) is medium
    assert pretrain(debug(medium.name), [folder], tmp_path / "run", device=torch.device("cpu")).finished
    assert quarantined(tmp_path / "run") == {f"{name}.{suffix}": reason for name, reason in NO_FILES.items()}


def test_pipes_and_sockets_themselves_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = healthy("audio", tmp_path / "data")
    os.mkfifo(folder / "pipe.wav")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)
        listening.bind("socket.wav")
        assert bad(read_manifest(folder)) == dict.fromkeys(["pipe.wav", "socket.wav"], "not a regular file")


def test_links_in_circles_are_unreadable(tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    (folder / "self.wav").symlink_to("self.wav")
    (folder / "one.wav").symlink_to("two.wav")
    (folder / "two.wav").symlink_to("one.wav")
    (folder / "up").symlink_to(".")
    (folder / "text.txt").symlink_to("text.txt")
    manifest = read_manifest(folder)
    assert len(manifest) == HEALTHY
    assert bad(manifest).keys() == {"self.wav", "one.wav", "two.wav"}


def bad(manifest: Manifest) -> dict[str, str]:
    return {file.key: file.reason for file in manifest.bad}


@pytest.mark.parametrize("name", ["shard.tar", "other.TAR"])
def test_a_shard_that_is_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    os.mkfifo(tmp_path / "pipe")
    (folder / name).symlink_to(tmp_path / "pipe")
    manifest = read_manifest(folder)
    assert len(manifest) == HEALTHY
    assert bad(manifest).keys() == {name}


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "shard.tar", "sound.wav"])
def test_a_source_that_is_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=name):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize("named", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_a_table_may_name_a_device(named: str, tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    (folder / "list.csv").write_text(f"path\n{named}\nhealthy-0.wav\n")
    manifest = read_manifest(folder / "list.csv")
    assert [entry.key for entry in manifest.entries] == ["healthy-0.wav"]
    assert bad(manifest).keys() == {named}


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    (folder / "healthy-3.wav").chmod(0)
    if os.access(folder / "healthy-3.wav", os.R_OK):
        pytest.skip("this user may read everything")
    assert bad(read_manifest(folder)) == {"healthy-3.wav": "cannot be read: Permission denied"}


def test_the_refusal_of_the_system_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test before, for a user who may read everything."""
    folder = healthy("audio", tmp_path / "data")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **how: object) -> object:
        if path.name == "healthy-3.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    assert bad(read_manifest(folder)) == {"healthy-3.wav": "cannot be read: Permission denied"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock of the decoders that goes by the work they do: a hundredth of a second each time that they look at it."""
    now = SimpleNamespace(seconds=0.0)

    def look() -> float:
        now.seconds += 0.01
        return float(now.seconds)

    monkeypatch.setattr("bridle.media.reading.time", SimpleNamespace(monotonic=look))
    return now


def hours_of_mp3(path: Path, hours: float) -> Path:
    """Frames of one size without an index: what lies before a crop has to be read."""
    options = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(str(path), "w", format="mp3", container_options=options) as container:
        track = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        track.bit_rate = 8000
        wave = 0.3 * np.sin(np.arange(60 * RATE) * 0.2).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux([*track.encode(frame), *track.encode(None)])
    minute = path.read_bytes()
    with path.open("wb") as file:
        for _ in range(round(60 * hours)):
            file.write(minute)
    return path


def test_a_clip_that_takes_too_long_is_set_aside_and_the_run_goes_on(clock: SimpleNamespace, tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    hours_of_mp3(folder / "hours.mp3", 10)
    manifest = read_manifest(folder)  # does not read it all
    assert max(entry.duration_seconds for entry in manifest.entries) > 9 * 3600
    assert clock.seconds < 600
    outcome = pretrain(debug("audio"), [folder], tmp_path / "run", device=torch.device("cpu"))
    assert outcome.finished and outcome.num_bad_files == 1
    assert quarantined(tmp_path / "run") == {"hours.mp3": SLOW}


def test_ten_hours_that_can_be_skipped_are_no_trouble(clock: SimpleNamespace, tmp_path: Path) -> None:
    folder = healthy("audio", tmp_path / "data")
    num_bytes = 10 * 3600 * RATE * 2
    with (folder / "hours.wav").open("wb") as file:
        file.write(wav_header(RATE, 1, num_bytes))
        file.truncate(44 + num_bytes)
    assert max(entry.duration_seconds for entry in read_manifest(folder).entries) == 36_000
    outcome = pretrain(debug("audio"), [folder], tmp_path / "run", device=torch.device("cpu"))
    assert outcome.finished and outcome.num_bad_files == 0
    assert clock.seconds < 60


def test_a_film_whose_clips_lie_far_behind_a_key_frame_is_set_aside(clock: SimpleNamespace, tmp_path: Path) -> None:
    folder = healthy("video", tmp_path / "data")
    film(folder / "one-key-frame.mkv", 4000, gop=100_000, options={"sc_threshold": "0"})
    outcome = pretrain(debug("video"), [folder], tmp_path / "run", device=torch.device("cpu"))
    assert outcome.finished and outcome.num_bad_files == 1
    assert quarantined(tmp_path / "run") == {"one-key-frame.mkv": SLOW}


def test_a_film_that_claims_to_last_for_days(clock: SimpleNamespace, tmp_path: Path) -> None:
    folder = healthy("video", tmp_path / "data")
    content = film_bytes(tmp_path, "mkv").replace(b"00:00:01.", b"99:00:01.")
    (folder / "days.mkv").write_bytes(content)
    manifest = read_manifest(folder, VIDEO)
    assert max(entry.duration_seconds for entry in manifest.entries) > 99 * 3600
    outcome = pretrain(debug("video"), [folder], tmp_path / "run", device=torch.device("cpu"))
    assert outcome.finished and outcome.num_bad_files == 0, "its frames are there, at its start"


def test_a_picture_that_is_drawn_again_and_again_is_set_aside(clock: SimpleNamespace, tmp_path: Path) -> None:
    folder = healthy("image", tmp_path / "data")
    stream = io.BytesIO()
    Image.new("L", (40, 30)).save(stream, "JPEG", progressive=True)
    whole = stream.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    (folder / "endless.jpg").write_bytes(whole[:-2] + scan * (1_000_000 // len(scan)) + b"\xff\xd9")
    outcome = pretrain(debug("image"), [folder], tmp_path / "run", device=torch.device("cpu"))
    assert outcome.finished and outcome.num_bad_files == 1
    assert quarantined(tmp_path / "run") == {"endless.jpg": SLOW}


@pytest.mark.parametrize("config", [AudioConfig, ImageConfig, VideoConfig])
def test_every_medium_has_the_limit(config: type[AudioConfig | ImageConfig | VideoConfig]) -> None:
    assert config().max_decode_seconds == 60
