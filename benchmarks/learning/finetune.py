"""What is pretraining worth when labels are few? Fine-tuning from a pretrained encoder and from a new one, equal steps.

Sounds: esc10, official 5 folds. Pictures: fashion_mnist, 1 % of the training labels, official test. The encoder was pretrained
without labels by ``audio-small`` on the sound of esc10, fsdd and grid_s1, so it has heard the test clips, but not their
classes; or by ``image-small`` on the training pictures; with the seed of the fine-tuning. The recipe is ``small`` for both
methods, and nothing but the first weights (and the layer-wise decay, where one is asked for) differs. Runs go on where they
were.
Command: ``python benchmarks/learning/finetune.py --medium audio --data DATA --out RUNS``. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from runs import machine, mean_text, train

from bridle.data.columns import Columns
from bridle.data.manifest import read_manifest
from bridle.data.medium import MEDIA
from bridle.eval.intervals import student_half_width
from bridle.finetuning.folds import finetune_folds
from bridle.finetuning.parts import PartConfig, part_clips
from bridle.recipes import recipe
from bridle.recipes.finetune import finetuning
from bridle.run import RunConfig, RunFolder
from bridle.train.reporter import Silent

PRETRAINED, SCRATCH = "pretrained", "from scratch"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt: unlabelled files, how an encoder is made of them, labelled files, how they are parted, how long."""

    recipe: str
    unlabelled: tuple[str, ...]
    labelled: tuple[str, ...]
    columns: Columns
    clips_per_class: int
    phases: str


TASKS = {
    "audio": Task(
        "audio-small",
        ("esc10/audio", "fsdd/audio", "grid_s1/audio"),
        ("esc10/meta.csv",),
        Columns("class", fold="fold"),
        0,
        "supervised:300steps",
    ),
    "image": Task(
        "image-small",
        tuple(f"fashion_mnist/train-{number:02d}.tar" for number in range(6)),
        (*(f"fashion_mnist/train-{number:02d}.tar" for number in range(6)), "fashion_mnist/test-00.tar"),
        Columns("class", split="split"),
        60,
        "supervised:1000steps",
    ),
}


class Lines(Silent):
    """Prints what is told in words."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def settings_of(source: RunConfig, task: Task, seed: int, layer_decay: float) -> RunConfig:
    """The recipe ``small`` on the encoder of ``source``."""
    config = dataclasses.replace(finetuning("small", source), phases=task.phases, seed=seed)
    assert config.finetune is not None
    changed = dataclasses.replace(config.finetune, label=task.columns.label, layer_decay=layer_decay)
    return dataclasses.replace(config, finetune=changed)


def score(task: Task, data: Path, out: Path, run: Path, method: str, seed: int, layer_decay: float) -> float:
    """Test accuracy in per cent, the mean of the folds."""
    source = RunFolder(run).read_config()
    config = settings_of(source, task, seed, layer_decay)
    manifest = read_manifest([data / name for name in task.labelled], MEDIA[source.medium.name])
    manifest, parts = part_clips(manifest, PartConfig(task.columns, clips_per_class=task.clips_per_class, seed=seed))
    decay = "" if layer_decay == 1 else f"-decay{layer_decay:g}"
    folder = out / f"{run.name}-{method.replace(' ', '-')}-{task.phases.removeprefix('supervised:')}{decay}"
    done = finetune_folds(config, run if method == PRETRAINED else None, manifest, parts, folder, resume=True, reporter=Lines())
    tests = [each.test for each in done if each.test is not None]
    if len(tests) < len(parts):
        raise SystemExit(f"{folder} was asked to stop; run the same command again to go on")
    return 100 * sum(test.score for test in tests) / len(tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--medium", choices=list(TASKS), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of the fine-tuning, instead of the task's")
    parser.add_argument("--layer-decay", type=float, default=1.0, help="of the pretrained encoder; a new one has none")
    arguments = parser.parse_args()
    task = TASKS[arguments.medium]
    if arguments.steps is not None:
        task = dataclasses.replace(task, phases=f"supervised:{arguments.steps}steps")
    results: dict[str, list[float]] = {PRETRAINED: [], SCRATCH: []}
    for seed in arguments.seeds:
        run = arguments.out / f"{task.recipe}-seed{seed}"
        train(dataclasses.replace(recipe(task.recipe), seed=seed), [arguments.data / part for part in task.unlabelled], run)
        for method, values in results.items():
            decay = arguments.layer_decay if method == PRETRAINED else 1.0
            values.append(score(task, arguments.data, arguments.out, run, method, seed, decay))
            print(f"seed {seed}, {method}: {values[-1]:.1f}", flush=True)
    gains = [ours - theirs for ours, theirs in zip(*results.values(), strict=True)]
    decay = "" if arguments.layer_decay == 1 else f", layer decay {arguments.layer_decay:g} of the pretrained encoder"
    print(f"\n{arguments.medium}, {task.phases}{decay}, seeds {arguments.seeds}")
    print("test accuracy, % (mean, half of the 95 % interval)")
    for method, values in results.items():
        print(f"  {method:<14} {mean_text(values)}   {', '.join(f'{value:.1f}' for value in values)}")
    print(f"  {'gain':<14} {mean_text(gains)}")
    low = sum(gains) / len(gains) - (student_half_width(gains) if len(gains) > 1 else 0.0)
    print(
        json.dumps(
            {
                "task": dataclasses.asdict(task),
                "layer_decay": arguments.layer_decay,
                "results": results,
                "gains": gains,
                "low": low,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
