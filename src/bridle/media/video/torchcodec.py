"""Frames of a film by torchcodec, for those who have it and the FFmpeg it needs; ``video.py`` decides who decodes.

torchcodec lets libswscale halve the resolution of colours, which moves values by two of 255 on average, by more at edges;
pictures are resized by torch (bicubic, antialiased). Its frames are the right ones of whole films with a constant rate in MP4,
Matroska and WebM. Of transport streams, of films with a variable rate and behind damage it gives neighbours (version 0.13,
also where it scans the file first, so that is not done).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.errors import ConfigError
from bridle.media.image import Fit
from bridle.media.reading import TimeLimit, Unreadable, Wanted, Watched
from bridle.media.video.stream import Film

if TYPE_CHECKING:
    from torchcodec.decoders import VideoDecoder

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def require_torchcodec() -> None:
    """Import torchcodec, which also loads FFmpeg.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).split("\n")), "").strip()[:120] or type(error).__name__
        raise ConfigError(
            f"video.decoder=torchcodec cannot be imported ({reason}); install torchcodec and the FFmpeg it needs, "
            "or take video.decoder=pyav"
        ) from error


def frames_at(
    stream: BinaryIO,
    film: Film,
    wanted: Wanted,
    limit: TimeLimit,
    shown: tuple[int, int],
    size: tuple[int, int],
    fit: Fit,
    channels: int,
) -> Tensor:
    """The frames that are on the screen at the wanted times, fewer only where the film ends or breaks.

    Args:
        stream: the film's file, not read by anybody else meanwhile.
        film: the same file as PyAV sees it, for its rate.
        wanted: times in seconds from the first frame.
        limit: for reading and decoding.
        shown: (width, height) in pixels of a frame as shown.
        size: (height, width) of the result.
        fit: see :func:`bridle.media.video.decode_frames`.
        channels: 1 for grey, 3 for RGB.

    Returns:
        (C, T, height, width) uint8; T may be 0.

    Raises:
        Unreadable: torchcodec cannot open the film, or the time is up.
    """
    from torchcodec.decoders import VideoDecoder

    stream.seek(0)
    watched = Watched(stream, limit)
    try:
        decoder = VideoDecoder(watched, seek_mode="approximate", num_ffmpeg_threads=1, device="cpu")
    except (RuntimeError, ValueError) as error:
        watched.check()
        raise Unreadable("no decoder for its codec") from error
    lenience = film.lenience(1 / film.rate_hz)
    pictures = []
    for index in range(wanted.count):
        frame = _frame(decoder, wanted[index] + lenience)
        watched.check()
        if frame is None:
            break
        pictures.append(_fitted(frame, shown, size, fit, channels))
    return torch.stack(pictures, dim=1) if pictures else torch.empty(channels, 0, *size, dtype=torch.uint8)


def _frame(decoder: VideoDecoder, seconds: float) -> Tensor | None:
    """(3, H, W) uint8; None where the film ends before, or breaks."""
    try:
        frame: Tensor = decoder.get_frame_played_at(decoder.metadata.begin_stream_seconds + seconds).data
    except (RuntimeError, IndexError, ValueError):
        return None
    return frame


def _fitted(frame: Tensor, shown: tuple[int, int], size: tuple[int, int], fit: Fit, channels: int) -> Tensor:
    """(3, H, W) to (C, height, width), see ``frames_at``."""
    pixels = frame.float()
    if channels == 1:
        pixels = torch.einsum("chw,c->hw", pixels, pixels.new_tensor(_LUMA))[None]
    height, width = size
    if fit == "centre":
        scale = max(width / shown[0], height / shown[1])
        height, width = max(height, round(shown[1] * scale)), max(width, round(shown[0] * scale))
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[:, top : top + size[0], left : left + size[1]].round().clamp(0, 255).to(torch.uint8)
