"""Attentive probes against torch's own attention, and the patch features that they look at."""

import numpy as np
import pytest
import torch
from torch import nn

from bridle.errors import ConfigError, DataError
from bridle.eval import attentive
from bridle.eval.attentive import AttentiveConfig, AttentiveProbe, attentive_logits, attentive_probe, fit_attentive
from bridle.eval.linear_probe import linear_predictions
from bridle.eval.patches import PatchBudget, PatchCollector, PatchFeatures
from bridle.eval.protocol import FeatureSet, evaluate
from bridle.grid import PatchGrid
from bridle.inference import Window

SHORT = AttentiveConfig(heads=2, epochs=4, ranking_epochs=2, batch_size=8)


def one_telling_patch(num=60, width=8, seed=0):
    """Clips of 5 to 9 noisy patches, one of which, marked by column 0, tells the class; their mean hardly does."""
    random, clips = np.random.default_rng(seed), []
    labels = np.arange(num) % 3
    for label in labels:
        patches = 2 * random.normal(size=(random.integers(5, 10), width))
        patches[:, 0] = -1
        telling = random.integers(len(patches))
        patches[telling] = 0.3 * random.normal(size=width)
        patches[telling, 0], patches[telling, 1 + label] = 3, 3
        clips.append(torch.from_numpy(patches).half())
    return PatchFeatures(tuple(clips)), torch.from_numpy(labels)


