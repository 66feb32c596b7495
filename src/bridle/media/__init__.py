"""File -> tensor: the only decoders, the log-mel front end and its augmentation."""

from bridle.media.audio import AudioInfo, Clip, Source, decode_audio, probe_audio
from bridle.media.augment import circular_shift, crop_start, gain
from bridle.media.fbank import Fbank, FbankConfig, num_frames

__all__ = [
    "AudioInfo",
    "Clip",
    "Fbank",
    "FbankConfig",
    "Source",
    "circular_shift",
    "crop_start",
    "decode_audio",
    "gain",
    "num_frames",
    "probe_audio",
]
