"""The rule of --out: which folder may be written, who is writing in it, and what --overwrite removes.

A folder that a verb wrote carries a mark of its own, ``.frepa-run.jsonl``: the first line says what kind of run it is,
every further line names a file the run wrote, noted just before it is written. ``--overwrite`` removes these files and
nothing else. ``.frepa-lock`` is there while a process is at work and says which.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from frepa.errors import InputError, RunEnded
from frepa.files import announce, clean_temporaries, full_disk, full_words, listening, write_text
from frepa.locks import Lock
from frepa.user_paths import inputs_near, named_folder

MARK, LOCK, CONFIG = ".frepa-run.jsonl", ".frepa-lock", "config.yaml"
FORMAT, VERSION = "frepa-run", 1
_SHOWN = 10


class OutFolder:
    """A folder while a verb writes in it; made by :func:`out_folder`.

    Attributes:
        root: where it is.
        kind: the verb.
        resumed: the folder held a run, and it is continued.
    """

    def __init__(
        self, root: Path, kind: str, mark: Mark | None, *, resumed: bool, key: str | None, tell: Callable[[str], None]
    ) -> None:
        self.root, self.kind, self.resumed = root, kind, resumed
        self._mark, self._key, self._tell = mark, key, tell
        self._lock = threading.Lock()
        self.started = resumed and mark is not None

    def start(self, config: Mapping[str, Any] | None = None) -> None:
        """Remove what an earlier run wrote, unless it is continued, set the mark, and write ``config.yaml``."""
        if not self.resumed:
            if self._mark is not None:
                self._replace(self._mark)
            self._mark = Mark(self.kind, key=self._key)
            self._mark.write(self.root)
        elif self._mark is None:  # from before there were marks
            self._mark = Mark(self.kind, adopted=True)
            self._mark.write(self.root)
        for folder in {self.root, *(self.root / name for name in self._mark.folders())}:
            clean_temporaries(folder)
        self.started = True
        if config is not None:
            write_text(self.root / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def note(self, absolute: str, made: bool = False) -> None:
        """Add a file to the list of what the run wrote, before it is written (or just after, where it was ``made``).

        Raises:
            InputError: there is a file of this name, and it is none of this run's.
        """
        name = os.path.relpath(absolute, os.path.abspath(self.root)).replace(os.sep, "/")
        with self._lock:
            if not self.started or self._mark is None or name in (MARK, LOCK) or name in self._mark.names:
                return
            here = os.path.lexists(absolute) and not os.path.isdir(absolute)
            if here and not made and not self._mark.adopted:
                raise InputError(
                    f"{absolute} is in the way: it was not written by this run, and it will not be touched. Move it "
                    "elsewhere, then go on."
                )
            self._mark.add(self.root, name + "/" * os.path.isdir(absolute))

    def _replace(self, mark: Mark) -> None:
        kept = remove_written(self.root, mark)
        if kept:
            names = ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")
            self._tell(f"{self.root} also holds what no run wrote, and it stays: {names}.")


@contextlib.contextmanager
def out_folder(
    out: str | Path,
    kind: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    can_resume: bool = False,
    inputs: Mapping[str, Any] | None = None,
    key: Callable[[str | None], str | None] = lambda _: None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[OutFolder]:
    """The folder ``out`` names, checked and locked; nothing in it changes before :meth:`OutFolder.start`.

    Args:
        out: the folder; it is made where there is none, and taken away again where nothing was written.
        kind: the verb; a run of another verb is never replaced.
        overwrite: what an earlier run wrote may be removed.
        resume: an earlier run may be continued; there need not be one.
        can_resume: the verb has ``--resume``, to be named in messages.
        inputs: what the run reads, by the option that names it: texts as the user gave them, or lists of such.
        key: what names in the run are hashed under, as the mark says it. Given what a run says that is continued, it
            raises InputError where that is another.
        tell: called with sentences for the user; by default they go to the standard error output.

    Raises:
        InputError: the folder is something else, holds a run, is in use, or holds what the run reads.
        RunEnded: the disk is full; the sentence says how to go on.
    """
    root = named_folder(out)
    mark = check_out(root, kind, overwrite=overwrite, resume=resume, can_resume=can_resume, inputs=inputs)
    made = _make(root)
    try:
        with _plain_words(root, overwrite, can_resume), Lock(root / LOCK, f"--out {root}"):
            # Looked at again under the lock: another process may just have begun here.
            mark = check_out(root, kind, overwrite=overwrite, resume=resume, can_resume=can_resume, inputs=inputs)
            resumed = resume and (mark is not None or (root / CONFIG).is_file())
            known = key(mark.key if resumed and mark is not None else None)
            folder = OutFolder(root, kind, mark, resumed=resumed, key=known, tell=tell or _tell)
            announce(root)  # to a run around this one
            with listening(root, folder.note):
                yield folder
    finally:
        for path in made:  # the innermost first, and only while empty
            with contextlib.suppress(OSError):
                path.rmdir()


def check_out(
    root: Path,
    kind: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    can_resume: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> Mark | None:
    """Whether ``root`` is free or may be replaced or continued; its mark where it has one. Nothing is changed.

    Raises:
        InputError: it may not; the sentence says why and what to do.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: give one of them.")
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root}: this is a file. Name a folder.")
    if not root.is_dir() or not any(entry for entry in os.listdir(root) if entry != LOCK):
        return None
    mark = Mark.read(root)
    if mark is None:
        if resume and (root / CONFIG).is_file():
            return None
        if (root / CONFIG).is_file():
            raise InputError(
                f"--out {root}: the folder holds a {CONFIG} but no list of what a run wrote ({MARK}), as runs of older "
                "versions do, and so nothing in it will be removed. "
                + (f"{'Leave --overwrite out and a' if overwrite else 'A'}dd --resume to continue it, d" * can_resume)
                + ("D" * (not can_resume))
                + "elete the folder yourself, or name another one."
            )
        raise InputError(
            f"--out {root}: the folder holds files but no list of what a run wrote ({MARK}), so it is not a run of "
            "this program and nothing in it will be touched. Name another folder."
        )
    if mark.kind != kind:
        raise InputError(
            f"--out {root}: the folder holds a run of frepa {mark.kind}, and nothing in it will be touched. Name "
            "another folder."
        )
    if not resume and not overwrite:
        raise InputError(
            f"--out {root}: a run is there already. Add "
            + ("--resume to continue it, " * can_resume)
            + "--overwrite to replace it, or name another folder."
        )
    if overwrite and mark.adopted:
        raise InputError(
            f"--out {root}: the run was begun by an older version, which kept no list of what it wrote, and so nothing "
            "in it will be removed. Delete the folder yourself, or name another one."
        )
    if overwrite:
        check_inputs(root, inputs or {})
    return mark


