"""Weights of other code bases as an :class:`~bridle.models.encoder.Encoder`, so that pretraining goes on from them.

``sources`` reads tensors by name, ``keymaps`` knows the names of each code base, ``translate`` makes configuration and weights
of them, ``importer`` joins the three.
"""

from bridle.importing.importer import Imported, read_encoder
from bridle.importing.translate import Medium

__all__ = ["Imported", "Medium", "read_encoder"]
