"""Clips by (epoch, row) and the iterator of batches over them. Knows no medium: a loader brings it."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bridle.data.batch import Batch, Sample, collate
from bridle.data.manifest import Entry, Manifest
from bridle.data.medium import Medium
from bridle.data.quarantine import BadFile
from bridle.data.sampler import EpochOrder
from bridle.errors import ConfigError, DecodeError, WorkerDied
from bridle.randomness import derive_seed

_STOPS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}
# A worker that gives no batch for so long hangs in a decoder or on a dead disk.
WORKER_TIMEOUT_SECONDS = 900.0
# How often is looked whether the workers live: the signal of a death is lost where Python ignores errors, as in `__del__`.
LOOK_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A clip as a loader gives it.

    Attributes:
        inputs: (C, T, H, W) float32, or uint8 pixels.
        start_seconds: where in its file it starts.
        aspect: width over height of the picture it was made from.
    """

    inputs: Tensor
    start_seconds: float
    aspect: float = 1.0


class Loader(Protocol):
    """The front end of a medium: makes its clips. Every method is a pure function of its arguments and must survive pickling.

    Attributes:
        medium: what it reads.
        dtype: of the clips it loads.
        baseline_name: of what :meth:`baseline` gives.
    """

    medium: ClassVar[Medium]
    dtype: ClassVar[torch.dtype]
    baseline_name: ClassVar[str]

    @property
    def crop_frames(self) -> int:
        """T of a full clip."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every clip that :meth:`load` gives."""

    def length(self, entry: Entry) -> int:
        """Frames of the entry's clip by its duration and rate, at most a full crop; a guess that only shapes the batches."""

    def clip_seconds(self, entry: Entry) -> float:
        """Time that the entry's clip covers, by the manifest; 0 for a picture."""

    def cacheable_bytes(self, entry: Entry) -> int:
        """Memory that the entry takes if it is kept decoded; 0 when it never is."""

    def is_fixed(self, entry: Entry, aspect: float) -> bool:
        """True when every training clip of the entry, loaded and finished, is the same; ``aspect`` as of its clip."""

    def load(self, entry: Entry, generator: torch.Generator) -> LoadedClip:
        """One training clip: a random crop, augmented. DecodeError or OSError when the file cannot be read."""

    def windows(self, entry: Entry) -> Iterator[LoadedClip]:
        """The whole file in consecutive windows, not augmented. DecodeError or OSError when it cannot be read."""

    def windows_of(self, item: Any) -> Iterator[LoadedClip]:
        """:meth:`windows` of something in memory. DataError when it is of no kind that the medium knows."""

    def finish(self, batch: Batch, augment: bool) -> Batch:
        """What is left to do with a batch on its device: normalised float32 in the end."""

    def baseline(self, clip: Tensor) -> Tensor:
        """A window (C, T, H, W) as rows (T, X): what an encoder must beat."""


class ClipDataset(Dataset[Sample | BadFile]):
    """The clips of a manifest, addressed by (epoch, row).

    Args:
        manifest: the files.
        loader: makes their clips.
        seed: of crops, augmentation and masks.
    """

    def __init__(self, manifest: Manifest, loader: Loader, seed: int) -> None:
        self.manifest = manifest
        self.loader = loader
        self.seed = seed

    def __len__(self) -> int:
        return len(self.manifest)

    def lengths(self) -> list[int]:
        """Frames of every clip after cropping, for :class:`~bridle.data.sampler.EpochOrder`."""
        kinds = np.stack([self.manifest.durations, self.manifest.rates], axis=1)
        different, which = np.unique(kinds, axis=0, return_inverse=True)
        found = [self.loader.length(Entry("", "", 0, -1, seconds, rate)) for seconds, rate in different.tolist()]
        return [found[kind] for kind in which.reshape(-1).tolist()]

    def __getitem__(self, key: tuple[int, int]) -> Sample | BadFile:
        """The clip of ``(epoch, row)``, a pure function of both and the seed; a BadFile if it cannot be read.

        A row number beyond the last stands for another draw of a row, see :class:`~bridle.data.sampler.WeightedOrder`.
        """
        epoch, draw = key
        index = draw % len(self)
        entry = self.manifest.entries[index]
        seed = derive_seed(self.seed, "sample", epoch, draw)
        try:
            clip = self.load(entry, seed)
        except DecodeError as error:
            return BadFile(error.key, error.reason)  # a clip may be made of two files
        except OSError as error:
            return BadFile.of(entry, error)
        return Sample(clip.inputs, clip.inputs.shape[1], seed, index, clip.aspect)

    def load(self, entry: Entry, seed: int) -> LoadedClip:
        """A training clip; DecodeError or OSError when the file cannot be read."""
        return self.loader.load(entry, torch.Generator().manual_seed(seed))


