from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from frepa.report.canvas import new_figure
from frepa.report.page import MeanStd, Page

_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Tree(HTMLParser):
    """Checks nesting, and gathers tags with their attributes and the text of each kind of cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and data.strip():
            self.text.append((self.stack[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


def parse(page: Page) -> Tree:
    tree = Tree()
    tree.feed(page.html())
    tree.close()
    assert tree.stack == []
    return tree


def full_page() -> Page:
    figure = new_figure(2, 1)
    figure.add_subplot().plot([0, 1], [1, 0])
    page = Page("A <b>title</b> & more", "what this is")
    page.section("Results").text("First `code` here.\n\nSecond <script>alert(1)</script>.").facts(
        {"Images": 12345, "lr": 1e-5}
    )
    page.section("Results").table([{"encoder": "a<b", "DSC": 51.234}], caption="x & y").note("mind", level="warning")
    page.section("More").figure(figure, 'a "quoted" caption').code("config.yaml", "lr: <none>\nseed: 1")
    return page


def test_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    tree = parse(full_page())
    assert not tree.all("script")
    assert not tree.all("link")
    style = "".join(tree.said("style"))
    assert "url(" not in style
    assert "@import" not in style
    for _, attrs in tree.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))


def test_text_is_escaped_and_backticks_become_code() -> None:
    tree = parse(full_page())
    assert tree.said("h1") == ["A <b>title</b> & more"]  # the parser unescapes: it is text, no tag
    assert tree.said("title") == ["A <b>title</b> & more"]
    assert "Second <script>alert(1)</script>." in tree.said("p")
    assert tree.said("code") == ["code", "lr: <none>\nseed: 1"]
    assert tree.all("img")[0]["alt"] == 'a "quoted" caption'


def test_contents_link_to_every_section_even_with_equal_headings() -> None:
    tree = parse(full_page())
    anchors = [attrs["id"] for attrs in tree.all("h2")]
    assert len(set(anchors)) == 3
    assert [attrs["href"] for attrs in tree.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert not parse(Page("t").section("one").section("two")).all("nav")


def test_table_aligns_numbers_and_marks_the_best() -> None:
    rows = [
        {"encoder": "a", "DSC": MeanStd(80.0, 2.5), "loss": 0.125, "note": "x"},
        {"encoder": "b", "DSC": MeanStd(81.004, 1.0), "loss": 0.5},
        {"encoder": "c", "DSC": MeanStd(81.001, float("nan")), "loss": float("nan"), "note": None},
    ]
    tree = parse(Page("t").table(rows, best={"DSC": "max", "loss": "min"}))
    classes = [attrs.get("class") for attrs in tree.all("th")]
    assert classes == [None, "number", "number", None]
    # 81.004 and 81.001 are printed alike, so both are best.
    assert tree.said("strong") == ["0.12", "81.00 ± 1.00", "81.00 ± –"]
    assert tree.said("td") == ["a", "80.00 ± 2.50", "x", "b", "0.50", "–", "c", "–", "–"]


def test_a_single_row_has_no_best() -> None:
    assert parse(Page("t").table([["a", 1.0]], ["name", "DSC"], best={"DSC": "max"})).said("strong") == []


def test_rows_that_do_not_fit_the_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Page("t").table([["a"]], ["x", "y"])
    with pytest.raises(ValueError, match="columns must be given"):
        Page("t").table([["a"]])
    with pytest.raises(ValueError, match='"max" or "min"'):
        Page("t").table([["a", 1]], ["x", "y"], best={"y": "most"})


def test_figures_are_embedded_as_they_are() -> None:
    figure = new_figure(2, 1)
    tree = parse(Page("t").figure(figure, "c"))
    attrs = tree.all("img")[0]
    data = base64.b64decode(re.sub(r"^data:image/png;base64,", "", attrs["src"] or ""))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (attrs["width"], attrs["height"]) == ("150", "75")  # 300 x 150 pixels at 150 dots per inch, half shown
    with pytest.raises(ValueError, match="PNG"):
        Page("t").figure(b"GIF89a")


def test_save_replaces_in_one_step(tmp_path: Path) -> None:
    path = Page("one").save(tmp_path / "report.html")
    Page("two").save(path)
    assert "<h1>two</h1>" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_names_of_any_characters_stand_in_a_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> $x$ =1+1 \x1b[31m not \udcff utf-8"
    page = Page(name, name).section(name).text(name).note(name).facts({name: name}).table([{name: name}])
    text = page.save(tmp_path / "page.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "\\udcff" in text
