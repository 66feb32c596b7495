"""Every command and every line of Python in docs/tutorial.md, in its order, on tiny data and with tiny recipes."""

import re
import shlex
from pathlib import Path

import pytest
from reference.media_folders import write_folder

from bridle.cli import main

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
QUICK = {
    "pretrain": "--phases 'cold:2steps, tokenizer:2steps' --train.batch-size 4",
    "finetune": "--steps 2 --train.batch-size 4",
}
"""What a command is given besides, so that it takes seconds."""


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every block of code that has a language."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the tutorial has it: recordings, a table of labels, pictures in train and test."""
    made = write_folder("audio", tmp_path / "made", num_files=12)
    (tmp_path / "recordings").mkdir()
    rows = []
    for path in sorted(made.rglob("*.wav"), key=lambda path: int(path.stem)):
        path.rename(tmp_path / "recordings" / path.name)
        rows.append(f"recordings/{path.name},{path.parent.name},{int(path.stem) // 2 % 3}")
    (tmp_path / "labelled.csv").write_text("\n".join(["file,class,fold", *rows]) + "\n")
    for split in ("train", "test"):
        write_folder("image", tmp_path / "pictures" / split, num_files=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_tutorial_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["pretrain", "image-debug", "--data", "pictures/", "--out", "runs/pictures"]
    assert main([*start, *shlex.split(QUICK["pretrain"])]) == 0  # the page says that it goes as for sounds
    commands = 0
    for language, content in blocks(TUTORIAL.read_text()):
        if language == "python":
            exec(compile(content, str(TUTORIAL), "exec"), {})
            continue
        for line in content.strip().splitlines():
            program, command, *arguments = shlex.split(line.replace("-small", "-debug"))
            assert program == "bridle"
            assert main([command, *arguments, *shlex.split(QUICK.get(command, ""))]) == 0, (line, capsys.readouterr().err)
            commands += 1
    assert commands >= 14
    for path in ("report.html", "predictions.csv", "exported/config.json", "onnx/encoder.onnx", "runs/folds/evaluation.json"):
        assert (home / path).is_file(), path
