"""Squared error of residual quantization on held-out vectors, against FAISS ResidualQuantizer with beam 1.

    python benchmarks/quantizer_error.py [--data FOLDER_OF_AUDIO] [--levels 4] [--size 256] [--updates 200] [--seeds 3]

With ``--data``: 16 x 16 log-mel patches of every audio file below the folder, one normalisation for the set, every fourth
file held out. Without: seeded synthetic vectors with a decaying spectrum around a tree of centres. "fit" is k-means alone,
"ema" after further updates on random batches. The last line is one JSON document. Needs ``pip install 'bridle[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from bridle.media import Fbank, decode_audio
from bridle.nn.patches import patchify
from bridle.quantize import QuantizerConfig, ResidualQuantizer

SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")


def audio_patches(folder: Path) -> tuple[Tensor, Tensor]:
    """(train, held out) log-mel patches (n, 256)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(files) < 4:
        raise SystemExit(f"{folder} holds {len(files)} audio files; 4 are needed to hold one out")
    fbank = Fbank()
    clips = [fbank(decode_audio(path).samples) for path in files]
    clips = [clip[: len(clip) // 16 * 16] for clip in clips]
    whole = torch.cat(clips)
    parts = [patchify((clip[None, None, :, :, None] - whole.mean()) / (2 * whole.std()), (16, 16, 1)) for clip in clips]
    vectors = [part.values.flatten(0, 1) for part in parts]
    return torch.cat([v for i, v in enumerate(vectors) if i % 4]), torch.cat(vectors[::4])


def synthetic(count: int = 65536, dim: int = 256) -> tuple[Tensor, Tensor]:
    """(train, held out) vectors (n, dim)."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 0.95 ** torch.arange(dim)
    vectors = torch.zeros(count + count // 4, dim)
    for branches, scale in ((64, 1.0), (64, 0.5), (64, 0.25)):
        centres = torch.randn(branches, dim, generator=generator) * spectrum * scale
        vectors += centres[torch.randint(branches, (len(vectors),), generator=generator)]
    vectors += 0.2 * spectrum * torch.randn(len(vectors), dim, generator=generator)
    return vectors[:count], vectors[count:]


def faiss_error(train: Tensor, held_out: Tensor, levels: int, size: int) -> float:
    import faiss

    quantizer = faiss.ResidualQuantizer(train.shape[1], levels, int(math.log2(size)))
    quantizer.max_beam_size = 1
    quantizer.train(train.numpy())
    decoded = torch.from_numpy(quantizer.decode(quantizer.compute_codes(held_out.numpy())))
    return float((decoded - held_out).square().mean())


def our_errors(train: Tensor, held_out: Tensor, config: QuantizerConfig, updates: int, seed: int) -> tuple[float, float]:
    quantizer = ResidualQuantizer(config).train()
    quantizer.fit(train, seed)

    def error() -> float:
        return float((quantizer.decode(quantizer.encode(held_out)) - held_out).square().mean())

    fitted = error()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        batch = train[torch.randint(len(train), (4096,), generator=generator)]
        quantizer.update(quantizer(batch).statistics)
    return fitted, error()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="entries per level, a power of 2")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    train, held_out = audio_patches(arguments.data) if arguments.data else synthetic()
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))].contiguous()
    config = QuantizerConfig(arguments.levels, arguments.size, train.shape[1])
    start = time.perf_counter()
    reference = faiss_error(train, held_out, arguments.levels, arguments.size)
    print(f"{len(train)} training and {len(held_out)} held-out vectors; faiss took {time.perf_counter() - start:.1f} s")
    print(f"{'seed':>6}{'faiss':>12}{'fit':>12}{'ratio':>8}{'ema':>12}{'ratio':>8}")
    rows = []
    for seed in range(arguments.seeds):
        fitted, trained = our_errors(train, held_out, config, arguments.updates, seed)
        rows.append({"seed": seed, "fit": fitted, "ema": trained})
        print(
            f"{seed:>6}{reference:>12.6f}{fitted:>12.6f}{fitted / reference:>8.3f}{trained:>12.6f}{trained / reference:>8.3f}"
        )
    data = arguments.data.name if arguments.data else "synthetic"
    print(json.dumps({"benchmark": "quantizer_error", "data": data, "faiss": reference, "ours": rows}))


if __name__ == "__main__":
    main()
