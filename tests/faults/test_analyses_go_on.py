"""Promise: an analysis that was killed or stopped goes on, and what was finished of an encoder is not done again."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from faults_helpers import write_classes, write_labelled
from frepa import cli
from frepa.analysis import parts
from frepa.analysis.parts import FOLDER, Parts
from tiny_studies import write_textures

ENCODERS = ["--encoder", "a=random:tiny_for_tests,seed=1", "--encoder", "b=random:tiny_for_tests,seed=2"]
_KINDS = {
    "frequencies": ["--kind.steps=2", "--crop-size=32"],
    "cka": ["--crop-size=32"],
    "histograms": ["--kind.corruptions=zero patches,patches shuffled"],
    "reconstructions": ["--kind.shown=1", "--crop-size=32"],
    "focal": ["--kind.steps=2", "--kind.shown=1", "--crop-size=32"],
    "structures": ["--crop-size=32", "--kind.sizes=50,200"],
    "filtered": ["--crop-size=32", "--kind.high=0.1", "--kind.low=0.1"],
    "filtered classes": ["--image-size=24", "--kind.high=0.1", "--kind.low=0.1"],
}
# The second part is under way when the process is killed.
_KILLED = """
import os, signal, sys
import tiny_encoders
from frepa.analysis import parts
from frepa.cli import main
original, calls = parts.save_tree, [0]
def save(*given):
    calls[0] += 1
    if calls[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*given)
parts.save_tree = save
sys.exit(main(sys.argv[1:]))
"""


class Killed(BaseException):
    """Instead of a signal nobody hears: what is open is left as it is."""


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")
    monkeypatch.setattr("frepa.analysis.contract.png_bytes", lambda figure: pixel.getvalue())
    monkeypatch.setattr("frepa.analysis.contract.svg_bytes", lambda figure: b"<svg/>")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_textures(root / "images", 12, 32)
    write_labelled(root / "structures", count=8)
    write_labelled(root / "filtered", count=8)
    write_classes(root / "filtered classes")
    return root


@pytest.fixture
def words(sources: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def analyze(kind: str, out: str, *more: str) -> list[str]:
        source = sources / kind if (sources / kind).exists() else sources / "images"
        encoders = [] if kind == "histograms" else ENCODERS
        own = [kind.split()[0], str(source), f"--out={tmp_path / out}", "--quiet", "--num-workers=0"]
        return ["analyze", *own, *encoders, *_KINDS[kind], *more]

    return analyze


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The parts that are written."""
    written: list[Path] = []
    save = parts.save_tree

    def counted(path: Path, tree: Any) -> None:
        save(path, tree)
        written.append(path)

    monkeypatch.setattr(parts, "save_tree", counted)
    return written


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """An analysis that ends when so many parts are written and the next one is measured."""
    save, calls = parts.save_tree, [0]

    def killed(*given: Any) -> None:
        calls[0] += 1
        if calls[0] > count:
            raise Killed
        save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "save_tree", killed)
        with pytest.raises(Killed):
            cli.main(words)


