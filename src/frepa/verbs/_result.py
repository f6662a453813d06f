"""What a verb gives back in Python: the folder it wrote, and what is in it at hand."""

from __future__ import annotations

import html
import json
import math
import os
import webbrowser
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MOST_ROWS = 60
#: ``of`` in tables of what is no score but was counted.
_COUNT = "count"


class RunResult(os.PathLike[str]):
    """A folder that a verb wrote; it stands wherever a path is asked for.

    ``run / "cases.csv"``, ``open(run / ...)``, ``Path(run)`` and ``str(run)`` work as with a path, and so does what a
    `pathlib.Path` has besides (``run.name``, ``run.exists()``). In a notebook it shows its scores.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.folder / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str | os.PathLike) and self.folder == Path(other)

    def __hash__(self) -> int:
        return hash(self.folder)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for these before there is a folder
            raise AttributeError(name)
        return getattr(self.folder, name)

    @property
    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds; empty where the verb writes none."""
        path = self.folder / "results.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    @property
    def scores(self) -> Any:
        """A `pyarrow.Table` of the scores: of what, which, its value and its spread; ``.to_pandas()`` where wanted.

        Fractions in [0, 1], as in ``results.json``. Of a pretraining run it is what was last looked at of the encoder;
        where a verb scores nothing, what it counted: scans predicted, findings of each kind, records packed.
        """
        import pyarrow as pa

        found = (
            _scores(self.results),
            _last_metrics(self.folder / "metrics.jsonl"),
            _counts(self.folder, self.results),
        )
        rows = next((rows for rows in map(list, found) if rows), [])
        kinds = {"of": pa.string(), "score": pa.string(), "value": pa.float64(), "std": pa.float64()}
        return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})

    @property
    def report(self) -> Report:
        """The page about the run: its path; ``run.report.open()`` shows it in a browser.

        Raises:
            FileNotFoundError: the verb writes none.
        """
        path = self.folder / "report.html"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} has no report.html.")
        return Report(path)

    def _repr_html_(self) -> str:
        """A table of the scores, and where the rest is, for notebooks."""
        rows = self.scores.to_pylist()
        lines = [
            f"<tr><td>{html.escape(row['of'])}</td><td>{html.escape(row['score'])}</td>"
            f"<td style='text-align:right'>{_shown(row)}</td></tr>"
            for row in rows[:_MOST_ROWS]
        ]
        more = f"<p>{len(rows) - _MOST_ROWS} more in <code>.scores</code>.</p>" if len(rows) > _MOST_ROWS else ""
        table = f"<table><tr><th></th><th>score</th><th>value</th></tr>{''.join(lines)}</table>{more}" if lines else ""
        page = self.folder / "report.html"
        link = f" · <a href='{html.escape(page.absolute().as_uri())}'>report</a>" if page.is_file() else ""
        return f"<p><code>{html.escape(str(self.folder))}</code>{link}</p>{table}"


class ExportResult(RunResult):
    """A folder with an exported encoder.

    ``results`` is what ``export.json`` says: what the input must hold, how the files are opened, the differences.
    """

    @property
    def results(self) -> dict[str, Any]:
        """What ``export.json`` holds."""
        return json.loads((self.folder / "export.json").read_text("utf-8"))

    @property
    def difference(self) -> float:
        """The largest absolute difference between what was written and the encoder, over all outputs."""
        return float(self.results["largest_difference"])

    @property
    def scores(self) -> Any:
        """A `pyarrow.Table` of the largest absolute differences, one row per output and input size."""
        import pyarrow as pa

        rows = self.results["differences"]
        sizes = [" x ".join(map(str, row["shape"])) for row in rows]
        return pa.table({
            "of": pa.array(sizes, pa.string()),
            "score": pa.array([f"{row['output']}, largest difference" for row in rows], pa.string()),
            "value": pa.array([row["largest"] for row in rows], pa.float64()),
            "std": pa.array([None] * len(rows), pa.float64()),
        })  # fmt: skip


class Report(os.PathLike[str]):
    """A page on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def open(self) -> bool:
        """Show it in a browser; False where there is none."""
        return webbrowser.open(self.path.absolute().as_uri())


def _scores(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what ``results.json`` calls test, of all sets where there are several, and of the baselines."""
    if "analysis" in results:
        for name, item in results["scores"].items():
            yield from _rows(item, name)
    elif "sets" in results:
        for name, item in results["sets"].items():
            yield from _rows(item.get("test", {}), name)
            yield from _rows(item.get("baselines", {}), f"{name}, no encoder")
    else:
        yield from _rows(results.get("test", {}), "")
        yield from _rows(results.get("baselines", {}), "no encoder")


def _rows(values: Mapping[str, Any], of: str) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            yield {"of": of, "score": name, "value": float(value), "std": None}
        elif isinstance(value, Mapping):
            found = value.get("value", value.get("mean"))
            if isinstance(found, int | float) and "std" in value:
                yield {"of": of, "score": name, "value": float(found), "std": value["std"]}
            else:
                yield from _rows(value, f"{of}, {name}".removeprefix(", "))


def _last_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The newest value of everything that was looked at while an encoder was trained, with the step."""
    if not path.is_file():
        return
    newest: dict[str, tuple[Any, float]] = {}
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # cut short by a kill
                continue
            for name, value in line.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "epoch"):
                    newest[name] = (line.get("step"), float(value))
    for name, (step, value) in newest.items():
        yield {"of": f"step {step}", "score": name, "value": value, "std": None}


def _counts(folder: Path, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What predict and embed (``results.json``), check (``findings.parquet``) and prepare (``store.json``) counted."""
    found = {name: results[name] for name in ("scans", "images", "left_out") if name in results}
    if (folder / "findings.parquet").is_file():
        from pyarrow import parquet

        kinds = parquet.read_table((folder / "findings.parquet").absolute(), columns=["kind"])["kind"].to_pylist()
        found |= {"findings": len(kinds), **dict(Counter(kinds).most_common())}
    if (folder / "store.json").is_file():
        facts = json.loads((folder / "store.json").read_text("utf-8"))
        found |= {
            name: facts[key]
            for name, key in (("records", "records"), ("left_out", "skipped"), ("bytes", "shard_bytes"))
        }
    for name, count in found.items():
        yield {"of": _COUNT, "score": name, "value": float(count), "std": None}


def _shown(row: Mapping[str, Any]) -> str:
    value, std = row["value"], row["std"]
    if value is None or not math.isfinite(value):
        return "–"
    if row["of"] == _COUNT:
        return f"{value:,.0f}"
    spread = f" ± {std:.4f}" if isinstance(std, float) and math.isfinite(std) else ""
    return f"{value:.1e}" if 0 < abs(value) < 1e-4 and not spread else f"{value:.4f}{spread}"
