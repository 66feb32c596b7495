"""Opening a film with FFmpeg (PyAV): which formats are let in, which track is taken, and how reading ends in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from bridle.media.reading import TimeLimit, Unreadable, opened_by_ffmpeg
from bridle.media.video.stream import Film

NO_PICTURES = "no video track"
"""Why a file of sound only is unreadable; a picture of the cover is no film."""

_FILMS = (
    "apng,asf,av1,avi,cavsvideo,dirac,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,obu,ogg,rm,vc1,vvc,webm,wtv,yuv4mpegpipe"
)
_SOUNDS = "aac,ac3,aiff,amr,ape,au,caf,dsf,eac3,flac,mp3,tta,w64,wav,wv"  # to say that they hold no film


@contextmanager
def open_film(stream: BinaryIO, limit: TimeLimit, max_pixels: int | None = None, skip: bool = True) -> Iterator[Film]:
    """The first video track of a file.

    Args:
        stream: read from its first byte wherever it stands.
        limit: for all reading and decoding.
        max_pixels: most pixels of a frame.
        skip: let the decoder leave out frames that are not wanted and to which no other refers.

    Raises:
        Unreadable: not a film, or nothing that can be decoded.
    """
    from av.stream import Discard, Disposition

    with opened_by_ffmpeg(stream, limit, f"{_FILMS},{_SOUNDS}", "not a video") as (container, watched):
        still = Disposition.attached_pic | Disposition.timed_thumbnails
        tracks = [track for track in container.streams.video if not track.disposition & still]
        if not tracks:
            known = bool(container.streams.audio or container.streams.video)
            raise Unreadable(NO_PICTURES if known else "not a video", recognised=known)
        for track in container.streams:
            if track is not tracks[0]:
                track.discard = Discard.all
        yield Film(container, tracks[0], watched.check, max_pixels, skip)
