"""The page in a real browser: no complaint, no request, everything visible and readable, on a phone and on a desk."""

import json
import math
from pathlib import Path

import pytest
import torch
from reference.browser import Browser, find_chromium

from bridle.report.build import ReportConfig, build_report
from bridle.report.grids import STRONGEST

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
VISIBLE = """[...document.querySelectorAll('figure, svg.plot, img, table, audio, nav a, h1, h2, h3')]
  .filter(e => !e.closest('details:not([open])'))
  .filter(e => { const b = e.getBoundingClientRect(); return b.width < 4 || b.height < 4 })
  .map(e => e.outerHTML.slice(0, 80))"""
UNLOADED = """[...document.images].filter(i => !(i.complete && i.naturalWidth)).length
  + [...document.querySelectorAll('image')].filter(i => !i.getBBox().width).length"""
OUTSIDE = """[...document.querySelectorAll('figure, section, header, .tile, p, li')]
  .filter(e => e.getBoundingClientRect().right > WIDTH + 1).map(e => e.outerHTML.slice(0, 80))"""
COLOURS = """(() => {
  const ground = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c } return 'rgb(255, 255, 255)' };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || e.closest('title, style') || (e.closest('details:not([open])') && !e.closest('summary'))) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const colour = svg ? style.fill : style.color;
    const behind = ground(svg ? e.closest('div') : e);
    found[`${colour} on ${behind}`] = [colour, behind, e.textContent.slice(0, 40)];
  }
  return Object.values(found) })()"""
LINES = """[...new Set([...document.querySelectorAll('.curve')].map(e => getComputedStyle(e).stroke))]
  .map(c => [c, getComputedStyle(document.querySelector('figure')).backgroundColor, 'a curve'])"""
PLAYS = """(async () => { const a = document.querySelector('audio'); a.preload = 'auto'; a.load();
  if (!(a.readyState > 0)) await new Promise((yes, no) => { a.onloadedmetadata = yes; a.onerror = () => no(a.error.message) });
  return a.duration })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one by BRIDLE_CHROMIUM")
    made = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(media_runs, full_page, class_run, label_table, tmp_path_factory):
    """A page of every medium, of sounds with every part, and of a fine-tuned run."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "audio.html").write_text(full_page, encoding="utf-8")
    for medium in ("image", "video"):
        run, data = media_runs[medium]
        text = build_report(run, ReportConfig((str(data),), num_clips=8), device=torch.device("cpu"))
        (folder / f"{medium}.html").write_text(text, encoding="utf-8")
    config = ReportConfig((str(label_table),), "tags", path="where", split="part", separator=";")
    text = build_report(class_run, config, device=torch.device("cpu"))
    (folder / "finetuned.html").write_text(text, encoding="utf-8")
    return folder


def luminance(colour):
    """Relative luminance of ``rgb(...)`` (WCAG 2.2)."""
    values = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """Contrast ratio of two colours (WCAG 2.2), 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def faults(browser: Browser, page: Path, size: str, *, dark: bool) -> list[str]:
    """What is wrong with a page at a size; nothing when it is good."""
    browser.open(page, *SIZES[size], dark=dark)
    found = [f"console: {message}" for message in browser.messages()]
    found += [f"request: {url}" for url in browser.requests() if url != page.as_uri()]
    found += [f"invisible: {text}" for text in browser.evaluate(VISIBLE)]
    width = SIZES[size][0]  # a phone makes its window as wide as what it shows
    found += [f"outside: {text}" for text in browser.evaluate(OUTSIDE.replace("WIDTH", str(width)))]
    if browser.evaluate("document.documentElement.scrollWidth") > width:
        found.append("the page scrolls sideways")
    if browser.evaluate(UNLOADED):
        found.append("a picture is not loaded")
    for limit, script in ((4.5, COLOURS), (3.0, LINES)):
        found += [f"{text!r}: {a} on {b}" for a, b, text in browser.evaluate(script) if contrast(a, b) < limit]
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("page", "figures"), [("audio", 12), ("image", 12), ("video", 12), ("finetuned", 9)])
def test_page_is_good(browser, pages, page, figures, size, dark):
    assert faults(browser, pages / f"{page}.html", size, dark=dark) == []
    assert browser.evaluate("document.querySelectorAll('figure').length") >= figures
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.1) == dark


def test_sounds_play(browser, pages):
    browser.open(pages / "audio.html", *SIZES["desk"])
    assert 0.2 < browser.evaluate(PLAYS) < 10
    assert browser.messages() == []


def test_print_is_light_and_whole(browser, pages):
    browser.open(pages / "image.html", *SIZES["desk"], dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert luminance(browser.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert all(contrast(a, b) >= 4.5 for a, b, _ in browser.evaluate(COLOURS))
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert len(pdf) > 20_000


BROKEN = {
    "console": "<script>console.error('no')</script>",
    "request": "<img src='http://127.0.0.1:9/x.png' width=10 height=10>",
    "invisible": "<figure style='height:0;overflow:hidden;padding:0'></figure>",
    "outside": "<p style='width:900px'>wide</p>",
    "sideways": "<div style='width:900px'>wide</div>",
    "not loaded": "<img src='data:image/png;base64,AAAA' width=10 height=10>",
    "rgb(200": "<p style='color:rgb(200,200,200)'>pale</p>",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_faults_are_found(browser, tmp_path, kind):
    page = tmp_path / "page.html"
    style = "<style>figure { background: #fff }</style>"
    head = f"<!DOCTYPE html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>{style}<body>"
    page.write_text(f"{head}<figure><svg><path class=curve stroke='#000'/></svg>text</figure>")
    assert faults(browser, page, "phone", dark=False) == []
    page.write_text(f"{head}<figure>text</figure>{BROKEN[kind]}")
    assert any(kind in fault for fault in faults(browser, page, "phone", dark=False))


def test_a_script_of_a_user_would_not_run(browser, pages, tmp_path):
    """Should a text ever get through unescaped, the policy of the page stops it."""
    text = (pages / "image.html").read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", "<script>document.title = 'run'</script></body>"), encoding="utf-8")
    browser.open(page, *SIZES["desk"])
    assert browser.evaluate("document.title") != "run"
    assert any("Content Security Policy" in message for message in browser.messages())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_counts_are_readable_in_the_strongest_cell(browser, pages, dark):
    """What lies behind them is a colour that is let through in part, which the other check does not see."""
    browser.open(pages / "audio.html", *SIZES["desk"], dark=dark)
    script = "['--c0', '--c1', '--card', '--text'].map(n => getComputedStyle(document.body).getPropertyValue(n).trim())"
    *marks, card, text = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in browser.evaluate(script))
    for mark in marks:
        mixed = [STRONGEST * a + (1 - STRONGEST) * b for a, b in zip(mark, card, strict=True)]
        assert contrast(f"rgb({mixed[0]}, {mixed[1]}, {mixed[2]})", f"rgb({text[0]}, {text[1]}, {text[2]})") >= 4.5


def test_contrast_is_that_of_the_guidelines():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert math.isclose(contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)"), 4.48, abs_tol=0.01)
    assert json.dumps(luminance("rgba(255, 255, 255, 0.5)")) == "1.0"
