"""Training clips that are mixtures of two sounds, against sums written out, and whose fault a broken file is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from bridle.data.audio import AudioConfig, AudioLoader
from bridle.data.dataset import ClipDataset
from bridle.data.manifest import Entry, Manifest
from bridle.data.mixtures import MixedSounds
from bridle.data.quarantine import BadFile
from bridle.errors import DecodeError
from bridle.media.audio import decode_audio
from bridle.media.augment import crop_start
from bridle.media.fbank import Fbank, FbankConfig
from bridle.mixing import MixConfig, draw_partners
from bridle.randomness import derive_seed, generator

FBANK = FbankConfig(num_mels=16)
PLAIN = AudioConfig(fbank=FBANK, crop_seconds=0.5, mean=-5.0, std=4.0, shift=False, gain=False)
SECONDS = (0.4, 0.5, 0.2, 1.4, 0.9)
ALWAYS = MixConfig(mixup=10.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Five sounds with an offset, shorter and longer than a crop."""
    folder = tmp_path_factory.mktemp("sounds")
    draws = np.random.default_rng(0)
    for i, seconds in enumerate(SECONDS):
        sound = 0.05 * (i + 1) * draws.standard_normal(round(16000 * seconds)) + 0.1
        soundfile.write(folder / f"{i}.wav", sound.astype(np.float32), 16000, subtype="FLOAT")
    entries = [
        Entry(f"{i}.wav", str(folder / f"{i}.wav"), duration_seconds=seconds, found=True) for i, seconds in enumerate(SECONDS)
    ]
    return Manifest(tuple(entries))


def samples(entry: Entry, draws: torch.Generator) -> Tensor:
    """A crop of 8000 samples at a multiple of the hop, without its mean."""
    whole = decode_audio(entry.path).samples
    frames = (len(whole) - 400) // 160 + 1
    start = crop_start(frames, 48, draws) * 160
    crop = whole[start : start + 8000]
    return crop - crop.mean()


def naive_mixture(entry: Entry, other: Entry, weight: float, draws: torch.Generator) -> Tensor:
    first, second = samples(entry, draws), samples(other, draws)
    mixed = weight * first
    for i in range(min(len(first), len(second))):
        mixed[i] += (1 - weight) * second[i]
    return (Fbank(FBANK)(mixed) + 5.0) / 8.0


@pytest.mark.parametrize(("one", "two"), [(0, 1), (0, 2), (2, 3), (3, 4), (1, 1)])
def test_a_mixture_is_the_log_mel_of_the_weighted_sum(manifest: Manifest, one: int, two: int) -> None:
    loader = AudioLoader(PLAIN)
    entry, other = manifest.entries[one], manifest.entries[two]
    clip = loader.load_mixture(entry, other, 0.7, generator(5))
    assert clip.inputs.shape[1] == loader.length(entry)  # a mixture is as long as its clip
    expected = naive_mixture(entry, other, 0.7, generator(5))
    torch.testing.assert_close(clip.inputs[0, :, :, 0], expected, atol=1e-4, rtol=1e-4)


def test_augmentation_comes_on_top(manifest: Manifest) -> None:
    entry, other = manifest.entries[3:5]
    plain = AudioLoader(PLAIN).load_mixture(entry, other, 0.7, generator(5)).inputs
    moved = AudioLoader(replace(PLAIN, shift=True)).load_mixture(entry, other, 0.7, generator(5)).inputs
    shift = next(s for s in range(plain.shape[1]) if torch.equal(torch.roll(plain, s, 1), moved))
    assert shift > 0
    louder = AudioLoader(replace(PLAIN, gain=True)).load_mixture(entry, other, 0.7, generator(5)).inputs
    assert float((louder - plain).std()) < 1e-5 < abs(float((louder - plain).mean()))


def test_some_clips_are_mixtures_as_the_objective_will_be_told(manifest: Manifest) -> None:
    config = replace(ALWAYS, ratio=0.5)
    mixed = MixedSounds(manifest, AudioLoader(PLAIN), 3, config)
    plain = ClipDataset(manifest, AudioLoader(PLAIN), 3)
    kinds = set()
    for epoch in range(2):
        for row in range(12):  # beyond the last row: another draw of a clip
            found, alone = mixed[epoch, row], plain[epoch, row]
            assert not isinstance(found, BadFile) and not isinstance(alone, BadFile)
            assert (found.seed, found.index, found.length) == (alone.seed, alone.index, alone.length)
            assert found.seed == derive_seed(3, "sample", epoch, row)
            partners, weights = draw_partners(torch.tensor([found.seed]), 5, config)
            kinds.add(weight := float(weights) < 1)
            expected = alone.inputs
            if weight:
                entry, other = manifest.entries[row % 5], manifest.entries[int(partners)]
                draws = torch.Generator().manual_seed(found.seed)
                expected = AudioLoader(PLAIN).load_mixture(entry, other, float(weights), draws).inputs
            assert torch.equal(found.inputs, expected)
    assert kinds == {True, False}


def test_a_mixture_is_a_pure_function_of_epoch_and_row(manifest: Manifest) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (MixedSounds(manifest, AudioLoader(PLAIN), 3, ALWAYS) for _ in range(2))
    backwards = {key: two[key] for key in [(e, r) for e in (1, 0) for r in (4, 3, 2, 1, 0)]}
    for key, sample in backwards.items():
        assert torch.equal(one[key].inputs, sample.inputs)  # type: ignore[union-attr]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fault", ["broken", "tar"])
def test_a_broken_partner_is_named_and_not_the_clip(manifest: Manifest, tmp_path: Path, fault: str) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    bad = Entry("bad.wav", str(tmp_path / "broken.wav"), duration_seconds=0.5)
    if fault == "tar":  # the tar it lies in is gone
        bad = Entry("bad.wav", str(tmp_path / "gone.tar"), offset=512, size=100, duration_seconds=0.5)
    with pytest.raises(DecodeError) as error:
        AudioLoader(PLAIN).load_mixture(manifest.entries[0], bad, 0.5, generator(0))
    assert error.value.key == "bad.wav"
    dataset = MixedSounds(Manifest((manifest.entries[0], bad)), AudioLoader(PLAIN), 0, ALWAYS)
    found = [dataset[epoch, 0] for epoch in range(12)]
    faults = [each for each in found if isinstance(each, BadFile)]
    assert 0 < len(faults) < 12
    assert {each.key for each in faults} == {"bad.wav"}
