"""Which clips a page looks at, and the label that each is shown by."""

import csv
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from reference import published_sets

from bridle.cli import main
from bridle.data.medium import AUDIO, IMAGE
from bridle.data.protocols import read_protocol
from bridle.errors import ConfigError, DataError
from bridle.report.build import ReportConfig, build_report
from bridle.report.material import draw_rows, read_material

CPU = torch.device("cpu")


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_draws_are_of_every_part_and_label():
    parts = ["train"] * 900 + ["test"] * 100
    names = [("a", "b", "c", "d")[row % 4] for row in range(1000)]
    rows = draw_rows(parts, names, 100, seed=0)
    assert rows == sorted(set(rows)) == draw_rows(parts, names, 100, seed=0)
    assert Counter(parts[row] for row in rows) == {"train": 90, "test": 10}
    assert set(Counter(names[row] for row in rows).values()) <= {24, 25, 26}
    assert rows != draw_rows(parts, names, 100, seed=1)
    few = draw_rows(["train"] * 998 + ["test"] * 2, names, 20, seed=0)
    assert len(few) == 21 and few[-1] >= 998
    assert len(draw_rows([str(row) for row in range(1000)], [""] * 1000, 5, seed=0)) <= 5  # more parts than clips
    draws = Counter(row for seed in range(400) for row in draw_rows([""] * 10, [""] * 10, 3, seed))
    assert min(draws.values()) > 80 and max(draws.values()) < 160  # each with a chance of 3 in 10


def test_a_draw_leaves_every_fold_to_be_tested(media_runs, tmp_path):
    run, folder = media_runs["audio"]
    files = sorted(folder.rglob("*.wav")) * 6
    rows = [{"path": path, "class": path.parent.name, "fold": int(i % 7 == 0)} for i, path in enumerate(files)]
    table = write_table(tmp_path / "meta.csv", rows)
    page = build_report(run, ReportConfig((table,), "class", fold="fold", num_clips=24), device=CPU)
    assert "2 folds of column" in page
    assert "of the 60 files, drawn by seed 0" in page


def test_probes_that_a_draw_makes_impossible_are_a_note(media_runs, tmp_path):
    run, folder = media_runs["audio"]
    files = sorted(folder.rglob("*.wav")) * 3
    rows = [{"path": path, "class": "rare" if i == 0 else "a", "one": "x"} for i, path in enumerate(files)]
    table = write_table(tmp_path / "meta.csv", rows)
    page = build_report(run, ReportConfig((table,), "class", num_clips=3), device=CPU)
    assert "There are no probes of the drawn files" in page
    assert '<section id="probes"' not in page
    with pytest.raises(DataError, match="did you mean 'class'"):
        build_report(run, ReportConfig((table,), "clas", num_clips=3), device=CPU)


def test_cells_are_read_as_by_the_evaluation(media_runs, tmp_path):
    """Each row has the label of its own cell, also of a file that is listed twice or that cannot be read."""
    run, folder = media_runs["audio"]
    (tmp_path / "broken.wav").write_text("no sound")
    files = [path for path in sorted(folder.rglob("*.wav")) for _ in "ab"]
    rows = [{"path": "broken.wav", "class": "c"}, {"path": files[0], "class": " NaN "}, {"path": files[0], "class": ""}]
    rows += [{"path": path, "class": ("a", " b ")[i % 2]} for i, path in enumerate(files)]
    config = ReportConfig((write_table(tmp_path / "meta.csv", rows),), "class")
    assert Counter(read_material(config, AUDIO).labels) == {"": 2, "a": 10, "b": 10}  # the header of one is broken
    page = build_report(run, config, device=CPU)
    assert "20 clips, 2 classes" in page
    assert dict(re.findall(r"<title>(\w+), said to be \w+: \d+ of (\d+)", page)) == {"a": "10", "b": "10"}
    assert re.search(r"nan[:<]", page, re.IGNORECASE) is None


def test_of_several_labels_the_rarest_is_shown(media_runs, tmp_path):
    files = sorted(media_runs["audio"][1].rglob("*.wav"))[:4]
    cells = ["a;b", "a", "b;a;c", ";"]
    rows = [{"path": path, "tags": cell} for path, cell in zip(files, cells, strict=True)]
    config = ReportConfig((write_table(tmp_path / "meta.csv", rows),), "tags", separator=";")
    assert read_material(config, AUDIO).labels == ("b", "a", "c", "")


def test_published_sets(media_runs, tmp_path):
    folder = published_sets.esc50(tmp_path)
    data = read_protocol("esc-50", folder)
    config = ReportConfig(published=data)
    assert read_material(config, AUDIO).every is data.manifest
    with pytest.raises(ConfigError, match="protocol esc-50 is of sound files, and the run is of pictures"):
        read_material(config, IMAGE)
    with pytest.raises(ConfigError, match="beside a published set"):
        replace(config, label="category")
    out = tmp_path / "page.html"
    call = ["report", str(media_runs["audio"][0]), "--data", str(folder), "--protocol", "esc-50", "--device", "cpu"]
    assert main([*call, "--out", str(out)]) == 0
    assert "folds of column" in out.read_text(encoding="utf-8")


def test_wrong_calls_with_a_published_set(media_runs, tmp_path, capsys):
    call = ["report", str(media_runs["audio"][0]), "--data", str(tmp_path), "--protocol", "esc-50"]
    for more, message in (
        (["--label", "class"], "says labels and splits itself"),
        ([], "esc-50"),
    ):
        assert main([*call, *more, "--out", str(tmp_path / "page.html")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
