"""The command line: one command per verb, made from the verb's signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import frepa
from frepa.errors import InputError, nearest
from frepa.stopping import terminated_like_interrupted

# Command -> "module:function". A command of two words is listed as one.
COMMANDS: dict[str, str] = {
    "pretrain": "frepa.verbs.pretrain:pretrain",
    "check": "frepa.verbs.check:check",
    "prepare": "frepa.verbs.prepare:prepare",
    "classify": "frepa.verbs.classify:classify",
    "segment": "frepa.verbs.segment:segment",
    "detect": "frepa.verbs.detect:detect",
    "datasets list": "frepa.verbs.datasets:datasets_list",
    "datasets show": "frepa.verbs.datasets:datasets_show",
    "datasets verify": "frepa.verbs.datasets:datasets_verify",
    "datasets fetch": "frepa.verbs.datasets:datasets_fetch",
    "demo": "frepa.verbs.demo:demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 2 the user's input is wrong, 3 stopped on request (Ctrl-C, SIGTERM, a scheduler's warning) with the state
    saved where the verb has one, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"frepa {frepa.__version__}")
        return 0
    command = next((c for c in (" ".join(words[:2]), words[0]) if c in COMMANDS), None)
    if command is None:
        return _wrong("frepa", _unknown_command(words))
    try:
        return _run(command, words[len(command.split()) :])
    except InputError as error:
        return _wrong(f"frepa {command}", str(error))
    except KeyboardInterrupt as stop:
        print(f"frepa {command}: {stop}" if str(stop) else "Interrupted.", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(command: str, words: list[str]) -> int:
    verb = load_verb(command)
    parser, _ = build_parser(command, verb)
    options = parser.parse_args(_normalise(words, verb))
    given = {k: v for k, v in vars(options).items() if k in inspect.signature(verb).parameters}
    try:
        with terminated_like_interrupted():
            result = verb(**given)
    except RuntimeError as error:
        if not getattr(error, "plain", False):
            raise
        print(f"frepa {command}: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    if result is not None:
        print(result)  # the last line of a verb is the folder it wrote
    return 0


def load_verb(command: str) -> Callable[..., Any]:
    """The function behind a command."""
    module, function = COMMANDS[command].split(":")
    return getattr(importlib.import_module(module), function)


def build_parser(command: str, verb: Callable[..., Any]) -> tuple[Any, list[str]]:
    """A jsonargparse parser for ``verb``: its positional parameters are arguments, its keyword-only ones options."""
    from docstring_parser import parse as parse_docstring
    from jsonargparse import ActionConfigFile, ArgumentParser

    hints = get_type_hints(verb)

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise InputError(_plain(message, self, hints))

        def format_help(self, *args: Any, **kwargs: Any) -> str:
            return _dashed(super().format_help(*args, **kwargs))

    doc = parse_docstring(verb.__doc__ or "")
    texts = {item.arg_name: item.description or "" for item in doc.params}
    about = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    parser = Parser(prog=f"frepa {command}", description=about)
    parser.add_argument("--config", action=ActionConfigFile, metavar="FILE.yaml", help="read options from a file")
    parameters = inspect.signature(verb).parameters.values()
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter.name in positional:
            hint = hints[parameter.name]
            shape: dict[str, Any] = {"type": hint}
            if get_origin(hint) is list:
                shape = {"type": get_args(hint)[0], "nargs": "+"}
            if parameter.default is not inspect.Parameter.empty:
                shape |= {"default": parameter.default, "nargs": "?"}
            parser.add_argument(parameter.name, help=texts.get(parameter.name, ""), **shape)
    parser.add_function_arguments(verb, skip=set(positional))
    for group in parser._action_groups:
        if group.title and group.title.rstrip(":.") == (doc.short_description or "").rstrip("."):
            group.title = f"options of {command}"  # the sentence stands at the top already
    return parser, positional


def _normalise(words: list[str], verb: Callable[..., Any]) -> list[str]:
    """Accept ``--image-size`` for ``image_size`` and bare ``--resume`` for ``--resume true``."""
    hints = get_type_hints(verb)
    flags = {name for name, hint in hints.items() if hint is bool}
    normal: list[str] = []
    for position, word in enumerate(words):
        match = re.match(r"--([A-Za-z][\w-]*)(=.*)?$", word, re.DOTALL)
        if match is None:
            normal.append(word)
            continue
        name, value = match.group(1).replace("-", "_"), match.group(2) or ""
        if name.startswith("no_") and name[3:] in flags and not value:
            normal.append(f"--{name[3:]}=false")
        elif name in flags and not value and words[position + 1 : position + 2] not in (["true"], ["false"]):
            normal.append(f"--{name}=true")
        else:
            normal.append(f"--{name}{value}")
    return normal


def _plain(message: str, parser: Any, hints: dict[str, Any]) -> str:
    """The parser's complaint in plain words, with the nearest option or value for a misspelt one."""
    known = [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]
    match = re.search(r"(?:Option '([\w.-]+)' is not accepted|[Uu]nrecognized arguments: -{0,2}([\w-]+))", message)
    if match:
        word = (match.group(1) or match.group(2)).replace("-", "_")
        shown = word if match.group(1) else _dashed(f"--{word}")
        return f"{shown}: not an option of this command. {_dashed_words(nearest(word, known))}"
    match = re.search(r"arguments are required: (.*)", message)
    if match:
        positional = {action.dest for action in parser._actions if not action.option_strings}
        named = [name.upper() if name in positional else f"--{name}" for name in match.group(1).split(", ")]
        return _dashed(f"{' and '.join(named)} missing. {parser.prog} --help says what is expected.")
    match = re.search(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if match:
        name, value = match.groups()
        return f"{_dashed(f'--{name}')} {value.strip()}: expected {_expected(hints.get(name), value.strip())}"
    return _dashed(message)


def _expected(hint: Any, value: str) -> str:
    """What a parameter of this type takes, in words that end with a full stop."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    parts = []
    choices: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices += [str(choice) for choice in get_args(kind)]
            parts += choices
        else:
            parts.append(names.get(kind, str(kind)))
    text = f"{', '.join(parts[:-1])} or {parts[-1]}." if len(parts) > 1 else f"{parts[0]}."
    close = nearest(value, choices)
    return f"{text} {close}" if close.startswith("Did you mean") else text


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _dashed(text: str) -> str:
    return re.sub(r"--[a-z][a-z0-9_]*", lambda m: m.group(0).replace("_", "-"), text)


def _dashed_words(text: str) -> str:
    return re.sub(r"\b[a-z0-9]+(_[a-z0-9]+)+\b", lambda m: m.group(0).replace("_", "-"), text)


def _unknown_command(words: list[str]) -> str:
    below = sorted(c for c in COMMANDS if c.split()[0] == words[0])
    if below:
        return f"{words[0]}: needs one of {', '.join(c.split()[1] for c in below)} after it."
    return f"{words[0]}: not a command. {nearest(words[0], COMMANDS)} Try frepa --help."


def _overview() -> str:
    lines = [
        "frepa: pretrain medical image encoders that keep fine detail, and measure how much they keep.",
        "",
        "usage: frepa VERB ...        frepa VERB --help explains one verb",
        "",
    ]
    for command in COMMANDS:
        summary = (inspect.getdoc(load_verb(command)) or "").split("\n")[0].rstrip(".")
        lines.append(f"  {command:<16} {summary}")
    return "\n".join(lines)


def _wrong(where: str, message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # with several processes, once is enough
        print(f"{where}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
