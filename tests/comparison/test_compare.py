"""Studies on tiny sets: what is computed and what is not, the table against the runs themselves, wrong input."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

import tiny_encoders  # noqa: F401 (registers them)
from frepa import cli
from frepa.comparison import contents
from frepa.errors import InputError, Stopped
from frepa.verbs import _comparing
from frepa.verbs.compare import compare
from tiny_runs import class_folders, masked_set

TINY = "random:tiny_for_tests"


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    masked_set(root / "balls", count=12)
    class_folders(root / "kinds")
    return root


def study_of(sets: Path, **changes: Any) -> dict[str, Any]:
    study = {
        "encoders": {"one": [f"{TINY},seed=1", f"{TINY},seed=2"], "two": f"{TINY},seed=3,guide=none",
                     "volumes": "random:tiny3d_for_tests"},
        "tasks": {"balls": {"segment": str(sets / "balls"), "crop_size": 32},
                  "kinds": {"classify": str(sets / "kinds"), "image_size": 24}},
        "resamples": 500,
    }  # fmt: skip
    return {**study, **changes}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The runs that verbs are called for, by their folder."""
    made: list[str] = []

    def counted(verb):
        @functools.wraps(verb)
        def call(*args: Any, **options: Any) -> Any:
            made.append(Path(options["out"]).name)
            return verb(*args, **options)

        return call

    monkeypatch.setattr(_comparing, "VERBS", {name: counted(verb) for name, verb in _comparing.VERBS.items()})
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)  # slow, and another test's
    return made


def run(folder: Path, study: dict[str, Any], **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return Path(compare(str(folder / "study.yaml"), out=str(folder / "out"), quiet=True, threads=1, **options))


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("study"), study_of(sets))


def test_the_table_holds_what_the_runs_found(done):
    cells = table_of(done / "cells.csv")
    for row in cells:
        if row["status"] == "done":
            results = json.loads((done / "cells" / row["cell"] / "results.json").read_text())
            if row["verb"] == "segment":
                expected = results["sets"]["balls"]["test"][row["measure"]]["mean"]
            else:
                expected = results["test"][row["measure"]]["value"]
            assert float(row["value"]) == pytest.approx(expected, abs=1e-6)
    assert {row["row"] for row in cells if row["status"] == "does not fit"} == {"volumes"}
    assert "holds 2D images" in next(row["reason"] for row in cells if row["row"] == "volumes")
    entries = {(row["row"], row["task"], row["measure"]): row for row in table_of(done / "table.csv")}
    of_one = [float(row["value"]) for row in cells if (row["row"], row["measure"]) == ("one", "auc")]
    assert len(of_one) == 2
    assert float(entries["one", "kinds", "auc"]["value"]) == pytest.approx(np.mean(of_one), abs=1e-6)
    assert float(entries["one", "kinds", "auc"]["std_runs"]) == pytest.approx(np.std(of_one, ddof=1), abs=2e-6)
    text = (done / "table.md").read_text()
    assert "| volumes | linear | frangi | does not fit | does not fit | – |" in text
    page = (done / "report.html").read_text()
    assert page.count("<img") >= 3  # intervals, ranks, the same case
    assert ">Measure</th>" in page
    assert ">Set</th>" not in page  # of one set each: a column in which nothing stands
    assert "± –" not in page
    assert len(list((done / "overlays").iterdir())) == 1


def test_spreads_and_tests_are_over_the_same_cases(done):
    """DSC by hand from cases.csv: mean over the two draws of a case first, then over cases; Wilcoxon by SciPy."""
    cases: dict[str, dict[str, list[float]]] = {}
    for row in table_of(done / "cases.csv"):
        if row["task"] == "balls" and row["measure"] == "dsc":
            cases.setdefault(row["row"], {}).setdefault(row["case"], []).append(float(row["value"]))
    one, two = (np.array([np.mean(cases[row][case]) for case in sorted(cases["one"])]) for row in ("one", "two"))
    entry = next(r for r in table_of(done / "table.csv") if (r["row"], r["measure"]) == ("one", "dsc"))
    assert float(entry["value"]) == pytest.approx(one.mean(), abs=1e-5)
    assert float(entry["std"]) == pytest.approx(one.std(ddof=1), abs=1e-5)
    pair = next(r for r in table_of(done / "tests.csv") if r["measure"] == "dsc")
    assert (pair["a"], pair["b"]) == ("one", "two")
    assert float(pair["difference"]) == pytest.approx((one - two).mean(), abs=1e-5)
    assert float(pair["wilcoxon"]) == pytest.approx(stats.wilcoxon(one - two).pvalue, abs=1e-3)
    drawn = stats.bootstrap((one - two,), np.mean, n_resamples=5000, method="percentile", rng=0)
    assert float(pair["low"]) == pytest.approx(drawn.confidence_interval.low, abs=3 * drawn.standard_error / 4)
    assert float(pair["high"]) == pytest.approx(drawn.confidence_interval.high, abs=3 * drawn.standard_error / 4)


