"""Fine-tuning as a whole, for every medium: exact resume, the choice of the epoch, folds, two processes equal to one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.faults import After, die, state
from reference.media_folders import write_folder
from reference.untrained_runs import small_config, write_run

import bridle
from bridle.config import to_dict
from bridle.data.columns import Columns
from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import MEDIA
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError, RunError, TooManyBadFiles
from bridle.finetuning.folds import finetune_folds
from bridle.finetuning.parts import Part, PartConfig, part_clips
from bridle.finetuning.run import Finetuned, finetune, finetuned_config
from bridle.finetuning.tested import read_tested
from bridle.objectives.supervised import FinetuneConfig
from bridle.run import RunConfig, RunFolder
from bridle.train.reporter import Silent
from bridle.train.weights import read_weights

CPU = torch.device("cpu")
STEPS = 7
HARD: dict[str, dict[str, Any]] = {
    "audio": {"mask_frames": 20, "mask_mels": 20},
    "image": {"rand_augment": 9.0, "erase": 0.5},
    "video": {"rand_augment": 9.0, "erase": 0.5},
}
"""What makes training random in every way there is."""


@pytest.fixture(scope="module", params=list(MEDIA))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("source") / kind, small_config(kind))


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(kind, tmp_path_factory.mktemp(kind), num_files=12)


def clips(folder: Path, kind: str) -> tuple[Manifest, Part]:
    manifest, (part,) = part_clips(
        read_manifest(folder, MEDIA[kind]), PartConfig(Columns("class"), test_ratio=0.25, validation_ratio=0.25)
    )
    return manifest, part


def config_of(source: Path, **changes: Any) -> RunConfig:
    config = RunFolder(source).read_config()
    pixels = {} if config.audio else {"cutmix": 1.0}
    settings = dataclasses.replace(FinetuneConfig(label="class", mixup=0.4, mix_ratio=0.7, pooling="time", **pixels), **changes)
    config = finetuned_config(config, settings, f"supervised:{STEPS}steps", "test")
    train = dataclasses.replace(config.train, batch_size=4, checkpoint_every_steps=2, log_every_steps=1, precision="fp32")
    hard = dataclasses.replace(config.clips, **HARD[config.medium.name])
    return dataclasses.replace(config, train=train).with_clips(hard)


@pytest.fixture(scope="module")
def whole(kind: str, source: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finetuned]:
    """A finished run with validation and test clips."""
    run = tmp_path_factory.mktemp("runs") / kind
    return run, finetune(config_of(source), source, *clips(folder, kind), run, device=CPU)


def test_a_finished_run_is_scored_on_its_test_clips_and_predicts(
    kind: str, folder: Path, whole: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    run, done = whole
    manifest, part = clips(folder, kind)
    assert done.outcome.finished and done.test is not None and done.test.metrics is not None
    assert done.test.metrics.num_clips == len(part.test)
    tested = read_tested(run)
    assert tested is not None and tested.measured == done.test and tested.step == done.step
    assert (tested.num_train, tested.num_validation) == (
        len(clips(folder, kind)[1].train),
        len(clips(folder, kind)[1].validation),
    )
    model = bridle.load(run, "cpu")
    for row, clip in zip(part.test, done.test.clips, strict=True):
        entry = manifest.entries[row]
        found = model.predict(entry.path)
        assert (clip.key, clip.predicted) == (entry.key, found.labels)
        assert clip.probability == pytest.approx(float(found.probabilities.max()), abs=1e-5)
        assert float(found.probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    right = [clip.labels == clip.predicted for clip in done.test.clips]
    assert done.test.metrics.accuracy == pytest.approx(sum(right) / len(right))
    assert model.embed(manifest.entries[0].path).shape == (model.width,)
    with pytest.raises(RunError, match="no fitted tokenizer"):
        model.tokenize(manifest.entries[0].path)


@pytest.mark.parametrize("killed_after", [1, 3, 6])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    killed_after: int, kind: str, source: Path, folder: Path, whole: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        finetune(config_of(source), source, *clips(folder, kind), run, reporter=After(killed_after, die), device=CPU)
    again = finetune(config_of(source), source, *clips(folder, kind), run, resume=True, device=CPU)
    assert again == whole[1]
    got, expected = state(run), state(whole[0])
    for mine, other in zip(got[:2], expected[:2], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert got[2:] == expected[2:]
    ours, theirs = (read_weights(each / "chosen.safetensors") for each in (run, whole[0]))
    assert ours[1] == theirs[1] and all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())


def test_the_weights_of_the_best_validation_score_are_loaded(whole: tuple[Path, Finetuned]) -> None:
    run, done = whole
    looks = [line for line in state(run)[3] if "validation/accuracy" in line]
    best = max(line["validation/accuracy"] for line in looks)
    assert done.step == next(line["step"] for line in looks if line["validation/accuracy"] == best)
    weights, header = read_weights(run / "chosen.safetensors")
    assert header["step"] == str(done.step)
    loaded = bridle.load(run, "cpu")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.networks.state_dict().items())
    assert header["fingerprint"] == loaded.fingerprint


def test_looking_at_validation_clips_changes_no_weight(
    kind: str, source: Path, folder: Path, whole: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    manifest, part = clips(folder, kind)
    blind = dataclasses.replace(part, validation=())
    done = finetune(config_of(source), source, manifest, blind, tmp_path / "run", device=CPU)
    assert done.step == STEPS and not (tmp_path / "run" / "chosen.safetensors").exists()
    ours, theirs = state(tmp_path / "run")[0], state(whole[0])[0]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_encoder_begins_with_the_weights_of_its_source_or_with_new_ones(
    kind: str, source: Path, folder: Path, tmp_path: Path
) -> None:
    manifest, part = clips(folder, kind)
    still = dataclasses.replace(
        config_of(source).finetune or FinetuneConfig(), optim=dataclasses.replace(FinetuneConfig().optim, lr=0.0)
    )
    config = dataclasses.replace(config_of(source), finetune=still, phases="supervised:1steps")
    theirs = bridle.load(source, "cpu").networks.encoder.state_dict()
    for start, same in ((source, True), (None, False)):
        run = tmp_path / str(same)
        finetune(config, start, manifest, part, run, device=CPU)
        ours = bridle.load(run, "cpu").networks.encoder.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()) == same


def test_a_signal_stops_with_a_checkpoint_and_no_score(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    stop = After(2, lambda: signal.raise_signal(signal.SIGTERM))
    done = finetune(config_of(source), source, *clips(folder, kind), tmp_path / "run", reporter=stop, device=CPU)
    assert (done.outcome.finished, done.test, done.outcome.stop_signal) == (False, None, signal.SIGTERM)
    assert state(tmp_path / "run")[2]["phase_step"] == 2


AUDIO_ONLY = pytest.mark.parametrize("kind", ["audio"], indirect=True)


@AUDIO_ONLY
def test_other_labels_are_refused_when_a_run_is_resumed(
    kind: str, source: Path, folder: Path, whole: tuple[Path, Finetuned]
) -> None:
    manifest, part = clips(folder, kind)
    turned = Manifest(manifest.entries, {"class": ["b" if cell == "a" else "a" for cell in manifest.columns["class"]]})
    with pytest.raises(RunError, match="data are not those"):
        finetune(config_of(source), source, turned, part, whole[0], resume=True, device=CPU)
    moved = dataclasses.replace(part, validation=part.test, test=part.validation)
    with pytest.raises(RunError, match=r"other clips, labels or parts.*same MANIFEST and splits"):
        finetune(config_of(source), source, manifest, moved, whole[0], resume=True, device=CPU)
    with pytest.raises(RunError, match="already holds a run"):
        finetune(config_of(source), source, manifest, part, whole[0], device=CPU)


@AUDIO_ONLY
def test_several_labels_are_learnt_by_binary_cross_entropy_and_scored_by_average_precision(
    kind: str, source: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(folder, MEDIA[kind])
    cells = [("x, y" if row % 3 == 0 else "y") if row % 4 else "z" for row in range(len(manifest))]
    manifest = Manifest(manifest.entries, {"tags": cells})
    manifest, (part,) = part_clips(manifest, PartConfig(Columns("tags"), test_ratio=0.5))
    config = config_of(
        source, label="tags", multi_label=True, sampling="balanced", clips_per_epoch=10, class_weights="balanced"
    )
    done = finetune(config, source, manifest, part, tmp_path / "run", device=CPU)
    assert done.test is not None and done.test.tags is not None and done.test.metrics is None
    assert done.test.classes == ("x", "y", "z")
    assert {"class", "gradient_norm", "lr"} <= set(state(tmp_path / "run")[3][0])
    found = bridle.load(tmp_path / "run", "cpu").predict(manifest.entries[0].path)
    assert found.multi_label and set(found.labels) == {name for name, chance in found.top(3) if chance >= 0.5}


@AUDIO_ONLY
def test_clips_of_no_class_are_learnt_as_such_and_drawn_like_those_of_the_largest(
    kind: str, source: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(folder, MEDIA[kind])
    cells = ["x" if row % 3 == 0 else "y" if row % 3 == 1 else "" for row in range(len(manifest))]
    choice = PartConfig(Columns("tags"), test_ratio=0.5, separator=",", untagged="negative")
    manifest, (part,) = part_clips(Manifest(manifest.entries, {"tags": cells}), choice)
    config = config_of(source, label="tags", multi_label=True, sampling="balanced", clips_per_epoch=10)
    told: list[str] = []
    reporter = Silent()
    reporter.message = told.append  # type: ignore[method-assign]
    done = finetune(config, source, manifest, part, tmp_path / "run", device=CPU, reporter=reporter)
    assert done.test is not None and () in {clip.labels for clip in done.test.clips}
    assert not any("fine-tuned with labels already" in text for text in told)
    finetune(config, tmp_path / "run", manifest, part, tmp_path / "again", device=CPU, reporter=reporter)
    assert any("fine-tuned with labels already" in text for text in told)
    again = read_tested(tmp_path / "again")
    assert again is not None and any("fine-tuned with labels already" in note for note in again.notes)
    first = read_tested(tmp_path / "run")
    assert again.taught_before and first is not None and not first.taught_before


@AUDIO_ONLY
def test_too_many_unreadable_files_stop_it_at_once(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    manifest, part = clips(folder, kind)
    torn = dataclasses.replace(manifest, bad=tuple(BadFile(f"{number}.wav", "missing") for number in range(20)))
    with pytest.raises(TooManyBadFiles, match=r"20 of 32 files are unreadable \(limit 1\).*raise train.max_bad_fraction"):
        finetune(config_of(source), source, torn, part, tmp_path / "run", device=CPU)
    config = config_of(source)
    allowed = dataclasses.replace(config, train=dataclasses.replace(config.train, max_bad_fraction=0.9))
    assert finetune(allowed, source, torn, part, tmp_path / "run", device=CPU).outcome.num_bad_files == 0


@AUDIO_ONLY
def test_names_that_are_no_utf8_are_kept(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in sorted(copy.rglob("*.wav")):
        path.rename(path.with_name(os.fsdecode(b"\xe9") + path.name))
    run = tmp_path / "run"
    done = finetune(config_of(source), source, *clips(copy, kind), run, device=CPU)
    tested = read_tested(run)
    assert tested is not None and tested.measured == done.test
    assert all("\udce9" in clip.key for clip in tested.measured.clips)


@AUDIO_ONLY
def test_a_resumed_run_may_change_its_learning_rate_and_not_its_length(
    kind: str, source: Path, folder: Path, whole: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    config = config_of(source)
    assert config.finetune is not None
    other = dataclasses.replace(config.finetune, optim=dataclasses.replace(config.finetune.optim, lr=1e-5))
    slower = dataclasses.replace(config, finetune=other)
    assert finetune(slower, source, *clips(folder, kind), tmp_path / "run", resume=True, device=CPU).outcome.finished
    longer = dataclasses.replace(config, phases="supervised:1000steps")
    with pytest.raises(ConfigError, match=f"phases=supervised:{STEPS}steps, not supervised:1000steps.*the length stays"):
        finetune(longer, source, *clips(folder, kind), tmp_path / "run", resume=True, device=CPU)


@AUDIO_ONLY
def test_mixing_waveforms_is_resumed_bit_for_bit_too(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    config = config_of(source, mixup=10.0, mixup_domain="waveform", pooling="mean", patch_drop=(0.2, 0.2, 0.0))
    for run, reporter in (("whole", Silent()), ("run", After(3, die))):
        try:
            finetune(config, source, *clips(folder, kind), tmp_path / run, reporter=reporter, device=CPU)
        except SystemExit:
            finetune(config, source, *clips(folder, kind), tmp_path / run, resume=True, device=CPU)
    ours, theirs = state(tmp_path / "run"), state(tmp_path / "whole")
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())
    assert ours[3] == theirs[3]


@AUDIO_ONLY
def test_each_fold_has_a_run_of_its_own_and_their_scores_are_joined(
    kind: str, source: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(folder, MEDIA[kind])
    columns = {**manifest.columns, "fold": [str(row // 2 % 3) for row in range(len(manifest))]}
    manifest, parts = part_clips(Manifest(manifest.entries, columns), PartConfig(Columns("class", fold="fold")))
    assert [part.name for part in parts] == ["0", "1", "2"]
    done = finetune_folds(config_of(source), source, manifest, parts, tmp_path / "runs", device=CPU)
    joined = json.loads((tmp_path / "runs" / "evaluation.json").read_text())
    scores = [each.test.score for each in done if each.test is not None]
    assert [fold["score"] for fold in joined["folds"]] == scores
    assert joined["score"] == pytest.approx(sum(scores) / 3)
    assert sorted(path.name for path in (tmp_path / "runs").glob("fold-*")) == ["fold-0", "fold-1", "fold-2"]
    again = finetune_folds(config_of(source), source, manifest, parts, tmp_path / "runs", resume=True, device=CPU)
    assert again == done
    (one,) = part_clips(manifest, PartConfig(Columns("class", fold="fold"), fold="1"))[1]
    assert one == parts[1]


@AUDIO_ONLY
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutmix": 1.0}, "cutmix=1.0 is for pixels"),
        ({"patch_drop": (0.2, 0.0, 0.0)}, "needs pooling=mean"),
        ({"pooling": "grid motion"}, "frozen features"),
        ({"multi_label": True, "loss": "cross_entropy"}, "one class a clip"),
        ({"clips_per_epoch": 5}, "sampling=balanced"),
        ({"layer_decay": 0.0}, "layer_decay"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(source, **changes)


@AUDIO_ONLY
def test_bad_input_is_told_in_one_line(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    manifest, part = clips(folder, kind)
    one = Manifest(manifest.entries, {"class": ["a"] * len(manifest)})
    with pytest.raises(DataError, match="hold 1 class"):
        finetune(config_of(source), source, one, part, tmp_path / "one", device=CPU)
    other = write_run(tmp_path / "other", small_config("audio", width=48))
    with pytest.raises(RunError, match="is not the one of this run"):
        finetune(config_of(source), other, manifest, part, tmp_path / "two", device=CPU)
    with pytest.raises(RunError, match="no classifier; bridle finetune"):
        bridle.load(source, "cpu").predict(manifest.entries[0].path)
    with pytest.raises(ConfigError, match="supervised phase alone"):
        small_config("audio", phases="cold:1, supervised:1")


_JOB = """
import json, sys, torch
from pathlib import Path
from bridle import distributed
from bridle.config import from_dict
from bridle.data.columns import Columns
from bridle.data.manifest import read_manifest
from bridle.finetuning.parts import PartConfig, part_clips
from bridle.finetuning.run import finetune
from bridle.run import RunConfig
config = from_dict(RunConfig, json.loads(Path(sys.argv[1]).read_text()))
torch.set_num_threads(1)
with distributed.process_group():
    choice = PartConfig(Columns("class"), test_ratio=0.25, validation_ratio=0.25)
    manifest, (part,) = part_clips(read_manifest(sys.argv[2]), choice)
    finetune(config, sys.argv[3], manifest, part, Path(sys.argv[4]))
