"""Vectors to codes: residual quantization with EMA codebooks that stay equal on all ranks."""

from bridle.quantize.config import QuantizerConfig
from bridle.quantize.residual import Quantized, ResidualQuantizer, sampling_priority

__all__ = ["Quantized", "QuantizerConfig", "ResidualQuantizer", "sampling_priority"]
