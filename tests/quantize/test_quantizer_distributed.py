"""Two and three processes with gloo on this machine: equal bits on all ranks, equal numbers as one process."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reference.vectors import structured_vectors

from bridle.errors import QuantizerError, TrainingError
from bridle.quantize import QuantizerConfig, ResidualQuantizer
from bridle.train.agreement import assert_ranks_agree

CONFIG = QuantizerConfig(num_codebooks=3, codebook_size=16, code_dim=16, decay=0.9, kmeans_steps=5)
STEPS = 30


def share(rank: int, world: int, step: int) -> torch.Tensor:
    """This rank's part of a step: unequal, and none at all on the last rank at every third step."""
    batch = structured_vectors(200 + step, draw=step)
    if step % 3 == 0:
        return batch[rank :: world - 1] if rank < world - 1 else batch[:0]
    cuts = [0, *(len(batch) * (i + 1) ** 2 // world**2 for i in range(world))]
    return batch[cuts[rank] : cuts[rank + 1]]


def collapse(quantizer: ResidualQuantizer) -> None:
    quantizer.codebooks[:, 3:] = 50.0
    quantizer.ema_usage[:] = torch.tensor([0.5, 0.3, 0.2] + [0.0] * 13)


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    results: dict[str, object] = {}
    quantizer = ResidualQuantizer(CONFIG).train()
    try:
        quantizer.fit(structured_vectors(7), 0)
    except QuantizerError as error:
        results["too few"] = str(error)
    poisoned = structured_vectors(100)
    poisoned[0] = float("nan") if rank == 1 else 0.0
    try:
        quantizer.fit(poisoned, 0)
    except QuantizerError as error:
        results["nan"] = str(error)
    sample = structured_vectors(900)
    quantizer.fit(sample[:0] if rank == world - 1 else sample[rank :: world - 1], seed=0)
    results["fitted"] = quantizer.codebooks.clone()
    results["codes"] = quantizer.encode(structured_vectors(300, draw=99))
    collapse(quantizer)
    revived = torch.zeros(3)
    for step in range(STEPS):
        quantizer.update(quantizer(share(rank, world, step)).statistics)
        assert_ranks_agree(quantizer.state_dict())
        revived += torch.stack([quantizer.metrics()[f"revived/{r}"] for r in range(3)])
        if step == 0:
            results["first update"] = quantizer.codebooks.clone()
    results["revived"] = revived
    before = quantizer.codebooks.clone()
    quantizer.update(quantizer(poisoned).statistics)
    results["refused"] = torch.equal(before, quantizer.codebooks)
    results["updates"] = int(quantizer.updates)
    results["trained"], results["usage"] = quantizer.codebooks.clone(), quantizer.ema_usage.clone()
    results["global rng"] = torch.get_rng_state()
    if rank == 1:
        quantizer.codebooks[0, 0, 0] += 1e-6
    try:
        assert_ranks_agree(quantizer.state_dict())
    except TrainingError as error:
        results["differ"] = str(error)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3], ids=["2-ranks", "3-ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def single(world: int) -> tuple[ResidualQuantizer, torch.Tensor]:
    """One process on the concatenated parts; also the codebooks after the first update."""
    quantizer = ResidualQuantizer(CONFIG).train()
    sample = structured_vectors(900)
    quantizer.fit(torch.cat([sample[rank :: world - 1] for rank in range(world - 1)]), seed=0)
    collapse(quantizer)
    for step in range(STEPS):
        quantizer.update(quantizer(torch.cat([share(rank, world, step) for rank in range(world)])).statistics)
        if step == 0:
            first = quantizer.codebooks.clone()
    return quantizer, first


def test_all_ranks_hold_equal_bits_after_fit_and_after_updates(ranks: list[dict[str, torch.Tensor]]) -> None:
    for other in ranks[1:]:
        for name in ("fitted", "codes", "first update", "trained", "usage", "revived"):
            assert torch.equal(ranks[0][name], other[name]), name


def test_all_ranks_together_equal_one_process(ranks: list[dict[str, torch.Tensor]]) -> None:
    quantizer, first = single(len(ranks))
    torch.testing.assert_close(ranks[0]["first update"], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(ranks[0]["trained"], quantizer.codebooks, rtol=0, atol=1e-5)
    torch.testing.assert_close(ranks[0]["usage"], quantizer.ema_usage, rtol=0, atol=1e-5)
    assert ranks[0]["updates"] == int(quantizer.updates) == STEPS


def test_revival_was_part_of_it(ranks: list[dict[str, torch.Tensor]]) -> None:
    assert bool((ranks[0]["revived"] >= 10).all())


def test_faults_are_seen_on_all_ranks_alike(ranks: list[dict[str, object]]) -> None:
    for result in ranks:
        assert f"{7 * len(ranks)} vectors" in str(result["too few"]) if 7 * len(ranks) < 16 else "too few" not in result
        assert "level 0: 1 of" in str(result["nan"])
        assert result["refused"] is True
        assert "codebooks of ranks [1] differs" in str(result["differ"])
