"""Sounds inside the page, at the sample rate that the model hears."""

from __future__ import annotations

import base64
import io

import soundfile
import torch
from torch import Tensor

from bridle.data.manifest import Entry
from bridle.media.audio import decode_audio
from bridle.report.html import Html, element


def cut(entry: Entry, sample_rate: int, start_seconds: float, seconds: float) -> Tensor:
    """(S,) samples of a file from ``start_seconds`` on, ``seconds`` long where it does not end before.

    Raises:
        DecodeError: the file cannot be read.
        OSError: the tar it lies in cannot be opened.
    """
    with entry.opened() as source:
        clip = decode_audio(
            source,
            sample_rate=sample_rate,
            start_seconds=max(0.0, start_seconds),
            duration_seconds=seconds,
            key=entry.key,
        )
    return clip.samples


def in_turn(cuts: list[Tensor], sample_rate: int, pause_seconds: float = 0.25) -> Tensor:
    """The sounds one after the other, with a pause between; each fades in and out over 5 ms, so that cutting does not click."""
    fade = max(1, round(0.005 * sample_rate))
    ramp = torch.linspace(0, 1, fade)
    pause = torch.zeros(round(pause_seconds * sample_rate))
    parts: list[Tensor] = []
    for samples in cuts:
        soft = samples.clone()
        length = min(fade, len(soft))
        soft[:length] *= ramp[:length]
        soft[len(soft) - length :] *= ramp[:length].flip(0)
        parts += [pause, soft] if parts else [soft]
    return torch.cat(parts)


def player(samples: Tensor, sample_rate: int, words: str) -> Html:
    """A player of (S,) samples in [-1, 1]: MP3, which every browser plays, or FLAC where libsndfile cannot write that."""
    kind, name = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "flac")
    stream = io.BytesIO()
    soundfile.write(stream, samples.numpy(), sample_rate, format=kind)
    uri = f"data:audio/{name};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return element("audio", src=uri, controls=True, preload="none", aria_label=words)
