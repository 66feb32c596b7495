"""What ``bridle demo`` stands on: finding labelled sounds to show the way with, and how many steps fit into its time."""

from __future__ import annotations

import csv
import hashlib
import http.client
import queue
import shutil
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bridle.data.manifest import Manifest, read_manifest
from bridle.data.medium import AUDIO
from bridle.doctor.speed import Speed
from bridle.errors import BridleError, DataError
from bridle.files import write_atomically
from bridle.randomness import permutation
from bridle.synthetic import write_sound_set

NUM_SYNTHETIC_CLIPS, MAX_CLIPS = 400, 1000
TABLES = ("meta.csv", "esc50.csv", "meta/esc50.csv")
LABEL_COLUMNS = ("class", "category", "label", "target")
LEAST_STEPS = 20
_CHUNK = 1 << 20

OnBytes = Callable[[int, int], object]
"""``(bytes done, bytes in all or 0)``."""


@dataclass(frozen=True)
class Archive:
    """A zip archive on the web in the layout of ESC-50, and its md5 in hexadecimal."""

    url: str
    md5: str


ESC50 = Archive(
    "https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip",
    "071b44018315e034b2c6e8064543d19c",
)
"""ESC-50 by K. J. Piczak (2015), CC BY-NC; its ESC-10 part is CC BY. The md5 is the one that autrainer checks, too."""


@dataclass(frozen=True)
class Sounds:
    """A labelled sound set, ready to be used.

    Attributes:
        manifest: CSV with the columns ``path``, ``class`` and, where there is an official protocol, ``fold`` or ``split``.
        protocol: ``fold``, ``split`` or empty.
        title: what it is.
        reason: why it was taken.
    """

    manifest: Path
    protocol: str
    title: str
    reason: str


def find_sounds(
    data: Path | None, folder: Path, *, seed: int = 0, archive: Archive | None = ESC50, on_bytes: OnBytes | None = None
) -> Sounds:
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
        return Sounds(esc10 / "meta.csv", "fold", "ESC-10", "it was downloaded before")
    reason = "no download was wanted"
    if archive is not None:
        try:
            return _download_esc10(archive, esc10, seed, on_bytes or _ignore)
        except (BridleError, OSError) as error:
            reason = f"ESC-10 could not be downloaded: {error}"
    manifest = folder / f"synthetic-{seed}" / "meta.csv"
    if not manifest.is_file():
        write_sound_set(manifest.parent, num_clips=NUM_SYNTHETIC_CLIPS, seed=seed)
    return Sounds(manifest, "fold", f"synthetic sounds made from seed {seed}", reason)


def _download_esc10(archive: Archive, folder: Path, seed: int, on_bytes: OnBytes) -> Sounds:
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


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int = 1_000_000_000,
    answer_seconds: float = 3.0,
    max_seconds: float = 300.0,
    on_bytes: OnBytes = lambda done, total: None,
) -> None:
    """Download ``url`` to ``target``, which appears only when it is whole.

    Args:
        url: http or https.
        target: file to write; its folder is created.
        md5: expected checksum, in hexadecimal.
        max_bytes: most bytes that are taken.
        answer_seconds: how long the host may take to begin its answer.
        max_seconds: how long the whole download may take.
        on_bytes: told about progress.

    Raises:
        DataError: no answer, too large, too slow, broken off, or another checksum than expected.
        OSError: the file cannot be written.
    """
    host = urllib.parse.urlsplit(url).hostname or url
    response = _answer(url, host, answer_seconds)
    length = int(response.headers.get("Content-Length") or 0)
    digest, done, end = hashlib.md5(usedforsecurity=False), 0, time.monotonic() + max_seconds
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with response, part.open("wb") as stream:
            while True:
                if max(done, length) > max_bytes:
                    raise DataError(f"{url} has {max(done, length)} bytes or more; the limit is {max_bytes}")
                if time.monotonic() > end:
                    raise DataError(f"{host} sent {done / 1e6:.0f} MB in {max_seconds:g} s, which is too slow")
                on_bytes(done, length)
                if not (chunk := _read(response, host)):
                    break
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
        if done < length:
            raise DataError(f"{host} broke off after {done} of {length} bytes; try again")
        if digest.hexdigest() != md5:
            raise DataError(f"md5 of {url} is {digest.hexdigest()}, not {md5}; it is not the file that was expected")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _answer(url: str, host: str, seconds: float) -> Any:
    """The response, asked for in a thread because the look-up of a host's name knows no time limit."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise ValueError(f"{url} is no http or https address")
            answers.put(urllib.request.urlopen(url, timeout=max(seconds, 10.0)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise DataError(f"{host} did not answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise DataError(f"{host} cannot be reached: {getattr(answer, 'reason', None) or answer}") from answer
    return answer


def _read(response: Any, host: str) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{host} broke off: {error}; try again") from error


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool], max_bytes: int = 2_000_000_000) -> None:
    """Extract the wanted files of a zip archive.

    Args:
        archive: the zip.
        folder: where to.
        wanted: tells by a file's name in the archive.
        max_bytes: limit on the unpacked size.

    Raises:
        DataError: not a whole zip, a path that leads out of the folder, a link, or more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
                    raise DataError(
                        f"{archive.name} holds '{member.filename}', which leads out of its folder; nothing is extracted"
                    )
            chosen = [member for member in members.infolist() if not member.is_dir() and wanted(member.filename)]
            size = sum(member.file_size for member in chosen)
            if size > max_bytes:
                raise DataError(f"{archive.name} unpacks to {size} bytes; the limit is {max_bytes}")
            members.extractall(folder, chosen)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive.name} is not a whole zip archive: {error}") from error


def _write_sounds(data: Path, folder: Path, seed: int, reason: str) -> Sounds:
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
    return Sounds(target, protocol, title, reason)


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


def steps_in(seconds: float, speed: Speed) -> int:
    """Steps that fit into ``seconds``, its start included; a multiple of 10, at least ``LEAST_STEPS``.

    Args:
        seconds: for a run of a single phase.
        speed: the doctor's estimate of that run; its files are read twice, for the normalisation and in the first epoch.
    """
    step = sum(phase.seconds for phase in speed.phases) / sum(phase.num_steps for phase in speed.phases)
    return max(LEAST_STEPS, int((seconds - 2 * speed.read_seconds) / step) // 10 * 10)


def _ignore(done: int, total: int) -> None:
    pass
