"""Labels that are taken once: the same as those of every step, exact to resume, and never those of something else."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.faults import After, die, state
from reference.processes import run_tasks, task

from bridle.data.image import ImageConfig, ImageLoader
from bridle.data.manifest import Entry
from bridle.data.video import VideoConfig, VideoLoader
from bridle.engine.labelling import FILE_NAME
from bridle.grid import Subset
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.objectives.label_store import LabelStore
from bridle.objectives.masked import MaskedCodes
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig
from bridle.train.weights import read_weights

CPU = torch.device("cpu")


def debug(crop_seconds: float = 2.0, phases: str = "cold:9steps, tokenizer:3steps, encoder:9steps", **train: Any) -> RunConfig:
    config = dataclasses.replace(recipe("audio-debug"), phases=phases)
    assert config.audio is not None
    audio = dataclasses.replace(config.audio, shift=False, gain=False, crop_seconds=crop_seconds)
    settings = {"batch_size": 4, "checkpoint_every_steps": 5, "log_every_steps": 1, "precision": "fp32", **train}
    return dataclasses.replace(config, audio=audio, train=dataclasses.replace(config.train, **settings))


def train(folder: Path, run: Path, config: RunConfig, **settings: Any) -> bool:
    return pretrain(config, [folder], run, device=CPU, **settings).finished


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokenizers' looks at clips: "all" places of them, or "some"."""
    seen: list[str] = []

    def count(kind: type, name: str, what: str) -> None:
        method = getattr(kind, name)

        def counted(self: Any, *arguments: Any) -> Any:
            seen.append(what)
            return method(self, *arguments)

        monkeypatch.setattr(kind, name, counted)

    for kind in (RandomTokenizer, Tokenizer):
        count(kind, "vectors", "all")
        count(kind, "vectors_at", "some")
    return seen


def test_codes_by_row_are_those_that_were_put() -> None:
    generator = torch.Generator().manual_seed(0)
    store = LabelStore(num_rows=6, num_patches=12, num_codebooks=3, codebook_size=40_000)
    codes = torch.randint(40_000, (4, 8, 3), generator=generator)
    store.put(torch.tensor([5, 0, 2, 3]), codes)
    assert store.has(torch.tensor([0, 3, 5])) and not store.has(torch.tensor([0, 1])) and store.has(torch.tensor([]).long())
    places = torch.randint(8, (4, 5), generator=generator)
    found = store.at(torch.tensor([2, 5]), Subset(places, None))
    expected = torch.stack([codes[clip][places[view]] for view, clip in enumerate((2, 2, 0, 0))])
    assert torch.equal(found, expected) and found.dtype == torch.int64
    assert store.codes.dtype == torch.int32 and LabelStore(1, 1, 1, 1 << 15).codes.dtype == torch.int16
    assert LabelStore.num_bytes(6, 12, 3, 40_000) == sum(t.numel() * t.element_size() for t in (store.codes, store.known))
    assert store.at(torch.tensor([]).long(), Subset(torch.zeros(0, 5).long(), None)).shape == (0, 5, 3)


def test_the_tokenizer_looks_once_and_the_run_is_the_same(tone_folder: Path, tmp_path: Path, looks: list[str]) -> None:
    assert train(tone_folder, tmp_path / "each time", debug(3.0, label_cache_gigabytes=0.0))
    assert looks.count("some") == 18
    looks.clear()
    assert train(tone_folder, tmp_path / "once", debug(3.0))
    assert looks.count("some") == 0
    ours, theirs = state(tmp_path / "once"), state(tmp_path / "each time")
    for mine, other in zip(ours[3], theirs[3], strict=True):
        for name in (name for name in mine if name.startswith("code/")):
            assert mine[name] == pytest.approx(other[name], abs=2e-3), "but for codes at the border of two entries"
    for name, value in theirs[0].items():
        torch.testing.assert_close(ours[0][name].float(), value.float(), atol=2e-3, rtol=2e-2, msg=name)


def test_long_files_have_new_labels_at_every_crop(tone_folder: Path, tmp_path: Path, looks: list[str]) -> None:
    """Seven files fill a crop of 1.9 s at most, one is cut."""
    assert train(tone_folder, tmp_path / "run", debug(1.9, phases="cold:12steps"))
    _, header = read_weights(tmp_path / "run" / FILE_NAME)
    known = read_weights(tmp_path / "run" / FILE_NAME)[0]["known"]
    assert known.tolist() == [True] * 6 + [False] * 2 and header["fingerprint"]
    assert 0 < looks.count("some") < 12


