"""Promise: whatever stands on the command line, a run ends soon, with a sentence, and writes nowhere else.

A short run in every suite; a long one with ``python -m tests.faults.mutate_options`` (`make faults`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mutate_options import WATCH, lines, prepared, run, shown, summary

from frepa import cli

LONG = int(os.environ.get("FREPA_FAULTS_OPTIONS", "500"))


def judged(folder: Path, count: int, seed: int) -> None:
    outcomes = run(folder.resolve(), count, seed)
    assert len(outcomes) == count
    assert "\n".join(shown(outcome) for outcome in outcomes if outcome.wrong()) == ""
    assert sum(outcome.code == 2 for outcome in outcomes) > 0.3 * count
    print(summary(outcomes))


def test_wrong_options(tmp_path: Path) -> None:
    judged(tmp_path, 12, seed=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_wrong_options(tmp_path: Path) -> None:
    judged(tmp_path, LONG, seed=21)


def test_every_option_of_every_command_has_its_turn(tmp_path: Path) -> None:
    right = prepared(tmp_path)
    assert set(right) == set(cli.COMMANDS)
    found: dict[str, set[str]] = {}
    for words in lines(right, 800, seed=3):
        command = next(name for name in (" ".join(words[:2]), words[0]) if name in right)
        found.setdefault(command, set()).update(word.partition("=")[0] for word in words if word.startswith("--"))
    for command in right:
        parser = cli.build_parser(command, cli.load_verb(command))
        named = {action.option_strings[0] for action in parser._actions if action.option_strings}
        spelled = {name.replace("__", ".").replace("_", "-") for name in named} - {"--help", "-h"}
        assert spelled - {name.replace("_", "-") for name in found.get(command, set())} <= {"--config"}, command


def test_a_write_elsewhere_is_seen_and_not_let_through(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    WATCH.install()
    WATCH.roots, WATCH.named, WATCH.seen = (f"{tmp_path / 'here'}/",), (), []
    try:
        (tmp_path / "here" / "a").write_text("x")
        for act in (lambda: (tmp_path / "b").write_text("x"), lambda: (tmp_path / "c").mkdir()):
            with pytest.raises(PermissionError):
                act()
    finally:
        WATCH.roots = ()
    assert WATCH.seen == [f"writes {tmp_path / 'b'}", f"writes {tmp_path / 'c'}"]
    assert not (tmp_path / "b").exists()
