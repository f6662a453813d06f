"""A study as its YAML file tells it: encoders, tasks, heads, seeds, protocols. Every word of it is looked at first."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from frepa.errors import InputError, nearest
from frepa.names import shown
from frepa.options import check_seed, groups
from frepa.user_paths import as_list

#: What a head is called in a study -> the verb's own --head; None where the verb has one head alone.
HEADS: dict[str, dict[str, str | None]] = {
    "segment": {"linear": "linear", "trained": "conv"},
    "classify": {"linear": "linear", "trained": "mlp"},
    "detect": {"trained": None},
}
#: Options that a study decides itself, and that a task cannot be given.
_OWN = (
    "source", "encoder", "out", "head", "seed", "seeds", "bundle", "feature_cache", "anonymous_names", "resume",
    "overwrite", "quiet",
)  # fmt: skip
#: Named protocols: options by verb. "official" is the set's own parts at native resolution; "paper" is 7:1:2, five
#: folds for classes and boxes, images of 512 (Frepa section 4); volumes keep their own size.
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "official": {},
    "paper": {
        "segment": {"split": "random", "image_size": 512},
        "classify": {"split": "random", "folds": 5, "image_size": 512},
        "detect": {"split": "random", "folds": 5, "image_size": 512},
    },
    "paper-3d": {
        "segment": {"split": "random"},
        "classify": {"split": "random", "folds": 5},
        "detect": {"split": "random", "folds": 5},
    },
}
_KEYS = ("encoders", "tasks", "baselines", "heads", "seeds", "protocols", "options", "reference", "resamples")
_TASK_KEYS = ("protocol", "heads", "seeds")


@dataclass(frozen=True)
class Row:
    """A row of the table: an encoder, pretrained once or several times, or what stands in for one.

    Attributes:
        name: as the study calls it.
        encoders: specifications; several are draws of one and the same (pretrained with other seeds). () of a baseline.
        kind: "encoder", or the baseline's.
        options: of a baseline.
    """

    name: str
    encoders: tuple[str, ...] = ()
    kind: str = "encoder"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyTask:
    """A column of the table.

    Attributes:
        name: as the study calls it.
        verb: segment, classify or detect.
        source: as the verb takes it; several sets of segment are trained on together.
        protocol: its name. options: of the verb, those of the protocol among them.
        heads: as in `HEADS`. seeds: of trained heads; a linear one has the first alone, because it has none itself.
    """

    name: str
    verb: str
    source: str | tuple[str, ...]
    protocol: str
    options: Mapping[str, Any]
    heads: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def anonymous(self) -> bool:
        """Whether hashes stand for names of files in what its cells write."""
        return bool(self.options.get("anonymous_names"))

    @property
    def sources(self) -> list[str]:
        """The source, or the several sets, as a list."""
        return as_list(self.source)

    def seeds_of(self, head: str) -> tuple[int, ...]:
        """What a head of this kind is trained with."""
        return self.seeds if head == "trained" else self.seeds[:1]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        rows, tasks: in the order of the file.
        reference: row that the others are tested against; None tests every pair.
        resamples: of the test cases, for intervals and tests.
    """

    rows: tuple[Row, ...]
    tasks: tuple[StudyTask, ...]
    reference: str | None = None
    resamples: int = 10_000

    def anonymous(self) -> Study:
        """The same study, whose cells write hashes instead of names of files."""
        tasks = (replace(task, options={**task.options, "anonymous_names": True}) for task in self.tasks)
        return replace(self, tasks=tuple(tasks))


