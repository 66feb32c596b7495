"""Columns of a manifest: which rows have a value in each, and what is said of the others."""

import pytest

from bridle.data.columns import Columns, subset, with_cells
from bridle.data.manifest import Entry, Manifest
from bridle.data.quarantine import BadFile
from bridle.errors import DataError

BAD = (BadFile("broken.wav", "empty file"),)


def manifest(**columns: list[str]) -> Manifest:
    """Clips 0.wav, 1.wav and so on."""
    rows = len(next(iter(columns.values()), ["", "", ""]))
    return Manifest(tuple(Entry(f"{row}.wav", f"/sounds/{row}.wav") for row in range(rows)), columns, BAD)


def keys(found: Manifest) -> list[str]:
    return [entry.key for entry in found.entries]


def test_rows_with_a_value_in_every_column_stay_in_their_order() -> None:
    labels, speakers = ["a", "", "b", " ", "a", "c"], ["x", "x", "", "y", "y", "z"]
    found, notes = with_cells(manifest(label=labels, speaker=speakers), Columns("label", group="speaker"))
    kept = [row for row in range(6) if labels[row].strip() and speakers[row].strip()]
    assert keys(found) == [f"{row}.wav" for row in kept]
    assert found.columns == {"label": [labels[row] for row in kept], "speaker": [speakers[row] for row in kept]}
    assert found.bad == BAD
    assert notes == [
        "left out: 2 clips without label (column 'label')",
        "left out: 1 clip without group (column 'speaker')",
    ]


def test_whole_columns_give_no_note() -> None:
    whole = manifest(label=["a", "b"], fold=["1", "2"])
    found, notes = with_cells(whole, Columns("label", fold="fold"))
    assert (found, notes) == (whole, [])


def test_an_official_column_that_is_not_used_is_told() -> None:
    _, notes = with_cells(manifest(label=["a", "b"], split=["train", "test"]), Columns("label"))
    assert notes == ["the manifest's column 'split' is not used; where it is the official one, ask for --split split"]
    _, notes = with_cells(manifest(label=["a", "b"], fold=["1", "2"]), Columns("fold"))
    assert notes == []  # it is used, as the label


def test_a_column_may_have_two_roles() -> None:
    found, notes = with_cells(manifest(speaker=["a", "", "b"]), Columns("speaker", group="speaker"))
    assert keys(found) == ["0.wav", "2.wav"]
    assert len(notes) == 1


def test_a_subset_is_in_the_order_of_its_rows() -> None:
    found = subset(manifest(label=["a", "b", "c"], Größe=["1", "2", "3"]), [2, 0, 2])
    assert keys(found) == ["2.wav", "0.wav", "2.wav"]
    assert found.columns == {"label": ["c", "a", "c"], "Größe": ["3", "1", "3"]}
    assert found.bad == BAD
    assert len(subset(found, [])) == 0


def test_what_is_refused_is_named() -> None:
    with pytest.raises(DataError, match="fold 'fold' and split 'part' are both given"):
        Columns("label", fold="fold", split="part")
    table = manifest(label=["a", "b"], speaker=["x", "y"])
    with pytest.raises(DataError, match="no label column 'lable'; the columns are label, speaker; did you mean 'label'"):
        with_cells(table, Columns("lable"))
    with pytest.raises(
        DataError, match=r"no fold column 'zzz'.*without --fold, parts of the clips are drawn by class"
    ) as error:
        with_cells(table, Columns("label", fold="zzz"))
    assert "did you mean" not in str(error.value)
    with pytest.raises(DataError, match="the manifest has no columns; give a CSV or parquet table"):
        with_cells(manifest(), Columns("label"))
    with pytest.raises(DataError, match="no clip that is left has a label"):
        with_cells(manifest(label=["", "  "]), Columns("label"))
    with pytest.raises(DataError, match="no clip that is left has a group"):  # each column has a value, no clip has both
        with_cells(manifest(label=["a", ""], speaker=["", "x"]), Columns("label", group="speaker"))
