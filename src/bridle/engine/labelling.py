"""The labels of an encoder phase, taken once where clips are the same in every epoch: docs/engine.md, "Caches"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from bridle import distributed
from bridle.config import told
from bridle.data.batch import Batch
from bridle.data.cache import file_identity
from bridle.data.loaders import PASSING
from bridle.engine.parts import Parts
from bridle.errors import RunError
from bridle.files import write_atomically
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.objectives.label_store import LabelStore
from bridle.objectives.view import whole_view
from bridle.run import clip_grid
from bridle.train.loop import autocast
from bridle.train.weights import read_weights

FILE_NAME = "labels.safetensors"


def empty_store(parts: Parts, tokenizer: RandomTokenizer | Tokenizer, num_epochs: float) -> LabelStore | None:
    """A store for the clips of a run; None where it would not pay or not fit.

    Args:
        parts: of the run.
        tokenizer: frozen.
        num_epochs: of the phase; labels are taken again only when there is more than one.
    """
    config, quantizer = parts.config, tokenizer.quantizer.config
    entries, loader = parts.manifest.entries, parts.dataset.loader
    sizes = (len(entries), clip_grid(config).num_patches, quantizer.num_codebooks, quantizer.codebook_size)
    if num_epochs <= 1 or LabelStore.num_bytes(*sizes) > config.train.label_cache_gigabytes * 1e9:
        return None
    return LabelStore(*sizes) if any(loader.is_fixed(entry, 1.0) for entry in entries) else None


@torch.no_grad()
def fill(
    store: LabelStore,
    parts: Parts,
    tokenizer: RandomTokenizer | Tokenizer,
    batches: Iterable[Batch],
    stop: Callable[[], bool],
) -> bool:
    """Take the codes of every clip that is the same in every epoch, or read those of the same tokenizer, settings and files
    that the run's folder keeps. A collective.

    Args:
        store: empty.
        parts: of the run.
        tokenizer: frozen, on the run's device.
        batches: this rank's share of an epoch, finished.
        stop: asked at every batch.

    Returns:
        False when any rank was asked to stop; the store is of no use then.
    """
    path, wanted = parts.folder.path / FILE_NAME, _fingerprint(parts, tokenizer)
    kept = _read(path, wanted, store)
    if all(distributed.gather_objects(kept)):
        return True
    store.known.zero_()
    entries, loader, config = parts.manifest.entries, parts.dataset.loader, parts.config
    rows, codes = [], []
    for batch in batches:
        if distributed.any_rank(stop(), parts.device):
            return False
        pairs = zip(batch.indices.tolist(), batch.aspects.tolist(), strict=True)
        fixed = torch.tensor([loader.is_fixed(entries[row], aspect) for row, aspect in pairs], dtype=torch.bool)
        if not bool(fixed.any()):
            continue
        view = whole_view(batch, config.encoder.patch)
        with autocast(config.train, parts.device):
            found = tokenizer.quantizer.encode(tokenizer.vectors(view.patches, view.every), check=False)
        if view.every.valid is not None:
            found = found * view.every.valid[..., None]  # what padding is coded as depends on the batch
        missing = store.codes.shape[1] - found.shape[1]
        rows.append(batch.indices[fixed])
        codes.append(torch.nn.functional.pad(found.to("cpu", store.codes.dtype)[fixed], (0, 0, 0, missing)))
    own_rows, own_codes = torch.cat([*rows, store.known[:0].long()]), torch.cat([*codes, store.codes[:0]])
    found = _gathered(own_codes.view(torch.uint8), parts).view(own_codes.dtype)  # not all backends send 16 bits
    store.put(_gathered(own_rows, parts), found)
    if distributed.rank() == 0:
        _write(path, wanted, store, parts)
    return True


def _gathered(own: Tensor, parts: Parts) -> Tensor:
    """Rows of all ranks, on the CPU."""
    return distributed.all_gather_rows(own.to(parts.device)).cpu() if distributed.is_active() else own


def _fingerprint(parts: Parts, tokenizer: RandomTokenizer | Tokenizer) -> str:
    """Changes with anything that a clip's codes depend on."""
    config = parts.config
    clips = {name: value for name, value in told(config.clips).items() if name not in PASSING}
    digest = hashlib.sha256(json.dumps([parts.data, config.train.precision, clips], sort_keys=True).encode())
    for entry in parts.manifest.entries:
        digest.update(file_identity(entry).encode("utf-8", "surrogateescape"))
    for name, value in sorted(tokenizer.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _read(path: Path, wanted: str, store: LabelStore) -> bool:
    try:
        tensors, header = read_weights(path)
        if header.get("fingerprint") != wanted or tensors["codes"].shape != store.codes.shape:
            return False
        store.codes.copy_(tensors["codes"])
        store.known.copy_(tensors["known"])
    except (RunError, KeyError, RuntimeError):  # not there yet, or damaged: they are taken anew
        return False
    return True


def _write(path: Path, fingerprint: str, store: LabelStore, parts: Parts) -> None:
    try:
        write_atomically(path, save({"codes": store.codes, "known": store.known}, {"fingerprint": fingerprint}))
    except OSError as error:
        parts.reporter.message(f"labels are not kept in {path}: {error.strerror}; a resumed run takes them again")
