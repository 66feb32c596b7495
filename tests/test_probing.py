"""Probes while pretraining: what they look at, what they keep, and that ranks share the work and wait for each other."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist

from bridle import distributed, probing
from bridle.data.columns import Columns
from bridle.data.manifest import read_manifest
from bridle.errors import ConfigError, DataError
from bridle.inference import Model
from bridle.networks import Networks
from bridle.probing import FrozenProbe, ProbeConfig
from bridle.recipes import recipe

CPU = torch.device("cpu")


def debug_config():
    """A small encoder of sounds, as a run has it after its normalisation was estimated."""
    config = recipe("audio-debug")
    fixed = replace(config.audio, mean=-8.0, std=5.0)
    return replace(config, audio=fixed, train=replace(config.train, precision="fp32"))


@pytest.fixture(scope="module")
def config():
    return debug_config()


@pytest.fixture(scope="module")
def networks(config):
    return Networks(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve sounds of two classes, one of them longer than a crop."""
    random = np.random.default_rng(0)
    for i in range(12):
        kind = ("low", "high")[i % 2]
        time = np.arange(16000 * (5 if i == 11 else 1)) / 16000
        sound = 0.3 * np.sin(2 * np.pi * (200, 2000)[i % 2] * time) + 0.05 * random.standard_normal(time.size)
        (tmp_path / kind).mkdir(exist_ok=True)
        soundfile.write(tmp_path / kind / f"{i:02d}.wav", sound.astype(np.float32), 16000)
    return tmp_path


def probe_of(config, folder, **options):
    return FrozenProbe(config, ProbeConfig(folder, Columns("class"), **options), CPU)


def features_seen(monkeypatch):
    """Every feature set that is probed from now on."""
    seen = []
    known = probing.evaluate
    monkeypatch.setattr(probing, "evaluate", lambda features, probe: seen.append(features) or known(features, probe))
    return seen


def test_features_are_as_many_numbers_as_the_encoder_is_wide(config, networks, folder, monkeypatch):
    seen = features_seen(monkeypatch)
    values = probe_of(config, folder)(1, networks)
    assert set(values) == {"probe/knn", "probe/linear"}
    assert all(0 <= value <= 1 for value in values.values())
    model = Model(config, Networks(config), CPU)
    model.networks.load_state_dict(networks.state_dict())
    expected = torch.stack([model.embed(entry.path) for entry in read_manifest(folder).entries])
    for features in seen:
        assert list(features.pooled) == ["mean"]
        torch.testing.assert_close(features.pooled["mean"], expected, rtol=1e-4, atol=1e-5)


def test_clips_are_decoded_once(config, networks, folder, monkeypatch):
    probe = probe_of(config, folder)
    first = probe(1, networks)
    monkeypatch.setattr(probe._loader, "windows", lambda entry: pytest.fail(f"{entry.key} is read again"))
    assert probe(2, networks) == first


def test_without_room_clips_are_read_anew_and_numbers_are_the_same(config, networks, folder):
    first = probe_of(config, folder)(1, networks)
    probe = probe_of(config, folder, cache_gigabytes=0.0)
    assert [probe(1, networks), probe(2, networks)] == [first, first]
    with pytest.raises(ConfigError, match=r"cache_gigabytes=-1.0 must be 0 or more"):
        probe_of(config, folder, cache_gigabytes=-1.0)


def test_networks_and_the_mode_they_are_in_stay_as_they_are(config, folder):
    networks = Networks(config).train()
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    probe_of(config, folder)(1, networks)
    assert networks.training and all(value.requires_grad for value in networks.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())


def test_files_that_cannot_be_read_are_left_out_each_time(config, networks, folder, monkeypatch):
    probe = probe_of(config, folder)
    (folder / "high" / "01.wav").write_bytes(b"no sound")
    seen = features_seen(monkeypatch)
    probe(1, networks)
    probe(2, networks)
    assert {len(features.labels) for features in seen} == {11}


def test_when_no_file_can_be_read_one_line_says_so(config, networks, folder):
    probe = probe_of(config, folder)
    for path in folder.rglob("*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match="none of 12 clips to be probed can be read; check their paths"):
        probe(1, networks)


def test_labels_lose_their_blanks(config, networks, folder, tmp_path, monkeypatch):
    table = tmp_path / "table.csv"
    paths = sorted(folder.rglob("*.wav"))
    cells = [f"{' ' * (i % 3)}{path.parent.name}" for i, path in enumerate(paths)]
    table.write_text("file,class\n" + "".join(f"{path},{cell}\n" for path, cell in zip(paths, cells, strict=True)))
    seen = features_seen(monkeypatch)
    probe_of(config, table)(1, networks)
    assert {label for features in seen for label in features.labels} == {"low", "high"}


def probe_on(rank: int, folder: Path, out: Path) -> None:
    """What each of two processes does."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    config = debug_config()
    networks, probe = Networks(config), probe_of(config, folder)
    first = probe(1, networks)
    (out / f"{rank}").write_text(repr([first, sorted(probe._kept._windows)]))
    assert probe._group._get_backend(CPU).options._timeout == distributed.PATIENCE
    groups = []
    known = dist.all_gather_object
    dist.all_gather_object = lambda *given, group=None: groups.append(group) or known(*given, group=group)

    def failing(networks):
        raise DataError("the second rank gives up")

    if rank == 1:
        probe._encode = failing
    try:
        probe(2, networks)
        message = ""
    except DataError as error:
        message = str(error)
    (out / f"{rank}-failed").write_text(message)
    assert groups == [probe._group] * 2  # nothing waits in the default group, which gives up
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes_share_the_clips_and_wait_for_each_other(config, networks, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(probe_on, (folder, out), nprocs=2)
    alone = probe_of(config, folder)(1, networks)
    assert (out / "0").read_text() == repr([alone, list(range(0, 12, 2))])
    assert (out / "1").read_text() == repr([{}, list(range(1, 12, 2))])
    assert [(out / f"{rank}-failed").read_text() for rank in (0, 1)] == ["the second rank gives up", ""]


def test_a_larger_set_is_sampled_once(config, folder):
    probe = probe_of(config, folder, max_clips=6)
    assert len(probe._manifest) == 6
    assert [entry.key for entry in probe._manifest.entries] == [
        entry.key for entry in probe_of(replace(config), folder, max_clips=6)._manifest.entries
    ]
