"""The page around the sections: head, style, policy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from bridle.errors import RunError
from bridle.report.html import Html, Section, element

MAX_BYTES = 15_000_000
"""Of a page."""
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def whole_page(title: str, header: Html, sections: Sequence[Section]) -> str:
    """One self-contained page, which runs no script and loads nothing.

    Raises:
        RunError: it is larger than ``MAX_BYTES``.
    """
    style = Html((files("bridle.report") / "page.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", style),
    )
    body = element("body", header, element("main", *(section.html for section in sections)))
    page = "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"
    if (size := len(page.encode())) > MAX_BYTES:
        raise RunError(
            f"the report has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:g}; leave the data out, or use a smaller recipe"
        )
    return page
