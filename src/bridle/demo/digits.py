"""Labelled pictures and films for the demo: scikit-learn's handwritten digits as they are, and moving.

The digits are the 1797 of the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak 1998, UCI,
CC BY 4.0), 8 x 8 pixels each, which scikit-learn's wheel carries. Everything else follows from a seed.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bridle.demo.labelled import LabelledSet
from bridle.errors import ConfigError
from bridle.randomness import derive_seed, permutation

Pixels: TypeAlias = NDArray[np.uint8]

DIRECTIONS = MappingProxyType({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)})
"""By name: (columns, rows) that a digit moves each time; rows count downwards."""
NUM_FILMS = 800
NUM_FRAMES, RATE_HZ, FILM_SIZE, DIGIT_SIZE = 24, 12, 24, 16
_TEST_OF_TEN = frozenset({2, 5, 8})
_SPEEDS = (0.17, 0.33)  # pixels a frame: 4 to 8 on the whole way, of the 8 that there are
_GROUND, _INK, _NOISE = 30.0, 200.0, 8.0  # of 255
_FINE = str(2 * 118)  # quantizer scale 2, in FFmpeg's unit
_MADE, _MADE_BEFORE = "scikit-learn's wheel carries them", "they were written before"


def read_digits() -> tuple[Pixels, NDArray[np.int64]]:
    """The handwritten digits (1797, 8, 8), 255 where the ink is darkest, and which digit each one is (1797,).

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        message = "the handwritten digits come with scikit-learn, which is not installed: pip install 'bridle[demo]'"
        raise ConfigError(message) from error
    pixels, digits = load_digits(return_X_y=True)
    return (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), digits.astype(np.int64)


def find_pictures(folder: Path, *, seed: int = 0) -> LabelledSet:
    """The handwritten digits as PNG files, ``train/3/0013.png`` and so on; written once.

    Three of ten pictures of each class are in ``test``, drawn by the seed; their names are rows of :func:`read_digits`.

    Args:
        folder: where they are written and found again.
        seed: of the split.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    target = folder / f"digits-{seed}"
    title = f"handwritten digits of 8 x 8 pixels, split by seed {seed}"
    reason = _written(target, lambda part: _write_pictures(part, seed))
    return LabelledSet(target, ("class",), "split", title, reason)


def find_films(folder: Path, *, seed: int = 0) -> LabelledSet:
    """Films of ``NUM_FILMS`` handwritten digits, each moving in one of four directions; written once.

    Every film shows another handwritten digit, so none is in both training and test films. Digits and directions are equally
    frequent, and so they are among the test films, three of ten.

    Args:
        folder: where they are written and found again, beside a table of ``path``, ``digit``, ``direction``, ``split`` and
            ``picture``, the row of :func:`read_digits`.
        seed: of everything that is random.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    target = folder / f"moving-digits-{seed}"
    title = (
        f"handwritten digits moving in {len(DIRECTIONS)} directions, {FILM_SIZE} x {FILM_SIZE} pixels, made from seed {seed}"
    )
    reason = _written(target, lambda part: _write_films(part, seed))
    return LabelledSet(target / "meta.csv", ("digit", "direction"), "split", title, reason)


def draw_film(digit: Pixels, direction: str, generator: np.random.Generator) -> Pixels:
    """A light digit that moves over a dark, noisy ground, all of it in sight all the time.

    Speed and way are drawn at random, the way evenly among those that fit into the picture: which way it is gone cannot be seen
    in a single frame, and of two opposite ways it cannot be seen in the mean of all frames either.

    Args:
        digit: (8, 8).
        direction: a key of ``DIRECTIONS``.
        generator: of speed, way and noise.

    Returns:
        (``NUM_FRAMES``, ``FILM_SIZE``, ``FILM_SIZE``).
    """
    from PIL import Image

    times = np.arange(NUM_FRAMES) - (NUM_FRAMES - 1) / 2
    step = generator.uniform(*_SPEEDS) * np.array(DIRECTIONS[direction])
    reach = (FILM_SIZE - DIGIT_SIZE) / 2 - np.abs(step) * times[-1]
    corner = (FILM_SIZE - DIGIT_SIZE) / 2 + generator.uniform(-reach, reach)
    picture = Image.fromarray(np.pad(digit, 1))  # a border, so that edges are smooth, too
    shrink = digit.shape[0] / DIGIT_SIZE
    frames = []
    for column, row in corner + times[:, None] * step:
        place = (shrink, 0.0, 1 - column * shrink, 0.0, shrink, 1 - row * shrink)
        drawn = picture.transform((FILM_SIZE, FILM_SIZE), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
        frames.append(np.asarray(drawn, dtype=np.float64))
    ink = np.stack(frames) / 255
    noise = generator.normal(0.0, _NOISE, ink.shape)
    return (_GROUND + _INK * ink + noise).clip(0, 255).round().astype(np.uint8)


def _written(target: Path, write: Callable[[Path], None]) -> str:
    """Write a folder unless it is there, so that where it is, it is whole; the reason for taking it."""
    if target.is_dir():
        return _MADE_BEFORE
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    part.rename(target)
    return _MADE


def _write_pictures(folder: Path, seed: int) -> None:
    from PIL import Image

    pixels, digits = read_digits()
    for digit, rows in enumerate(_by_digit(digits, seed, "pictures")):
        for number, row in enumerate(rows):
            path = folder / _split(number) / str(digit) / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(path)


def _write_films(folder: Path, seed: int) -> None:
    pixels, digits = read_digits()
    of_digit, ways = _by_digit(digits, seed, "films"), tuple(DIRECTIONS)
    (folder / "videos").mkdir()
    with (folder / "meta.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "digit", "direction", "split", "picture"))
        for film in range(NUM_FILMS):
            digit, number = film % len(of_digit), film // len(of_digit)
            picture, direction = of_digit[digit][number], ways[number % len(ways)]
            generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "film", film)))
            path = f"videos/film-{film:04d}.mp4"
            _encode(folder / path, draw_film(pixels[picture], direction, generator))
            table.writerow((path, digit, direction, _split(number // len(ways)), picture))


def _by_digit(digits: NDArray[np.int64], seed: int, purpose: str) -> list[list[int]]:
    """Rows of each digit, in an order drawn by the seed."""
    order = permutation(len(digits), seed, purpose).tolist()
    return [[row for row in order if digits[row] == digit] for digit in range(10)]


def _split(number: int) -> str:
    """Of the ``number``-th of a class."""
    return "test" if number % 10 in _TEST_OF_TEN else "train"


def _encode(path: Path, frames: Pixels) -> None:
    """Write frames (T, H, W) as MPEG-4, which FFmpeg always has an encoder for.

    Every one is a key frame of fine and equal quality: what is left of earlier frames in later ones would tell the direction.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE_HZ, options={"flags": "+qscale", "global_quality": _FINE})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 1, 1
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.pts, frame.time_base = number, Fraction(1, RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
