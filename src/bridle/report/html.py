"""HTML by functions: whatever is not :class:`Html` already is escaped, so no text of a user can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_EMPTY = frozenset(["meta", "link", "img", "br", "rect", "circle", "line", "path", "use", "image"])


class Html(str):
    """Text that is HTML already. Made by :func:`element` and :func:`join`, and of constants only."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """One element.

    Args:
        tag: its name.
        children: its content in order; what is not :class:`Html` is escaped.
        attributes: a trailing underscore is dropped and others become hyphens (``class_``, ``aria_label``); None and False
            leave the attribute out, True gives it no value, numbers are written with at most 5 figures.
    """
    parts = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{html.escape(_text(value))}"')
    opening = " ".join(parts)
    if tag in _EMPTY and not children:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """The parts one after the other; what is not :class:`Html` is escaped."""
    return Html(escape(between).join(escape(part) for part in parts))


def escape(text: str) -> Html:
    """The text as HTML. Characters that cannot be written as UTF-8, as in odd file names, become question marks."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(text.encode("utf-8", "replace").decode("utf-8")))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, label: str = "") -> Html:
    """A table that scrolls sideways where it is too wide.

    Args:
        headers: of the columns.
        rows: cells; the first of a row is its header.
        left: columns that hold text; the others hold numbers.
        label: what it is, for those who do not see it.
    """
    sides = ["text" if column < left else "number" for column in range(len(headers))]
    head = (element("th", name, scope="col", class_=side) for name, side in zip(headers, sides, strict=True))
    body = (
        element(
            "tr",
            element("th", row[0], scope="row", class_=sides[0]),
            *(element("td", cell, class_=side) for cell, side in zip(row[1:], sides[1:], strict=True)),
        )
        for row in rows
    )
    made = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", made, class_="scroll", role="region", tabindex="0", aria_label=label or f"table: {headers[0]}")


def figure(title: str, picture: Html, reading: str, numbers: Html | None = None, *, wide: bool = False) -> Html:
    """A picture under its title, above the sentence that says how to read it and, folded, its numbers."""
    parts = [element("h3", title), element("div", picture, class_="picture"), element("figcaption", reading)]
    if numbers is not None:
        parts.append(element("details", element("summary", "Numbers"), numbers))
    return element("figure", *parts, class_="wide" if wide else None)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and what they stand for."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs), class_="facts")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, which ``#name`` leads to."""

    name: str
    title: str
    html: Html


def section(name: str, title: str, lead: str, *parts: str) -> Section:
    """A part of the page: its title, a sentence or two, its content."""
    return Section(name, title, element("section", element("h2", title), element("p", lead, class_="lead"), *parts, id=name))


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return f"{value:.5g}"