@pytest.mark.parametrize("kind", _KINDS)
def test_what_is_finished_is_not_measured_again(
    kind: str, words: Callable[..., list[str]], tmp_path: Path, computed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(words(kind, "whole")) == 0
    every = [path.name for path in computed]
    assert len(every) == len(set(every)) >= 2
    assert not (tmp_path / "whole" / FOLDER).exists()
    killed_after(1, monkeypatch, words(kind, "cut"))
    assert not (tmp_path / "cut/results.json").exists()
    assert not (tmp_path / "cut/report.html").exists()
    computed.clear()
    assert cli.main(words(kind, "cut", "--resume")) == 0
    assert [path.name for path in computed] == every[1:]
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert not (tmp_path / "cut" / FOLDER).exists()


def test_a_process_that_is_killed(words: Callable[..., list[str]], tmp_path: Path, capsys, computed) -> None:
    out = tmp_path / "cut"
    paths = [str(Path(folder).resolve()) for folder in sys.path if folder]
    code = f"import sys; sys.path[:0] = {paths!r}\n{_KILLED}"
    found = subprocess.run([sys.executable, "-c", code, *words("frequencies", "cut")], capture_output=True, text=True)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert len(list((out / FOLDER).glob("*.safetensors"))) == 1
    assert cli.main(words("frequencies", "cut")) == 2
    assert "Add --resume to continue it" in capsys.readouterr().err
    assert cli.main(words("frequencies", "cut", "--resume", "--kind.bands=0.1,0.2")) == 2
    assert "kind.bands: was '0.1,0.3', now '0.1,0.2'" in capsys.readouterr().err
    assert cli.main(words("frequencies", "cut", "--resume", "--overwrite")) == 2
    capsys.readouterr()
    assert cli.main(words("frequencies", "cut", "--resume")) == 0
    assert "1 part of it had been finished before." in capsys.readouterr().err
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    count = len(computed)
    assert cli.main(words("frequencies", "whole")) == 0
    assert results(out) == results(tmp_path / "whole")
    # Once more: nothing is left to do, of the same images; of others all of it is
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert cli.main(words("frequencies", "whole", "--resume")) == 0
    assert "All of it is done already." in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(computed) == 2 * count + 1


def test_other_weights_are_computed_anew_and_the_others_stay(
    words: Callable[..., list[str]], tmp_path: Path, computed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "--encoder=c=random:tiny_for_tests,seed=5"
    killed_after(2, monkeypatch, [*words("cka", "out"), more])
    assert len(computed) == 2
    [first, second] = [path.name for path in computed]
    # The first of the encoders is another one now, under the same name
    other = [word.replace("seed=1", "seed=4") for word in words("cka", "out", "--resume")]
    computed.clear()
    assert cli.main([*other, more]) == 0
    names = [path.name for path in computed]
    assert len(names) == 2
    assert not {first, second} & set(names)
    assert set(results(tmp_path / "out")["encoders"]) == {"a", "b", "c"}


def test_figures_of_an_encoder_that_is_left_out_go(words: Callable[..., list[str]], tmp_path: Path) -> None:
    assert cli.main(words("focal", "out")) == 0
    figures = tmp_path / "out/figures"
    assert (figures / "pull-2.png").exists()
    (figures / "mine.png").write_text("kept")
    one = words("focal", "out", "--resume")
    place = one.index(ENCODERS[3])
    del one[place - 1 : place + 1]
    assert cli.main(one) == 0
    assert set(results(tmp_path / "out")["encoders"]) == {"a"}
    assert {path.stem for path in figures.iterdir()} == {"pull-1", "reconstructions-1", "mine"}


def test_stopped_on_request(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save = parts.save_tree

    def stopping(*given: Any) -> None:
        save(*given)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "save_tree", stopping)
        assert cli.main(words("cka", "out")) == 3
    assert f"Continue with the same command and --resume ({tmp_path / 'out'})" in capsys.readouterr().err
    assert cli.main(words("cka", "out", "--resume")) == 0


def test_no_name_of_a_file_is_in_what_is_kept(tmp_path: Path) -> None:
    from frepa.images.hidden_names import HiddenNames

    (tmp_path / "images").mkdir()
    (tmp_path / "images/meier_anna.png").write_bytes(b"")
    names = HiddenNames([str(tmp_path / "images")])
    kept = Parts(tmp_path, "options", names=names)
    kept.know("images")
    notes: list[str] = []

    def compute() -> float:
        notes.append("meier_anna.png cannot be read")
        return 1.5

    assert kept.result(("one",), compute, notes) == 1.5
    [file] = (tmp_path / FOLDER).glob("*.safetensors")
    assert b"meier" not in file.read_bytes()
    assert kept.result(("one",), lambda: 2.5, notes) == 1.5
    assert len(notes) == 2
    assert notes[1].endswith(" cannot be read")
    assert "meier" not in notes[1]
