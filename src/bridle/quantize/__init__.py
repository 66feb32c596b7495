"""Vectors to codes: residual quantization with EMA codebooks that stay equal on all ranks."""

from bridle.quantize.config import COLLAPSED_BELOW, QuantizerConfig
from bridle.quantize.residual import Quantized, ResidualQuantizer, sampling_priority

__all__ = ["COLLAPSED_BELOW", "Quantized", "QuantizerConfig", "ResidualQuantizer", "sampling_priority"]
