"""The command line as a whole: help, wrong commands, errors in one line, ``python -m bridle``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bridle
from bridle.cli import COMMANDS, main


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", ["doctor", "inspect", "tokenize", "embed"])
def test_help_of_a_command_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.count(f"\n  bridle {command} ") >= 2
    assert "(default: )" not in out
    description, arguments = out.split("examples:")
    assert len(description.splitlines()) >= 4
    assert max(map(len, description.splitlines()[1:])) <= 110
    assert "positional arguments" in arguments


def test_unknown_command_names_the_nearest(capsys):
    assert main(["tokenise"]) == 2
    assert capsys.readouterr().err == "bridle: there is no command 'tokenise'; did you mean 'tokenize'?\n"


def test_codebooks_larger_than_the_sample_are_one_line(tiny_folder, tmp_path, capsys):
    sizes = ["--quantizer.codebook-size", "4096", "--quantizer.init-sample", "4096", "--phases", "cold:1steps"]
    assert main(["pretrain", "audio-debug", "--data", str(tiny_folder), "--out", str(tmp_path / "run"), *sizes]) == 1
    error = capsys.readouterr().err
    assert "fewer than codebook_size 4096" in error
    assert error.count("\n") == 1


def test_as_a_module(tiny_run, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(bridle.__file__).parents[1]), "COLUMNS": "100"}

    def run(*arguments):
        call = [sys.executable, "-m", "bridle", *map(str, arguments)]
        return subprocess.run(call, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)

    done = run("inspect", tiny_run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished, 6 steps" in done.stdout
    failed = run("inspect", "nothing")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("bridle: nothing is not a run folder")
    assert failed.stderr.count("\n") == 1


def test_help_of_a_recipe_lists_settings_and_not_what_names_the_run(capsys):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "audio-debug", "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert "--phases" in shown and "--encoder.width" in shown
    assert "--recipe" not in shown and "format-version" not in shown