@pytest.mark.parametrize("change", ["shift", "gain", "one epoch", "no memory"])
def test_without_gain_there_is_no_store(change: str, tone_folder: Path, tmp_path: Path) -> None:
    config = debug(3.0, phases="cold:2steps" if change == "one epoch" else "cold:9steps")
    assert config.audio is not None
    if change in ("shift", "gain"):
        config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, **{change: True}))
    if change == "no memory":
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, label_cache_gigabytes=1e-6))
    assert train(tone_folder, tmp_path / "run", config)
    assert not (tmp_path / "run" / FILE_NAME).exists()


@pytest.mark.parametrize("kept", ["kept", "gone", "damaged", "of another tokenizer"])
def test_a_resumed_run_has_the_same_labels(kept: str, tone_folder: Path, tmp_path: Path, looks: list[str]) -> None:
    config, run = debug(3.0), tmp_path / "run"
    assert train(tone_folder, tmp_path / "whole", config)
    with pytest.raises(SystemExit):
        train(tone_folder, run, config, reporter=After(17, die))
    labels = run / FILE_NAME
    if kept == "gone":
        labels.unlink()
    elif kept == "damaged":
        os.truncate(labels, labels.stat().st_size - 7)
    elif kept == "of another tokenizer":
        other = debug(3.0, phases="cold:9steps")
        train(
            tone_folder,
            tmp_path / "other",
            dataclasses.replace(other, cold_start=dataclasses.replace(other.cold_start, seed=9)),
        )
        shutil.copyfile(tmp_path / "other" / FILE_NAME, labels)
    looks.clear()
    assert train(tone_folder, run, config, resume=True)
    assert looks == [] if kept == "kept" else set(looks) == {"all"}
    ours, theirs = state(run), state(tmp_path / "whole")
    assert all(torch.equal(value, ours[0][name]) for name, value in theirs[0].items())
    assert ours[3] == theirs[3]


@pytest.mark.slow
def test_two_processes_share_the_labels(tone_folder: Path, tmp_path: Path) -> None:
    config = debug(3.0, phases="cold:9steps")
    assert train(tone_folder, tmp_path / "one", config)
    run_tasks(2, tmp_path / "job", [task(config, tone_folder, tmp_path / "two")])
    one, two = (read_weights(tmp_path / name / FILE_NAME)[0] for name in ("one", "two"))
    assert one["known"].all() and two["known"].all()
    assert (one["codes"] == two["codes"]).float().mean() > 0.999, "but for rounding: the batches are others"
    for mine, other in zip(state(tmp_path / "two")[3], state(tmp_path / "one")[3], strict=True):
        for name in (name for name in mine if name.startswith("code/")):
            assert mine[name] == pytest.approx(other[name], abs=5e-3)


def test_pictures_and_films_are_fixed_when_nothing_is_cropped_or_turned() -> None:
    plain = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False}
    picture, film = Entry("a", "/a.png"), Entry("a", "/a.mp4", duration_seconds=0.5, rate_hz=16.0)
    image = ImageConfig(mean=(0.0,) * 3, std=(1.0,) * 3, **plain)
    assert ImageLoader(image).is_fixed(picture, 1.0) and not ImageLoader(image).is_fixed(picture, 1.5)
    for change in ({"flip": True}, {"scale": (0.5, 1.0)}, {"ratio": (1.0, 2.0)}, {"rand_augment": 1.0}, {"erase": 0.5}):
        assert not ImageLoader(dataclasses.replace(image, **change)).is_fixed(picture, 1.0)
    video = VideoConfig(mean=(0.0,) * 3, std=(1.0,) * 3, num_frames=8, stride=1, **plain)
    assert VideoLoader(video).is_fixed(film, 1.0) and not VideoLoader(video).is_fixed(film, 2.0)
    assert not VideoLoader(video).is_fixed(dataclasses.replace(film, duration_seconds=0.7), 1.0)
    assert not VideoLoader(video).is_fixed(dataclasses.replace(film, duration_seconds=0.0), 1.0)


def test_an_objective_without_labels_asks_its_tokenizer() -> None:
    from reference.batches import Parts, batch

    from bridle.masking import MaskConfig

    objective = Parts().masked_codes(MaskConfig(mask_ratio=0.75, num_masks=2))
    assert isinstance(objective, MaskedCodes) and objective.labels is None
    data = batch(16, 16, 12, seed=0)
    plain = objective(data, 0).losses
    view_codes = objective.tokenizer.quantizer.encode
    from bridle.objectives.view import whole_view

    view = whole_view(data, objective.encoder.config.patch)
    codes = view_codes(objective.tokenizer.vectors(view.patches, view.every))
    quantizer = objective.tokenizer.quantizer.config
    objective.labels = LabelStore(100, codes.shape[1], quantizer.num_codebooks, quantizer.codebook_size)
    objective.labels.put(data.indices, codes)
    for name, value in objective(data, 0).losses.items():
        torch.testing.assert_close(value, plain[name])