def test_intervals_of_an_auc_are_those_of_its_run(done):
    """One cell: the bootstrap of the comparison is that of the verb, with other draws."""
    row = next(r for r in table_of(done / "cells.csv") if (r["row"], r["measure"]) == ("two", "auc"))
    own = json.loads((done / "cells" / row["cell"] / "results.json").read_text())["test"]["auc"]
    entry = next(r for r in table_of(done / "table.csv") if (r["row"], r["measure"]) == ("two", "auc"))
    assert float(entry["std"]) == pytest.approx(own["std"], rel=0.25, abs=0.01)
    assert float(entry["low"]) == pytest.approx(own["low"], abs=0.1)


def test_what_is_there_is_not_computed_again(done, sets, calls, tmp_path, monkeypatch):
    """Nothing for the same study, wherever its data were moved; of a changed option its cells alone."""
    folder = tmp_path / "again"
    shutil.copytree(done, folder / "out")
    before = (done / "table.csv").read_bytes()
    run(folder, study_of(sets), resume=True)
    assert calls == []
    assert (folder / "out/table.csv").read_bytes() == before
    shutil.copytree(sets, tmp_path / "moved")
    run(folder, study_of(tmp_path / "moved"), resume=True)
    assert calls == []
    changed = study_of(sets)
    changed["tasks"]["balls"]["reach"] = 3
    run(folder, changed, resume=True)
    assert len(calls) == 3  # two draws of one, and two; not the classes, not the volumes
    run(folder, study_of(sets), resume=True)
    assert len(calls) == 3
    # An image more is other data
    shutil.copy(tmp_path / "moved/kinds/dark/1.png", tmp_path / "moved/kinds/dark/99.png")
    run(folder, study_of(tmp_path / "moved"), resume=True)
    assert len(calls) == 6
    # Cells of a program that gave other results are no answer
    calls.clear()
    monkeypatch.setattr(contents, "VERSION", contents.VERSION + 1)
    run(folder, study_of(sets), resume=True)
    assert len(calls) == 6


