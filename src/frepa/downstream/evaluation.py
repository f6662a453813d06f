"""What a task supplies to an evaluation: the contract between `evaluating.py` and the folder of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from frepa.datasets.stacks import check_unit
from frepa.downstream.applying import ApplyOptions
from frepa.downstream.contract import Place, Progress, Round, Table, Tested
from frepa.downstream.division import SHARES
from frepa.downstream.page import RunPage
from frepa.downstream.trained import TrainedHead
from frepa.errors import InputError
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped
from frepa.options import check_seed
from frepa.user_paths import check_source_name

#: Parts of a set that can be looked at.
PARTS = (*SHARES, "all")

Head = TypeVar("Head", bound=TrainedHead[Any])


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ApplyOptions):
    """What `evaluate` is told; see the verb."""

    part: str
    divide_by: str
    mask_threshold: float | None
    cldice: bool
    seed: int

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        for text in self.source:
            check_source_name(text)
        if self.part not in PARTS:
            raise InputError(f"--part {self.part}: expected one of {', '.join(PARTS)}.")
        check_unit(self.divide_by)
        check_seed(self.seed, 1)


class Evaluation(ABC, Generic[Head]):
    """A trained head on a labelled set. One object serves one evaluation.

    A case is looked at once, and what came of it is a line of plain values, from which scores are made in the end: so
    an evaluation can be gone on with.

    Attributes:
        head: the heads, applied together.
        options: of the verb.
        root: the folder written.
    """

    #: What the data consist of, for progress bars.
    unit: ClassVar[str]

    def __init__(self, head: Head, options: EvaluateOptions, root: Path) -> None:
        self.head, self.options, self.root = head, options, root

    @abstractmethod
    def open(self, progress: Progress) -> list[str]:
        """Find the cases; sentences about what is odd of them.

        Raises:
            InputError: the source is not understood, has not what the task needs, or is of other classes.
        """

    @abstractmethod
    def hide(self, names: Names) -> None:
        """From here on call the cases by what stands for names of files."""

    @property
    @abstractmethod
    def data(self) -> Any:
        """The set, as `open` found it."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """A name for every case, by which it is known again."""

    @property
    @abstractmethod
    def left_out(self) -> Sequence[Skipped]:
        """What cannot be read, as far as `open` saw."""

    @abstractmethod
    def describe(self) -> Iterable[str]:
        """Sentences about the data, for the user to check."""

    @abstractmethod
    def read(self, place: int) -> Any:
        """Read a case, in a thread. Raises `UnreadableScan`, under its name in the source, where it is broken."""

    @abstractmethod
    def look(self, place: int, case: Any) -> dict[str, Any]:
        """Put the heads on a case; what is to be kept of it, as plain values. ``files``: those it wrote, if any."""

    @abstractmethod
    def finish(self, lines: Mapping[int, Mapping[str, Any]], place: Place, round: Round) -> Tested[Any, Any]:
        """The tested head, from what `look` gave of every case that could be read, by place."""

    @abstractmethod
    def summarise(self, tested: Any) -> dict[str, Any]:
        """The task's own part of ``results.json``."""

    @abstractmethod
    def tables(self, tested: Any) -> Iterable[Table]:
        """``cases.csv``, and other tables."""

    @abstractmethod
    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Any) -> None:
        """The report."""

    @abstractmethod
    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """The results in a sentence or two, for the screen."""

    def others_files(self, tested: Any, own: Mapping[str, Any]) -> Iterable[str]:
        """Write what programs of others read; sentences about it. ``own``: what `summarise` said."""
        return []

    def one_source(self) -> str:
        """The source, where only one is taken."""
        if len(self.options.source) > 1:
            raise InputError(
                f"{len(self.options.source)} sources were given, and a run of {self.head.task} is evaluated on one set "
                "at a time."
            )
        return self.options.source[0]

    def check_options(self, **given: Any) -> None:
        """Raise InputError for options that say nothing to this task."""
        for name, value in given.items():
            if value:
                raise InputError(
                    f"--{name.replace('_', '-')}: says nothing to a run of {self.head.task}. Leave it out."
                )


def check_known(text: str, found: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError where a set has classes that a head does not know."""
    strange = [name for name in found if name not in known]
    if strange:
        raise InputError(
            f"{text}: has the {'class' if len(strange) == 1 else 'classes'} {', '.join(map(repr, strange[:8]))}, which "
            f"the head does not know. It tells apart {', '.join(map(repr, known[:20]))}. Give a set of these classes, "
            "or name them alike."
        )
