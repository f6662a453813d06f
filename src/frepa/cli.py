"""The command line: one command per verb, made from the verb's signature and docstring."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import frepa
from frepa import config_files
from frepa.errors import InputError, nearest
from frepa.names import shown
from frepa.options import REQUIRED, Group, Option, bare, choices, chosen_first, defaults_of, groups, instead
from frepa.stopping import terminated_like_interrupted

# PyTorch says so on a CPU in an error of no kind of its own
_NO_MEMORY = r"can't allocate memory|not enough memory"

#: Environment variable that lets a traceback through.
DEBUG = "FREPA_DEBUG"

# Command -> "module:function". A command of two words is listed as one.
COMMANDS: dict[str, str] = {
    "pretrain": "frepa.verbs.pretrain:pretrain",
    "check": "frepa.verbs.check:check",
    "prepare": "frepa.verbs.prepare:prepare",
    "classify": "frepa.verbs.classify:classify",
    "segment": "frepa.verbs.segment:segment",
    "detect": "frepa.verbs.detect:detect",
    "predict": "frepa.verbs.predict:predict",
    "analyze": "frepa.verbs.analyze:analyze",
    "embed": "frepa.verbs.embed:embed",
    "export": "frepa.verbs.export:export",
    "evaluate": "frepa.verbs.evaluate:evaluate",
    "compare": "frepa.verbs.compare:compare",
    "ablate": "frepa.verbs.ablate:ablate",
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
        print(shown(f"frepa {command}: {stop}" if str(stop) else "Interrupted.", keep="\n"), file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        print(f"frepa {command}: {unforeseen(error)}", file=sys.stderr)
        return 1


def unforeseen(error: Exception) -> str:
    """What ended a command although nobody thought of it, in a sentence; the traceback goes to a file it names."""
    try:
        handle, place = tempfile.mkstemp(prefix="frepa-", suffix=".log")  # for its owner alone
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
        where = f"The whole account is in {place}; it may hold names of files: read it before you send it."
    except OSError:
        where = f"Set {DEBUG}=1 to see the whole account."
    said = shown(str(error).strip().partition("\n")[0])[:300]
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or re.search(_NO_MEMORY, str(error)):
        return f"Memory ran out. A smaller --batch-size or --image-size takes less. {where}"
    if isinstance(error, OSError) and error.strerror:
        name = f"{shown(str(error.filename))}: " if error.filename else ""
        return f"{name}the system refused ({error.strerror}). {where}"
    return f"Ended by something this program does not know how to handle ({kind}: {said}). {where}"


def _run(command: str, words: list[str]) -> int:
    verb = load_verb(command)
    given = read_words(command, verb, words)
    if given is None:
        return 0
    try:
        with terminated_like_interrupted():
            result = verb(**given)
    except RuntimeError as error:
        if not getattr(error, "plain", False):
            raise
        print(shown(f"frepa {command}: {error}", keep="\n"), file=sys.stderr)
        return getattr(error, "code", 1)
    if result is not None:
        print(result)  # the last line of a verb is the folder it wrote
    return 0


def load_verb(command: str) -> Callable[..., Any]:
    """The function behind a command."""
    module, function = COMMANDS[command].split(":")
    return getattr(importlib.import_module(module), function)


def read_words(command: str, verb: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """What was asked for by name, from the command line and the files it names: only what was given, in its type.

    What is typed wins over ``--config FILE`` wherever it stands; of two files the later one wins. None where help was
    asked for, and printed.

    Raises:
        InputError: an option that is not known, a value of another type, something missing.
    """
    filed = config_files.read_files(_values(words, "--config"))
    chosen = {}
    for name in choices(verb):
        typed = _values(words, f"--{name}")
        if name == chosen_first(verb) and words and not words[0].startswith("-"):
            typed = [*typed, words[0]]
        value = typed[-1] if typed else config_files.name_in(filed.get(name))
        given = filed.get(name)
        if value is None and given is not None and (not isinstance(given, dict) or "name" in given):
            raise InputError(f"--config: the value of --{name} in the file: expected a name.")
        if value:
            chosen[name] = value
    found = groups(verb, chosen)
    known = {option.name: option for group in found for option in group.options}
    if any(word in ("-h", "--help") for word in words):
        print(build_parser(command, verb, chosen).format_help(), end="")
        return None
    named, positional = _split(words, known, lambda name: instead(verb, name, chosen))
    from_file = {name: value for name, value in config_files.flat(filed, choices(verb)).items() if name not in named}
    for number, (name, value) in enumerate(from_file.items(), start=1):
        if name not in known:
            what = config_files.entry(name, number)
            raise InputError(f"--config: {what} is not an option of this command. {instead(verb, name, chosen)}")
        named[name] = config_files.as_word(value)
    values = _typed(build_parser(command, verb, chosen, from_file), found, named, positional)
    return _nested(values, defaults_of(verb) | chosen)


def build_parser(
    command: str, verb: Callable[..., Any], chosen: Mapping[str, str] | None = None, unseen: Container[str] = ()
) -> Any:
    """A jsonargparse parser for ``verb``, with the options of what is chosen (``{"method": "mae"}``).

    Its positional parameters are arguments, its keyword-only ones options. Values of the options ``unseen`` are not
    shown in messages: they come from a file, which may be another one than was meant.
    """
    from docstring_parser import parse as parse_docstring
    from jsonargparse import ArgumentParser

    found = groups(verb, chosen)
    hints = {option.name: option.hint for group in found for option in group.options}

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise InputError(_plain(message, hints, unseen))

        def format_help(self, *args: Any, **kwargs: Any) -> str:
            # A list option has a second spelling in the parser, which is not ours
            return re.sub(r", --[a-z_]+\+ [A-Z]+", "", _dashed(super().format_help(*args, **kwargs)))

    doc = parse_docstring(inspect.unwrap(verb).__doc__ or "")
    about = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    needed = [o for group in found for o in group.options if o.default is REQUIRED]
    usage = " ".join(o.name.upper() if o.positional else f"--{o.name} {_metavar(o.hint)}" for o in needed)
    parser = Parser(prog=f"frepa {command}", description=about, usage=f"frepa {command} {usage} [options]")
    parser.add_argument("--config", type=str, metavar="FILE.yaml", help="read options from a file; what is typed wins")
    for group in found:
        heading = parser.add_argument_group(group.title or f"options of {command}")
        for option in group.options:
            if option.positional:
                parser.add_argument(option.name, help=option.text, **_shape(option))
                continue
            how = {"required": True} if option.default is REQUIRED else {"default": option.default}
            heading.add_argument(
                f"--{_mangled(option.name)}",
                type=bare(option.hint),
                help=option.text,
                metavar=_metavar(option.hint),
                **how,
            )
    return parser


def _shape(option: Option) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": bare(option.hint)}
    if get_origin(option.hint) is list:
        shape = {"type": get_args(option.hint)[0], "nargs": "+"}
    return shape if option.default is REQUIRED else shape | {"default": option.default, "nargs": "?"}


def _split(
    words: Sequence[str], known: Mapping[str, Option], hint: Callable[[str], str]
) -> tuple[dict[str, str], list[str]]:
    """Options by name and the words without one; ``--image-size`` is image_size, bare ``--resume`` is true."""
    named: dict[str, str] = {}
    positional: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--?[A-Za-z]", word):
            positional.append(word)
            continue
        spelled, equals, value = word.lstrip("-").partition("=")
        name = spelled.replace("-", "_")
        flag = _is_flag(name, known)
        if name.startswith("no_") and name not in known and _is_flag(name[3:], known):
            named[name[3:]] = "false"
            continue
        if _negated_inside(name) in known:  # --method.no-augment
            named[_negated_inside(name)] = "false"
            continue
        if name != "config" and (name not in known or not word.startswith("--")):
            shown = word.split("=", 1)[0]
            raise InputError(f"{shown}: not an option of this command. {_dashed_words(hint(name))}")
        if not equals and flag and rest[:1] not in (["true"], ["false"]):
            value = "true"
        elif not equals:
            if not rest or re.match(r"--[A-Za-z]", rest[0]):
                raise InputError(f"--{spelled} needs a value after it.")
            value = rest.pop(0)
        if name == "config" and not value:
            raise InputError("--config is empty. Give a file such as RUN/config.yaml.")
        if name != "config":
            named[name] = _added(named.get(name), value) if _is_list(known[name].hint) else value
    return named, positional


def _is_flag(name: str, known: Mapping[str, Option]) -> bool:
    """An option that is true or false and needs no value after it."""
    return name in known and _kinds(known[name].hint) == [bool]


def _is_list(hint: Any) -> bool:
    return all(get_origin(kind) is list for kind in _kinds(hint))


def _added(before: str | None, value: str) -> str:
    """A list option, as JSON, with one more value: it is given once for each, or as a list of its own."""
    own = [value]
    if value.startswith("["):
        with contextlib.suppress(ValueError):
            own = json.loads(value)
    return json.dumps([*json.loads(before or "[]"), *own])


def _negated_inside(name: str) -> str:
    return name.replace(".no_", ".", 1) if ".no_" in name else ""


def _typed(parser: Any, found: list[Group], named: dict[str, str], positional: list[str]) -> dict[str, Any]:
    """The values in their types; only those that were given."""
    arguments = [option for group in found for option in group.options if option.positional]
    several = bool(arguments) and get_origin(arguments[-1].hint) is list
    if len(positional) > len(arguments) and not several:
        raise InputError(f"{positional[len(arguments)]}: not expected here. {parser.prog} --help says what is.")
    front: list[str] = list(positional)
    for option in arguments[len(positional) :]:
        if option.name in named:
            value = named[option.name]
            front += json.loads(value) if get_origin(option.hint) is list and value.startswith("[") else [value]
    filled = {option.name for option in arguments[: len(positional)]} | set(named)
    options = [option for group in found for option in group.options]
    missing = [o.name.upper() if o.positional else f"--{o.name}" for o in options if o.default is REQUIRED]
    missing = [name for name in missing if name.lstrip("-").lower() not in filled]
    if missing:
        raise InputError(_dashed(f"{' and '.join(missing)} missing. {parser.prog} --help says what is expected."))
    flat = [f"--{_mangled(name)}={value}" for name, value in named.items() if not _is_positional(name, arguments)]
    values = vars(parser.parse_args([*front, *flat]))
    return {option.name: values[_mangled(option.name)] for option in options if option.name in filled}


def _is_positional(name: str, arguments: Iterable[Option]) -> bool:
    return any(option.name == name for option in arguments)


def _nested(values: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """``method.mask_ratio`` as an entry of ``method``, whose ``name`` is what is chosen."""
    whole: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for name in [name for name in values if "." in name]:
        parameter, _, field = name.partition(".")
        if not isinstance(whole.get(parameter), dict):
            whole[parameter] = {"name": chosen[parameter]}
        whole[parameter][field] = values[name]
    return whole


def _values(words: Sequence[str], option: str) -> list[str]:
    """Every value given to an option, in order."""
    pairs = zip(words, [*words[1:], ""])
    found = [word.split("=", 1)[1] if "=" in word else after for word, after in pairs if _is_word(word, option)]
    return [value for value in found if value]


def _is_word(word: str, option: str) -> bool:
    return word == option or word.startswith(f"{option}=")


def _plain(message: str, hints: Mapping[str, Any], unseen: Container[str]) -> str:
    """The parser's complaint about a value in plain words."""
    match = re.search(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if match:
        name, value = match.groups()
        hint = hints.get(name.replace("__", "."))
        if name.replace("__", ".") in unseen:
            return f"--config: the value of {_dashed(f'--{name}')} in the file: expected {_expected(hint, '')}"
        return f"{_dashed(f'--{name}')} {value.strip()}: expected {_expected(hint, value.strip())}"
    return _dashed(message)


def _expected(hint: Any, value: str) -> str:
    """What a parameter of this type takes, in words that end with a full stop."""
    kinds = _kinds(hint)
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names[list[str]] = "text, once or several times"
    parts = []
    literals: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            literals += [str(choice) for choice in get_args(kind)]
            parts += literals
        else:
            parts.append(names.get(kind, str(kind)))
    text = f"{', '.join(parts[:-1])} or {parts[-1]}." if len(parts) > 1 else f"{parts[0]}."
    close = nearest(value, literals)
    return f"{text} {close}" if close.startswith("Did you mean") else text


def _kinds(hint: Any) -> list[Any]:
    union = get_origin(hint) in (Union, types.UnionType)
    return [kind for kind in get_args(hint) if kind is not type(None)] if union else [hint]


def _metavar(hint: Any) -> str:
    """What stands for a value in the help: its choices, or its kind."""
    words: dict[Any, str] = {int: "N", float: "X", bool: "true|false", str: "TEXT", list[str]: "TEXT"}
    parts: list[str] = []
    for kind in _kinds(hint):
        parts += (
            [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else [words.get(kind, "LIST")]
        )
    return "|".join(dict.fromkeys(parts))


def _mangled(name: str) -> str:
    """The parser takes a dot for a level of its own; ours is only a spelling."""
    return name.replace(".", "__")


def _dashed(text: str) -> str:
    def spelled(match: re.Match[str]) -> str:
        return match.group(0).replace("__", ".").replace("_", "-")

    return re.sub(r"--[a-z][a-z0-9_]*", spelled, text)


def _dashed_words(text: str) -> str:
    text = re.sub(r"\b[a-z0-9]+(_[a-z0-9]+)+\b", lambda m: m.group(0).replace("_", "-"), text)
    return re.sub("(mean | or )", r"\1--", text) if text.startswith("Did you mean ") else text


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
        print(shown(f"{where}: {message}", keep="\n"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
