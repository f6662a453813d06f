"""The rule of --out: what may be written, what --overwrite removes, and what stays whatever was asked."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from frepa import files
from frepa.errors import InputError, RunEnded
from frepa.run_folders import CONFIG, LOCK, MARK, Mark, check_same_options, out_folder


def _write_run(root: Path, kind: str = "segment", *, names: tuple[str, ...] = ("a.txt", "deep/er/b.txt")) -> None:
    with out_folder(root, kind) as out:
        out.start({"seed": 0})
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_text(root / name, name)


def _tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_the_list_holds_all_that_was_written_and_nothing_else(tmp_path):
    root = tmp_path / "run"
    with out_folder(root, "segment") as out:
        files.write_text(root / "before.txt", "not of the run")
        out.start({"seed": 0})
        files.write_text(root / "a.txt", "a")
        files.append_json_lines(root / "metrics.jsonl", [{"step": 1}])
        files.append_json_lines(root / "metrics.jsonl", [{"step": 2}])
        files.write_csv(root / "cases.csv", ["x"], [{"x": 1.5}])
        files.write_text(tmp_path / "elsewhere.txt", "b")
        assert (root / LOCK).is_file()
    mark = Mark.read(root)
    assert mark is not None
    assert (mark.kind, mark.names) == ("segment", {CONFIG, "a.txt", "metrics.jsonl", "cases.csv"})
    assert not (root / LOCK).exists()
    head = json.loads((root / MARK).read_text().splitlines()[0])
    assert head == {"format": "frepa-run", "version": 1, "kind": "segment"}


def test_overwrite_removes_what_the_run_wrote_and_names_what_stays(tmp_path, capsys):
    root = tmp_path / "run"
    _write_run(root)
    (root / "deep" / "thesis.txt").write_text("three years")
    (root / "notes.md").write_text("mine")
    with pytest.raises(InputError, match="a run is there already"), out_folder(root, "segment"):
        pass
    with out_folder(root, "segment", overwrite=True) as out:
        assert (root / "a.txt").is_file()  # nothing changes before the run starts
        out.start({"seed": 1})
        assert _tree(root) == {MARK, LOCK, CONFIG, "notes.md", "deep/thesis.txt"}
    assert "deep, notes.md" in capsys.readouterr().err
    assert not (root / "deep" / "er").exists()
    assert (root / "deep" / "thesis.txt").read_text() == "three years"


def test_a_file_of_the_user_is_not_written_over(tmp_path):
    root = tmp_path / "run"
    _write_run(root)
    (root / "results.json").write_text("mine")
    with out_folder(root, "segment", overwrite=True) as out:
        out.start({})
        with pytest.raises(InputError, match=r"results\.json is in the way"):
            files.write_json(root / "results.json", {})
    assert (root / "results.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: (root / "thesis.txt").write_text("x"), "not a run of this program"),
        (lambda root: (root / CONFIG).write_text("seed: 0"), "runs of older versions"),
        (lambda root: (root / MARK).write_text("{}\n"), "is damaged"),
        (lambda root: (root / MARK).write_text(""), "is damaged"),
        (lambda root: _write_run(root, "classify"), "holds a run of frepa classify"),
        (lambda root: (root / MARK).write_text('{"format":"frepa-run","version":9,"kind":"segment"}\n'), "newer frepa"),
        (lambda root: (root / MARK).write_text('{"format":"frepa-run","version":-1,"kind":"segment"}\n'), "is damaged"),
    ],
)
def test_what_is_no_run_of_this_verb_is_left_alone(tmp_path, make, said):
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=said), out_folder(tmp_path, "segment", overwrite=True) as out:
        out.start({})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_list_that_leads_elsewhere_is_not_followed(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    for name in ("a.txt", "b.txt"):
        (outside / name).write_text("precious")
    _write_run(root)
    (root / "link").symlink_to(outside)
    (root / "one").symlink_to(outside / "a.txt")
    names = ["../outside/a.txt", str(outside / "a.txt"), "link/b.txt", "one", "link/"]
    with open(root / MARK, "a") as file:
        file.writelines(json.dumps(name) + "\n" for name in names)
        file.write('"cut sho')
    with out_folder(root, "segment", overwrite=True) as out:
        out.start({})
    assert sorted(path.read_text() for path in outside.iterdir()) == ["precious", "precious"]
    assert not (root / "one").is_symlink()
    assert (root / "link").is_symlink()


def test_inputs_at_inside_and_around_are_never_lost(tmp_path):
    root = tmp_path / "data" / "run"
    _write_run(root)
    (root / "encoder.safetensors").write_text("w")
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "other").mkdir()
    parquet.write_table(pa.table({"path": ["../data/run/deep/er/b.txt"]}), tmp_path / "other" / "list.parquet")
    (tmp_path / "other" / "list.csv").write_text("path,label\n../data/run/a.txt,1\n")
    refused = [
        root, tmp_path / "data", tmp_path, root / "deep", tmp_path / "link", f"{root}/*.png", f"{root}/../run",
        f"slices:{root},width=4", f"slices:{root}?width=4", f"timm:vit@{root}/encoder.safetensors", f"drive:{root}",
        f"{root}/a.txt#member", tmp_path / "other" / "list.parquet", tmp_path / "other" / "list.csv",
    ]  # fmt: skip
    for text in refused:
        with (
            pytest.raises(InputError, match=r"the source .* lies (at|inside|around) the folder to be replaced"),
            out_folder(root, "segment", overwrite=True, inputs={"the source": [str(text)]}) as out,
        ):
            out.start({})
    assert (root / "a.txt").is_file()
    allowed = [str(tmp_path / "other"), "random:vit_tiny", str(tmp_path / "data" / "runs"), None]
    with out_folder(root, "segment", overwrite=True, inputs={"the source": allowed}) as out:
        out.start({})


def test_a_run_within_a_run_is_removed_by_its_own_list(tmp_path):
    root = tmp_path / "demo"
    for _ in range(2):
        with out_folder(root, "demo", overwrite=True) as out:
            out.start()
            files.write_text(root / "report.html", "page")
            for name in ("first", "second"):
                with out_folder(root / name, "segment", overwrite=True) as inner:
                    inner.start({})
                    files.write_text(root / name / "a.txt", "a")
        assert Mark.read(root).names == {"report.html", "first/", "second/"}
        (root / "first" / "mine.txt").write_text("mine")
    with out_folder(root, "demo", overwrite=True) as out:
        out.start()
        assert _tree(root) == {MARK, LOCK, f"first/{MARK}", "first/mine.txt"}


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with pytest.raises(ValueError, match="wrong"), out_folder(tmp_path / "a" / "b", "segment"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_temporaries_of_killed_writers_are_cleaned(tmp_path):
    root = tmp_path / "run"
    _write_run(root)
    for path in (root / ".a.txt.99999999.tmp", root / "deep" / "er" / ".b.txt.99999999.tmp"):
        path.write_text("half")
    with out_folder(root, "segment", resume=True) as out:
        out.start({"seed": 0})
    assert _tree(root) == {MARK, CONFIG, "a.txt", "deep/er/b.txt"}


def test_a_run_without_a_mark_is_continued_but_never_replaced(tmp_path):
    (tmp_path / CONFIG).write_text("seed: 0\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with out_folder(tmp_path, "pretrain", resume=True, can_resume=True) as out:
        assert out.resumed
        out.start({"seed": 0})
        files.append_json_lines(tmp_path / "metrics.jsonl", [{"step": 2}])
    with (
        pytest.raises(InputError, match="begun by an older version"),
        out_folder(tmp_path, "pretrain", overwrite=True, can_resume=True),
    ):
        pass
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_keeps_what_tells_its_key(tmp_path):
    asked = []

    def key(found: str | None) -> str:
        asked.append(found)
        return "one" if len(asked) < 3 else "two"

    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with out_folder(tmp_path, "x", resume=resume, overwrite=overwrite, key=key) as out:
            out.start()
        assert Mark.read(tmp_path).key == ("two" if overwrite else "one")
    assert asked == [None, "one", None]
    with out_folder(tmp_path, "x", overwrite=True) as out:
        out.start()
    assert "key" not in (tmp_path / MARK).read_text()


def test_a_full_disk_is_one_sentence(tmp_path):
    root = tmp_path / "run"
    with pytest.raises(RunEnded, match=r"The disk of .* is full\b.*Make room") as caught, out_folder(root, "x"):
        raise OSError(28, "No space left on device")
    assert caught.value.code == 1
    with pytest.raises(OSError, match="something else"), out_folder(root, "x"):
        raise OSError(5, "something else")


def _start_and_fail(root: Path, number: int, **how: bool) -> None:
    with out_folder(root, "x", **how) as out:
        out.start()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "free", "said"),
    [
        (errno.ENOSPC, 3000, r"The disk of .*run is full \(3\.0 kB left\)\. .*Make room and give"),
        (errno.ENOSPC, 5 * 10**9, r"did not fit, though 5\.0 GB are free without it \(a quota may end before"),
        (errno.EDQUOT, 5 * 10**9, r"Your quota on the disk of .*run is full, though the disk has 5\.0 GB left\."),
        (errno.EFBIG, 5 * 10**9, r"A file in .*run has grown as large as files may here.*Allow larger ones and give"),
    ],
)
@pytest.mark.parametrize("can_resume", [True, False])
def test_what_is_full_is_named_as_what_it_is(tmp_path, monkeypatch, number, free, said, can_resume):
    root, usage = tmp_path / "run", shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(RunEnded, match=said) as caught, out_folder(root, "x", can_resume=can_resume):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).endswith("with --resume." if can_resume else "give the same command again.")
    for overwrite in (False, True):
        with pytest.raises(RunEnded) as caught:
            _start_and_fail(root, number, can_resume=can_resume, overwrite=overwrite)
        how = {(False, False): "with --overwrite", (True, False): "with --resume", (False, True): "again"}
        assert str(caught.value).endswith(
            f" {how.get((can_resume, overwrite), 'with --resume instead of --overwrite')}."
        )


def test_a_full_disk_elsewhere_is_not_laid_on_this_one(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(RunEnded, match=r"The disk of .*other is full"), out_folder(tmp_path / "run", "x"):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "other" / "part"))


def test_changed_options_are_named(tmp_path):
    (tmp_path / CONFIG).write_text("lr: 0.1\nworkers: 2\n")
    check_same_options(tmp_path / CONFIG, {"lr": 0.1, "workers": 0}, {"workers"})
    with pytest.raises(InputError, match=r"lr: was 0\.1, now 0\.2"):
        check_same_options(tmp_path / CONFIG, {"lr": 0.2, "workers": 0}, {"workers"})
    (tmp_path / CONFIG).write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match="is damaged"):
        check_same_options(tmp_path / CONFIG, {}, ())
