"""All that is special to the decoding of films: clips by their time stamps, without decoding more than they need."""

from bridle.media.video.decode import (
    ENDS_BEFORE,
    Decoder,
    Frames,
    VideoInfo,
    decode_frames,
    decode_windows,
    probe_video,
)
from bridle.media.video.file import NO_PICTURES

__all__ = [
    "ENDS_BEFORE",
    "NO_PICTURES",
    "Decoder",
    "Frames",
    "VideoInfo",
    "decode_frames",
    "decode_windows",
    "probe_video",
]
