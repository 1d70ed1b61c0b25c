"""The documents that people read: their links lead somewhere, and the README stays short."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    ROOT / "models" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^()\s]+)\)")  # of images, too
ELSEWHERE = re.compile(r"[a-z]+:")  # https: and the like


def prose(path):
    """The text of a document without its fenced blocks, which hold neither links nor headings."""
    return FENCED.sub("", path.read_text())


def anchors(path):
    """What `#...` may name in a document: its headings as GitHub writes them."""
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(text)}(-\d+)?", name) is not None for name in names)
        names.add(f"{text}-{repeated}" if repeated else text)
    return names


def dead_links(path):
    """The relative links of a document that lead nowhere: no such file or folder, or no such heading in it."""
    dead = []
    for link in LINK.findall(INLINE_CODE.sub("", prose(path))):
        if ELSEWHERE.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_dead_links_are_found(tmp_path):
    document = tmp_path / "document.md"
    other = tmp_path / "other.md"
    other.write_text("# Title\n\n## What's `in` it?\n\n## Same\n\n## Same\n")
    document.write_text(
        "# Here\n\n[there](other.md) [heading](other.md#whats-in-it) [second](other.md#same-1) [here](#here) [web](https://example.org/x)\n"
        "[gone](gone.md) ![picture](gone.svg) [no heading](other.md#gone) [nor here](#gone) [third](other.md#same-2)\n"
        "`[in code](code.md)`\n\n```\n# comment\n[in a block](block.md)\n```\n\n[not a heading](#comment)\n"
    )
    assert dead_links(document) == ["gone.md", "gone.svg", "other.md#gone", "#gone", "other.md#same-2", "#comment"]


def test_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 2000


def test_readme_soon_shows_a_command():
    before, fence, _ = README.read_text().partition("```")
    assert fence, "README.md has no fenced command"
    assert len(before.split()) < 300


def test_bars_of_the_speedup_chart():
    draw_figures = load_script(ROOT / "docs" / "draw_figures.py")
    applications = [
        {"name": "blur", "adams2019_ms": 1.0, "hand_written_ms": None, "speedup": 2.0},
        {"name": "harris", "adams2019_ms": 3.0, "hand_written_ms": 2.0, "speedup": 8.0},
    ]
    # The mean of the hand-written ones is left out: they are other applications than the tuned ones.
    assert draw_figures.bars(applications) == [("harris", 1.5, 8.0), ("blur", None, 2.0), ("geometric mean", None, pytest.approx(4.0))]
    applications[0]["hand_written_ms"] = 1 / 6
    assert draw_figures.bars(applications)[-1] == ("geometric mean", pytest.approx(3.0), pytest.approx(4.0))


def test_tuning_results_are_what_the_chart_reads(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tuning = load_script(ROOT / "benchmarks" / "tuning.py")
    report = {
        "program": "blur", "stages": 2, "adams2019_ms": 0.6, "hand_written_ms": None, "best_ms": 0.3, "speedup": 2.0,
        "origin": "adams2019", "measured": 8, "search": [0.7, 0.25], "adams2019_search_ms": 0.5,
        "rivals": {"random": {"best_ms": 0.4}, "li2018": {"best_ms": None}},
    }  # fmt: skip
    # Rivals are compared with the faster of Adams2019's two measurements, 0.5; one that measured nothing is left out.
    summary = tuning.summary(report)
    assert summary["rivals"] == {"lstm": pytest.approx(2.0), "random": pytest.approx(1.25)}
    assert summary["against_better"] == pytest.approx(2.0) and summary["hand_written_ms"] is None
    assert tuning.summary(report | {"hand_written_ms": 0.45})["against_better"] == pytest.approx(1.5)
    assert "| blur | 2 | 8 | 0.600 | - | 0.300 | 2.00 | 2.00 | adams2019 | 2.00 | 1.25 |" in tuning.table([report])


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
