"""What is in a run folder: finished, cut short, and damaged ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from bridle.config import from_dict, to_dict
from bridle.errors import RunError
from bridle.inference import load
from bridle.pretraining import pretrain
from bridle.recipes import recipe
from bridle.run import RunConfig, RunFolder
from bridle.summary import LevelHealth, resume_command, summarise
from bridle.train.metrics import read_metrics
from bridle.train.reporter import Silent


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


class Killed(Exception):
    pass


class KillAt(Silent):
    """Ends the process, as it were, in a phase after a number of its steps."""

    def __init__(self, phase, step):
        self.where, self.now = (phase, step), 0

    def phase(self, name, number, total, steps, done):
        self.now = number

    def step(self, done):
        if (self.now, done) == self.where:
            raise Killed


def killed_run(folder, run, phases, phase, step):
    config = replace(recipe("audio-debug"), phases=phases)
    with pytest.raises(Killed):
        pretrain(config, [folder], run, device=torch.device("cpu"), reporter=KillAt(phase, step))
    return run


def test_finished_run(tiny_run):
    summary = summarise(tiny_run)
    assert (summary.finished, summary.step, summary.fingerprint) == (True, 6, load(tiny_run, "cpu").fingerprint)
    assert [(p.name, p.length, p.steps_done, p.steps_total, p.last_logged_step) for p in summary.phases] == [
        ("1-cold", "2 steps", 2, 2, 2),
        ("2-tokenizer", "2 steps", 2, 2, 2),
        ("3-encoder", "2 steps", 2, 2, 2),
    ]
    last = read_metrics(tiny_run)[-1]
    assert summary.phases[2].values == {name: value for name, value in last.items() if name not in ("step", "phase")}
    assert summary.checkpoints == ("step-00000004", "step-00000006")
    assert summary.num_quarantined == 0


def test_health_is_that_of_the_trained_tokenizer(tiny_run):
    summary = summarise(tiny_run)
    quantizer = load(tiny_run, "cpu").networks.tokenizer.quantizer.metrics()
    logged = next(line for line in reversed(read_metrics(tiny_run)) if line["phase"] == "2-tokenizer")
    assert summary.tokenizer == "tokenizer"
    for level, health in enumerate(summary.levels):
        assert health.in_use == pytest.approx(float(quantizer[f"in_use/{level}"]))
        assert health.perplexity == pytest.approx(float(quantizer[f"perplexity/{level}"]))
        assert health.residual == logged[f"residual/{level}"]
    assert len(summary.levels) == 2


def test_alarm():
    assert LevelHealth(0.1, 0.0999, 0.5).alarm
    assert not LevelHealth(0.1, 0.1, None).alarm


def test_sizes(tiny_run):
    summary = summarise(tiny_run)
    networks = load(tiny_run, "cpu").networks
    assert summary.parameters["encoder"] == sum(p.numel() for p in networks.encoder.parameters())
    assert sum(summary.parameters.values()) == sum(p.numel() for p in networks.parameters())
    weights = (tiny_run / "model.safetensors").stat()
    every = [path.stat().st_size for path in tiny_run.rglob("*") if path.is_file()]
    # The newest weights and those of the newest checkpoint are one file with two names.
    assert summary.num_bytes == sum(every) - (weights.st_size if weights.st_nlink > 1 else 0)


def test_run_without_a_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").unlink()
    summary = summarise(run)
    assert (summary.finished, summary.step, summary.fingerprint, summary.levels, summary.checkpoints) == (False, 0, "", (), ())
    assert [(p.steps_done, p.steps_total, p.values) for p in summary.phases] == [(0, 2, {})] * 3
    assert summary.parameters == summarise(run.parent / "run").parameters


def test_run_killed_between_checkpoints(tiny_folder, tmp_path):
    run = killed_run(tiny_folder, tmp_path / "run", "cold:2steps, tokenizer:7steps, encoder:2steps", 2, 6)
    summary = summarise(run)
    assert [(p.steps_done, p.steps_total) for p in summary.phases] == [(2, 2), (4, 7), (0, 2)]
    assert (summary.step, summary.finished, summary.phases[1].last_logged_step) == (6, False, 5)
    assert summary.tokenizer == "tokenizer"


def test_the_length_of_epochs_is_known_from_the_first_checkpoint_on(tiny_folder, tmp_path):
    run = killed_run(tiny_folder, tmp_path / "run", "cold:2, tokenizer:3, encoder:2steps", 2, 2)
    assert [(p.length, p.steps_done, p.steps_total) for p in summarise(run).phases] == [
        ("2 epochs", 4, 4),
        ("3 epochs", 0, 6),
        ("2 steps", 0, 2),
    ]
    first = killed_run(tiny_folder, tmp_path / "first", "cold:5, tokenizer:3", 1, 6)
    summary = summarise(first)
    assert [(p.steps_done, p.steps_total) for p in summary.phases] == [(4, 10), (0, 6)]
    assert (summary.tokenizer, summary.levels[0].residual) == ("cold", None)


def test_quarantine_is_counted(run):
    (run / "quarantine.jsonl").write_text('{"key": "a", "reason": "missing"}\n{"key": "b", "reason": "missing"}\n')
    assert summarise(run).num_quarantined == 2


def test_what_is_no_run(tmp_path, run):
    with pytest.raises(RunError, match="is not a run folder"):
        summarise(tmp_path / "nothing")
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(RunError, match=r"model.safetensors is not a readable safetensors file"):
        summarise(run)
    (run / "model.safetensors").write_bytes(weights)
    (run / "metrics.jsonl").write_text("{}\n{}\n")
    with pytest.raises(RunError, match=r"line 1 of .*metrics.jsonl is damaged"):
        summarise(run)
    (run / "metrics.jsonl").unlink()
    (run / "checkpoints" / "step-00000006" / "state.json").write_text(
        json.dumps({"phases": "x"}).ljust((run / "checkpoints" / "step-00000006" / "state.json").stat().st_size)
    )
    with pytest.raises(RunError, match=r"state.json does not say which phase"):
        summarise(run)


def test_resume_command_restores_every_setting(run, tiny_folder, monkeypatch, capsys):
    import shlex

    import bridle.commands.pretrain as command

    config = RunFolder(run).read_config()
    changed = from_dict(RunConfig, {**to_dict(config), "seed": 5, "level_weights": [1.0, 0.5], "renew": "head"})
    changed = replace(changed, audio=replace(changed.audio, shift=False))
    _, *words = shlex.split(resume_command(changed, "my runs/first"))
    assert words[0] == "pretrain"
    assert words[-1] == "--resume"
    seen = []

    def note(config, data, out, **options):
        seen.append((config, data, str(out)))
        raise RunError("seen")

    monkeypatch.setattr(command, "pretrain", note)
    with pytest.raises(RunError, match="seen"):
        command.main(words[1:-1])
    (found, data, out), *_ = seen
    filled = {"audio": replace(found.audio, mean=config.audio.mean, std=config.audio.std)}
    assert replace(found, **filled, train=replace(found.train, precision=config.train.precision)) == changed
    assert (data, out) == (("DATA",), "my runs/first")
    assert resume_command(replace(config, recipe="mine"), "run").startswith("bridle.pretrain(RunFolder(Path('run'))")
