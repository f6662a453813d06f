"""Options as small frozen dataclasses: one object in Python, in YAML and on the command line.

A verb names groups of options as parameters (``data: Data``), and callers give their fields by name
(``pretrain("images", out="run", image_size=64)``). One of several classes of options, such as that of a pretraining
method, is a :class:`Choice`: ``method="mae"``, ``method=Mae(mask_ratio=0.5)``, ``--method mae --method.mask-ratio 0.5``
or, in YAML, ``method: {name: mae, mask_ratio: 0.5}``. The text of an option is its line in the docstring's "Args".
Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from frepa.errors import InputError, nearest

_Built = TypeVar("_Built")
#: Every generator there is takes seeds up to this one.
MOST_SEED = 2**32 - 1
#: Whole numbers as one text, one per axis: "8,48,48". What an annotated pattern does not match is not of the type.
PerAxis = Annotated[str, re.compile(r" *\d+( *, *\d+)* *")]
#: The default of an option that has to be given.
REQUIRED = inspect.Parameter.empty


def bare(hint: Any) -> Any:
    """A type without what is annotated to it, also within a union."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(bare, get_args(hint)))]  # noqa: UP007 (as many as there are)
    return hint


class Option(NamedTuple):
    """One option: its name (``"image_size"``, ``"method.mask_ratio"``), type, default, text, and whether it is an
    argument without a name on the command line.
    """

    name: str
    hint: Any
    default: Any
    text: str
    positional: bool = False


class Group(NamedTuple):
    """Options under a heading."""

    title: str
    options: list[Option]


class Choice(ABC):
    """One of several named classes of options; goes into ``Annotated[..., Choice()]`` of a verb's parameter."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names that can be chosen, sorted."""

    @abstractmethod
    def options(self, name: str) -> type:
        """The class of options of a name. Raises InputError for one that is not known."""

    @abstractmethod
    def name_of(self, options: Any) -> str:
        """The name of an object of options. Raises InputError for one of no known class."""

    def build(self, given: Any) -> tuple[str, Any]:
        """Name and object of options from a name, a mapping with ``name`` and options, or such an object.

        Raises:
            InputError: a name or option that is not known, or a value out of its range.
        """
        if isinstance(given, str):
            return given, self.options(given)()
        if isinstance(given, Mapping):
            values = {key: value for key, value in given.items() if key != "name"}
            if not isinstance(given.get("name"), str):
                raise InputError(f"expected a name among the options, found {', '.join(map(str, given)) or 'nothing'}.")
            cls = self.options(given["name"])
            known = [field.name for field in dataclasses.fields(cls)]
            for key in values:
                if key not in known:
                    raise InputError(f"{given['name']} has no option {key!r}. {nearest(str(key), known)}")
            return given["name"], cls(**values)
        return self.name_of(given), given


@dataclasses.dataclass(frozen=True)
class Registered(Generic[_Built]):
    """options: the frozen dataclass of its options. build: the class, called with these first."""

    options: type
    build: type[_Built]


