"""Sounds listed in one table with official folds: ESC-50, ESC-10, UrbanSound8K."""

from __future__ import annotations

from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, table_rows


def read_esc(request: Request, *, only_esc10: bool) -> Listing:
    """ESC-50, or the rows of it that say they are ESC-10: ``meta/esc50.csv`` and ``audio/``.

    Raises:
        DataError: the table is missing or malformed.
    """
    root = request.root("meta/esc50.csv")
    listing = Listing()
    for cells in table_rows(root / "meta" / "esc50.csv", ("filename", "fold", "category", "esc10", "src_file")):
        if only_esc10 and cells["esc10"].strip().lower() != "true":
            continue
        key = f"audio/{cells['filename']}"
        listing.add_file(key, root / key, cells)
    return listing


def read_urbansound8k(request: Request) -> Listing:
    """UrbanSound8K: ``metadata/UrbanSound8K.csv`` and ``audio/fold1`` to ``audio/fold10``.

    Raises:
        DataError: the table is missing or malformed.
    """
    root = request.root("metadata/UrbanSound8K.csv")
    listing = Listing()
    for cells in table_rows(root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fsID", "fold", "class")):
        key = f"audio/fold{cells['fold']}/{cells['slice_file_name']}"
        listing.add_file(key, root / key, cells)
    return listing
