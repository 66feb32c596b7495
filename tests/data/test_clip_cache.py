"""Decoded clips kept in a folder: the same numbers, decoded once by all who name it, and never those of another file."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bridle.config import told
from bridle.data.audio import AudioConfig, AudioLoader
from bridle.data.cache import ClipCache
from bridle.data.dataset import LoadedClip
from bridle.data.loaders import content_settings
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.errors import ConfigError
from bridle.media.fbank import FbankConfig

PLAIN = AudioConfig(mean=-5.0, std=4.0, crop_seconds=5.0, shift=False, gain=False, cache_gigabytes=0.0)


@pytest.fixture
def sounds(tone_folder: Path, tmp_path: Path) -> Manifest:
    return read_manifest(shutil.copytree(tone_folder, tmp_path / "sounds"))


def load_all(config: AudioConfig, manifest: Manifest) -> list[torch.Tensor]:
    loader = AudioLoader(config)
    return [loader.load(entry, torch.Generator().manual_seed(i)).inputs for i, entry in enumerate(manifest.entries)]


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded: list[str] = []
    samples = AudioLoader._samples

    def counted(self: AudioLoader, entry: Entry, start: int) -> torch.Tensor:
        decoded.append(entry.key)
        return samples(self, entry, start)

    monkeypatch.setattr(AudioLoader, "_samples", counted)
    return decoded


def test_a_second_run_decodes_nothing_and_gets_the_same_numbers(
    sounds: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PLAIN, cache_folder=str(tmp_path / "new" / "cache"))
    expected = load_all(PLAIN, sounds)
    decoded = count_decoding(monkeypatch)
    for times in (8, 8):
        assert all(map(torch.equal, load_all(config, sounds), expected))
        assert len(decoded) == times
    other = replace(config, mean=0.0, std=1.0, gain=True)  # what comes behind decoding shares the files
    assert not torch.equal(load_all(other, sounds)[0], expected[0]) and len(decoded) == 8


def test_other_settings_and_changed_files_find_nothing(
    sounds: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PLAIN, cache_folder=str(tmp_path / "cache"))
    load_all(config, sounds)
    decoded = count_decoding(monkeypatch)
    bands = replace(config, fbank=FbankConfig(num_mels=64))
    assert load_all(bands, sounds)[0].shape[2] == 64 and len(decoded) == 8
    load_all(replace(config, crop_seconds=6.0), sounds)
    assert len(decoded) == 16
    first, second = (Path(entry.path) for entry in sounds.entries[:2])
    shutil.copyfile(second, first)  # another sound under the old name
    found = load_all(config, sounds)
    assert decoded[16:] == [sounds.entries[0].key]
    assert torch.equal(found[0], load_all(PLAIN, sounds)[0])
    os.utime(second, (1, 1))
    load_all(config, sounds)
    assert len(decoded) == 16 + 1 + 8 + 1


def test_damaged_files_are_made_anew(sounds: Manifest, tmp_path: Path) -> None:
    config = replace(PLAIN, cache_folder=str(tmp_path / "cache"))
    expected = load_all(config, sounds)
    kept = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(kept) == 8
    whole = [path.read_bytes() for path in kept]
    flipped = bytearray(whole[6])
    flipped[-1000] ^= 1
    broken = (b"", b"\0" * 100, whole[2][:-4], whole[3] + b"x", b"\x80\x04.", b"\xff" * 8, bytes(flipped), b"{}")
    for path, content in zip(kept, broken, strict=True):
        path.write_bytes(content)
    assert all(map(torch.equal, load_all(config, sounds), expected))
    assert [path.stat().st_size for path in kept] == list(map(len, whole)), "they are whole again"


def test_a_folder_that_cannot_be_written_is_refused_or_given_up(
    sounds: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write decoded clips"):
        AudioLoader(replace(PLAIN, cache_folder=str(tmp_path / "file" / "cache")))
    config = replace(PLAIN, cache_folder=str(tmp_path / "cache"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bridle.data.cache.write_atomically", full)
    assert all(map(torch.equal, load_all(config, sounds), load_all(PLAIN, sounds)))
    assert sum("No space left" in record.message for record in caplog.records) == 1


@examples(max_examples=30)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
    st.floats(0, 1e6),
    st.floats(1e-3, 1e3),
)
def test_what_is_kept_comes_back_bit_for_bit(values: list[float], start: float, aspect: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        clip = LoadedClip(torch.tensor(values).reshape(1, -1, 1, 1), start, aspect)
        entry = Entry("a", "/nowhere/a.wav")
        ClipCache(0.0, folder).get(entry, lambda: clip)
        found = pickle.loads(pickle.dumps(ClipCache(0.0, folder))).get(entry, pytest.fail)
        assert torch.equal(found.inputs, clip.inputs) and (found.start_seconds, found.aspect) == (start, aspect)


def test_the_folder_is_no_part_of_what_a_model_is() -> None:
    named = replace(PLAIN, cache_folder="/somewhere")
    assert content_settings(named) == content_settings(PLAIN) and "cache_folder" not in told(PLAIN)
