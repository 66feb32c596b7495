"""What is seen while a run goes on."""

from __future__ import annotations

import pytest

from bridle.commands.display import ProgressReporter


def test_a_note_of_every_fold_is_shown_once_and_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter() as reporter:
        for fold in (1, 2):
            reporter.message(f"fold {fold}: runs/fold-{fold}")
            reporter.message("note: left out: 1 clip [red] without label")
            reporter.message("12 clips train")
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("note: left out: 1 clip [red] without label") == 1
    assert lines.count("12 clips train") == 2
