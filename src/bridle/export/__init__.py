"""A run for other tools: transformers, ONNX runtimes, timm. Every folder is checked against the run before it is in place.

``exporting`` writes and moves, ``checks`` compares, ``card`` writes the model card, ``graph`` and ``onnx_files`` know ONNX,
``timm_files`` timm, ``hf_files`` and the folder ``hf`` transformers.
"""

from bridle.export.checks import Check
from bridle.export.exporting import TARGETS, Exported, Target, export_run

__all__ = ["TARGETS", "Check", "Exported", "Target", "export_run"]
