"""The clips of a sample as they stand on the page: pictures and players, decoded again when they are asked for."""

from __future__ import annotations

from itertools import islice

from torch import Tensor

from bridle.data.dataset import LoadedClip
from bridle.errors import DecodeError
from bridle.inference import Model, Window
from bridle.report import sounds
from bridle.report.gathering import MAX_WINDOWS, Sample
from bridle.report.html import Html, element
from bridle.report.pictures import Picture, draw, image, thumbnail, tile

MAX_SOUND_SECONDS = 5.0
_AROUND_SECONDS = 0.3  # on both sides of a patch


class ClipViews:
    """Shows clips of a sample.

    Args:
        model: of the run.
        sample: files that could be read.
    """

    def __init__(self, model: Model, sample: Sample) -> None:
        self.model, self.sample = model, sample
        self._last: tuple[int, list[LoadedClip]] = (-1, [])

    def window(self, row: int, number: int = 0) -> Window:
        """A window of a file, its index the file's row.

        Raises:
            DecodeError: the file cannot be read any more.
        """
        clip = self._clips(row)[number]
        return Window(row, clip.start_seconds, clip.inputs, clip.aspect)

    def picture(self, row: int, number: int = 0) -> Picture:
        """A window with its patches."""
        return draw(self.window(row, number).inputs, self.model.config)

    def tile(self, row: int, number: int, patch: int) -> Html:
        """A patch among its neighbours."""
        where = self._where(row, number, patch)
        return image(tile(self.picture(row, number), patch), f"patch of {where}", where)

    def thumbnail(self, row: int) -> Html:
        """The first window of a file in little."""
        entry = self.sample.entries[row]
        return image(thumbnail(self.window(row).inputs, self.model.config), f"beginning of {entry.key}", entry.key)

    def player(self, row: int) -> Html:
        """The first seconds of a sound; nothing for what is silent by nature."""
        if self.model.config.audio is None:
            return element("span", hidden=True)
        rate = self.model.config.audio.fbank.sample_rate
        entry = self.sample.entries[row]
        return sounds.player(sounds.cut(entry, rate, 0.0, MAX_SOUND_SECONDS), rate, f"listen to {entry.key}")

    def moments(self, places: tuple[tuple[int, int, int], ...], words: str) -> Html | None:
        """A player of the moments of some patches one after the other; None for what has no sound."""
        audio = self.model.config.audio
        if audio is None:
            return None
        length = self.model.config.encoder.patch[0] * audio.fbank.hop_seconds + 2 * _AROUND_SECONDS
        cuts: list[Tensor] = []
        for row, number, patch in places:
            start = self._patch_seconds(row, number, patch) - _AROUND_SECONDS
            cuts.append(sounds.cut(self.sample.entries[row], audio.fbank.sample_rate, start, length))
        return sounds.player(sounds.in_turn(cuts, audio.fbank.sample_rate), audio.fbank.sample_rate, words)

    def _clips(self, row: int) -> list[LoadedClip]:
        if self._last[0] != row:
            entry = self.sample.entries[row]
            clips = list(islice(self.model.loader.windows(entry), MAX_WINDOWS))
            if not clips:
                raise DecodeError(entry.key, "it has no window any more: it was changed while the report was made")
            self._last = (row, clips)
        return self._last[1]

    def _patch_seconds(self, row: int, number: int, patch: int) -> float:
        audio = self.model.config.audio
        assert audio is not None
        window = self.window(row, number)
        per_step = window.inputs.shape[2] // self.model.config.encoder.patch[1]
        return window.start_seconds + (patch // per_step) * self.model.config.encoder.patch[0] * audio.fbank.hop_seconds

    def _where(self, row: int, number: int, patch: int) -> str:
        key = self.sample.entries[row].key
        if self.model.config.audio is None:
            return key
        return f"{key} at {self._patch_seconds(row, number, patch):.2f} s"