class Registry(Choice, Generic[_Built]):
    """Classes by name, each with the dataclass of its options: methods, analyses.

    Args:
        option: what chooses one of them, as a parameter is called: "method".
        what: such a one in words: "pretraining method".
        modules: name to the module that registers it, which is imported when it is asked for.
        flag: what stands before a name in messages: "--method ".
    """

    def __init__(self, option: str, what: str, modules: Mapping[str, str], *, flag: str = "") -> None:
        self._option, self._what, self._modules, self._flag = option, what, modules, flag
        self._known: dict[str, Registered[_Built]] = {}

    def register(self, name: str, options: type) -> Callable[[type[_Built]], type[_Built]]:
        """Class decorator: make a class known by name, with the dataclass of its options.

        The first line of the dataclass's docstring tells what it is, its "Args" what each option is.
        """
        if not dataclasses.is_dataclass(options):
            raise TypeError(f"the options of {self._what} {name} have to be a dataclass, found {options!r}")

        def add(cls: type[_Built]) -> type[_Built]:
            self._known[name] = Registered(options, cls)
            return cls

        return add

    def find(self, name: str) -> Registered[_Built]:
        """What ``name`` or ``module.path:name`` means.

        Raises:
            InputError: unknown name, or its module cannot be imported.
        """
        asked, (module, colon, own) = f"{self._flag}{name}", name.rpartition(":")
        if colon:
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever a module of the user's does when it is imported
                raise InputError(f"{asked}: module {module} cannot be imported ({error}).") from None
            name = own
        elif name in self._modules:
            importlib.import_module(self._modules[name])
        if name not in self._known:
            where = f"{module} registers no {self._what} {name!r}" if colon else f"no {self._what} is called so"
            raise InputError(f"{asked}: {where}. {nearest(name, self.names())}")
        return self._known[name]

    def names(self) -> list[str]:
        return sorted({*self._modules, *self._known})

    def options(self, name: str) -> type:
        return self.find(name).options

    def name_of(self, options: Any) -> str:
        """The name of an object of options; of a class from outside with its module, so that a file can name it."""
        for name in self.names():
            entry = self.find(name)
            if entry.options is type(options):
                return name if name in self._modules else f"{entry.build.__module__}:{name}"
        raise InputError(f"{self._option}: {options!r} is not the options of a {self._what}. Known: {self.names()}.")


def texts(thing: Any) -> dict[str, str]:
    """The text of every argument in the "Args" of a docstring."""
    from docstring_parser import parse

    return {item.arg_name: " ".join((item.description or "").split()) for item in parse(thing.__doc__ or "").params}


def summary(thing: Any) -> str:
    """The first line of a docstring without its full stop."""
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


def of_class(cls: type, prefix: str = "") -> list[Option]:
    """The options of a dataclass."""
    hints, about = get_type_hints(cls), texts(cls)
    return [
        Option(prefix + field.name, hints[field.name], field.default, about.get(field.name, ""))
        for field in dataclasses.fields(cls)
    ]


def choices(verb: Callable[..., Any]) -> dict[str, Choice]:
    """The parameters of a verb that choose between classes of options."""
    hints = get_type_hints(_inner(verb), include_extras=True)
    found = {name: next((m for m in get_args(hint) if isinstance(m, Choice)), None) for name, hint in hints.items()}
    return {name: choice for name, choice in found.items() if choice is not None}


def defaults_of(verb: Callable[..., Any]) -> dict[str, str]:
    """What is chosen where nothing is said; without those that have to be chosen."""
    parameters = inspect.signature(_inner(verb)).parameters
    return {n: parameters[n].default for n in choices(verb) if parameters[n].default is not REQUIRED}


def chosen_first(verb: Callable[..., Any]) -> str | None:
    """The choice that a verb's first argument is, as in ``frepa analyze KIND SOURCE``; None where it is none."""
    first = next(iter(inspect.signature(_inner(verb)).parameters.values()), None)
    named = first is None or first.kind is inspect.Parameter.KEYWORD_ONLY
    return first.name if not named and first is not None and first.name in choices(verb) else None


def groups(verb: Callable[..., Any], chosen: Mapping[str, str] | None = None) -> list[Group]:
    """All options of a verb in groups, those of what is chosen last.

    Args:
        verb: any function; its parameters that are not keyword-only are arguments without a name.
        chosen: name by parameter; the parameter's default where it is not given.
    """
    inner = _inner(verb)
    hints, about = get_type_hints(inner, include_extras=True), texts(inner)
    own: list[Option] = []
    found: list[Group] = []
    picked = choices(verb)
    names = defaults_of(verb) | dict(chosen or {})
    for name, parameter in inspect.signature(inner).parameters.items():
        hint = hints[name]
        if name in picked:
            text = f"{about.get(name, '')} One of {', '.join(picked[name].names())}, or MODULE:NAME of your own."
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            own.append(Option(name, str, parameter.default, text, positional))
            if name in names:
                cls = picked[name].options(names[name])
                found.append(Group(f"{name} {names[name]}: {summary(cls)}", of_class(cls, f"{name}.")))
        elif dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found.append(Group(summary(hint), of_class(hint)))
        else:
            if get_origin(hint) is Annotated:
                hint = get_args(hint)[0]
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            own.append(Option(name, hint, parameter.default, about.get(name, ""), positional))
    # What is chosen comes last, because its options depend on it.
    found.sort(key=lambda group: any("." in option.name for option in group.options))
    return [Group("", own), *found]


