"""Seconds that a probe during pretraining takes: ``python benchmarks/learning/probe_cost.py TABLE --fold fold``.

The encoder is a random one of width 768 with fewer layers than the recipe's. Its own share depends on the machine, so the fits
are told apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from bridle import probing
from bridle.data.columns import Columns
from bridle.data.manifest import read_manifest
from bridle.eval.protocol import FeatureSet, Probe, ProbeResult, evaluate
from bridle.inference import Model
from bridle.networks import Networks
from bridle.probing import FrozenProbe, ProbeConfig
from bridle.recipes import recipe


def timed(seconds: list[float]) -> Callable[[FeatureSet, Probe], ProbeResult]:
    """The evaluation, which notes how long it took."""

    def run(features: FeatureSet, probe: Probe) -> ProbeResult:
        begun = time.perf_counter()
        try:
            return evaluate(features, probe)
        finally:
            seconds.append(time.perf_counter() - begun)

    return run


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--recipe", default="audio-base")
    parser.add_argument("--label", default="class")
    parser.add_argument("--fold")
    parser.add_argument("--split")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--depth", type=int, default=4)
    asked = parser.parse_args()
    config = recipe(asked.recipe)
    config = replace(config, encoder=replace(config.encoder, depth=asked.depth))
    device = torch.device("cpu")
    networks = Networks(config)
    columns = Columns(asked.label, asked.fold, asked.split)
    probe = FrozenProbe(config, ProbeConfig(asked.table, columns, max_clips=asked.clips), device)
    for turn in ("first", "second"):
        fits: list[float] = []
        begun = time.perf_counter()
        with mock.patch.object(probing, "evaluate", timed(fits)):
            values = probe(1, networks)
        sys.stdout.write(f"{turn} probe: {time.perf_counter() - begun:.1f} s, of which fits {sum(fits):.1f} s; {values}\n")
    model = Model(config, networks, device, config.train.precision)
    entries = read_manifest(asked.table, config.medium).entries[: asked.clips]
    begun = time.perf_counter()
    windows = list(model.windows(entries, []))
    decoded = time.perf_counter()
    for _ in model.encode(windows):
        pass
    sys.stdout.write(f"decoding {decoded - begun:.1f} s, encoding {time.perf_counter() - decoded:.1f} s\n")


if __name__ == "__main__":
    main()