def test_a_probe_is_multi_head_attention_with_a_learned_query():
    generator = torch.Generator().manual_seed(0)
    width, heads, num_classes = 12, 3, 4
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    reference = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
    joint, query = draw(3 * width, width), draw(width)
    reference.in_proj_weight.data, reference.out_proj.weight.data = joint, torch.eye(width)
    mean, scale = draw(width), draw(width).abs() + 0.5
    classifier = nn.Linear(width, num_classes)
    probe = AttentiveProbe(width, num_classes, heads)
    to_query, to_key, to_value = joint.chunk(3)
    asked = (to_query @ query).reshape(heads, 1, -1) * (width // heads) ** -0.5
    probe.query.data = (asked @ to_key.reshape(heads, -1, width))[:, 0]
    probe.value.data = to_value.reshape(heads, -1, width)
    probe.classifier.data = torch.cat([classifier.weight, classifier.bias[:, None]], dim=1).detach()
    probe.mean.copy_(mean)
    probe.scale.copy_(scale)
    patches, valid = draw(5, 7, width), torch.arange(7) < torch.tensor([7, 1, 3, 7, 5])[:, None]
    normal = (patches - mean) / scale
    pooled = reference(query.expand(5, 1, width), normal, normal, key_padding_mask=~valid)[0][:, 0]
    torch.testing.assert_close(probe(patches, valid), classifier(pooled), atol=1e-4, rtol=1e-4)


def test_patches_that_are_not_valid_do_not_matter():
    patches, _ = one_telling_patch(4)
    probe = AttentiveProbe(8, 3, 2)
    probe.query.data = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    probe.classifier.data = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    together, valid = patches.batch([0, 1, 2, 3])
    alone = torch.cat([probe(*patches.batch([row])) for row in range(4)])
    torch.testing.assert_close(probe(together + 100 * ~valid[..., None], valid), alone)


def test_rates_trained_together_are_those_trained_alone():
    patches, labels = one_telling_patch(20)
    rows = list(range(20))
    together = fit_attentive(patches, rows, labels[:20], 3, (1e-3, 1e-2), SHORT)
    for rate, probe in zip((1e-3, 1e-2), together, strict=True):
        (alone,) = fit_attentive(patches, rows, labels[:20], 3, (rate,), SHORT)
        assert not probe.training
        for name, value in probe.state_dict().items():
            torch.testing.assert_close(value, alone.state_dict()[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(together[0].query, together[1].query)


def test_it_finds_the_patch_that_a_mean_drowns():
    patches, labels = one_telling_patch(150)
    train, test = list(range(100)), list(range(100, 150))
    config = AttentiveConfig(heads=2, epochs=30, batch_size=16)
    found = attentive_logits(patches, train, labels[:100], test, 3, (1e-2,), config)[0].argmax(dim=1)
    means = torch.stack([clip.float().mean(dim=0) for clip in patches.clips])
    linear = linear_predictions(means[:100], labels[:100], means[100:], (1.0,))[0]
    accuracy, of_means = ((each == labels[100:]).float().mean().item() for each in (found, linear))
    assert accuracy > 0.9
    assert accuracy > of_means + 0.1


def test_no_choice_sees_test_clips_and_repeats_are_equal():
    patches, labels = one_telling_patch(40)
    columns = {"splits": ["test" if row % 4 == 0 else "train" for row in range(40)]}
    features = FeatureSet({"patches": patches.numbers}, [str(label) for label in labels.tolist()], **columns)
    state = torch.random.get_rng_state()
    result = evaluate(features, attentive_probe(patches, (1e-3, 1e-2), SHORT))
    assert result == evaluate(features, attentive_probe(patches, (1e-3, 1e-2), SHORT))
    assert torch.equal(torch.random.get_rng_state(), state)
    clips = [torch.full_like(clip, 9.0) if row % 4 == 0 else clip for row, clip in enumerate(patches.clips)]
    poisoned = evaluate(features, attentive_probe(PatchFeatures(tuple(clips)), (1e-3, 1e-2), SHORT))
    chosen, again = result.splits[0], poisoned.splits[0]
    assert (again.parameter, again.inner_accuracy) == (chosen.parameter, chosen.inner_accuracy)
    assert len(set(again.predictions)) == 1  # all test clips are alike now


def test_errors_name_the_value():
    patches, labels = one_telling_patch(6)
    with pytest.raises(ConfigError, match="heads=3 must divide width=8"):
        fit_attentive(patches, [0, 1], labels[:2], 3, (0.1,), AttentiveConfig(heads=3))
    with pytest.raises(DataError, match="2 targets for 3 training clips"):
        fit_attentive(patches, [0, 1, 2], labels[:2], 3, (0.1,), SHORT)
    with pytest.raises(DataError, match="all above 0"):
        fit_attentive(patches, [0, 1], labels[:2], 3, (0.1, -1.0), SHORT)


def test_moments_are_those_of_all_patches():
    patches, _ = one_telling_patch(9)
    rows = [0, 4, 8]
    every = torch.cat([patches.clips[row].float() for row in rows])
    mean, scale = patches.moments(rows)
    torch.testing.assert_close(mean, every.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scale, every.std(dim=0, correction=0), atol=1e-5, rtol=1e-4)


def windows(*clips):
    return [Window(clip, 0.0, torch.zeros(1)) for clip in clips]


def test_a_collector_joins_windows_cuts_padding_and_normalises():
    features = 1e6 * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0)) + 3e6  # too large for half precision
    collector = PatchCollector(3, PatchBudget(1.0, 3))
    collector.add(windows(0, 0, 2), features, PatchGrid(3, 2, 1), torch.tensor([3, 2, 1]))
    found = collector.finish([0, 2])
    expected = (features - features.mean(-1, keepdim=True)) / features.std(-1, correction=0, keepdim=True)
    assert [clip.shape for clip in found.clips] == [(10, 8), (2, 8)]
    torch.testing.assert_close(found.clips[0].float(), torch.cat([expected[0], expected[1, :4]]), atol=2e-3, rtol=2e-3)
    assert found.numbers.tolist() == [[0], [1]]
    collector.add(windows(1), features[:1] * torch.nan, PatchGrid(3, 2, 1), torch.tensor([3]))
    with pytest.raises(DataError, match="patch features of clip 1 hold NaN"):
        collector.finish([0, 1])


def test_memory_is_limited_and_a_hopeless_set_is_refused_early():
    budget = PatchBudget(1.0, 4)
    for clip in range(4):
        budget.take(clip, 250_000_000)
    with pytest.raises(DataError, match=r"need about .* GB, and the limit is 1 GB; .* \(--patch-gigabytes\)"):
        budget.take(3, 1)
    early = PatchBudget(1.0, 1000)
    with pytest.raises(DataError, match=r"patch features of 1000 clips need about 3 GB"):
        for clip in range(1000):
            early.take(clip, 3_000_000)
    assert clip == 15


def test_probes_are_trained_on_the_device_that_is_asked_for():
    patches = PatchFeatures(tuple(torch.randn(5, 8).half() for _ in range(6)))
    config = AttentiveConfig(heads=2, epochs=1, batch_size=4, device=torch.device("meta"))
    (probe,) = fit_attentive(patches, range(6), torch.arange(6) % 2, 2, (0.01,), config)
    held = (*probe.parameters(), *probe.buffers())
    assert {tensor.device.type for tensor in held} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_chooses_and_predicts_as_the_cpu_does():
    patches, labels = one_telling_patch()
    numbers = patches.numbers
    found = []
    for device in ("cpu", "cuda"):
        config = AttentiveConfig(heads=2, epochs=3, ranking_epochs=2, device=torch.device(device))
        probe = attentive_probe(patches, (0.01, 0.03), config)
        found.append(probe.predict(numbers[:40], labels[:40], numbers[40:], (0.01, 0.03)))
        assert probe.probabilities is not None
        assert probe.probabilities(numbers[:40], labels[:40], numbers[40:], 0.01).device.type == "cpu"
    assert (found[0] == found[1]).float().mean() > 0.9


def test_logits_are_on_the_cpu_whatever_the_device_of_the_probes(monkeypatch):
    moved = []

    class Elsewhere(torch.Tensor):
        """Tells when it is brought to the CPU."""

        def cpu(self):
            moved.append(self.shape)
            return self.as_subclass(torch.Tensor)

    def logits_of(probes, patches, clips):
        return [torch.randn(len(clips), 2).as_subclass(Elsewhere) for _ in probes]

    monkeypatch.setattr(attentive, "logits_of", logits_of)
    monkeypatch.setattr(attentive, "fit_attentive", lambda *arguments: [None, None])
    patches = PatchFeatures(tuple(torch.randn(5, 8).half() for _ in range(8)))
    config = AttentiveConfig(heads=2, epochs=1, batch_size=4)
    logits = attentive.attentive_logits(patches, range(6), torch.arange(6) % 2, range(8), 2, (0.01, 0.03), config)
    assert type(logits) is torch.Tensor and moved == [(2, 8, 2)]