def grouped(fill: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let callers give the fields of the dataclasses among a verb's parameters by name, and build these.

    ``fill`` is called first with what was given, and may add to it (presets). The signature and docstring that Python
    shows are those with all options.

    Raises (when called):
        InputError: an option that is not known, with what it is called now where it belongs to something chosen.
    """

    def wrap(verb: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(verb)
        classes: dict[str, Any] = {
            name: hint for name, hint in hints.items() if name != "return" and dataclasses.is_dataclass(hint)
        }
        fields = {field.name: name for name, cls in classes.items() for field in dataclasses.fields(cls)}

        @functools.wraps(verb)
        def call(*args: Any, **given: Any) -> Any:
            of_groups: dict[str, dict[str, Any]] = {name: {} for name in classes}
            plain: dict[str, Any] = {}
            for name, value in fill(given).items():
                if name in fields:
                    of_groups[fields[name]][name] = value
                elif name in hints and name not in classes and name != "return":
                    plain[name] = value
                else:
                    raise InputError(f"{verb.__name__} has no option {name!r}. {instead(verb, name, python=True)}")
            return verb(*args, **plain, **{name: classes[name](**values) for name, values in of_groups.items()})

        parameters = [p for name, p in inspect.signature(verb).parameters.items() if name not in classes]
        about = [inspect.getdoc(verb) or ""]
        for cls in classes.values():
            about.append(f"{summary(cls)}:")
            about += [f"    {option.name}: {option.text}" for option in of_class(cls)]
            parameters += [
                inspect.Parameter(
                    option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.hint
                )
                for option in of_class(cls)
            ]
        call.__signature__ = inspect.Signature(parameters, return_annotation=hints.get("return"))  # type: ignore[attr-defined]
        call.__doc__ = "\n".join(about)
        return call

    return wrap


def instead(
    verb: Callable[..., Any], name: str, chosen: Mapping[str, str] | None = None, *, python: bool = False
) -> str:
    """What to give in place of an option that a verb does not have."""
    bare = name.removeprefix("no_")
    for parameter, choice in choices(verb).items():
        here = (defaults_of(verb) | dict(chosen or {})).get(parameter)
        for other in dict.fromkeys([*([here] if here else []), *choice.names()]):
            cls = choice.options(other)
            fields = {field.name for field in dataclasses.fields(cls)}
            if name in fields or bare in fields:
                if python:
                    return f"It belongs to the {parameter}: {parameter}={cls.__name__}({bare}=...)."
                dashed = f"--{parameter}.{name}".replace("_", "-")
                before = "" if other == here else f"--{parameter} {other} "
                if parameter == chosen_first(verb) and other != here:
                    return f"It belongs to another {parameter}: {other} ... {dashed}."
                return f"It belongs to the {parameter}: {before}{dashed}."
    known = [option.name for group in groups(verb, chosen) for option in group.options]
    return nearest(name, known)


def _inner(verb: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(verb)


def check_seed(seed: int, count: int = 1) -> None:
    """Raise InputError unless ``--seed``, and the ``count - 1`` numbers after it, are seeds."""
    if not 0 <= seed <= MOST_SEED - (count - 1):
        raise InputError(f"--seed {seed}: expected a whole number from 0 to {MOST_SEED - (count - 1)}.")
