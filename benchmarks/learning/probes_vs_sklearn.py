"""Our probes beside scikit-learn's: ``python benchmarks/learning/probes_vs_sklearn.py RUN DATA... --label COLUMN``.

Features and parameters are those that the evaluation chose inside each training part; both sides get the same ones, and each
standardises them itself. scikit-learn's kNN weighs its votes as ours does. The attentive probe, which scikit-learn has not,
stands beside them. Leaves with status 1 if the mean accuracy of kNN differs, or the linear one by more than half a point.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from bridle.data.columns import Columns, subset, with_cells
from bridle.data.manifest import read_manifest
from bridle.eval.attentive import AttentiveConfig, attentive_probe
from bridle.eval.features import Choice, collect_features
from bridle.eval.protocol import FeatureSet, ProbeResult, choose_splits, evaluate, knn_probe, linear_probe
from bridle.inference import load

TEMPERATURE = 0.07
LINEAR_POINTS = 0.5


def votes(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of a neighbour on the unit sphere by its Euclidean distance: exp(cosine similarity / temperature)."""
    return np.exp((1 - distances**2 / 2) / TEMPERATURE)


def theirs(features: FeatureSet, result: ProbeResult, seed: int) -> list[NDArray[np.str_]]:
    """Predictions of scikit-learn's estimator for the test clips of every split."""
    labels, found = np.asarray(features.labels), []
    for split, chosen in zip(choose_splits(features, seed), result.splits, strict=True):
        rows = np.asarray(features.pooled[chosen.pooling], dtype=np.float64)
        if result.probe == "knn":
            head = KNeighborsClassifier(int(chosen.parameter), weights=votes, algorithm="brute")
            model = make_pipeline(StandardScaler(), Normalizer(), head)
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=chosen.parameter, tol=1e-10, max_iter=100_000))
        model.fit(rows[split.train_index], labels[split.train_index])
        found.append(model.predict(rows[split.test_index]))
    return found


def compare(features: FeatureSet, result: ProbeResult, seed: int) -> bool:
    """Print both accuracies split by split; True when their means are near enough."""
    labels, accuracies = np.asarray(features.labels), []
    for split, predicted in zip(result.splits, theirs(features, result, seed), strict=True):
        test = list(split.test_index)
        accuracies.append(float((predicted == labels[test]).mean()))
        same = int((predicted == np.asarray(split.predictions)).sum())
        sys.stdout.write(
            f"{result.probe:9} {split.name:5} {split.pooling:24} {split.parameter:<8g} "
            f"{100 * split.accuracy:6.2f}  {100 * accuracies[-1]:6.2f}   {same} of {len(test)}\n"
        )
    mean, allowed = float(np.mean(accuracies)), 0.0 if result.probe == "knn" else LINEAR_POINTS
    apart = 100 * abs(result.accuracy - mean)
    numbers = f"{100 * result.accuracy:6.2f}  {100 * mean:6.2f}"
    sys.stdout.write(f"{result.probe:9} {'mean':39} {numbers}   {apart:.2f} points apart, {allowed:g} are allowed\n")
    return apart <= allowed + 1e-9


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--label", required=True)
    parser.add_argument("--fold")
    parser.add_argument("--split")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model = load(asked.run, "cpu")
    columns = Columns(asked.label, asked.fold, asked.split)
    manifest, _ = with_cells(read_manifest(asked.data, model.config.medium), columns)
    collected = collect_features({"run": model}, manifest, choice=Choice(patch_gigabytes=4.0))
    cells = subset(manifest, collected.rows).columns
    parts = {role: cells[name] for role, name in (("folds", asked.fold), ("splits", asked.split)) if name}
    features = FeatureSet(collected.features["run"], cells[asked.label], **parts)
    patches = collected.patches["run"]
    config = AttentiveConfig(heads=model.config.encoder.heads, seed=asked.seed)
    sys.stdout.write(f"{model.fingerprint}: {len(patches)} clips, seed {asked.seed}, torch {torch.__version__}\n")
    sys.stdout.write("probe     split features                 k or C     ours sklearn   same predictions\n")
    results = [evaluate(features, probe, asked.seed) for probe in (knn_probe(temperature=TEMPERATURE), linear_probe())]
    fine = [compare(features, result, asked.seed) for result in results]
    attentive = evaluate(
        FeatureSet({"patches": patches.numbers}, cells[asked.label], **parts),
        attentive_probe(patches, config=config),
        asked.seed,
    )
    ranked = [attentive, results[1], results[0]]
    sys.stdout.write(f"split  {'  '.join(f'{result.probe:>9}' for result in ranked)}\n")
    for splits in zip(*(result.splits for result in ranked), strict=True):
        sys.stdout.write(f"{splits[0].name:6} {'  '.join(f'{100 * split.accuracy:9.2f}' for split in splits)}\n")
    sys.stdout.write(f"mean   {'  '.join(f'{100 * result.accuracy:9.2f}' for result in ranked)}\n")
    order = all(a.accuracy >= b.accuracy for a, b in pairwise(ranked))
    sys.stdout.write(f"attentive >= linear >= kNN: {'yes' if order else 'no'}\n")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
