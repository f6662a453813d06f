"""The command line as a person meets it: help, wrong words, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

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
    parser, _ = cli.build_parser(command, cli.load_verb(command))
    text = parser.format_help()
    for action in parser._actions:
        if action.dest not in ("help", "print_config"):
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
        (["--resume", "true", "--augment=maybe"], "--augment maybe: expected true or false."),
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
    assert "image-size" in err


def test_flags_need_no_value():
    verb = cli.load_verb("pretrain")
    words = cli._normalise(["--resume", "--no-augment", "--image-size", "3", "--quiet", "false"], verb)
    assert words == ["--resume=true", "--augment=false", "--image_size", "3", "--quiet", "false"]
