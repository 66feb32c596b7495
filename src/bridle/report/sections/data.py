"""The files: what the doctor finds in those that were given, and what the run put into quarantine."""

from __future__ import annotations

from collections.abc import Sequence

from bridle.data.medium import Medium
from bridle.data.quarantine import BadFile
from bridle.report.examined import Examined
from bridle.report.html import Html, Section, element, facts, figure, section, table
from bridle.report.plots import bar_plot
from bridle.wording import count

SHOWN_FILES = 20
_SHOWN_KINDS = 4


def data_section(examined: Examined | None, quarantine: Sequence[BadFile], medium: Medium) -> Section | None:
    """Both; None without either."""
    if examined is None and not quarantine:
        return None
    parts: list[Html] = []
    lead = "Files that could not be read while training."
    if examined is not None:
        told = {
            True: "These are the files that the run was trained on.",
            False: "The list differs from that of the training: other files, or the same under other names.",
            None: "",
        }[examined.is_training_data]
        were = "was" if examined.files.num_files == 1 else "were"
        lead = f"{count(examined.files.num_files, medium.noun)} {were} given to this report. {told}".rstrip()
        parts += _examined(examined, medium)
    parts += [element("h3", "Quarantine of the run", class_="after"), _quarantine(quarantine)]
    return section("data", "Data", lead, *parts)


def _examined(examined: Examined, medium: Medium) -> list[Html]:
    files = examined.files
    seconds = files.unit == "s"
    faults = {"broken": files.num_broken, "empty": len(files.blank), "cut short": len(files.cut_short)}
    decoded = f"{files.num_decoded:,}; " + ", ".join(f"{how} {number:,}" for how, number in faults.items())
    pairs = [
        ("files", f"{files.num_files:,}, unreadable {len(files.bad):,}"),
        ("size", f"{files.num_bytes / 1e6:,.1f} MB"),
        *([("in all", duration(files.total_seconds))] if files.total_seconds else []),
        *((name, _kinds(counts)) for name, counts in files.kinds.items()),
        ("decoded", decoded),
        ("copies of others", f"{files.num_copies:,}"),
    ]
    bars = [(f"{low:g} to {high:.4g} {files.unit}", count) for low, high, count in files.histogram]
    what = "duration" if seconds else "shorter edge"
    plot = bar_plot(bars, f"Number of files by {what}")
    reading = f"Files by {what}. " + (
        "Training takes one crop of each file and epoch: much longer files are heard in part, much shorter ones give few "
        "patches."
        if seconds
        else "Pictures much smaller than what the encoder sees are enlarged, much larger ones lose detail."
    )
    parts = [
        element("div", element("div", facts(pairs)), figure(f"Files by {what}", plot, reading), class_="figures"),
    ]
    notes = [element("li", problem, class_="alarm") for problem in examined.problems]
    notes += [element("li", line) for line in examined.advice]
    if notes:
        title = "What the doctor says of training on them with these settings"
        parts += [element("h3", title, class_="after"), element("ul", *notes, class_="notes")]
    if files.bad:
        parts += [element("h3", "Unreadable files", class_="after"), bad_table(files.bad)]
    return parts


def _quarantine(files: Sequence[BadFile]) -> Html:
    return bad_table(files) if files else element("p", "No file is in quarantine.", class_="soft")


def bad_table(files: Sequence[BadFile]) -> Html:
    """The first files that cannot be read, with the reasons."""
    rows = [(file.key, file.reason) for file in files[:SHOWN_FILES]]
    rows += [(f"and {len(files) - SHOWN_FILES:,} more", "")] if len(files) > SHOWN_FILES else []
    return table(["file", "reason"], rows, left=2, label="unreadable files")


def _kinds(counts: dict[str, int]) -> str:
    shown = [f"{name}: {count:,}" for name, count in list(counts.items())[:_SHOWN_KINDS]]
    rest = sum(list(counts.values())[_SHOWN_KINDS:])
    return ", ".join(shown + ([f"others: {rest:,}"] if rest else []))


def duration(seconds: float) -> str:
    """A length of time in the unit that fits."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
