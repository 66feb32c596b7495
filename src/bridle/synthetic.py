"""A seeded set of labelled sounds, written as real files, for trying things out without any data of one's own.

The ten classes differ in how sound moves through time: direction of a sweep, rate of a pulse, rhythm of clicks.
Everything that a long-term spectrum shows (pitch, timbre, level, noise, room, distractors) is drawn at random for every
clip, so the mean and deviation of the log-mel filterbank tell the classes apart poorly.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bridle.errors import ConfigError
from bridle.randomness import derive_seed

Wave: TypeAlias = NDArray[np.float64]
_Voice: TypeAlias = Callable[[np.random.Generator, int, int], Wave]  # (generator, num_samples, sample_rate) -> (num_samples,)

_SAMPLE_RATES, _RATE_RATIOS = (16000, 22050, 44100), (0.5, 0.3, 0.2)
_FORMATS, _FORMAT_RATIOS = ("wav", "flac", "ogg"), (0.3, 0.3, 0.4)
_TOP_HZ = 7000.0  # of tones; below the Nyquist frequency of every sample rate


def write_sound_set(folder: Path, *, num_clips: int = 400, seed: int = 0, num_folds: int = 5) -> Path:
    """Write ``num_clips`` labelled sounds of 2 to 5 seconds and their manifest.

    Files lie in ``folder/audio`` as wav, flac and ogg, mono and stereo, at 16, 22.05 and 44.1 kHz; their names do not
    tell the class. The sound of clip i is a pure function of (seed, i), so a larger set begins with the smaller one;
    within a class, clips are dealt to the folds in turn. The manifest is written last: where it is, the set is whole.

    Returns:
        ``folder/meta.csv``: columns ``path`` (relative to the folder), ``class`` and ``fold`` (1 to ``num_folds``).

    Raises:
        ConfigError: ``num_clips`` or ``num_folds`` is less than 1.
    """
    import soundfile

    if num_clips < 1 or num_folds < 1:
        raise ConfigError(f"num_clips is {num_clips} and num_folds is {num_folds}; both must be at least 1")
    manifest = folder / "meta.csv"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    rows = []
    for i in range(num_clips):
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "synthetic", i)))
        sound_class = CLASSES[i % len(CLASSES)]
        suffix = str(generator.choice(_FORMATS, p=_FORMAT_RATIOS))
        samples, sample_rate = synthesize(sound_class, generator)
        path = f"audio/clip-{i:05d}.{suffix}"
        soundfile.write(folder / path, samples, sample_rate)
        rows.append((path, sound_class, i // len(CLASSES) % num_folds + 1))
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "class", "fold"))
        writer.writerows(rows)
    return manifest


def synthesize(sound_class: str, generator: np.random.Generator) -> tuple[NDArray[np.float32], int]:
    """One clip of a class in a random scene.

    Returns:
        Samples (S, channels) in [-1, 1] with 1 or 2 channels, and the sample rate in Hz.

    Raises:
        ConfigError: no class has this name.
    """
    if sound_class not in _VOICES:
        raise ConfigError(f"sound class {sound_class!r} is unknown; known: {', '.join(CLASSES)}")
    rate = int(generator.choice(_SAMPLE_RATES, p=_RATE_RATIOS))
    size = int(generator.uniform(2.0, 5.0) * rate)
    active = int(generator.uniform(0.7, 1.0) * size)
    onset = int(generator.integers(0, size - active + 1))
    foreground = np.zeros(size)
    foreground[onset : onset + active] = _VOICES[sound_class](generator, active, rate) * _fade(active, rate)
    foreground = _unit_power(_reverberate(generator, _equalise(generator, foreground, rate), rate))
    scene = foreground + _background(generator, size, rate)
    scene *= _decibels(generator.uniform(-26.0, -3.0)) / np.abs(scene).max()
    if generator.random() < 0.25:
        delay = int(generator.integers(0, 12))
        scene = np.stack([scene, np.roll(scene, delay) * generator.uniform(0.3, 1.0)], axis=1)
    else:
        scene = scene[:, None]
    return scene.astype(np.float32), rate


def _chirps(generator: np.random.Generator, size: int, rate: int, direction: float) -> Wave:
    """A train of sweeps. The envelope is symmetric, so the other direction is the same sound backwards."""
    centre, octaves = _log_uniform(generator, 1000, 2500), generator.uniform(0.8, 1.6)
    seconds, num_harmonics = generator.uniform(0.08, 0.25), int(generator.integers(1, 4))
    starts = _rhythm(generator, size / rate, seconds * generator.uniform(1.1, 2.0), jitter=0.15)

    def sweep(_: int) -> Wave:
        n = int(seconds * rate * generator.uniform(0.8, 1.2))
        shift = generator.uniform(-0.15, 0.15)
        hz = centre * 2.0 ** (shift + direction * octaves * np.linspace(-0.5, 0.5, n))
        return _harmonics(hz, rate, num_harmonics) * np.hanning(n)

    return _place(size, rate, starts, sweep)


def _pulses(generator: np.random.Generator, size: int, rate: int, hz: tuple[float, float]) -> Wave:
    """Noise in a band, its loudness going up and down at a rate in ``hz``."""
    noise = _band_noise(generator, size, rate, _log_uniform(generator, 600, 2500), generator.uniform(1.5, 3.0))
    phase = 2 * np.pi * (_log_uniform(generator, *hz) * np.arange(size) / rate + generator.random())
    return noise * ((1 + np.cos(phase)) / 2) ** generator.uniform(1.0, 3.0)


def _clicks(generator: np.random.Generator, size: int, rate: int, jitter: float) -> Wave:
    """Knocks in an even rhythm (``jitter`` 0) or at random moments of the same density (``jitter`` 1)."""
    starts = _rhythm(generator, size / rate, 1 / generator.uniform(4.0, 9.0), jitter)
    return _place(size, rate, starts, _knock(generator, rate))


def _bouncing_ball(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """Knocks that come faster and softer, like a dropped ball, dropped again and again."""
    starts: list[float] = []
    gains: list[float] = []
    start = 0.0
    while start < size / rate:
        interval, restitution = generator.uniform(0.25, 0.4), generator.uniform(0.72, 0.85)
        gain = 1.0
        while interval > 0.02:
            starts.append(start)
            gains.append(gain)
            start, interval, gain = start + interval, interval * restitution, gain * (restitution + 0.1)
        start += generator.uniform(0.05, 0.3)
    knock = _knock(generator, rate)
    return _place(size, rate, np.array(starts), lambda i: knock(i) * gains[i])


def _vibrato(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """A voice-like harmonic tone whose pitch trembles quickly by a semitone or two."""
    semitones = generator.uniform(0.5, 2.0) * np.sin(_turns(generator, size, rate, generator.uniform(5.0, 8.0)))
    return _harmonics(_log_uniform(generator, 200, 500) * 2.0 ** (semitones / 12), rate, int(generator.integers(6, 12)))


def _siren(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """A harmonic tone whose pitch goes widely and slowly up and down."""
    octaves = generator.uniform(0.4, 0.8) * np.sin(_turns(generator, size, rate, generator.uniform(0.4, 1.5)))
    return _harmonics(_log_uniform(generator, 500, 1200) * 2.0**octaves, rate, int(generator.integers(1, 5)))


def _water_drops(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """Drops at random moments: a tone that starts hard, rises and rings out."""
    starts = _rhythm(generator, size / rate, 1 / generator.uniform(3.0, 7.0), jitter=1.0)
    centre = _log_uniform(generator, 700, 1800)

    def drop(_: int) -> Wave:
        time = np.arange(int(0.2 * rate)) / rate
        hz = centre * 2.0 ** (generator.uniform(-0.4, 0.4) + generator.uniform(3.0, 8.0) * time)
        return _harmonics(hz, rate, 1) * np.exp(-time / generator.uniform(0.02, 0.05)) * generator.uniform(0.5, 1.0)

    return _place(size, rate, starts, drop)


_VOICES: MappingProxyType[str, _Voice] = MappingProxyType(
    {
        "rising_chirps": partial(_chirps, direction=1.0),
        "falling_chirps": partial(_chirps, direction=-1.0),
        "slow_pulses": partial(_pulses, hz=(1.5, 3.5)),
        "fast_pulses": partial(_pulses, hz=(8.0, 16.0)),
        "regular_clicks": partial(_clicks, jitter=0.0),
        "irregular_clicks": partial(_clicks, jitter=1.0),
        "bouncing_ball": _bouncing_ball,
        "vibrato": _vibrato,
        "siren": _siren,
        "water_drops": _water_drops,
    }
)
CLASSES: tuple[str, ...] = tuple(_VOICES)


def _background(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """Coloured noise and up to two distractors for a foreground of power 1, at 0 to 20 dB signal-to-noise ratio."""
    colour = generator.uniform(0.0, 1.0)
    noise = _filter(generator.standard_normal(size), rate, lambda hz: np.maximum(hz, 50.0) ** -colour)
    background = _unit_power(_equalise(generator, noise, rate)) * _decibels(-generator.uniform(0.0, 20.0))
    for _ in range(int(generator.integers(0, 3))):
        background += _unit_power(_distractor(generator, size, rate)) * _decibels(-generator.uniform(12.0, 25.0))
    return background


def _distractor(generator: np.random.Generator, size: int, rate: int) -> Wave:
    """A hum, a whistle, a burst of noise or a knock: sounds that occur in every class."""
    kind = generator.integers(0, 4)
    if kind == 0:
        return _harmonics(np.full(size, _log_uniform(generator, 50, 300)), rate, int(generator.integers(1, 6)))
    if kind == 1:
        return _place(size, rate, generator.uniform(0, size / rate - 0.3, 2), _knock(generator, rate))
    n = int(generator.uniform(0.2, 0.8) * rate)
    if kind == 2:
        hz = _log_uniform(generator, 300, 3000) * 2.0 ** np.linspace(0, generator.uniform(-1.0, 1.0), n)
        event = _harmonics(hz, rate, 2)
    else:
        event = _band_noise(generator, n, rate, _log_uniform(generator, 300, 4000), generator.uniform(0.5, 2.0))
    return _place(size, rate, generator.uniform(0, size / rate - 0.8, 1), lambda _: event * np.hanning(n))


def _rhythm(generator: np.random.Generator, seconds: float, interval: float, jitter: float) -> Wave:
    """Start times in [0, seconds), ``interval`` apart on average; the share ``jitter`` of a gap is exponential."""
    count = int(4 * seconds / interval) + 10
    gaps = interval * (1 - jitter + jitter * generator.exponential(size=count))
    starts: Wave = np.cumsum(np.maximum(gaps, 0.03)) - gaps[0] * generator.random()
    return starts[starts < seconds]


def _knock(generator: np.random.Generator, rate: int) -> Callable[[int], Wave]:
    """Maker of knocks of one kind: noise through a short resonance, each of slightly different loudness."""
    hz, decay = _log_uniform(generator, 1500, 5000), _log_uniform(generator, 0.003, 0.02)
    time = np.arange(int(6 * decay * rate)) / rate
    tonality = generator.uniform(0.2, 1.0)

    def knock(_: int) -> Wave:
        body = tonality * np.sin(2 * np.pi * hz * time) + (1 - tonality) * generator.standard_normal(time.size)
        return body * np.exp(-time / decay) * generator.uniform(0.6, 1.0)

    return knock


def _place(size: int, rate: int, starts: Wave, event: Callable[[int], Wave]) -> Wave:
    """``event(i)`` added at each ``starts[i]`` seconds, cut at the end."""
    wave = np.zeros(size)
    for i, first in enumerate((starts * rate).astype(int).clip(0, size)):
        part = event(i)[: size - first]
        wave[first : first + part.size] += part
    return wave


def _harmonics(hz: Wave, rate: int, count: int) -> Wave:
    """A tone of momentary frequency ``hz`` (S,) and its overtones of amplitude 1/k; those above 7 kHz are left out."""
    phase = 2 * np.pi * np.cumsum(hz) / rate
    wave = np.zeros(hz.size)
    for k in range(1, count + 1):
        wave += np.where(k * hz < _TOP_HZ, np.sin(k * phase), 0.0) / k
    return wave


def _turns(generator: np.random.Generator, size: int, rate: int, hz: float) -> Wave:
    """Phase in radians of a slow oscillation at ``hz`` from a random start."""
    return np.asarray(2 * np.pi * (hz * np.arange(size) / rate + generator.random()), dtype=np.float64)


def _band_noise(generator: np.random.Generator, size: int, rate: int, centre: float, octaves: float) -> Wave:
    """Noise with a bell-shaped spectrum on the octave axis."""
    return _filter(
        generator.standard_normal(size),
        rate,
        lambda hz: np.exp(-0.5 * (np.log2(np.maximum(hz, 20.0) / centre) / (octaves / 2)) ** 2),
    )


def _equalise(generator: np.random.Generator, wave: Wave, rate: int) -> Wave:
    """A random smooth filter of up to +-6 dB, as another microphone would be."""
    knots, decibels = np.log(np.geomspace(60, _TOP_HZ, 7)), generator.uniform(-6.0, 6.0, 7)
    return _filter(wave, rate, lambda hz: 10 ** (np.interp(np.log(np.maximum(hz, 1.0)), knots, decibels) / 20))


def _reverberate(generator: np.random.Generator, wave: Wave, rate: int) -> Wave:
    """A room: the sound plus its convolution with decaying noise."""
    decay, wet = generator.uniform(0.02, 0.1), generator.uniform(0.0, 0.5)
    time = np.arange(int(5 * decay * rate)) / rate
    response = generator.standard_normal(time.size) * np.exp(-time / decay)
    response *= wet / np.linalg.norm(response)
    response[0] += 1.0
    n = _fft_size(wave.size + response.size)
    return np.fft.irfft(np.fft.rfft(wave, n) * np.fft.rfft(response, n), n)[: wave.size]


def _filter(wave: Wave, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    """``wave`` with each frequency (Hz) multiplied by ``gain``."""
    n = _fft_size(wave.size)
    hz = np.fft.rfftfreq(n, 1 / rate).astype(np.float64)
    return np.fft.irfft(np.fft.rfft(wave, n) * gain(hz), n)[: wave.size]


def _fft_size(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _fade(size: int, rate: int) -> Wave:
    """Ramps of 20 ms at both ends."""
    steps = np.arange(size, dtype=np.float64)
    to_edge: Wave = np.minimum(steps, size - 1 - steps)
    return np.clip(to_edge / (0.02 * rate), 0.0, 1.0)


def _unit_power(wave: Wave) -> Wave:
    return wave / float(np.sqrt(np.mean(wave**2) + 1e-12))


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def _decibels(decibels: float) -> float:
    return float(10.0 ** (decibels / 20.0))
