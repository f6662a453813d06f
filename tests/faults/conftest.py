"""Ctrl-C is heard in these tests; small sets that none of them changes, and commands that are to be refused."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults_helpers import write_classes, write_clinic, write_images, write_labelled
from frepa.cli import main


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell that starts the tests in the background lets them ignore Ctrl-C, which is not what is tested."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_images(folder / "scans")
    write_labelled(folder / "labelled")
    write_classes(folder / "classes", count=3)
    return folder


@pytest.fixture(scope="session")
def clinic(tmp_path_factory) -> Path:
    return write_clinic(tmp_path_factory.mktemp("sets") / "clinic of dr kim")


@pytest.fixture
def told(capsys) -> Callable[..., str]:
    """Run a command that ends with a code; all that it said."""

    def run(*words: object, code: int = 0) -> str:
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, err
        return out + err

    return run


@pytest.fixture
def not_under_another_key(told, monkeypatch) -> Callable[..., None]:
    """Going on with a run under another key is refused: a file would go by two names in it."""

    def refused(*words: object) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("FREPA_SECRET", "another")
            assert "--resume: the run was begun under another secret key" in told(*words, "--resume", code=2)

    return refused


@pytest.fixture
def said(capsys) -> Callable[..., str]:
    """Run a command that is to be refused; what it said, without a traceback and on no line of its own making."""

    def run(*words: object, code: int = 2) -> str:
        found = main([str(word) for word in words])
        err = capsys.readouterr().err
        assert found == code, err
        assert "Traceback" not in err
        assert code == 1 or "does not know how to handle" not in err
        return err

    return run