def read_study(
    content: Mapping[str, Any],
    name: str,
    verbs: Mapping[str, Callable[..., Any]],
    baselines: Mapping[str, Iterable[str]],
) -> Study:
    """The study in a YAML file.

    Args:
        content: of the file. name: of the file, for messages.
        verbs: of tasks, by name; their signatures say which options there are.
        baselines: kinds of rows that need no encoder, with the names of their options.

    Raises:
        InputError: a word that is not known, nothing to compare, a value of another type.
    """
    _known(content, _KEYS, name, "the study")
    rows = [*_encoders(content, name), *_baselines(content.get("baselines"), name, baselines)]
    twice = {row.name for row in rows if [other.name for other in rows].count(row.name) > 1}
    if twice:
        raise InputError(f"{name}: two rows are called {sorted(twice)[0]}. Rename the encoder.")
    given = _mapping(content.get("tasks"), f"{name}: tasks")
    if not given:
        raise InputError(
            f"{name}: no task. Give one at least, as in `tasks: {{vessels: {{segment: FOLDER}}}}`: its name, the verb "
            "(segment, classify or detect) with the source, and options of the verb."
        )
    tasks = tuple(_task(str(key), value, content, name, verbs) for key, value in given.items())
    reference = content.get("reference")
    if reference is not None and reference not in [row.name for row in rows]:
        raise InputError(
            f"{name}: reference {reference!r} is no row. {nearest(str(reference), [r.name for r in rows])}"
        )
    resamples = content.get("resamples", 10_000)
    if not isinstance(resamples, int) or isinstance(resamples, bool) or not 100 <= resamples <= 1_000_000:
        raise InputError(f"{name}: resamples {resamples!r}: expected a whole number from 100 to 1000000.")
    return Study(tuple(rows), tasks, reference, resamples)


def _encoders(content: Mapping[str, Any], name: str) -> Iterable[Row]:
    given = _mapping(content.get("encoders"), f"{name}: encoders")
    if not given and not content.get("baselines"):
        raise InputError(
            f"{name}: no encoder. Give one at least, as in `encoders: {{Frepa: RUN}}`: a name and a run folder, an "
            "encoder file, random:NAME or timm:NAME, or a list of such where one was pretrained several times."
        )
    for key, value in given.items():
        specs = value if isinstance(value, list) else [value]
        if not specs or not all(isinstance(spec, str) and spec.strip() for spec in specs):
            raise InputError(
                f"{name}: encoder {shown(str(key))}: expected a run folder, an encoder file, random:NAME or timm:NAME, "
                f"or a list of such; found {shown(repr(value))[:80]}."
            )
        if len(set(specs)) < len(specs):
            raise InputError(f"{name}: encoder {shown(str(key))} names one and the same encoder twice.")
        yield Row(str(key), tuple(specs))


def _baselines(given: Any, name: str, kinds: Mapping[str, Iterable[str]]) -> Iterable[Row]:
    if given is None:
        return
    asked = dict.fromkeys(given, None) if isinstance(given, list) else _mapping(given, f"{name}: baselines")
    for kind, options in asked.items():
        if kind not in kinds:
            raise InputError(f"{name}: baseline {kind!r} is not known. {nearest(str(kind), kinds)}")
        options = _mapping(options, f"{name}: baseline {kind}")
        _known(options, kinds[kind], name, f"baseline {kind}")
        yield Row(str(kind), kind=str(kind), options=options)


