"""Writing an export beside its place, checking it there, and moving it into place."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from bridle.data.columns import Columns, with_cells
from bridle.data.labels import read_labels
from bridle.data.manifest import Manifest, read_manifest
from bridle.errors import ConfigError, DataError, RunError
from bridle.export import usage
from bridle.export.card import Card, write_card
from bridle.export.checks import Check
from bridle.export.hf_files import check_hf, write_hf
from bridle.export.onnx_files import check_onnx, write_onnx
from bridle.export.timm_files import check_timm, norm_note, write_timm
from bridle.files import explain_write_error, fsync, write_atomically
from bridle.finetuning.tested import read_tested
from bridle.inference import Model, load
from bridle.objectives.supervised import FinetuneConfig
from bridle.paths import check_folder, check_run, check_sources
from bridle.summary import summarise, unfinished
from bridle.train.checkpoint import latest_checkpoint, read_state
from bridle.wording import count

Target = Literal["hf", "onnx", "timm"]
"""A tool that an export is for."""
TARGETS: dict[str, str] = {"hf": "transformers", "onnx": "ONNX runtimes", "timm": "timm"}
"""Its name in words."""

_NO_TOKENIZER = (
    "codes: this run has no fitted tokenizer, so there are none; pretrain with a cold or tokenizer phase to get them"
)
_NO_CLASSIFIER = "classifier: it is not part of an export for timm; the features are those of the fine-tuned encoder"
_TIMM_TOKENIZER = "codes: timm has no place for the tokenizer; take --to hf or --to onnx for codes"


@dataclass(frozen=True)
class Exported:
    """What :func:`export_run` wrote.

    Attributes:
        path: the folder.
        target: what it is for.
        files: names of its files.
        checks: comparisons with the run, all of which held.
        notes: in words, what a user must know.
    """

    path: Path
    target: Target
    files: tuple[str, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    to: Target,
    licence: str | None = None,
    name: str | None = None,
    trained_on: Sequence[str | Path] = (),
) -> Exported:
    """Write a run's encoder, and its tokenizer where target and run have one, for another tool.

    Args:
        run: the run folder.
        out: the folder to write, which must not exist or be empty.
        to: the tool.
        licence: of the weights, for the model card, such as ``apache-2.0``; ``hf`` needs one.
        name: of the model, for its card; None for the name of the run's folder.
        trained_on: the run's own files, as given to ``pretrain`` or ``finetune``, to be counted in the card.

    Returns:
        What was written and checked.

    Raises:
        ConfigError: an unknown target, a library or the licence is missing, or the target cannot hold the encoder.
        RunError: there is no run (or only those of folds), or no weights, ``out`` holds something or cannot be written, or
            numbers differ.
        DataError: ``trained_on`` cannot be read, or is not what the run was trained on.
    """
    source, folder = Path(run), Path(out)
    check_run(source)
    _check_call(folder, to, licence)
    check_sources(trained_on)
    check_folder(folder)
    model = load(source, "cpu")
    manifest = _training_data(source, model, trained_on) if trained_on else None
    with _moved_into(folder) as temporary:
        try:
            _write(model, temporary, to, licence)
            checks, notes = _check(model, temporary, to)
            line = unfinished(source, model.config)
            notes = (*([line] if line is not None else []), *notes)
            tested = read_tested(source) if model.config.finetune is not None else None
            card = Card(
                name=name or source.resolve().name,
                licence=licence,
                library={"hf": "bridle", "onnx": "onnx", "timm": "timm"}[to],
                usage=usage.of(to, model),
                notes=notes,
                summary=summarise(source),
                manifest=manifest,
                tested=tested if tested is not None and tested.measured.fingerprint == model.fingerprint else None,
            )
            write_atomically(temporary / "README.md", write_card(card))
        except (OSError, SafetensorError) as error:
            raise RunError(explain_write_error(error, folder.parent, folder.name)) from error
        files = tuple(sorted(path.name for path in temporary.iterdir()))
    return Exported(folder, to, files, tuple(checks), notes)


def _check_call(folder: Path, to: str, licence: str | None) -> None:
    if to not in TARGETS:
        near = difflib.get_close_matches(to, TARGETS, n=1)
        raise ConfigError(f"there is no target '{to}'; " + (f"did you mean '{near[0]}'?" if near else "take hf, onnx or timm"))
    if licence is None and to == "hf":
        raise ConfigError(
            "a model card needs the licence of the weights; name it, such as --licence apache-2.0 or --licence cc-by-4.0, "
            "or --licence other"
        )
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ConfigError(f"licence is {licence!r}; write its identifier in lower case, such as apache-2.0, or other")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not an empty folder; choose another --out")


def _training_data(run: Path, model: Model, data: Sequence[str | Path]) -> Manifest:
    """The manifest of the run's own files; of a fine-tuned run those with a label, tested ones too."""
    manifest = read_manifest(list(data), model.config.medium)
    if model.config.finetune is not None:
        return _labelled(run, model.config.finetune, manifest)
    checkpoint = latest_checkpoint(run)
    known = "" if checkpoint is None else read_state(checkpoint)["data"]
    if manifest.fingerprint != known:
        raise DataError(
            f"--trained-on names other files than those of the run: {count(len(manifest), 'file')} of digest "
            f"{manifest.fingerprint}, not {known or 'none'}; name the same folders in the same order as 'pretrain --data', "
            "or leave it out"
        )
    return manifest