def batch_loader(
    dataset: ClipDataset,
    order: EpochOrder,
    *,
    start_step: int,
    num_steps: int,
    rank: int,
    world_size: int,
    num_workers: int,
    patch: tuple[int, int, int],
) -> Iterable[Batch]:
    """One rank's batches of steps ``start_step .. start_step + num_steps``.

    Step s is batch ``s % steps_per_epoch`` of epoch ``s // steps_per_epoch``; to begin at an epoch, start at
    ``epoch * order.steps_per_epoch``. The batches are the same for any number of workers, and starting late replays
    nothing. A rank whose share of a small batch is empty, or holds unreadable files only, gets a batch of no clip.

    Args:
        dataset: the clips.
        order: which clips make up which batch, over all ranks.
        start_step: first step, counted from epoch 0.
        num_steps: steps to give.
        rank: of this process; it takes ``batch[rank::world_size]``.
        world_size: number of processes.
        num_workers: decoding processes with one thread each; 0 decodes in this process.
        patch: (t, h, w) input units per patch.

    Raises:
        ConfigError: a number is out of range.
        WorkerDied: while iterating, when a worker died or hangs.
    """
    if min(start_step, num_steps, num_workers) < 0 or not 0 <= rank < world_size:
        raise ConfigError(
            f"start_step {start_step}, num_steps {num_steps} and num_workers {num_workers} must be at least 0, "
            f"and rank {rank} within world_size {world_size}"
        )
    if order.num_clips != len(dataset):
        raise ConfigError(
            f"the order is over {order.num_clips} clips and the dataset has {len(dataset)}; make both of one manifest"
        )
    with _as_many_workers_as_asked_for():
        loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # a batch sampler of (epoch, row) instead of int
            batch_sampler=_Steps(order, start_step, num_steps, rank, world_size),
            num_workers=num_workers,
            collate_fn=partial(collate, patch=patch, frame_shape=dataset.loader.frame_shape, dtype=dataset.loader.dtype),
            worker_init_fn=_start_worker,
            timeout=min(LOOK_SECONDS, WORKER_TIMEOUT_SECONDS) if num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the default would draw from the global random state
        )
    return _Batches(loader)


@contextmanager
def _as_many_workers_as_asked_for() -> Iterator[None]:
    """Without torch's warning that they are more than the cores: those that wait for a disk need none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class _Steps(Sampler[list[tuple[int, int]]]):
    def __init__(self, order: EpochOrder, start_step: int, num_steps: int, rank: int, world_size: int) -> None:
        self._order = order
        self._start = start_step
        self._count = num_steps
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, end = self._start, self._start + self._count
        while step < end:
            epoch, position = divmod(step, self._order.steps_per_epoch)
            for batch in self._order.iterate(epoch, position):
                yield [(epoch, index) for index in batch[self._rank :: self._world_size]]
                step += 1
                if step == end:
                    return


_TIMED_OUT = "DataLoader timed out"


class _Batches(Iterable[Batch]):
    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        with one_thread(), _as_many_workers_as_asked_for(), _signals_held():
            iterator: Iterator[Batch] | None = iter(self._loader)
        _quiet_deaths()
        given = time.monotonic()
        while iterator is not None:
            try:
                with one_thread():
                    batch = next(iterator, None)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if str(error).startswith(_TIMED_OUT) and time.monotonic() - given < WORKER_TIMEOUT_SECONDS:
                    continue  # torch has found all workers alive
                message = _worker_fault(error) if self._loader.num_workers else ""
                if not message:
                    raise
            else:
                if batch is None:
                    return
                yield batch
                given = time.monotonic()
                continue
            iterator = None  # outside of "except", where no traceback holds it: ends the other workers
            raise WorkerDied(message)


class _DeathHandler:
    """Torch's signal handler for dead workers raises wherever the program is, be it between the optimiser's step and the
    codebooks'. Who asks for the next batch finds the dead worker anyway.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            if not _worker_fault(error):
                raise


def _quiet_deaths() -> None:
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _DeathHandler):
        signal.signal(signal.SIGCHLD, _DeathHandler(handler))


def _worker_fault(error: Exception) -> str:
    """What to tell about a worker that died or hangs; "" for an error of the program that a worker passed on."""
    text = (str(error).splitlines() or [""])[0]
    if text.startswith("Caught ") or (isinstance(error, RuntimeError) and not text.startswith("DataLoader ")):
        return ""
    return (
        f"a data worker died or hangs: {text or type(error).__name__}; often memory or /dev/shm is full: "
        "lower num_workers or the cache; num_workers 0 shows the cause."
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's arithmetic inside the ``with``.

    A clip is too little work to share: threads waiting for each other made loading 10 times slower on contended cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Requests to stop wait inside the ``with``, and in every process begun in it.

    `timeout`, Slurm and Ctrl-C signal every process; the training process still needs batches until it has stopped.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # where workers are not forked
    threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
