"""What tests ask of a page: that it is well formed, loads nothing, and works in a browser."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "br", "hr", "img", "link", "input"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell"))), None)
# Sorts every table by every column, first upwards and then downwards, and notes what a person would see.
VISIT = """<script>
const visit = {tables: [], figures: [], loaded: performance.getEntriesByType("resource").length, width: document.body.scrollWidth};
document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
document.querySelectorAll("table.sortable").forEach((table) => {
  const read = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.value ?? row.cells[i].textContent);
  visit.tables.push([...table.querySelectorAll("th")].map((header, i) => {
    header.querySelector("button").click(); const up = read(i), sort = header.getAttribute("aria-sort");
    header.querySelector("button").click(); return {name: header.textContent, up, sort, down: read(i)};
  }));
});
document.querySelectorAll("figure svg").forEach((svg) => {
  const box = svg.getBoundingClientRect(); visit.figures.push([box.width, box.height]);
});
document.body.dataset.visit = JSON.stringify(visit);
</script>"""


class Page(HTMLParser):
    """A page's text taken apart.

    tables : [{"sortable", "columns", "rows"}], a cell as text, a number as it is kept for sorting; text : all that a person can read.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.ids, self.links, self.headings, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"
        assert len(set(self.ids)) == len(self.ids), "an id occurs twice"
        assert all(link.startswith(("#", "data:")) for link in self.links), self.links
        assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"sortable": found.get("class") == "sortable", "columns": [], "rows": []})
        if tag == "tr" and "tbody" in self.open:
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self._cells().append("")
        if tag == "td" and "data-value" in found:
            self.tables[-1]["rows"][-1][-1] = float(found["data-value"])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if ("th" in self.open or "td" in self.open) and isinstance(self._cells()[-1], str):
            self._cells()[-1] += data

    def _cells(self):
        return self.tables[-1]["columns"] if "thead" in self.open else self.tables[-1]["rows"][-1]

    def table(self, *columns):
        """The rows of the first table with these columns."""
        return next(table["rows"] for table in self.tables if set(columns) <= set(table["columns"]))


def as_number(text):
    try:
        return float(text)
    except ValueError:
        return None


def visit(path):
    """Open a page in a browser: nothing is loaded, every figure is seen, every table sorts. Skips where there is no browser."""
    if BROWSER is None or subprocess.run([BROWSER, "--version"], capture_output=True).returncode:
        pytest.skip("no Chromium is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the browser may still be writing there
        copy = Path(folder, "page.html")
        copy.write_text(path.read_text().replace("</body>", f"{VISIT}</body>"))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}/profile"]
        done = subprocess.run([BROWSER, *flags, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=100)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    (found,) = re.findall(r'<body data-visit="([^"]*)"', done.stdout)
    seen = json.loads(html.unescape(found))
    assert seen["loaded"] == 0 and all(width > 50 and height > 50 for width, height in seen["figures"])
    for column in (column for table in seen["tables"] for column in table):
        assert column["sort"] == "ascending" and sorted(column["up"]) == sorted(column["down"])
        up, down = ([n for n in map(as_number, column[way]) if n is not None] for way in ("up", "down"))
        assert up == sorted(up) and down == sorted(down, reverse=True), column
    return seen
