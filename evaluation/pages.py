"""One self-contained HTML page: text, tables that sort, and matplotlib figures as SVG within it. It loads nothing from anywhere.

Whatever is put into it as a plain string is escaped; what is markup already is an Html.
"""

import html
import io
import math
import re
from string import Template

import matplotlib
from matplotlib import pyplot as plt

INK = "#000000"  # what matplotlib draws axes and text in; on the page that is the colour of the text around, light or dark

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1c2024; --paper: #ffffff; --line: #d5d9de; --soft: #f3f5f7; --mark: #0b62c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #15181b; --line: #3a4046; --soft: #1f2428; --mark: #79b4ff; }
}
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--ink); background: var(--paper); font: 16px/1.5 sans-serif; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; } h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
table.sortable th button { all: unset; cursor: pointer; font-weight: bold; }
table.sortable th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort="ascending"] button::after { content: " \\2191"; } th[aria-sort="descending"] button::after { content: " \\2193"; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; color: var(--ink); fill: currentColor; }
figcaption { font-size: .9rem; max-width: 60rem; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.35; margin: .4rem 0; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; } .side > * { min-width: 0; }
.loops b { color: var(--mark); } summary { cursor: pointer; margin: .6rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
$body
<script>
document.querySelectorAll("table.sortable th").forEach((header) => header.addEventListener("click", () => {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = (row) => { const cell = row.cells[column]; return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
  const compare = (a, b) => typeof a !== typeof b ? (typeof a === "number" ? -1 : 1)  // what has no number comes last
    : sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true}));
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}));
</script>
</body>
</html>
""")


class Html(str):
    """Markup, which is not escaped once more."""


def escaped(value):
    """The Html of a value: an Html as it is, all else as text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def page(title, parts):
    """The text of a page of Html parts, one below the other."""
    return PAGE.substitute(title=escaped(title), body="\n".join(parts))


def element(name, *content, **attributes):
    """An element around its content. A `_` in an attribute's name becomes `-`, one behind it (`class_`) is left out."""
    inside = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{inside}>{''.join(map(escaped, content))}</{name}>")


def paragraph(*content):
    return element("p", *content)


def bullets(lines):
    """A list of lines; nothing where there are none."""
    return element("ul", *(element("li", line) for line in lines)) if lines else Html("")


def folded(summary, *content):
    """Content behind a line that opens it."""
    return element("details", element("summary", summary), *content)


def side_by_side(*parts):
    return element("div", *(element("div", part) for part in parts), class_="side")


def number_text(value):
    """Four digits; `-` where there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def table(columns, rows):
    """A table whose rows a click on a column's name sorts. Numbers are shown rounded, and kept as they are for sorting."""

    is_number = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    numeric = {"class_": "number"}

    def cell(value, in_numbers):
        if value is None or isinstance(value, float) and not math.isfinite(value):
            return element("td", "-", **(numeric if in_numbers else {}))
        if isinstance(value, (int, float)):
            return element("td", value if isinstance(value, int) else number_text(value), **numeric, data_value=value)
        return element("td", value)

    heads = [element("th", element("button", name, type="button"), **(numeric if is_number[i] else {})) for i, name in enumerate(columns)]
    body = [element("tr", *map(cell, row, is_number)) for row in rows]
    return element(
        "div", element("table", element("thead", element("tr", *heads)), element("tbody", *body), class_="sortable"), class_="wide"
    )


def figure(drawn, name, caption):
    """A matplotlib figure as SVG, closed afterwards. name : of the figure, so that its identifiers are its own, and the same each time."""
    for axis in drawn.axes:
        if legend := axis.get_legend():
            legend.get_frame().set_visible(False)  # it has the colour of a light page
    text = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(text, format="svg", transparent=True, metadata=unsaid)
    plt.close(drawn)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)  # the same in every figure, and nothing refers to them
    label = f'<svg role="img" aria-label="{html.escape(caption)}"'
    return element("figure", Html(svg.replace("<svg", label, 1)), element("figcaption", caption))
