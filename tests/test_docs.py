"""What the documents say exists: relative links, headings they point to, and names of code."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAME = re.compile(r"`(bridle(?:\.\w+)+)(?:\([^`]*\))?`")
FILE = re.compile(r"`((?:src|tests|benchmarks|docs)/[\w./-]+)`")


def prose(document: Path) -> str:
    """The text without its fenced code."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """What a link may say after ``#``: headings in lower case, punctuation dropped, blanks as hyphens."""
    headings = re.findall(r"^#+\s+(.*?)\s*$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Relative links of a document whose file or heading does not exist."""
    broken = []
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def resolves(name: str) -> bool:
    """True when ``bridle.module.Class.method`` names something that exists."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            fields = getattr(found, "__dataclass_fields__", {}) | getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_points_to_what_exists(document):
    text = prose(document)
    assert broken_links(document) == []
    assert [name for name in NAME.findall(text) if not resolves(name)] == []
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []


def test_method_names_its_code():
    """Every equation names the function that computes it, as `bridle.module.function`."""
    names = NAME.findall(prose(ROOT / "docs" / "method.md"))
    assert len(names) >= 5


def test_checks_catch_what_is_broken(tmp_path):
    (tmp_path / "other.md").write_text("# One  heading: `x`\n```\n# not one\n```\n")
    document = tmp_path / "document.md"
    links = [
        "other.md",
        "other.md#one--heading-x",
        "#here",
        "https://a.b/c",
        "missing.md",
        "other.md#not-one",
        "#there",
    ]
    document.write_text("# Here\n" + "".join(f"[a]({link})\n" for link in links) + "```\n[a](in-code.md)\n```\n")
    assert broken_links(document) == ["missing.md", "other.md#not-one", "#there"]
    names = ["bridle.grid", "bridle.grid.PatchGrid.coordinates", "bridle.grid.PatchGrid.height", "bridle.errors.Nope"]
    assert [resolves(name) for name in names] == [True, True, True, False]
    assert not resolves("bridle.nowhere.function")
