"""Promise: a head that was killed or stopped goes on bit by bit, and heads that are finished are not done again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from faults_helpers import ENCODER, small_disk, write_classes, write_labelled
from frepa.cli import main
from frepa.downstream import fitting
from frepa.downstream.resuming import HeadState, packed, unpacked
from frepa.optimizers import adam

_LONG = ["--max-steps=24", "--val-every=8", "--batch-size=4", "--num-workers=0", "--quiet", f"--encoder={ENCODER}"]
_VERBS = {
    "segment": ["--crop-size=32", "--folds=2", "--features=last"],
    "classify": ["--head=mlp", "--folds=2", "--image-size=32"],
    "detect": ["--crop-size=32", "--folds=2"],
}


class Killed(BaseException):
    """Instead of a signal nobody hears: what is open is left as it is."""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_classes(folder / "classify")
    for verb in ("segment", "detect"):
        write_labelled(folder / verb, count=10)
    return folder


def _words(verb: str, labelled: Path, run: Path, *more: str) -> list[str]:
    return [verb, str(labelled / verb), f"--out={run}", *_LONG, *_VERBS[verb], *more]


def _outcome(run: Path) -> dict[str, Any]:
    """All that a run has found; seconds and speeds are left out."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if not ("second" in k or k == "validating")}
            return {k: timeless(v) for k, v in kept.items()}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    found: dict[str, Any] = {"results": timeless(json.loads((run / "results.json").read_text()))}
    for path in sorted([*run.rglob("*.safetensors"), *run.rglob("*.csv"), *run.rglob("*.jsonl"), *run.rglob("*.png")]):
        if not path.name.startswith("."):
            found[path.relative_to(run).as_posix()] = path.read_bytes()
    return found


def _but_pictures(found: dict[str, Any]) -> dict[str, Any]:
    """Which pictures there are, not their bytes: processes of their own draw them with more dots than tests do."""
    return {name: b"" if name.endswith(".png") else value for name, value in found.items()}


def _same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert set(found) == set(expected)


