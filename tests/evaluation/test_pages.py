"""Pages: what is put into them is shown as it is, figures keep to themselves, and tables sort."""

import json

import matplotlib.pyplot as plt
import pytest
from html_pages import Page, visit

from evaluation import pages

ODD = "<b>höhe</b> & \"50 %\" 'x' $a_1$ </script>"


def draw(label):
    figure, axis = plt.subplots()
    axis.plot([1, 2, 3], [3, 1, 2], "k.-", label=label)
    axis.legend()
    axis.set_title(ODD, parse_math=False)
    return figure


def example():
    rows = [("b", 10, 0.25, ODD), ("a", 9, None, "2"), ("c", 100, 1e-9, "10"), ("d", 2, float("nan"), ODD)]
    parts = [
        pages.table(["name", "count", "ms", ODD], rows),
        pages.bullets([ODD]),
        pages.folded(ODD, pages.element("pre", ODD)),
        pages.figure(draw("first"), "first", ODD),
        pages.figure(draw("second"), "second", "another"),
        pages.side_by_side(pages.paragraph("left"), pages.paragraph("right")),
    ]
    return pages.page(ODD, parts), rows


def test_whatever_a_name_holds_it_is_text():
    text, rows = example()
    page = Page(text)
    assert page.text.count(ODD) >= 8 and page.headings == [ODD]
    (table,) = page.tables
    assert table["sortable"] and table["columns"] == ["name", "count", "ms", ODD]
    assert table["rows"] == [["b", 10, 0.25, ODD], ["a", 9, "-", "2"], ["c", 100, 1e-9, "10"], ["d", 2, "-", ODD]]


def test_a_figure_is_the_same_each_time_has_ids_of_its_own_and_the_colour_of_the_text_around():
    first, again, other = (pages.figure(draw("x"), name, "shown") for name in ("one", "one", "two"))
    assert first == again and first != other and pages.INK not in first and "currentColor" in first
    assert Page(first + other).ids and not plt.get_fignums()


def test_numbers_are_shown_rounded():
    assert [pages.number_text(n) for n in (None, float("nan"), 0.123456, 123456.0)] == ["-", "-", "0.1235", "1.235e+05"]


def test_a_browser_sorts_numbers_as_numbers(tmp_path):
    text, rows = example()
    (tmp_path / "page.html").write_text(text)
    seen = visit(tmp_path / "page.html")
    ((name, count, ms, odd),) = seen["tables"]
    assert name["up"] == list("abcd") and [json.loads(n) for n in count["up"]] == [2, 9, 10, 100]
    assert ms["up"] == ["1e-09", "0.25", "-", "-"] and ms["down"] == ["0.25", "1e-09", "-", "-"], "what has no number comes last"
    assert odd["up"] == [ODD, ODD, "2", "10"]
    assert len(seen["figures"]) == 2


@pytest.mark.parametrize("text", ["<p>", "<p></b></p>", '<a href="https://x"></a>', '<img src="x.png">', '<b id="a"></b><b id="a"></b>'])
def test_a_page_that_is_wrong_is_seen_to_be(text):
    with pytest.raises(AssertionError):
        Page(text)
