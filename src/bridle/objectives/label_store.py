"""The codes of clips that are the same in every epoch, so that a frozen tokenizer looks at each once."""

from __future__ import annotations

import torch
from torch import Tensor

from bridle.grid import Subset


class LabelStore:
    """Codes by row of the manifest, in memory.

    Args:
        num_rows: rows of the manifest.
        num_patches: N of a full clip; a shorter one has the first of them.
        num_codebooks: R.
        codebook_size: K.
    """

    def __init__(self, num_rows: int, num_patches: int, num_codebooks: int, codebook_size: int) -> None:
        dtype = torch.int16 if codebook_size <= torch.iinfo(torch.int16).max + 1 else torch.int32
        self.codes = torch.zeros(num_rows, num_patches, num_codebooks, dtype=dtype)
        self.known = torch.zeros(num_rows, dtype=torch.bool)

    @staticmethod
    def num_bytes(num_rows: int, num_patches: int, num_codebooks: int, codebook_size: int) -> int:
        """Memory that a store takes."""
        return num_rows * (num_patches * num_codebooks * (2 if codebook_size <= 1 << 15 else 4) + 1)

    def put(self, rows: Tensor, codes: Tensor) -> None:
        """Remember codes (B, N, R) of rows (B,), both on the CPU; N may be less than that of a full clip."""
        self.codes[rows, : codes.shape[1]] = codes.to(self.codes.dtype)
        self.known[rows] = True

    def has(self, rows: Tensor) -> bool:
        """True when the codes of all rows (B,), on the CPU, are known."""
        return bool(self.known[rows].all())

    def at(self, rows: Tensor, predicted: Subset) -> Tensor:
        """Codes of predicted positions, (B', M, R) int64 on the positions' device; nothing waits for it.

        Args:
            rows: (B,) on the CPU.
            predicted: (B', M), B' a multiple of B, the views of one clip behind each other.
        """
        assert predicted.indices is not None
        device = predicted.indices.device
        codes = self.codes[rows]
        if device.type == "cuda":
            codes = codes.pin_memory()
        codes = codes.to(device, non_blocking=True)
        views, count = predicted.indices.shape
        places = predicted.indices.reshape(len(rows), -1) if len(rows) else predicted.indices.reshape(0, 0)
        found = codes.gather(1, places[..., None].expand(-1, -1, codes.shape[2]))
        return found.reshape(views, count, codes.shape[2]).long()
