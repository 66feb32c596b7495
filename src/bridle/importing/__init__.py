"""Weights of other code bases as an :class:`~bridle.models.encoder.Encoder`, so that pretraining goes on from them.

``sources`` reads tensors by name, ``keymaps`` knows the names of each code base, ``translate`` makes configuration and weights
of them, ``importer`` joins the three, ``run_folder`` writes them as a run.
"""

from bridle.importing.importer import Imported, read_encoder
from bridle.importing.run_folder import ImportedRun, import_weights
from bridle.importing.translate import Medium

__all__ = ["Imported", "ImportedRun", "Medium", "import_weights", "read_encoder"]