def _task(
    key: str, value: Any, content: Mapping[str, Any], name: str, verbs: Mapping[str, Callable[..., Any]]
) -> StudyTask:
    where = f"task {shown(key)}"
    given = _mapping(value, f"{name}: {where}")
    asked = [verb for verb in verbs if verb in given]
    if len(asked) != 1:
        raise InputError(
            f"{name}: {where}: expected one of {', '.join(verbs)} with its source, as in `segment: FOLDER`; found "
            f"{', '.join(asked) or shown(', '.join(map(str, given)) or 'nothing')}."
        )
    verb = asked[0]
    source = given[verb]
    several = source if isinstance(source, list) else [source]
    if not several or not all(isinstance(text, str) and text.strip() for text in several):
        raise InputError(f"{name}: {where}: {verb} needs a source: a folder, a file or a list of them.")
    if len(several) > 1 and verb != "segment":
        raise InputError(
            f"{name}: {where}: {verb} takes one source, and {len(several)} are given. Make a task of each."
        )
    own = {option: one for option, one in given.items() if option not in (verb, *_TASK_KEYS)}
    general = _mapping(_mapping(content.get("options"), f"{name}: options").get(verb), f"{name}: options of {verb}")
    protocol = given.get("protocol", "official")
    options = {**general, **_protocol(protocol, verb, content, name, where), **own}
    options = {str(option).replace("-", "_"): one for option, one in options.items()}
    check_options(options, verb, verbs[verb], f"{name}: {where}")
    if verb == "segment":
        # What is compared is the encoder's dense map, not the image beside it.
        options = {"features": "last", **options}
    heads = _heads(given.get("heads", content.get("heads")), f"{name}: {where}", verb)
    seeds = _seeds(given.get("seeds", content.get("seeds", 1)), f"{name}: {where}")
    listed = tuple(several) if len(several) > 1 else several[0]
    return StudyTask(key, verb, listed, str(protocol), options, heads, seeds)


def _protocol(protocol: Any, verb: str, content: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    own = _mapping(content.get("protocols"), f"{name}: protocols")
    known = {**PROTOCOLS, **own}
    if protocol not in known:
        raise InputError(f"{name}: {where}: protocol {protocol!r} is not known. {nearest(str(protocol), known)}")
    if protocol not in own:
        return PROTOCOLS[protocol].get(verb, {})
    inside = _mapping(own[protocol], f"{name}: protocol {protocol}")
    # Either options of one verb each, or options that hold for whatever verb uses it.
    return _mapping(inside.get(verb), f"{name}: protocol {protocol}") if set(inside) <= set(HEADS) else inside


def check_options(options: Mapping[str, Any], verb: str, function: Callable[..., Any], where: str) -> None:
    """Raise InputError for an option that a verb does not have, that a study decides itself, or of another type."""
    known = {option.name: option.hint for group in groups(function) for option in group.options}
    for option, value in options.items():
        if option in _OWN:
            raise InputError(f"{where}: {option} is decided by the study itself; take it out of the options.")
        if option not in known:
            free = [one for one in known if one not in _OWN]
            raise InputError(f"{where}: {shown(option)} is no option of {verb}. {nearest(option, free)}")
        if not fits(value, known[option]):
            raise InputError(f"{where}: {option}: {shown(repr(value))[:60]} is not what it takes.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an option's type."""
    if get_origin(hint) is Annotated:
        own, *rules = get_args(hint)
        return fits(value, own) and all(rule.fullmatch(value) for rule in rules if isinstance(rule, re.Pattern))
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(one, get_args(hint)[0]) for one in value)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _heads(given: Any, where: str, verb: str) -> tuple[str, ...]:
    asked = ["linear"] if given is None else [given] if isinstance(given, str) else given
    known = ("linear", "trained")
    if not isinstance(asked, list) or not asked or not all(head in known for head in asked):
        raise InputError(
            f"{where}: heads: expected linear, trained or a list of both, found {shown(repr(given))[:60]}."
        )
    found = tuple(head for head in known if head in asked and head in HEADS[verb])
    # detect has one head, whatever is asked for.
    return found or tuple(HEADS[verb])[:1]


def _seeds(given: Any, where: str) -> tuple[int, ...]:
    seeds: Sequence[Any] = list(range(given)) if _whole(given) and 0 < given <= 1000 else given
    if not isinstance(seeds, list) or not seeds or not all(map(_whole, seeds)) or len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds: expected their number, or a list of different ones; found {given!r}.")
    for seed in seeds:
        check_seed(seed)
    return tuple(seeds)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected names with values (name: value), found {shown(repr(value))[:60]}.")
    return value


def _known(given: Mapping[str, Any], known: Iterable[str], name: str, where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise InputError(f"{name}: {shown(str(key))[:60]} is no word of {where}. {nearest(str(key), known)}")
