"""``--anonymous-names``: what stands for the names of files in all that a run writes and says.

Where a name is a cell of a table or the name of an output it is replaced as such (`HiddenNames.name`), after the source
was opened and divided, so that the results are those of the names. Sentences, which may quote any file of the source,
go through `HiddenNames.said`; so does all that is printed, and what an error says.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from frepa.errors import InputError
from frepa.images.anonymity import key_check, use_the_key
from frepa.images.places import split_place
from frepa.images.scan import Skipped
from frepa.images.source import Renamed, Source
from frepa.images.store.records import anonymous_id
from frepa.names import shortened, shown
from frepa.user_paths import cells_of, paths_in

#: Stands for the place of the source in sentences.
SOURCE = "SOURCE"
_WORD = re.compile(r"\w+")
_LEAST = 4  # letters of a name without ending that sentences are searched for: shorter ones are ordinary words

_Value = TypeVar("_Value")


class Names:
    """Names of files, shown as they are."""

    hidden = False

    def name(self, name: str) -> str:
        """What stands for the name of a record within its source."""
        return name

    def place(self, text: str) -> str:
        """What stands for a source as the user named it."""
        return text

    def said(self, text: str) -> str:
        """A sentence as it may be read by others."""
        return text

    def tree(self, value: _Value) -> _Value:
        """Nested mappings and lists with every sentence in them as `said`; keys stay."""
        return value

    def skipped(self, entry: Skipped) -> Skipped:
        """An entry of a list of what could not be used."""
        return replace(entry, path=self.name(entry.path), reason=self.said(entry.reason))

    def source(self, source: Source) -> Source:
        """The same records under other names."""
        return source

    def key(self, found: str | None) -> str | None:
        """What tells the key that names are hashed under from others; None where they are not.

        Args:
            found: what a run says that is to be continued; None where it says nothing.

        Raises:
            InputError: that is another.
        """
        return None

    def learn(self, source: Source) -> None:
        """Know the names of a source that was opened."""

    def learn_folders(self, folders: Iterable[str]) -> None:
        """Know names of folders too, by their places within the source."""


class HiddenNames(Names):
    """Keyed hashes instead of names, the same that records have in stores: equal for the same name and owner.

    Args:
        texts: the sources as the user named them; the files below them are what sentences are searched for.
        keep: places that stay as they are, such as the folder that is written.
    """

    hidden = True

    def __init__(self, texts: Iterable[str | None], keep: Iterable[str | None] = ()) -> None:
        self._keep = sorted({text for text in keep if text}, key=len, reverse=True)
        self._texts = [text for text in texts if text]
        self._sources: list[Source] = []
        self._folders: set[str] = set()
        self._places: list[str] = []
        self._names: dict[str, str] = {}  # as it may stand in a sentence, and the record it belongs to
        self._by_word: dict[str, list[str]] = {}
        self._known = False

    def name(self, name: str) -> str:
        """16 hexadecimal digits."""
        return anonymous_id(name)

    def place(self, text: str) -> str:
        """`SOURCE`, also for a word that sentences may use."""
        return SOURCE

    def source(self, source: Source) -> Source:
        """Its records by their hashes; what an error calls it is `SOURCE`."""
        return Renamed(source, self.name, SOURCE)

    def key(self, found: str | None) -> str | None:
        """8 hexadecimal digits."""
        if found not in (None, key_check()):
            raise InputError(
                "--resume: the run was begun under another secret key, so that the same file would go by two names in "
                f"it. {use_the_key()}, or start again with --overwrite."
            )
        return key_check()

    def learn(self, source: Source) -> None:
        """Read its names when the first sentence needs them."""
        if not any(source is one for one in self._sources):
            self._sources.append(source)
            self._known = False

    def learn_folders(self, folders: Iterable[str]) -> None:
        """Not done unasked: folders are mostly classes or parts, whose names are words of many sentences."""
        self._folders.update(folders)
        self._known = False

    def said(self, text: str) -> str:
        """The sentence with hashes for the names of files, and `SOURCE` for the folders they are in."""
        if not any(map(str.isalnum, text)):
            return text
        self._look()
        for kept in self._keep:
            if kept in text:
                return kept.join(map(self.said, text.split(kept)))
        for place in self._places:
            if os.sep in place:
                if place in text:
                    text = re.sub(rf"{re.escape(place)}(?!\w)", SOURCE, text.replace(place + os.sep, ""))
            else:  # may be any word: where sentences begin with it, and quoted
                text = re.sub(rf"(^|: |['\"]){re.escape(place)}(?=[:/'\"])", rf"\1{SOURCE}", text)
        words = {"", *_WORD.findall(text)}
        found = [known for word in words for known in self._by_word.get(word, ()) if known in text]
        for known in sorted(set(found), key=len, reverse=True):
            before, after = (r"\b" if re.match(r"\w", end) else "" for end in (known[0], known[-1]))
            text = re.sub(before + re.escape(known) + after, self.name(self._names[known]), text)
        return text

    def tree(self, value: _Value) -> _Value:
        """See `Names.tree`; named tuples, which hold scores, stay."""
        found: Any = value
        if isinstance(value, str):
            found = self.said(value)
        elif isinstance(value, Mapping):
            found = {key: self.tree(item) for key, item in value.items()}
        elif isinstance(value, list):
            found = [self.tree(item) for item in value]
        elif type(value) is tuple:
            found = tuple(map(self.tree, cast(tuple[Any, ...], value)))
        return cast(_Value, found)

    def error(self, error: BaseException) -> None:
        """Let an error, and those it came from, say the same without names."""
        seen: set[int] = set()
        one: BaseException | None = error
        while one is not None and id(one) not in seen:
            seen.add(id(one))
            one.args = tuple(self.said(part) if isinstance(part, str) else part for part in one.args)
            for attribute in ("filename", "filename2", "path", "reason"):
                if isinstance(getattr(one, attribute, None), str | os.PathLike):
                    with contextlib.suppress(AttributeError):
                        setattr(one, attribute, self.said(os.fspath(getattr(one, attribute))))
            one = one.__cause__ or one.__context__

    def _look(self) -> None:
        if self._known:
            return
        self._known = True
        for text in self._texts:
            self._add_place(text)
            for path in paths_in(text):
                if path.is_dir():
                    self._add_place(str(path))
                    self._add_all(os.path.relpath(file, path) for file in _files_below(path))
                else:
                    self._add_place(str(path.parent))
                    self._add_all([path.name, *(cell for cell in cells_of(path) if "." in cell or "/" in cell)])
        self._add_all(self._folders)
        for source in self._sources:
            if source.folder is not None:
                self._add_place(str(source.folder))
                self._add_all(source.name(index) for index in range(len(source)))
            self._add_all(entry.path for entry in [*source.skipped, *source.notes])
            if source.annotations is not None:
                for column in source.annotations.column_names:
                    if column == "case" or column.split("_")[0] == "mask":
                        self._add_all(source.annotations[column].drop_null().unique().to_pylist())
        self._places.sort(key=len, reverse=True)

    def _add_place(self, text: str) -> None:
        for place in (text, os.path.abspath(text), os.path.realpath(text)) if "\0" not in text else ():
            place = place.rstrip(os.sep)
            if place not in ("", ".", "..") and place not in self._places:
                self._places.append(place)

    def _add_all(self, names: Iterable[str]) -> None:
        for name in names:
            file = split_place(name).file
            base = PurePosixPath(file).name
            for text in (name, file, base, shortened(base)):
                if "." in text or len(text) >= _LEAST:
                    self._add(text, name)
            start = base.partition(".")[0]
            if len(start) >= _LEAST:  # quoted, since it may be a word as well as a name
                self._add(f"'{start}'", name)

    def _add(self, text: str, name: str) -> None:
        for form in {text, shown(text)}:
            if form not in self._names:
                self._names[form] = name
                self._by_word.setdefault(max(_WORD.findall(form), key=len, default=""), []).append(form)


@contextlib.contextmanager
def naming(hidden: bool, texts: Iterable[str | None], *, keep: Iterable[str | None] = ()) -> Iterator[Names]:
    """While inside, what is printed and raised names no file of the sources ``texts``, where names are ``hidden``.

    ``keep``: places that stay as they are, such as the folder that is written.
    """
    if not hidden:
        yield Names()
        return
    names = HiddenNames(texts, keep)
    out, err = (cast(Any, _Told(stream, names)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield names
        except BaseException as error:
            names.error(error)
            raise


class _Told:
    """A stream that is told sentences without names."""

    def __init__(self, stream: Any, names: HiddenNames) -> None:
        self._stream, self._names = stream, names

    def write(self, text: str) -> int:
        self._stream.write(self._names.said(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _files_below(folder: Path) -> Iterator[str]:
    for path, _, files in os.walk(folder):
        for file in files:
            yield os.path.join(path, file)
