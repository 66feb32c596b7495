"""``bridle pretrain RECIPE --data DATA --out RUN``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bridle.commands.arguments import recipe_list
from bridle.commands.display import ProgressReporter, console
from bridle.data.columns import Columns
from bridle.distributed import process_group, rank
from bridle.engine.parts import Outcome
from bridle.errors import ConfigError
from bridle.launch import check_gpus, is_restart, launch, reported, wants_launch
from bridle.paths import check_sources
from bridle.pretraining import pretrain
from bridle.probing import ProbeConfig
from bridle.recipes import RECIPES, recipe
from bridle.run import RunConfig, RunFolder
from bridle.settings import check_folder

_USAGE = """usage: bridle pretrain RECIPE --data DATA [DATA ...] --out RUN [--resume]
                       [--any.setting VALUE ...]

Pretrain an encoder and its tokenizer on unlabelled recordings, pictures or
films.

recipes:
{recipes}

'bridle pretrain RECIPE --help' lists every setting with its value in it.

examples:
  bridle pretrain audio-debug --data recordings/ --out runs/debug
  bridle pretrain audio-small --data recordings/ more/ --out runs/small \\
      --phases "cold:30, tokenizer:10, encoder:60"
  bridle pretrain image-small --data pictures/ --out runs/colour \\
      --image.channels 3 --encoder.channels 3
  bridle pretrain audio-small --data recordings/ --out runs/small --resume
  bridle pretrain audio-small --data recordings/ --out runs/small --resume \\
      --phases "cold:30, tokenizer:10, encoder:60, tokenizer:10"
      # adds phases to a run that is done
  bridle pretrain audio-small --data recordings/ --out runs/small \\
      --probe meta.csv --probe-label class --probe-every 500
  bridle pretrain audio-base --data recordings/ --out runs/base \\
      --num-processes 8  # on 8 GPUs; several machines: docs/processes.md
"""

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]


@dataclass
class Arguments:
    """Pretrain an encoder and its tokenizer on unlabelled recordings, pictures or films. The run can be resumed at any time.

    Attributes:
        data: folders (searched recursively), CSV or parquet tables, tar shards, or hf:NAME:SPLIT; several are joined.
        out: the run folder to write.
        config: every setting of the run.
        resume: continue the run in --out from its newest checkpoint; start it when there is none.
        num_processes: training processes on this machine, one for each GPU, that share every batch.
        max_restarts: how often all of them start again from the newest checkpoint when one was killed.
        probe: labelled clips, a table or folder, on which kNN and linear probe judge the encoder now and then.
        probe_label: column with their class.
        probe_fold: column with their official fold.
        probe_split: column that says train, validation or test.
        probe_group: clips with equal values stay on one side of a split.
        probe_path: column with their paths, if its name is not a usual one.
        probe_every: steps from one probe to the next.
    """

    data: tuple[str, ...]
    out: Path
    config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    resume: bool = False
    num_processes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    max_restarts: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    probe: Annotated[Path | None, tyro.conf.arg(metavar="MANIFEST")] = None
    probe_label: Column = None
    probe_fold: Column = None
    probe_split: Column = None
    probe_group: Column = None
    probe_path: Column = None
    probe_every: int = 1000

    @property
    def probe_config(self) -> ProbeConfig | None:
        """The probe that is asked for."""
        if self.probe is None:
            for name in ("label", "fold", "split", "group", "path"):
                if getattr(self, f"probe_{name}") is not None:
                    raise ConfigError(f"--probe-{name} is given, and no --probe MANIFEST; add it, or leave both out")
            return None
        if self.probe_label is None:
            raise ConfigError(f"--probe {self.probe} needs the column with the class: --probe-label COLUMN")
        columns = Columns(self.probe_label, self.probe_fold, self.probe_split, self.probe_group)
        return ProbeConfig(self.probe, columns, self.probe_every, path_column=self.probe_path)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE.format(recipes=recipe_list(RECIPES)))
        return 0 if arguments else 2
    with reported():
        return _pretrain(list(arguments))


def _pretrain(arguments: list[str]) -> int:
    if is_restart() and "--resume" not in arguments:
        arguments.append("--resume")
    start = _saved(arguments) or recipe(arguments[0])
    parsed = tyro.cli(
        Arguments,
        args=arguments[1:],
        prog=f"bridle pretrain {arguments[0]}",
        default=Arguments(data=tyro.MISSING, out=tyro.MISSING, config=start),
        config=(tyro.conf.AvoidSubcommands,),
    )
    probe = parsed.probe_config
    if wants_launch(parsed.num_processes):
        return _launch(arguments, parsed)
    with process_group(), ProgressReporter() as reporter:
        first = rank() == 0
        outcome = pretrain(parsed.config, parsed.data, parsed.out, resume=parsed.resume, reporter=reporter, probe=probe)
    if first:
        _say(outcome, parsed, arguments)
    if outcome.finished:
        return 0
    return 130 if outcome.stop_signal == signal.SIGINT else 0


def _launch(arguments: Sequence[str], parsed: Arguments) -> int:
    """Train in several processes; what is known to be wrong is said before they start."""
    check_sources(parsed.data)
    check_folder(RunFolder(parsed.out), parsed.resume)
    check_gpus(parsed.num_processes)
    ended = launch(["pretrain", *arguments], parsed.num_processes, parsed.max_restarts)
    if not ended.orderly:
        console().print("[bold yellow]stopped[/] before a checkpoint could be written. Continue with:")
        _say_again(arguments)
    return ended.status


def _saved(arguments: Sequence[str]) -> RunConfig | None:
    """The settings of the run that is to be resumed: what is not named again stays as it was."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments[1:])
    if not known.resume or known.out is None or not RunFolder(known.out).exists():
        return None
    saved = RunFolder(known.out).read_config()
    if saved.recipe != recipe(arguments[0]).recipe:
        raise ConfigError(f"{known.out} was made by the recipe {saved.recipe}, not {arguments[0]}; resume it under that name")
    return saved


def _say(outcome: Outcome, parsed: Arguments, arguments: Sequence[str]) -> None:
    if outcome.num_bad_files:
        console().print(f"[yellow]unreadable files: {outcome.num_bad_files}[/], listed in {parsed.out / 'quarantine.jsonl'}")
    if outcome.finished:
        console().print(f"[bold green]done[/] after {outcome.step} steps: {parsed.out}")
        console().print(f"next: bridle inspect {shlex.quote(str(parsed.out))}", markup=False, soft_wrap=True)
    else:
        written = "; a checkpoint is written" if outcome.step else ""
        console().print(f"[bold yellow]stopped[/] after {outcome.step} steps{written}. Continue with:")
        _say_again(arguments)


def _say_again(arguments: Sequence[str]) -> None:
    again = shlex.join(argument for argument in arguments if argument != "--resume")
    console().print(f"  bridle pretrain {again} --resume", markup=False, soft_wrap=True)
