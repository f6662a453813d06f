"""What a task supplies to a run, and what a run tells it: the contract between `run.py` and the folder of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch

from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.head_files import WEIGHTS, load_weights
from frepa.downstream.options import TaskOptions
from frepa.downstream.page import RunPage
from frepa.downstream.resuming import HeadState
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped

#: Wraps an iteration over so many items, for a progress bar.
Progress = Callable[[Iterable, int], Iterable]


class TaskData(Protocol):
    """A labelled set that is divided into parts.

    ``left_out``: images that cannot be read, with the reason. ``shared``: the test part shares patients or stacks with
    the others, being divided by slices or blocks.
    """

    @property
    def left_out(self) -> Sequence[Skipped]: ...

    @property
    def shared(self) -> bool: ...

    def folds(self: Data, count: int, seed: int) -> list[Data]:
        """``count`` divisions in which every group is tested once."""
        ...

    def without(self: Data, unreadable: dict[int, Skipped]) -> Data:
        """The same without the images that turned out to be unreadable, keyed by record."""
        ...

    def under(self: Data, names: Names) -> Data:
        """The same with what stands for names of files."""
        ...


Data = TypeVar("Data", bound=TaskData)
Model = TypeVar("Model", bound=HeadOnFrozen)
Result = TypeVar("Result", bound="Tested[Any, Any]")


@dataclass(frozen=True)
class Round:
    """One head of a run.

    Attributes:
        fold: what it is tested on, from 1 on; None where there is one split.
        seed: what it is trained with.
        repeated: the run trains with several seeds.
    """

    fold: int | None
    seed: int
    repeated: bool = False

    @property
    def marks(self) -> dict[str, int]:
        """What tells it from the other heads of its run; empty where it is the only one."""
        marks = {} if self.fold is None else {"fold": self.fold}
        return marks | {"seed": self.seed} if self.repeated else marks

    @property
    def kept(self) -> dict[str, Any]:
        """Fold and seed, whether there are others or not."""
        return {"fold": self.fold, "seed": self.seed}

    @property
    def words(self) -> str:
        """``fold 2, seed 1``; empty where it is the only one."""
        return ", ".join(f"{name} {number}" for name, number in self.marks.items())

    def folder(self, root: Path) -> Path:
        """Where its head is written: the run folder itself, or one below ``folds/`` or ``seeds/`` of it."""
        for name, number in self.marks.items():
            root = root / f"{name}s" / str(number)
        return root


@dataclass(frozen=True)
class Place:
    """Where a head is trained and tested.

    Attributes:
        root: the run folder.
        folder: the head's own folder in it.
        metrics: JSON lines of all heads.
        reference: to the encoder.
        states: where the state of its training is kept.
    """

    root: Path
    folder: Path
    metrics: Path
    reference: EncoderReference
    states: HeadState | None = None


def found_in(tested: Tested[Any, Any]) -> dict[str, Any]:
    """What a tested head adds to what its run knows already: the part that has to be kept for a run to be continued."""
    known = ("round", "place", "data", "model")
    values = {f.name: getattr(tested, f.name) for f in fields(tested) if f.name not in known}
    return {"of": type(tested), "values": values, "settings": tested.model.settings}


def tested_again(found: Mapping[str, Any], round: Round, place: Place, data: Any, model: Any) -> Any:
    """The tested head of which `found_in` told."""
    model.settings = found["settings"]
    return found["of"](round=round, place=place, data=data, model=model, **found["values"])


@dataclass(frozen=True)
class Untrained:
    """What stands for a training where a head was trained before, and is applied as it is."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tested(Generic[Data, Model]):
    """One trained head on its test part; a task adds what it found.

    ``training`` is a dataclass: what came of the training. ``unreadable`` images, by record, were met on the way.
    """

    round: Round
    place: Place
    data: Data
    model: Model
    training: Any
    unreadable: Mapping[int, Skipped] = field(default_factory=dict, kw_only=True)

    def restored(self) -> Model:
        """The model as it was tested; the trained blocks of an encoder are shared by all heads of a run."""
        load_weights(self.place.folder / WEIGHTS, self.model.encoder, self.model.head)
        return self.model


class Prepared(NamedTuple):
    """What `Task.prepare` found: images that proved unreadable, by record, and sentences for the user."""

    unreadable: dict[int, Skipped]
    warnings: list[str]


#: First columns of ``cases.csv``: with them the cases of two runs are paired.
CASE_COLUMNS = ("case", "group", "fold", "seed")


@dataclass(frozen=True)
class Table:
    """A CSV file: its name in the run folder, its columns in order, its rows."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


def over_words(rounds: Sequence[Round]) -> str:
    """What a standard deviation over heads is over: ``5 folds (each the mean over 3 seeds)``."""
    folds, seeds = ({getattr(one, name) for one in rounds} for name in ("fold", "seed"))
    if rounds[0].fold is None:
        return f"{len(seeds)} seeds"
    return f"{len(folds)} folds" + (f" (each the mean over {len(seeds)} seeds)" if len(seeds) > 1 else "")


class Task(ABC, Generic[Data, Model, Result]):
    """A downstream task: data, model, training, test, scores and page. One object serves one run.

    Attributes:
        name: as heads and results are marked with it.
        options: of the verb.
    """

    name: ClassVar[str]
    #: The verb, which marks the folder.
    verb: ClassVar[str]
    #: What the data consist of, in the plural, for progress bars.
    unit: ClassVar[str]
    options: TaskOptions

    @abstractmethod
    def open(self, dims: int, progress: Progress) -> Data:
        """Find the images and what is known of them, divided as the options say.

        Raises:
            InputError: the source is not understood, or holds nothing for this task.
        """

    @abstractmethod
    def check(self, data: Data, where: str) -> list[str]:
        """Look at one division; sentences about what cannot be learnt or tested well. ``where`` names the fold.

        Raises:
            InputError: nothing can be learnt or tested.
        """

    @abstractmethod
    def build(self, encoder: Encoder, data: Data, seed: int, device: torch.device) -> Model:
        """Encoder and a fresh head on ``device``; the head's weights depend on the seed alone."""

    def prepare(self, models: Sequence[Model], data: Data) -> Prepared:
        """What is done once for all heads, before anything is written."""
        return Prepared({}, [])

    def close(self) -> None:
        """End what `prepare` began."""
        return None

    @abstractmethod
    def describe(self, divided: Sequence[Data]) -> Iterable[str]:
        """Sentences about the data, for the user to check before training."""

    @abstractmethod
    def plan_sentences(self, model: Model, data: Data) -> Iterable[str]:
        """Sentences about how images are shown to the encoder and how long is trained."""

    @abstractmethod
    def train_and_test(self, model: Model, data: Data, round: Round, place: Place) -> Result:
        """Train, save the head into ``place.folder``, and test it."""

    @abstractmethod
    def summarise(self, tested: Sequence[Result]) -> dict[str, Any]:
        """The task's own part of ``results.json``; ``definitions`` say what its scores are."""

    @abstractmethod
    def tables(self, tested: Sequence[Result]) -> Iterable[Table]:
        """``cases.csv``, a line per head and test case, and other tables."""

    @abstractmethod
    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[Result]) -> None:
        """Results, figures and data of the report."""

    @abstractmethod
    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """The results in a sentence or two, for the screen."""
