"""Labelled sounds for the demo: the user's own, ESC-10 from the web, or a synthetic set."""

from __future__ import annotations

import csv
import shutil
import urllib.parse
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import AUDIO
from bridle.demo.download import Archive, OnBytes, download, extract
from bridle.demo.labelled import LabelledSet
from bridle.errors import BridleError, DataError
from bridle.files import write_atomically
from bridle.randomness import permutation
from bridle.synthetic import write_sound_set

NUM_SYNTHETIC_CLIPS, MAX_CLIPS = 400, 1000
TABLES = ("meta.csv", "esc50.csv", "meta/esc50.csv")
LABEL_COLUMNS = ("class", "category", "label", "target")
_LABELS = ("class",)

ESC50 = Archive(
    "https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip",
    "071b44018315e034b2c6e8064543d19c",
)
"""ESC-50 by K. J. Piczak (2015), CC BY-NC; its ESC-10 part is CC BY. The md5 is the one that autrainer checks, too."""


def find_sounds(
    data: Path | None, folder: Path, *, seed: int = 0, archive: Archive | None = ESC50, on_bytes: OnBytes | None = None
) -> LabelledSet:
    """The first of: the user's own folder, ESC-10 from the web, the synthetic set.

    Args:
        data: folder or table of labelled recordings; None for the others.
        folder: where downloaded and synthetic sounds, and manifests, are written and found again.
        seed: of the synthetic set, and of the sample taken of a set of more than ``MAX_CLIPS`` clips.
        archive: what is downloaded; None for no download.
        on_bytes: told about the download.

    Raises:
        DataError: ``data`` holds no labelled sounds.
    """
    if data is not None:
        return _write_sounds(data, folder / "own", seed, f"--data {data} was given")
    esc10 = folder / "esc10"
    if (esc10 / "meta.csv").is_file():
        return LabelledSet(esc10 / "meta.csv", _LABELS, "fold", "ESC-10", "it was downloaded before")
    reason = "no download was wanted"
    if archive is not None:
        try:
            return _download_esc10(archive, esc10, seed, on_bytes or _ignore)
        except (BridleError, OSError) as error:
            reason = f"ESC-10 could not be downloaded: {error}"
    manifest = folder / f"synthetic-{seed}" / "meta.csv"
    if not manifest.is_file():
        write_sound_set(manifest.parent, num_clips=NUM_SYNTHETIC_CLIPS, seed=seed)
    return LabelledSet(manifest, _LABELS, "fold", f"synthetic sounds made from seed {seed}", reason)


def _download_esc10(archive: Archive, folder: Path, seed: int, on_bytes: OnBytes) -> LabelledSet:
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / "archive.zip"
    download(archive.url, path, md5=archive.md5, on_bytes=on_bytes)
    extract(path, folder, lambda name: name.endswith("/meta/esc50.csv"))
    table = next(folder.glob("*/meta/esc50.csv"), None)
    if table is None:
        raise DataError(f"{archive.url} holds no meta/esc50.csv; it is not ESC-50")
    wanted = {Path(row["filename"]).name for row in _read_csv(table) if row.get("esc10") == "True"} | {"LICENSE"}
    extract(path, folder, lambda name: PurePosixPath(name).name in wanted)
    path.unlink()
    host = urllib.parse.urlsplit(archive.url).hostname
    return _write_sounds(table.parents[1], folder, seed, f"{host} answered; md5 {archive.md5}, as expected")


def _write_sounds(data: Path, folder: Path, seed: int, reason: str) -> LabelledSet:
    """A manifest of ``data`` in ``folder``."""
    manifest, labels, protocol, title = _read_labelled(data)
    rows = range(len(manifest))
    keep = [row for row in rows if labels[row].strip()]
    if "esc10" in manifest.columns:
        keep = [row for row in keep if manifest.columns["esc10"][row].strip().lower() == "true"] or keep
        title += ", its ESC-10 part"
    if len(keep) > MAX_CLIPS:
        title += f", {MAX_CLIPS} of {len(keep)} clips drawn by seed {seed}"
        keep = sorted(keep[i] for i in permutation(len(keep), seed, "demo").tolist()[:MAX_CLIPS])
    if len({labels[row] for row in keep}) < 2:
        raise DataError(f"{data} has fewer than 2 classes in {len(keep)} labelled clips; the demo needs at least 2")
    columns = [labels, *([manifest.columns[protocol]] if protocol else [])]
    lines = ([str(Path(manifest.entries[row].path).resolve()), *(cells[row] for cells in columns)] for row in keep)
    target = folder / "meta.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: _write_csv(path, ["path", "class", *([protocol] if protocol else [])], lines))
    return LabelledSet(target, _LABELS, protocol, title, reason)


def _read_labelled(data: Path) -> tuple[Manifest, list[str], str, str]:
    """Clips, their labels, the column of the official protocol and a title."""
    table = data if data.is_file() else _find_table(data)
    if table is not None:
        manifest = read_manifest(table, probe=False)
        label = next((name for name in LABEL_COLUMNS if name in manifest.columns), None)
        if label is None:
            raise DataError(
                f"{table} has none of the label columns {', '.join(LABEL_COLUMNS)}; name the class column one of them"
            )
        protocol = next((name for name in ("fold", "split") if name in manifest.columns), "")
        return manifest, manifest.columns[label], protocol, f"{table}, classes of column '{label}'"
    found = read_manifest(data, probe=False)
    entries = tuple(entry for entry in found.entries if "/" in entry.key and entry.size < 0)
    labels = [entry.key.split("/")[0] for entry in entries]
    if len(set(labels)) < 2:
        raise DataError(
            f"{data} has no labels: it needs a CSV table with a path column ({', '.join(AUDIO.columns)}) and a label column "
            f"({', '.join(LABEL_COLUMNS)}), or a subfolder for each of 2 or more classes"
        )
    return Manifest(entries), labels, "", f"{data}, a class for each subfolder"


def _find_table(folder: Path) -> Path | None:
    """One of ``TABLES``, or the only CSV in the folder with a path and a label column."""
    for name in TABLES:
        if (folder / name).is_file():
            return folder / name
    fit = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = set(next(csv.reader(stream), []))
        if header & set(AUDIO.columns) and header & set(LABEL_COLUMNS):
            fit.append(path)
    if len(fit) > 1:
        raise DataError(f"{folder} has {len(fit)} tables, {', '.join(path.name for path in fit)}; give one by --data {fit[0]}")
    return fit[0] if fit else None


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def _write_csv(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _ignore(done: int, total: int) -> None:
    pass