def check_inputs(root: Path, inputs: Mapping[str, Any]) -> None:
    """Refuse to replace a folder that what is read lies in, at or around.

    Raises:
        InputError: names the option and where it lies.
    """
    for name, given in inputs.items():
        for text in given if isinstance(given, list | tuple) else [given]:
            for where, path in inputs_near(root, text):
                raise InputError(
                    f"--out {root}: {name} ({path}) lies {where} the folder to be replaced, and nothing will be "
                    "removed. Name another folder."
                )


class Mark:
    """What ``.frepa-run.jsonl`` says: the kind of run, and the files it wrote, relative to the folder.

    A name that ends with a slash is a folder with a mark of its own. ``adopted`` runs were begun before there were
    marks, and the list is not whole. ``key`` tells apart the keys that names of files are hashed under, where they are.
    """

    def __init__(self, kind: str, names: Iterable[str] = (), *, adopted: bool = False, key: str | None = None) -> None:
        self.kind, self.adopted, self.key = kind, adopted, key
        self.names = set(names)

    @classmethod
    def read(cls, root: Path) -> Mark | None:
        """The mark in ``root``; None where there is none.

        Raises:
            InputError: it is of a newer version, or damaged.
        """
        try:
            lines = (root / MARK).read_text("utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{root / MARK} cannot be read ({error}). Name another folder.") from None
        try:
            head = json.loads(lines[0])
            # The last line may be cut short by a kill, and then its file was not begun.
            names = [json.loads(line) for line in lines[1:] if line.endswith("\n")]
            if head["format"] != FORMAT or not all(isinstance(name, str) for name in names):
                raise ValueError("not a mark")
            version, kind = int(head["version"]), str(head["kind"])
            if version < 1:
                raise ValueError("no version of a mark")
        except (ValueError, KeyError, TypeError, IndexError):
            raise InputError(
                f"--out {root}: {MARK} in it is damaged, so nobody knows what a run wrote there, and nothing in it "
                "will be touched. Name another folder."
            ) from None
        if version > VERSION:
            raise InputError(
                f"--out {root}: the run there was written by a newer frepa (version {version} of its mark, and this "
                f"one reads {VERSION}). Install that one, or name another folder."
            )
        key = head.get("key")
        return cls(kind, names, adopted=bool(head.get("adopted")), key=key if isinstance(key, str) else None)

    def write(self, root: Path) -> None:
        """Write the mark anew."""
        head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": self.kind}
        if self.adopted:
            head["adopted"] = True
        if self.key is not None:
            head["key"] = self.key
        write_text(root / MARK, "".join(json.dumps(line) + "\n" for line in [head, *sorted(self.names)]))

    def add(self, root: Path, name: str) -> None:
        """Note one more file."""
        handle = os.open(root / MARK, os.O_WRONLY | os.O_APPEND)
        try:
            line = (json.dumps(name) + "\n").encode()
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)
        self.names.add(name)

    def folders(self) -> set[str]:
        """Folders below the root that files of the list lie in, inner ones first to be found by length."""
        return {
            parent.as_posix()
            for name in self.names
            if not name.endswith("/") and _is_below(name)
            for parent in Path(name).parents
            if parent.as_posix() != "."
        }