@pytest.fixture(scope="module")
def whole(labelled, tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    @cache
    def made(verb: str) -> dict[str, Any]:
        run = tmp_path_factory.mktemp(verb) / "run"
        assert main(_words(verb, labelled, run)) == 0
        assert not (run / "checkpoints").exists()
        return _outcome(run)

    return made


def _at(place: str, count: int, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Let ``act`` happen at the ``count``-th call of a moment of a run."""
    owner: Any = fitting if place == "append_json_lines" else HeadState
    original, seen = getattr(owner, place), [0]

    def counted(*args, **kwargs):
        seen[0] += 1
        if seen[0] == count:
            act()
        return original(*args, **kwargs)

    patch.setattr(owner, place, counted)


def _die() -> None:
    raise Killed


# Before the first state, between two, as one is due, amid the second head, as a result is due
_MOMENTS = [("after_step", 3), ("after_step", 13), ("save", 2), ("append_json_lines", 9), ("save_result", 1)]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "verb", ["classify", *(pytest.param(v, marks=pytest.mark.slow) for v in ("segment", "detect"))]
)
def test_a_broken_run_ends_as_one_that_was_not(labelled, whole, tmp_path, monkeypatch, capsys, verb):
    run = tmp_path / "run"
    words = _words(verb, labelled, run, "--resume")
    trained = []
    for place, count in _MOMENTS:
        with monkeypatch.context() as patch:
            _at(place, count, _die, patch)
            with pytest.raises(Killed):
                main(words)
        assert main(words[:-1]) == 2  # not unasked
        trained.append(len(list(run.glob("folds/*/head.safetensors"))))
    assert main(words) == 0
    _same(_outcome(run), whole(verb))
    assert not (run / "checkpoints").exists()
    capsys.readouterr()
    assert main(words) == 0
    assert "is complete; nothing is left to do" in capsys.readouterr().err
    assert trained[-1] == 2


def test_a_finished_fold_is_not_trained_again(labelled, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = _words("classify", labelled, run, "--resume")
    with monkeypatch.context() as patch:
        _at("save_result", 2, _die, patch)
        with pytest.raises(Killed):
            main(words)
    steps, after = [], HeadState.after_step
    monkeypatch.setattr(
        HeadState, "after_step", lambda self, s, *, due: steps.append(s.step) or after(self, s, due=due)
    )
    assert main(words) == 0
    assert steps == []  # the second one stood at its last step
    _same(_outcome(run), whole("classify"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_and_has_its_own_exit_code(labelled, whole, tmp_path, monkeypatch, capsys, number):
    run = tmp_path / "run"
    words = _words("classify", labelled, run, "--resume")
    for place, count in (("after_step", 5), ("save_result", 1)):  # amid training, and outside of it
        with monkeypatch.context() as patch:
            _at(place, count, lambda: os.kill(os.getpid(), number), patch)
            assert main(words) == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert "Continue with the same command and --resume" in said.err
    assert main(words) == 0
    _same(_outcome(run), whole("classify"))


def test_a_state_of_a_version_that_trained_otherwise_is_refused(labelled, tmp_path, monkeypatch, capsys):
    words = _words("segment", labelled, tmp_path / "run", "--resume")
    words[words.index("--features=last")] = "--features=pyramid+image"
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "MuonAndAdam", adam)
        _at("after_step", 13, _die, patch)
        with pytest.raises(Killed):
            main(words)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "of another version of frepa, which trained heads otherwise" in said
    assert "--overwrite" in said


def test_another_encoder_or_changed_data_are_refused(labelled, tmp_path, monkeypatch, capsys):
    data, run = write_classes(tmp_path / "classify"), tmp_path / "run"
    words = _words("classify", tmp_path, run, "--resume")
    with monkeypatch.context() as patch:
        _at("after_step", 13, _die, patch)
        with pytest.raises(Killed):
            main(words)
    assert main([*words, "--lr=0.5"]) == 2
    assert "lr: was 0.001, now 0.5" in capsys.readouterr().err
    (data / "bright" / "0.png").unlink()
    assert main(words) == 2
    assert "data that have changed since" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_for_heads_too(labelled, whole, tmp_path, capsys):
    whole("classify")
    with small_disk(tmp_path / "disk", 300_000) as disk:
        words = _words("classify", labelled, disk.folder / "run", "--resume")
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.err.count("is full") == 1
        assert "--resume" in said.err
        disk.resize(64_000_000)
        assert main(words) == 0
        _same(_outcome(disk.folder / "run"), whole("classify"))


def test_what_a_state_names_is_made_only_of_our_own_records():
    with pytest.raises(ValueError, match="which this version of frepa has not"):
        unpacked({"class": "subprocess:Popen", "values": {"args": "true"}})
    with pytest.raises(ValueError, match="which this version of frepa has not"):
        unpacked({"class": "frepa.cli:main", "values": {}})
    value = {"a": [Path("x/y"), (1, 2.5, None, True)], 3: fitting.Validation((0.5,), {"dsc": 0.5})}
    assert unpacked(packed(value)) == value
    assert isinstance(unpacked(packed(value))[3], fitting.Validation)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("verb", _VERBS)
def test_kills_at_random_moments(labelled, whole, tmp_path, verb):
    run, draw = tmp_path / "run", random.Random(verb)
    words = _words(verb, labelled, run, "--resume")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for attempt in range(40):
        process = subprocess.Popen(
            [sys.executable, "-m", "frepa.cli", *words], env=environment, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(draw.uniform(2, 20) + attempt)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        _, err = process.communicate(timeout=240)
        assert process.returncode in (0, 3, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL), err
        if process.returncode == 0:
            break
    assert process.returncode == 0
    _same(_but_pictures(_outcome(run)), _but_pictures(whole(verb)))
