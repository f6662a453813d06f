"""One self-contained HTML page: text, facts, tables, figures and code in a single file that needs no network."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from matplotlib.figure import Figure

from frepa.files import write_text
from frepa.report.figures import png_bytes

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INLINE_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class MeanStd:
    """A table cell shown as ``mean ± std``; rows are compared by the mean."""

    mean: float
    std: float


class Page:
    """A report, built from top to bottom and saved as one file.

    Everything given is data: text is escaped, backticks mark code. Figures are embedded at twice the pixel density
    they are shown at. The page has no script and refers to nothing outside itself.
    """

    def __init__(self, title: str, subtitle: str = "", *, footer: str = "Made by frepa.") -> None:
        self.title = title
        self.subtitle = subtitle
        self.footer = footer
        self._blocks: list[dict[str, Any]] = []

    def section(self, heading: str) -> Page:
        """Start a section; pages with three or more of them get a list of contents."""
        number = sum(block["kind"] == "section" for block in self._blocks) + 1
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
        return self._add("section", heading=heading, anchor=f"s{number}-{slug}".rstrip("-"))

    def text(self, text: str) -> Page:
        """One or more paragraphs, separated by blank lines."""
        return self._add("text", paragraphs=_paragraphs(text))

    def note(self, text: str, *, level: str = "note") -> Page:
        """A remark set apart from the prose; ``level`` is ``note`` or ``warning``."""
        if level not in ("note", "warning"):
            raise ValueError(f"level must be note or warning, found {level!r}")
        return self._add("note", paragraphs=_paragraphs(text), level=level)

    def facts(self, facts: Mapping[str, Any]) -> Page:
        """Key facts as name and value, side by side where there is room."""
        return self._add("facts", facts=[(name, _inline(_fact(value))) for name, value in facts.items()])

    def table(
        self,
        rows: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]],
        columns: Sequence[str] | None = None,
        caption: str = "",
        *,
        best: Mapping[str, str] | None = None,
        digits: int = 2,
    ) -> Page:
        """A table; columns that hold numbers are right-aligned.

        Args:
            rows: one mapping from column name to cell per row, or one sequence per row with ``columns`` given. A cell
                is a number, a :class:`MeanStd`, text, or None (shown as a dash, as NaN is).
            columns: names in order; by default the keys of the rows in order of first appearance.
            caption: sentence above the table.
            best: column name to ``"max"`` or ``"min"``; the best cells of that column, ties included, are bold.
            digits: decimals of floats.
        """
        if columns is None:
            if any(not isinstance(row, Mapping) for row in rows):
                raise ValueError("columns must be given when rows are sequences")
            columns = list(dict.fromkeys(name for row in rows for name in row))  # type: ignore[arg-type]
        cells = [[row.get(name) for name in columns] if isinstance(row, Mapping) else list(row) for row in rows]
        if any(len(row) != len(columns) for row in cells):
            raise ValueError(f"every row must have {len(columns)} cells, one per column")
        numeric = [_is_numeric_column([row[i] for row in cells]) for i in range(len(columns))]
        bold = [_best_rows([row[i] for row in cells], (best or {}).get(name), digits) for i, name in enumerate(columns)]
        return self._add(
            "table",
            caption=_inline(caption),
            columns=[{"name": name, "numeric": n} for name, n in zip(columns, numeric)],
            rows=[
                [
                    {"text": _inline(_show(cell, digits)), "numeric": numeric[i], "best": index in bold[i]}
                    for i, cell in enumerate(row)
                ]
                for index, row in enumerate(cells)
            ],
        )

    def figure(self, figure: Figure | bytes, caption: str = "", *, alt: str | None = None, wide: bool = False) -> Page:
        """A matplotlib figure or PNG bytes, embedded; ``alt`` defaults to the caption, ``wide`` breaks the text column.

        Raises:
            ValueError: the bytes are no PNG image.
        """
        data = figure if isinstance(figure, bytes) else png_bytes(figure)
        if data[:8] != _PNG_SIGNATURE:
            raise ValueError("figure must be a matplotlib Figure or the bytes of a PNG image")
        width, height = struct.unpack(">II", data[16:24])
        return self._add(
            "figure",
            source=markupsafe.Markup("data:image/png;base64," + base64.b64encode(data).decode("ascii")),
            alt=caption if alt is None else alt,
            caption=_inline(caption),
            # Shown at half its pixels, so that it is sharp on dense screens; the style sheet shrinks it further.
            width=max(1, width // 2),
            height=max(1, height // 2),
            wide=wide,
        )

    def code(self, heading: str, code: str, *, open: bool = False) -> Page:
        """Code or configuration that the reader can unfold; ``open`` shows it from the start."""
        return self._add("code", heading=heading, code=code, open=open)

    def html(self) -> str:
        """The whole page as text."""
        folder = Path(__file__).parent
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
        )
        return environment.get_template("page.html").render(
            title=self.title,
            subtitle=self.subtitle,
            footer=self.footer,
            css=markupsafe.Markup((folder / "page.css").read_text(encoding="utf-8")),
            contents=[(b["anchor"], b["heading"]) for b in self._blocks if b["kind"] == "section"],
            blocks=self._blocks,
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; a file of that name is replaced in one step."""
        path = Path(path)
        write_text(path, self.html())
        return path

    def _add(self, kind: str, **content: Any) -> Page:
        self._blocks.append({"kind": kind, **content})
        return self


def _paragraphs(text: str) -> list[markupsafe.Markup]:
    return [_inline(" ".join(part.split())) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _inline(text: str) -> markupsafe.Markup:
    """Escaped text in which backticks mark code."""
    return markupsafe.Markup(_INLINE_CODE.sub(r"<code>\1</code>", str(markupsafe.escape(text))))


def _number(cell: Any) -> float | None:
    """The number a cell is compared by; None for text, missing values and NaN."""
    value = cell.mean if isinstance(cell, MeanStd) else cell
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    return None if math.isnan(float(value)) else float(value)


def _is_numeric_column(cells: Sequence[Any]) -> bool:
    present = [c for c in cells if c is not None]
    return bool(present) and all(
        isinstance(c, MeanStd) or (hasattr(c, "__float__") and not isinstance(c, bool)) for c in present
    )


def _best_rows(cells: Sequence[Any], order: str | None, digits: int) -> set[int]:
    if order is None:
        return set()
    choose: Mapping[str, Callable[[list[float]], float]] = {"max": max, "min": min}
    if order not in choose:
        raise ValueError(f'best takes "max" or "min", found {order!r}')
    numbers = {i: round(n, digits) for i, n in enumerate(map(_number, cells)) if n is not None}
    if len(numbers) < 2:
        return set()  # the only one is not the best of anything
    winner = choose[order](list(numbers.values()))
    return {i for i, n in numbers.items() if n == winner}


def _fact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _show(value, 4)


def _show(cell: Any, digits: int) -> str:
    if isinstance(cell, MeanStd):
        if math.isnan(cell.mean):
            return "–"
        spread = "–" if math.isnan(cell.std) else f"{cell.std:.{digits}f}"
        return f"{cell.mean:.{digits}f} ± {spread}"
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if hasattr(cell, "__float__") and not hasattr(cell, "__index__"):
        value = float(cell)
        return "–" if math.isnan(value) else f"{value:.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) and abs(cell) >= 10_000 else str(cell)
