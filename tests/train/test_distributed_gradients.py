"""Two and three processes with gloo: the gradients of every parameter are those of one process on the whole batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reference.batches import ENCODER, Parts, clips
from torch.nn.parallel import DistributedDataParallel

from bridle.data.batch import Batch, collate
from bridle.masking import MaskConfig
from bridle.models.predictor import PatchHead
from bridle.objectives.base import Objective
from bridle.objectives.masked import MaskedCodes, MaskedPatches
from bridle.objectives.tokenizer import Joint, TokenizerDistillation
from bridle.optim.groups import OptimConfig, build_adamw
from bridle.train.loop import TrainConfig, train_step

MASKS = MaskConfig(mask_ratio=0.75, num_masks=2, predict_ratio=0.5)
KINDS = ("codes", "patches", "tokenizer", "joint")
LENGTHS = (16, 16, 12, 9, 7, 16, 10)
"""Seven clips: no two or three processes get equal shares."""


def share(rank: int, world: int, seed: int) -> Batch:
    """Every ``world``-th clip of the global batch; a share is padded by its own longest clip."""
    return collate(clips(*LENGTHS, seed=seed)[rank::world], ENCODER.patch, (1, 8, 1))


def objective_of(kind: str, rank: int, world: int) -> Objective:
    parts = Parts()
    torch.manual_seed(0)
    objective: Objective
    if kind == "patches":
        return MaskedPatches(parts.encoder, parts.predictor, PatchHead(16, 16), MASKS)
    if kind == "codes":
        objective = MaskedCodes(parts.encoder, parts.predictor, parts.head, parts.cold, MASKS)
    else:
        objective = TokenizerDistillation(parts.encoder, parts.tokenizer, parts.estimator)
    if kind == "joint":
        codes = MaskedCodes(parts.encoder, parts.predictor, parts.head, parts.tokenizer, MASKS)
        objective = Joint(codes, TokenizerDistillation(parts.encoder, parts.tokenizer, parts.estimator))
    objective.prepare([share(rank, world, seed) for seed in range(5, 9)], 0)
    return objective


def one_step(kind: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers after two steps; the rate is 0, so that only averages move between them."""
    objective = objective_of(kind, rank, world).train()
    model = objective
    if world > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=objective.varying)  # type: ignore[assignment]
    optimizer = build_adamw(objective, OptimConfig(lr=0.0))
    for seed in (0, 1):
        result = train_step(model, objective, optimizer, share(rank, world, seed), 0, 0.0, TrainConfig(precision="fp32"))
    found = {f"value {name}": value for name, value in result.values.items()}
    found |= {f"gradient {n}": p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": value.clone() for name, value in objective.named_buffers()}


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({kind: one_step(kind, rank, world) for kind in KINDS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_of_several_processes_are_those_of_one(world: int, tmp_path: Path) -> None:
    mp.spawn(worker, (world, str(tmp_path)), nprocs=world)  # type: ignore[no-untyped-call]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for kind in KINDS:
        expected = one_step(kind, 0, 1)
        gradients = {name for name in expected if name.startswith("gradient ")}
        assert len(gradients) > 10
        for name, value in expected.items():
            for got in ranks:
                torch.testing.assert_close(
                    got[kind][name].double(),
                    value.double(),
                    atol=1e-5,
                    rtol=1e-5,
                    msg=lambda text, where=f"{kind} {name}": f"{where}: {text}",
                )
        for name in expected:
            if name.startswith("buffer "):
                assert all(torch.equal(got[kind][name], ranks[0][kind][name]) for got in ranks), f"{kind} {name}"
