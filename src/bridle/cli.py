"""The command line: ``bridle COMMAND ...``. Each command lives in :mod:`bridle.commands` and is imported when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import bridle
from bridle.errors import BridleError

COMMANDS = {
    "doctor": "scan a folder before training: counts, sizes, broken files, time per epoch, what to do",
    "pretrain": "pretrain an encoder and its tokenizer on a folder of recordings, pictures or films",
    "import": "begin a run with weights trained elsewhere: ViT, MAE, VideoMAE, DINOv2, AudioMAE, EAT, BEATs",
    "inspect": "what is in a run: settings, phases, steps, codebook health, size",
    "tokenize": "write the discrete codes of every file as parquet",
    "embed": "write an embedding of every file as parquet",
    "evaluate": "kNN and linear probe of a run beside its baselines, on labelled files",
    "export": "a run for transformers, ONNX runtimes or timm, checked number by number",
    "shard": "pack many files into few: tar shards with an index",
    "fetch": "download a published set: checked, resumed, unpacked; or say how to get it",
    "report": "one page of a run: curves, codebooks, what codes mean, map, probes",
    "finetune": "train a run's encoder with labels: a classifier of your own classes",
    "predict": "the classes of every file by a fine-tuned run, as CSV or parquet",
    "replay": "a step again that was skipped: which loss, gradient and clips are not finite",
    "demo": "the whole way on a small set of sounds, pictures or films, in minutes",
}

_MODULES = {"import": "import_weights"}  # a keyword is no name of a module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 an error that was explained, 2 a wrong call, 130 interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        sys.stdout.write(f"bridle {bridle.__version__}\n")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(COMMANDS)}"
        sys.stderr.write(f"bridle: there is no command '{argv[0]}'; {hint}\n")
        return 2
    return _run(argv[0], argv[1:])


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        return int(importlib.import_module(f"bridle.commands.{_MODULES.get(command, command)}").main(arguments))
    except BridleError as error:
        sys.stderr.write(f"bridle: {' '.join(str(error).splitlines())}\n")
        return 1
    except BrokenPipeError:
        return 0
    except OSError as error:  # such as a name that is too long for the system
        sys.stderr.write(f"bridle: {' '.join(str(error)[:500].splitlines())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bridle: interrupted\n")
        return 130


def usage() -> str:
    """The text of ``bridle --help``."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "bridle: your own encoder, its discrete tokens and its embeddings, from a folder of recordings, pictures or films",
            "",
            "usage: bridle COMMAND [ARGUMENTS]        bridle COMMAND --help explains one",
            "",
            *lines,
            "",
            "A first run:",
            "  bridle doctor recordings/",
            "  bridle pretrain audio-small --data recordings/ --out runs/first",
            "  bridle embed runs/first recordings/ --out vectors/",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
