"""The peers of the benchmarks are not lamed: built as their papers have them, trained on our batches, judged as they are."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.media_folders import write_folder

import bridle
from bridle.data.loaders import build_loader
from bridle.nn.patches import patchify
from bridle.recipes import recipe
from bridle.run import RunConfig

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'bridle[transformers]')")

FOLDER = Path(__file__).parents[1] / "benchmarks" / "learning"


@pytest.fixture(scope="module")
def peers() -> Any:
    spec = importlib.util.spec_from_file_location("peers", FOLDER / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    return module


def small(medium: str) -> RunConfig:
    config = recipe(f"{medium}-debug")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=4, precision="fp32", num_workers=0))


def test_vitmae_starts_as_mae_does(peers: Any) -> None:
    config = small("image")
    model = peers.build(config, 0)
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert bool((table[0, 1:].std(0) > 0).any())
        assert not bool(table[0, 0].any())
    weight = model.vit.embeddings.patch_embeddings.projection.weight
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    assert float(weight.detach().std()) == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.1)
    assert torch.equal(weight, peers.build(config, 0).vit.embeddings.patch_embeddings.projection.weight)


def test_videomae_keeps_its_last_norm(peers: Any) -> None:
    assert peers.build(small("video"), 0).videomae.layernorm is not None


@pytest.mark.parametrize("medium", ["image", "video"])
def test_only_matrices_decay(peers: Any, medium: str) -> None:
    model = peers.build(small(medium), 0)
    groups = peers.optimizer_of(model, 1e-3).param_groups
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert set(by_decay) == {0.0, peers.WEIGHT_DECAY}
    assert all(parameter.ndim > 1 for parameter in by_decay[peers.WEIGHT_DECAY])
    tokens = {id(parameter) for name, parameter in model.named_parameters() if name.endswith(("cls_token", "mask_token"))}
    assert tokens and tokens <= {id(parameter) for parameter in by_decay[0.0]}
    assert sum(map(len, by_decay.values())) == sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("medium", ["image", "video"])
def test_a_peer_is_trained_and_gives_its_own_features(peers: Any, medium: str, tmp_path: Path) -> None:
    data, config = write_folder(medium, tmp_path / "data"), small(medium)
    models = []
    build = peers.build
    peer = peers.Peer(config, 1e-3, 2, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "build", lambda *request: models.append(build(*request)) or models[-1])
        minutes = peers.train(peer, [data], tmp_path / "peer")
    assert peers.train(peer, [data], tmp_path / "peer") == minutes
    with pytest.raises(SystemExit, match="other settings"):
        peers.train(dataclasses.replace(peer, lr=2e-3), [data], tmp_path / "peer")
    model = bridle.load(tmp_path / "peer", "cpu")
    ours = next(iter(peers.batches(model.config, [data], 1)))[0]
    with torch.no_grad():
        trained = models[0].eval()
        if medium == "image":
            trained.vit.config.mask_ratio = 0.0
            count = patchify(ours, model.config.encoder.patch).grid.num_patches
            noise = torch.arange(count, dtype=torch.float32).expand(len(ours), -1)
            expected = trained.vit(ours[:, :, 0], noise=noise).last_hidden_state[:, 1:]
        else:
            expected = trained.videomae(ours.transpose(1, 2)).last_hidden_state
        from bridle.grid import Subset

        found = model.networks.encoder(patchify(ours, model.config.encoder.patch), Subset(None, None)).patches
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert build_loader(model.config.clips).medium.name == medium