def test_a_study_that_was_stopped_goes_on(sets, calls, tmp_path, monkeypatch):
    real = dict(_comparing.VERBS)

    @functools.wraps(real["segment"])
    def stopping(*args: Any, **options: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real["segment"](*args, **options)

    monkeypatch.setattr(_comparing, "VERBS", {**real, "segment": stopping})
    study = study_of(sets, encoders={"two": f"{TINY},seed=3"})
    study["tasks"]["other"] = {**study["tasks"]["balls"], "crop_size": 16}
    with pytest.raises(Stopped, match="finished cells are kept"):
        run(tmp_path, study)
    assert len(calls) == 2
    monkeypatch.setattr(_comparing, "VERBS", real)
    run(tmp_path, study, resume=True)
    assert len(calls) == len(set(calls)) == 3


def test_a_cell_that_fails_is_marked_and_tried_again(sets, calls, tmp_path, monkeypatch):
    real = dict(_comparing.VERBS)

    @functools.wraps(real["classify"])
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(_comparing, "VERBS", {**real, "classify": broken})
    study = study_of(sets, encoders={"two": f"{TINY},seed=3"})
    folder = run(tmp_path, study)
    row = next(r for r in table_of(folder / "cells.csv") if r["task"] == "kinds")
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: out of luck")
    assert "out of luck" in (folder / "cells" / f"{row['cell']}.log").read_text()
    monkeypatch.setattr(_comparing, "VERBS", real)
    run(tmp_path, study, resume=True)
    assert all(r["status"] == "done" for r in table_of(folder / "cells.csv"))


def test_overwriting_removes_the_cells_and_nothing_else(sets, tmp_path):
    study = study_of(sets, encoders={"two": f"{TINY},seed=3"})
    del study["tasks"]["kinds"]
    folder = run(tmp_path, study)
    (folder / "mine.txt").write_text("kept")
    old = {path.name for path in (folder / "cells").iterdir() if path.is_dir()}
    study["encoders"]["two"] = f"{TINY},seed=4"
    run(tmp_path, study, overwrite=True)
    left = {path.name for path in (folder / "cells").iterdir() if path.is_dir()}
    assert len(left) == 1
    assert not old & left
    assert (folder / "mine.txt").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.clear(), "the study is empty"),
        (lambda s: s.update(encoders={}), "no encoder"),
        (lambda s: s.update(tasks={}), "no task"),
        (lambda s: s.update(task={}), r"task is no word of the study\. Did you mean tasks\?"),
        (lambda s: s["tasks"]["balls"].update(crop_sise=8), "crop_sise is no option of segment. Did you mean crop"),
        (lambda s: s["tasks"]["balls"].update(crop_size="big"), "crop_size: 'big' is not what it takes"),
        (lambda s: s["tasks"]["balls"].update(out="x"), "out is decided by the study itself"),
        (lambda s: s["tasks"]["balls"].update(classify="x"), "expected one of segment, classify, detect"),
        (lambda s: s["tasks"].update(none={}), "task none: expected one of segment, classify, detect"),
        (lambda s: s["tasks"]["kinds"].update(protocol="papper"), "protocol 'papper' is not known. Did you mean paper"),
        (lambda s: s.update(heads="lineal"), "heads: expected linear, trained"),
        (lambda s: s.update(seeds=[1, 1]), "seeds: expected their number, or a list of different ones"),
        (lambda s: s.update(reference="three"), "reference 'three' is no row"),
        (lambda s: s.update(baselines=["ceiling"]), "baseline 'ceiling' is not known"),
        (lambda s: s["encoders"].update(two="random:tiny_for_testt"), "encoder two: encoder 'tiny_for_testt' is not"),
        (lambda s: s["tasks"]["balls"].update(segment="nowhere"), "task balls: nowhere"),
        (lambda s: s.update(resamples=3), "resamples 3: expected a whole number from 100"),
    ],
)  # fmt: skip
def test_wrong_studies_are_refused_in_plain_words(sets, tmp_path, change, said):
    study = study_of(sets)
    change(study)
    with pytest.raises(InputError, match=said):
        run(tmp_path, study or None)
    assert not (tmp_path / "out").exists()


def test_a_task_that_cannot_be_divided_is_refused(tmp_path, sets):
    """Two images have no training, validation and test part."""
    masked_set(tmp_path / "two", count=2)
    study = study_of(sets, tasks={"two": {"segment": str(tmp_path / "two")}})
    with pytest.raises(InputError, match=r"task two: .*2 patients .* cannot be divided into train, val, test"):
        run(tmp_path, study)


def test_files_that_are_no_study(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    for name, said in (("list", "this is no study"), ("broken", "not YAML"), ("none", "cannot be read")):
        assert cli.main(["compare", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err


def test_engines_that_are_not_there(tmp_path, sets, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--backend dask needs distributed.*frepa\[dask\]"):
        run(tmp_path, study_of(sets), jobs=2, backend="dask")
    with pytest.raises(InputError, match="--cluster tcp://a:1: it is the address"):
        run(tmp_path, study_of(sets), cluster="tcp://a:1")
    with pytest.raises(InputError, match="--jobs 0: expected 1 or more"):
        run(tmp_path, study_of(sets), jobs=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_cells_side_by_side(sets, tmp_path, monkeypatch, backend):
    """Workers on this machine give what one process gives."""
    if backend == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'frepa[ray]'")
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)  # slow, and another test's
    study = study_of(sets, encoders={"a": "random:convnext_atto,output_stride=8,guide=none"})
    side = run(tmp_path / "side", study, jobs=2, backend=backend)
    alone = run(tmp_path / "alone", study)
    assert (side / "cases.csv").read_bytes() == (alone / "cases.csv").read_bytes()
    assert all(row["status"] == "done" for row in table_of(side / "cells.csv"))
