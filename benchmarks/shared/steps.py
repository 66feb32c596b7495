"""What benchmarks of training steps share: steps built from a recipe, run in turns, with the machine's own rate beside them."""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bridle.data.batch import Batch
from bridle.doctor.plan import raw_loader
from bridle.doctor.speed import _fit_codebooks, random_batch
from bridle.grid import Subset
from bridle.masking import MaskConfig
from bridle.networks import Networks
from bridle.nn.patches import Patches
from bridle.objectives.base import Objective
from bridle.objectives.masked import MaskedCodes, MaskedPatches
from bridle.objectives.tokenizer import TokenizerDistillation
from bridle.objectives.view import whole_view
from bridle.optim.groups import build_adamw
from bridle.run import RunConfig
from bridle.train.loop import Precision, resolve_precision, train_step

PRODUCT = (1600, 384, 1536)
"""The product by which machines are compared: rows, inputs, outputs; in bf16."""
KINDS = ("cold", "tokenizer", "encoder", "patches")


@dataclass
class Times:
    """Seconds of each run of a job: by the wall clock, and of this process's CPU (0 where a GPU works)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def own(self) -> list[float]:
        """CPU seconds of one thread on a CPU, which other work on the machine hardly moves; else wall seconds."""
        return self.cpu if torch.get_num_threads() == 1 and not torch.cuda.is_available() else self.wall

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.own)

    def over(self, base: Times) -> float:
        """Median of the ratios of neighbouring runs to those of another job."""
        return statistics.median(a / b for a, b in zip(self.own, base.own, strict=True))


def alternate(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Each job once to warm up, then all of them in turns, so that other work on the machine weighs on all alike."""
    times = {name: Times() for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            _wait()
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            _wait()
            if turn:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_rate(device: torch.device, size: tuple[int, int, int] = PRODUCT, repeats: int = 30) -> float:
    """Operations per second of a bf16 product of this size, the best of the repeats; multiplying and adding are two."""
    rows, inputs, outputs = size
    x = torch.randn(rows, inputs, device=device).bfloat16()
    weight = torch.randn(outputs, inputs, device=device).bfloat16()
    best = min(alternate({"product": lambda: torch.nn.functional.linear(x, weight)}, repeats)["product"].wall)
    return 2 * rows * inputs * outputs / best


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, instead of asking the kernel for zeroed pages again and again."""
    if sys.platform != "linux":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((-1, 2**31 - 1), (-2, 256 * 2**20), (-4, 0)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
        mallopt(option, value)


def device_of(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def machine() -> dict[str, object]:
    """What a number depends on: threads, load, versions."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


class StoredCodes(nn.Module):
    """A source of codes that were worked out before: what a frozen tokenizer costs when clips are the same in every epoch."""

    def __init__(self, tokenizer: nn.Module, batch: Batch, config: RunConfig) -> None:
        super().__init__()
        view = whole_view(batch, config.encoder.patch)
        with torch.no_grad():
            self.codes = tokenizer.quantizer.encode(tokenizer.vectors(view.patches, view.every)).float()
        self.quantizer = _Identity(tokenizer.quantizer)

    def vectors(self, patches: Patches, subset: Subset) -> Tensor:
        """The stored codes (B, N, R)."""
        return self.codes

    def vectors_at(self, patches: Patches, subset: Subset, indices: Tensor) -> Tensor:
        """The stored codes at ``indices`` (B, m): (B, m, R)."""
        return Subset(indices, None).gather(self.codes)


class _Identity(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.fitted = quantizer.fitted

    def encode(self, codes: Tensor, *, check: bool = True) -> Tensor:
        return codes.long()


class Bench:
    """Networks of all phases of a recipe, on a batch of noise in the shape of full clips.

    Args:
        config: the recipe, with any changes of size.
        clips: of the batch.
        device: where to compute.
    """

    def __init__(self, config: RunConfig, clips: int, device: torch.device) -> None:
        phases = ", ".join(f"{kind}:1steps" for kind in KINDS)
        precision = resolve_precision("auto", device)
        self.config = replace(config, phases=phases, train=replace(config.train, precision=precision, num_micro_batches=1))
        self.device = device
        self.networks = Networks(self.config).to(device)
        self.optimizers: dict[tuple[int, ...], Optimizer] = {}
        _fit_codebooks(self.networks, device)
        self.loader = raw_loader(self.config)
        self.batch = self.loader.finish(random_batch(self.config, clips).to(device), augment=True)

    def objective(self, kind: str, masks: MaskConfig | None = None, stored: bool = False, compiled: bool = False) -> Objective:
        """Of a phase; ``stored`` takes labels from memory, ``compiled`` compiles the networks that are trained."""
        n, config = self.networks, self.config
        masks = masks or config.masks
        encoder, predictor = (_compiled(part) if compiled else part for part in (n.encoder, n.predictor))
        if kind == "tokenizer":
            if compiled:
                n.tokenizer.encoder.compile()
                n.estimator.compile()
            return TokenizerDistillation(encoder, n.tokenizer, n.estimator)
        if kind == "patches":
            return MaskedPatches(encoder, predictor, n.patch_head, masks)
        tokenizer = n.cold if kind == "cold" else n.tokenizer
        labels = StoredCodes(tokenizer, self.batch, config) if stored else tokenizer
        return MaskedCodes(encoder, predictor, n.head, labels, masks, config.level_weights)

    def step(
        self,
        kind: str,
        masks: MaskConfig | None = None,
        precision: Precision | None = None,
        stored: bool = False,
        compiled: bool = False,
        wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective,
    ) -> Callable[[], object]:
        """One training step of a phase: forward, backward, clipping, optimiser, codebooks; ``wrap`` shares it out."""
        self.networks.requires_grad_(True)
        objective = self.objective(kind, masks, stored, compiled).train()
        model = wrap(objective)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        optim = self.config.tokenizer_optim if kind == "tokenizer" else self.config.encoder_optim
        # Steps that train the same parameters share their optimiser's state, which is twice as large as the weights.
        optimizer = self.optimizers.setdefault(tuple(map(id, trained)), build_adamw(objective, optim))
        train = replace(self.config.train, precision=precision or self.config.train.precision)

        def run() -> object:
            self.networks.requires_grad_(False)  # steps of other objectives train other parts
            for parameter in trained:
                parameter.requires_grad_(True)
            result = train_step(model, objective, optimizer, self.batch, 1, optim.clip_norm, train)
            optimizer.zero_grad(set_to_none=True)
            return result

        return run


def _compiled(part: nn.Module) -> nn.Module:
    part.compile()
    return part