def remove_written(root: Path, mark: Mark) -> list[str]:
    """Remove the files of a mark's list, then folders that are empty; returns what is left, sorted.

    Links are removed, never followed; a name that leads out of the folder is left alone. The mark itself stays, so that
    a kill in between changes nothing of the rule.
    """
    real = os.path.realpath(root)
    for name in sorted(mark.names):
        path = root / name
        if not _is_below(name) or not (os.path.realpath(path.parent) + os.sep).startswith(real + os.sep):
            continue
        if name.endswith("/"):
            inner = None if path.is_symlink() else Mark.read(path)
            if inner is not None and not remove_written(path, inner):
                for own in (MARK, LOCK):
                    with contextlib.suppress(FileNotFoundError):
                        (path / own).unlink()
                with contextlib.suppress(OSError):
                    path.rmdir()
        elif path.is_symlink() or path.is_file():
            path.unlink()
    for folder in sorted(mark.folders(), key=len, reverse=True):
        clean_temporaries(root / folder)
        with contextlib.suppress(OSError):  # not empty, or not there
            if not (root / folder).is_symlink():
                (root / folder).rmdir()
    clean_temporaries(root)
    return sorted(entry for entry in os.listdir(root) if entry not in (MARK, LOCK))


def check_same_options(config: Path, options: Mapping[str, Any], may_change: Iterable[str]) -> None:
    """Refuse to continue a run that was started with other options.

    Args:
        config: the ``config.yaml`` of the run.
        options: as given now.
        may_change: options that do not decide the result.

    Raises:
        InputError: names each option that differs, with both values.
    """
    if not config.exists():  # killed before it was written: nothing was begun
        return
    try:
        stored = yaml.safe_load(config.read_text("utf-8")) or {}
        if not isinstance(stored, dict):
            raise ValueError("not a list of options")
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(
            f"--resume: {config} is damaged, so nobody knows what the run was started with. Start a new run."
        ) from None
    free, stored, options = set(may_change), _flat(stored), _flat(options)
    changed = [
        f"  {name}: was {stored.get(name)!r}, now {value!r}"
        for name, value in options.items()
        if name not in free and stored.get(name) != value and not (name not in stored and _off(value))
    ]
    if changed:
        raise InputError(
            f"--resume: {config.parent} was started with other options, and its result would fit neither:\n"
            + "\n".join(changed)
            + f"\nGive the same options again (--config {config} holds them), or start a new run."
        )


def _off(value: Any) -> bool:
    """Whether an option that a run was begun without knowing of leaves everything as it was."""
    return value is None or value is False


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"method": {"mask_ratio": 0.7}}`` as ``{"method.mask_ratio": 0.7}``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


@contextlib.contextmanager
def _plain_words(root: Path, overwrite: bool, can_resume: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if full_disk(error):
            with contextlib.suppress(OSError):
                elsewhere = error.filename and not _is_inside(error.filename, root)
                place = Path(os.path.dirname(os.path.abspath(error.filename))) if elsewhere else root
                what, remedy = full_words(error, place)
                if can_resume:
                    how = "with --resume" + " instead of --overwrite" * overwrite
                else:
                    how = "again" if overwrite or not (root / MARK).exists() else "with --overwrite"
                raise RunEnded(
                    f"{what}. What was saved before is as it was. {remedy} and give the same command {how}."
                ) from None
        if not _is_inside(error.filename, root):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"--out {root}: it cannot be written there ({error.strerror}). Name another folder."
            ) from None
        if error.errno == errno.ENOENT and not os.path.lexists(os.path.dirname(error.filename)):
            raise RunEnded(
                f"--out {root}: a folder in which this run was writing was removed or renamed meanwhile "
                f"({os.path.dirname(error.filename)}). What was in it is gone; give the command again."
            ) from None
        raise


def _is_inside(name: Any, root: Path) -> bool:
    return isinstance(name, str | os.PathLike) and os.path.abspath(name).startswith(os.path.abspath(root))


def _make(root: Path) -> list[Path]:
    """Make the folder; returns what had to be made, the innermost first."""
    missing = []
    for path in (root, *root.parents):
        if path.exists():
            break
        missing.append(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"--out {root}: it cannot be written there ({reason}). Name another folder.") from None
    return missing


def _is_below(name: str) -> bool:
    parts = name.split("/")
    return not os.path.isabs(name) and ".." not in parts and parts[0] != ""


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