"""


@AUDIO_ONLY
def test_two_processes_equal_one(kind: str, source: Path, folder: Path, tmp_path: Path) -> None:
    """With everything that is random but the mixing of a batch, whose pairs are those of a process."""
    config = config_of(source, mixup=10.0, mixup_domain="waveform", class_weights="balanced", sampling="balanced")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "job.py").write_text(_JOB)
    arguments = [str(tmp_path / "job.py"), str(tmp_path / "config.json"), str(folder), str(source)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for command, run in ((torchrun, "two"), ([sys.executable], "one")):
        subprocess.run([*command, *arguments, str(tmp_path / run)], check=True, env=environment, timeout=300)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for ours, theirs in zip(one[3], two[3], strict=True):
        for key, value in ours.items():
            if isinstance(value, float):
                assert theirs[key] == pytest.approx(value, abs=1e-4, rel=1e-4), (ours["step"], key)
    for key, value in one[0].items():
        torch.testing.assert_close(two[0][key].float(), value.float(), atol=2e-4, rtol=1e-3, msg=key)
    tests = [read_tested(tmp_path / run) for run in ("one", "two")]
    assert tests[0] is not None and tests[1] is not None
    assert [clip.key for clip in tests[0].measured.clips] == [clip.key for clip in tests[1].measured.clips]
