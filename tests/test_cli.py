"""The command line as a person meets it: help, wrong words, exit codes."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frepa import cli


def _run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_answers_without_torch():
    code = "import sys; from frepa.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert command in done.stdout
    assert seconds < 10  # a second on a calm machine; this bound only notices that something heavy came in


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_option_of_every_command_is_explained(command):
    parser = cli.build_parser(command, cli.load_verb(command))
    text = parser.format_help()
    for action in parser._actions:
        if action.dest != "help":
            assert action.help, f"{command} {action.dest} has no explanation in the docstring"
    assert "_" not in "".join(word for word in text.split() if word.startswith("--"))


def test_wrong_words_are_explained_with_exit_code_2(capsys, tmp_path):
    code, _, err = _run(capsys, "pretrian", "x")
    assert code == 2
    assert "Did you mean pretrain?" in err
    code, _, err = _run(capsys, "pretrain", str(tmp_path), "--out", "r", "--image-sise", "3")
    assert code == 2
    assert "--image-sise" in err
    assert "image-size" in err
    code, _, err = _run(capsys, "pretrain", str(tmp_path))
    assert code == 2
    assert "out" in err
    code, _, err = _run(capsys, "pretrain", str(tmp_path), "--out", "r", "--epochs", "many")
    assert code == 2
    assert "epochs" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "fast"], "--lr fast: expected a number."),
        (["--val-images", "1.5"], "--val-images 1.5: expected a whole number."),
        (["--max-steps", "1.5"], "--max-steps 1.5: expected a whole number."),
        (["--resume", "true", "--method.augment=maybe"], "--method.augment maybe: expected true or false."),
        (["--window", "lnug"], "--window lnug: expected lung, abdomen, brain, bone or any. Did you mean lung?"),
        (["--dims", "4"], "--dims 4: expected 2 or 3."),
    ],
)
def test_a_wrong_value_is_explained_without_a_type_of_python(capsys, tmp_path, words, message):
    code, _, err = _run(capsys, "pretrain", str(tmp_path), "--out", str(tmp_path / "r"), *words)
    assert code == 2
    assert err.strip() == f"frepa pretrain: {message}"
    assert not (tmp_path / "r").exists()


def test_what_is_missing_is_named_as_it_is_typed(capsys):
    assert _run(capsys, "pretrain", "x")[2].startswith("frepa pretrain: --out missing.")
    assert _run(capsys, "pretrain", "--out", "r")[2].startswith("frepa pretrain: SOURCE missing.")


def test_unknown_key_in_a_config_file(capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("out: r\nimage_sise: 3\n")
    code, _, err = _run(capsys, "pretrain", str(tmp_path), "--config", str(config))
    assert code == 2
    assert "image_sise" in err
    assert "image_size" in err


def _read(*words: str) -> dict:
    given = cli.read_words("pretrain", cli.load_verb("pretrain"), list(words))
    assert given is not None
    return given


def test_only_what_is_given_is_passed_on_and_flags_need_no_value():
    assert _read("x", "--out", "r", "--resume", "--image-size", "3", "--quiet", "false") == {
        "source": "x", "out": "r", "resume": True, "image_size": 3, "quiet": False,
    }  # fmt: skip
    words = ("--out=r", "x", "--method.mask-ratio", "0.5", "--method.no-augment", "--spacing", "3,1,1")
    assert _read(*words) == {
        "source": "x", "out": "r", "method": {"name": "frepa", "mask_ratio": 0.5, "augment": False}, "spacing": "3,1,1",
    }  # fmt: skip


def test_what_is_typed_wins_over_a_file_wherever_it_stands(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "source: filed\nout: filed\nlr: 0.5\nspacing: [3, 1, 1]\nmethod: {name: frepa, mask_ratio: 0.1}\n"
    )
    filed = {"lr": 0.5, "spacing": [3.0, 1.0, 1.0]}
    for words in (["typed", "--out=typed"], []):
        for order in ([*words, "--config", str(config)], [f"--config={config}", *words]):
            place = "typed" if words else "filed"
            expected = filed | {"source": place, "out": place, "method": {"name": "frepa", "mask_ratio": 0.1}}
            assert _read(*order) == expected
    given = _read("--method.mask-ratio=0.9", "--lr=1", "--config", str(config))
    assert (given["method"]["mask_ratio"], given["lr"]) == (0.9, 1.0)


def test_a_file_that_holds_no_options_is_not_shown(capsys, tmp_path):
    secret = tmp_path / "notes"
    for content in ("name: Smith: {born", "Smith, born 1950", "- Smith"):
        secret.write_text(content)
        code, _, err = _run(capsys, "pretrain", "x", "--out", "r", "--config", str(secret))
        assert code == 2
        assert "--config" in err
        assert "Smith" not in err
    code, _, err = _run(capsys, "pretrain", "x", "--out", "r", "--config", str(tmp_path / "gone.yaml"))
    assert code == 2
    assert "No such file" in err


def test_an_option_that_moved_to_its_method_is_named_there(capsys):
    code, _, err = _run(capsys, "pretrain", "x", "--out", "r", "--mask-ratio", "0.6")
    assert code == 2
    assert err.strip().endswith("It belongs to the method: --method.mask-ratio.")
    assert "--method.no-augment" in _run(capsys, "pretrain", "x", "--out", "r", "--no-augment")[2]
    assert "Did you mean --method.mask-ratio" in _run(capsys, "pretrain", "x", "--out=r", "--method.mask-rate=1")[2]
    assert (
        "--method.mask-ratio lots: expected a number."
        in _run(capsys, "pretrain", "x", "--out=r", "--method.mask-ratio=lots")[2]
    )


def test_help_is_in_groups_and_shows_the_chosen_method(capsys):
    text = _run(capsys, "pretrain", "--help")[1]
    for heading in ("What the encoder sees", "How the weights are found", "How the run is carried out", "method frepa"):
        assert heading in text
    assert "--method.mask-ratio" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("division\nby zero"), ["ZeroDivisionError: division)"]),
        (
            PermissionError(13, "Permission denied", "a\x1bb.png"),
            [r"a\x1bb.png: the system refused (Permission denied)"],
        ),
        (MemoryError(), ["Memory ran out", "--batch-size"]),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_a_file(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def verb(source: str) -> None:
        raise error

    monkeypatch.setattr("frepa.cli.load_verb", lambda command: verb)
    assert cli.main(["check", "folder"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert all(word in told for word in words)
    place = Path(re.search(r"is in (\S+\.log);", told).group(1))
    assert "Traceback" in place.read_text()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    place.unlink()
    monkeypatch.setenv("FREPA_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["check", "folder"])
