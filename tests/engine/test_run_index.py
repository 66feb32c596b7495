"""A run keeps the list of its files: it goes on with them, whatever was added to the folder since."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.faults import state

from bridle import settings
from bridle.data.index import read_index
from bridle.errors import RunError
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig, RunFolder

CPU = torch.device("cpu")


def debug(phases: str) -> RunConfig:
    config = dataclasses.replace(recipe("audio-debug"), phases=phases)
    train = dataclasses.replace(config.train, batch_size=4, checkpoint_every_steps=3, precision="fp32")
    return dataclasses.replace(config, train=train)


LONG, SHORT = debug("cold:6steps, tokenizer:3steps"), debug("cold:6steps")


def test_a_resumed_run_lists_nothing_and_takes_no_notice_of_what_was_added(
    tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = shutil.copytree(tone_folder, tmp_path / "sounds")
    pretrain(LONG, [sounds], tmp_path / "whole", device=CPU)
    pretrain(SHORT, [sounds], tmp_path / "run", device=CPU)
    kept = read_index(RunFolder(tmp_path / "run").index)
    assert len(kept.manifest) == 8 and kept.about == {"sources": [str(sounds)]}
    shutil.copyfile(sounds / "tone-0.wav", sounds / "added.wav")
    monkeypatch.setattr(settings, "read_manifest", lambda *_: pytest.fail("listed the files again"))
    monkeypatch.chdir(tmp_path)
    assert pretrain(LONG, "sounds", tmp_path / "run", resume=True, device=CPU).finished
    ours, theirs = state(tmp_path / "run"), state(tmp_path / "whole")
    assert all(torch.equal(value, ours[0][name]) for name, value in theirs[0].items())


def test_a_run_that_began_with_a_relative_path_goes_on_from_anywhere(
    tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = shutil.copytree(tone_folder, tmp_path / "here" / "sounds")
    monkeypatch.chdir(tmp_path / "here")
    pretrain(SHORT, ["sounds"], tmp_path / "run", device=CPU)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    outcome = pretrain(LONG, [sounds], tmp_path / "run", resume=True, device=CPU)
    assert outcome.finished and outcome.num_bad_files == 0
    assert {Path(entry.path).parent for entry in read_index(RunFolder(tmp_path / "run").index).manifest.entries} == {sounds}


def test_a_refused_call_leaves_the_list_as_it_was(tone_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(SHORT, [tone_folder], run.path, device=CPU)
    run.index.unlink()
    other = shutil.copytree(tone_folder, tmp_path / "other")
    (other / "tone-7.wav").unlink()
    with pytest.raises(RunError, match="data are not those of the run"):
        pretrain(LONG, [other], run.path, resume=True, device=CPU)
    assert not run.index.exists()


def test_files_are_listed_anew_where_the_list_does_not_tell(tone_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(SHORT, [tone_folder], run.path, device=CPU)
    moved = shutil.copytree(tone_folder, tmp_path / "moved")
    assert pretrain(LONG, [moved], run.path, resume=True, device=CPU).finished  # the same files elsewhere
    assert read_index(run.index).about == {"sources": [str(moved)]}
    fewer = shutil.copytree(tone_folder, tmp_path / "fewer")
    (fewer / "tone-7.wav").unlink()
    with pytest.raises(RunError, match="data are not those of the run"):
        pretrain(LONG, [fewer], run.path, resume=True, device=CPU)
    content = bytearray(run.index.read_bytes())
    content[len(content) // 2] ^= 255
    run.index.write_bytes(content)
    assert pretrain(LONG, [tone_folder], run.path, resume=True, device=CPU).finished
    run.index.unlink()
    assert pretrain(LONG, [tone_folder], run.path, resume=True, device=CPU).finished
    assert len(read_index(run.index).manifest) == 8


def test_a_run_without_a_step_takes_its_files_as_they_are_now(tone_folder: Path, tmp_path: Path) -> None:
    sounds, run = shutil.copytree(tone_folder, tmp_path / "sounds"), RunFolder(tmp_path / "run")
    with pytest.raises(SystemExit):
        pretrain(SHORT, [sounds], run.path, device=CPU, reporter=dying())
    assert len(read_index(run.index).manifest) == 8
    (sounds / "tone-7.wav").unlink()
    assert pretrain(SHORT, [sounds], run.path, resume=True, device=CPU).finished
    assert len(read_index(run.index).manifest) == 7


def dying() -> Any:
    from reference.faults import After, die

    return After(1, die)
