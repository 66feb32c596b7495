"""Training clips that are mixtures of two sounds of the manifest."""

from __future__ import annotations

import torch

from bridle.data.audio import AudioLoader
from bridle.data.dataset import ClipDataset, LoadedClip
from bridle.data.manifest import Entry, Manifest
from bridle.mixing import MixConfig, draw_partners


class MixedSounds(ClipDataset):
    """Like :class:`~bridle.data.dataset.ClipDataset`, some clips mixed with another sound, drawn by the clip's seed.

    The same :func:`~bridle.mixing.draw_partners` tells the objective what a clip is a mixture of.

    Args:
        manifest: the files.
        loader: of sounds.
        seed: of crops, augmentation and mixtures.
        config: how many are mixed, and how.
    """

    def __init__(self, manifest: Manifest, loader: AudioLoader, seed: int, config: MixConfig) -> None:
        super().__init__(manifest, loader, seed)
        self._sounds, self._mixing = loader, config

    def load(self, entry: Entry, seed: int) -> LoadedClip:
        """A training clip or mixture; DecodeError or OSError when a file cannot be read."""
        partners, weights = draw_partners(torch.tensor([seed]), len(self), self._mixing)
        weight = float(weights)
        if weight == 1.0:
            return super().load(entry, seed)
        other = self.manifest.entries[int(partners)]
        return self._sounds.load_mixture(entry, other, weight, torch.Generator().manual_seed(seed))