def _labelled(run: Path, finetune: FinetuneConfig, manifest: Manifest) -> Manifest:
    """The labelled files. The run's digest also holds which of them trained, so classes and tested files are compared."""
    remedy = "give the MANIFEST of 'bridle finetune', or leave it out"
    if finetune.label not in manifest.columns:
        raise DataError(f"--trained-on has no column '{finetune.label}', by which this run was fine-tuned; {remedy}")
    manifest, _ = with_cells(manifest, Columns(finetune.label), untagged=finetune.multi_label)
    classes = read_labels(manifest.columns[finetune.label], finetune.multi_label, finetune.separator).classes
    if other := sorted(set(classes) ^ set(finetune.classes)):
        where = "only in --trained-on" if other[0] in classes else "only in the run"
        raise DataError(f"--trained-on has other classes than this run: '{other[0]}' is {where}; {remedy}")
    tested = read_tested(run)
    keys = {entry.key for entry in manifest.entries}
    for clip in () if tested is None else tested.measured.clips:
        if clip.key not in keys:
            raise DataError(f"--trained-on lacks '{clip.key}', which was tested; {remedy}")
    return manifest


def _write(model: Model, folder: Path, to: Target, licence: str | None) -> None:
    if to == "hf":
        write_hf(model, folder)
    elif to == "onnx":
        write_onnx(model, folder)
    else:
        write_timm(model, folder, licence)


@torch.no_grad()
def _check(model: Model, folder: Path, to: Target) -> tuple[list[Check], tuple[str, ...]]:
    has_tokenizer = model.networks.best_tokenizer is not None
    has_classifier = model.networks.classifier is not None
    notes: list[str] = []
    if to == "timm":
        notes += [
            *([_NO_CLASSIFIER] if has_classifier else []),
            *norm_note(model, folder),
            *([_TIMM_TOKENIZER] if has_tokenizer else []),
        ]
        return check_timm(model, folder), tuple(notes)
    notes += [] if has_tokenizer or has_classifier else [_NO_TOKENIZER]
    return check_hf(model, folder) if to == "hf" else check_onnx(model, folder), tuple(notes)


@contextlib.contextmanager
def _moved_into(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when all went well, and is removed when not."""
    folder = folder.resolve()
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        except OSError as error:
            raise RunError(explain_write_error(error, folder.parent, folder.name)) from error
        yield temporary
        try:
            _settle(temporary)
            temporary.replace(folder)  # an empty folder gives way
            fsync(folder.parent)
        except OSError as error:
            raise RunError(explain_write_error(error, folder.parent, folder.name)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _settle(folder: Path) -> None:
    """Files on the disk, readable as the user's umask says; safetensors makes them private."""
    card = folder / "README.md"
    for path in folder.iterdir():
        shutil.copymode(card, path)
        fsync(path)
    fsync(folder)
