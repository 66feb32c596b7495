"""One pass over some files: an embedding of each, the codes of their patches, and how much codes changed between tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.data.manifest import Entry, Manifest
from bridle.data.medium import MediumName
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, RunError
from bridle.eval.codes import label_churn
from bridle.inference import Model, Window
from bridle.models.tokenizer import RandomTokenizer, Tokenizer
from bridle.networks import LATER_NETWORKS, Networks, load_weights
from bridle.nn.pooling import Pooling, pool
from bridle.objectives.view import WholeView, whole_view
from bridle.run import RunConfig
from bridle.train.weights import read_weights

MAX_WINDOWS = 12
"""Windows of a file that are looked at; the rest of a long one is not."""
POOLINGS: dict[MediumName, Pooling] = {"audio": "statistics", "image": "mean", "video": "grid statistics"}
"""How the last layer becomes the vector of a clip, for the map and the neighbours."""

AnyTokenizer = Tokenizer | RandomTokenizer


@dataclass(frozen=True, slots=True)
class Churn:
    """How much the codes of the same patches differ: of the tokenizer ``name`` and of the run's, per level, in [0, 1]."""

    name: str
    levels: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """What was gathered from n files.

    Attributes:
        entries: the files.
        labels: of each; "" where there is none.
        embeddings: (n, X) float32, the last layer pooled by ``POOLINGS``.
        codes: (P, R) int64 of all patches, level 0 first; (0, 0) without a tokenizer.
        distances: (P,) of a patch's vector to its entry of level 0.
        places: (P, 3) int64: file, window of the file, patch of the window.
        churn: other tokenizers against the run's.
        bad: files that cannot be read.
        several: a file may have several labels; ``labels`` are the rarest of each.
    """

    entries: tuple[Entry, ...]
    labels: tuple[str, ...]
    embeddings: Tensor
    codes: Tensor
    distances: Tensor
    places: Tensor
    churn: tuple[Churn, ...]
    bad: tuple[BadFile, ...]
    several: bool = False

    def __len__(self) -> int:
        return len(self.entries)


@torch.inference_mode()
def gather(
    model: Model,
    manifest: Manifest,
    labels: Sequence[str],
    others: Mapping[str, AnyTokenizer],
    on_file: Callable[[], object] | None = None,
) -> Sample:
    """Encode and tokenize every file, at most :data:`MAX_WINDOWS` windows of each.

    Args:
        model: of the run.
        manifest: the files; those that cannot be read are passed over.
        labels: of each file.
        others: tokenizers by name to compare with the run's.
        on_file: called after each file.

    Raises:
        DataError: no file can be read.
    """
    rows: list[int] = []
    vectors: list[Tensor] = []
    patches = _Patches(model, others)
    bad: list[BadFile] = []
    for row, entry in enumerate(manifest.entries):
        faults: list[BadFile] = []
        windows = list(islice(model.windows([entry], faults), MAX_WINDOWS))
        if windows and not faults:
            vectors.append(_embedding(model, windows))
            patches.add(len(rows), windows)
            rows.append(row)
        bad += faults
        if on_file is not None:
            on_file()
    if not rows:
        first = f"; first: {bad[0].key} ({bad[0].reason})" if bad else ""
        raise DataError(f"none of {len(manifest)} files can be read{first}; check the paths")
    return Sample(
        tuple(manifest.entries[row] for row in rows),
        tuple(labels[row] for row in rows),
        torch.stack(vectors),
        *patches.joined(),
        tuple(patches.churn()),
        (*manifest.bad, *bad),
    )


def earlier_tokenizers(run: Path, config: RunConfig, model: Model) -> dict[str, AnyTokenizer]:
    """The tokenizers that the codes of ``model`` can be compared with: the cold start's, and those of older checkpoints.

    An older checkpoint counts when its trained tokenizer is another one; one that cannot be read is passed over.
    """
    newest = model.networks.tokenizer
    if newest is None or not bool(newest.quantizer.fitted):
        return {}
    found: dict[str, AnyTokenizer] = {}
    if model.networks.cold is not None and bool(model.networks.cold.quantizer.fitted):
        found["cold start"] = model.networks.cold
    for folder in sorted((run / "checkpoints").glob("step-*")):
        try:
            weights, _ = read_weights(folder / "model.safetensors")
            networks = Networks(config)
            load_weights(networks, weights, folder, LATER_NETWORKS - {name.split(".")[0] for name in weights})
        except RunError:
            continue
        older = networks.tokenizer
        if older is not None and bool(older.quantizer.fitted) and not _same(older, newest):
            found[f"step {int(folder.name.removeprefix('step-').partition('.')[0])}"] = older.to(model.device).eval()
    return found


class _Patches:
    """Codes of all patches seen so far."""

    def __init__(self, model: Model, others: Mapping[str, AnyTokenizer]) -> None:
        self._model, self._others = model, others
        self._tokenizer = model.networks.best_tokenizer
        self._codes: list[Tensor] = []
        self._distances: list[Tensor] = []
        self._places: list[Tensor] = []
        self._other_codes: dict[str, list[Tensor]] = {name: [] for name in others}

    def add(self, row: int, windows: list[Window]) -> None:
        """The windows of a file."""
        if self._tokenizer is None:
            return
        view = whole_view(self._model.batch(windows), self._model.config.encoder.patch)
        with self._model.autocast():
            vectors = view.pick(self._tokenizer.vectors(view.patches, view.every))
            others = {name: view.pick(other.vectors(view.patches, view.every)) for name, other in self._others.items()}
        quantizer = self._tokenizer.quantizer
        codes = quantizer.encode(vectors)
        prepared = F.normalize(vectors.float(), dim=1) if quantizer.config.normalise == "l2" else vectors.float()
        entries = quantizer.decode(codes[:, :1])
        self._codes.append(codes.cpu())
        self._distances.append((prepared - entries).norm(dim=1).cpu())
        self._places.append(_places(row, view))
        for name, found in others.items():
            self._other_codes[name].append(self._others[name].quantizer.encode(found).cpu())

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (P, R), distances (P,) and places (P, 3)."""
        if not self._codes:
            return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 3, dtype=torch.int64)
        return torch.cat(self._codes), torch.cat(self._distances), torch.cat(self._places)

    def churn(self) -> Iterator[Churn]:
        """Of every other tokenizer."""
        for name, codes in self._other_codes.items():
            levels = zip(torch.cat(codes).unbind(1), torch.cat(self._codes).unbind(1), strict=True)
            yield Churn(name, tuple(label_churn(old, new) for old, new in levels))


def _places(row: int, view: WholeView) -> Tensor:
    """(P, 3): the file, the window and the patch of each valid patch, in the order of ``view.pick``."""
    num = view.patches.grid.num_patches
    every = torch.stack(torch.meshgrid(torch.arange(len(view.steps)), torch.arange(num), indexing="ij"), dim=-1).flatten(0, 1)
    kept = every if view.rows is None else every[view.rows.cpu()]
    return torch.cat([torch.full((len(kept), 1), row), kept], dim=1)


def _embedding(model: Model, windows: list[Window]) -> Tensor:
    """(X,) mean of the windows' vectors by their length."""
    pooling = POOLINGS[model.config.medium.name]
    (encoded,) = model.encode(windows, len(windows))
    vectors = pool(encoded.layers[0], encoded.grid, encoded.steps, pooling).float().cpu()
    weights = encoded.steps.float()[:, None]
    return (vectors * weights).sum(0) / weights.sum()


def _same(a: AnyTokenizer, b: AnyTokenizer) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
