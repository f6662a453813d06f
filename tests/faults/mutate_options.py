"""Command lines with wrong values in them: every verb, each of its options. Run it for as many lines as you like.

    python -m tests.faults.mutate_options --count 600 --seed 1

Each line is a short run that is right, with one to three options set to something else, drawn from the seed. All are
run in one process. A traceback, an exception that nobody foresaw, another exit code than 0, 1 and 2, more than
`SECONDS` of a processor or `WAITING` in all, more than `MEMORY` on top of what the process had, a connection, or a
write outside the folder and what the line names is a failure; such writes and connections are not let through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).parents[1] / "making"))

import numpy as np

from faults_helpers import ENCODER, PRETRAIN, write_classes, write_images, write_labelled
from frepa import cli
from frepa.options import Option, groups

STUDY = f"""
encoders: {{one: '{ENCODER}'}}
tasks: {{classes: {{classify: classes, image_size: 32}}}}
resamples: 50
"""
ABLATION = f"""
pretrain:
  source: scans
  options: {{encoder: 'timm:test_vit', image_size: 32, batch_size: 2, max_steps: 1}}
  rows: {{default: {{}}}}
{STUDY}"""
SECONDS = 60
# On a machine that is busy with other things a line waits longer than it works.
WAITING = 600
MEMORY = 2 * 2**30
_NUMBERS = ("-1", "0", "1", "2", "3", "7", "1000000", "2147483648", "9223372036854775808", "1" + "0" * 30, "1.5", "x",
            "nan", ".nan", "inf", ".inf", "-inf", "1e3", "1e300", "1e-300", "0.5", "0x10", "١", " 1 ", "-0",
            "[1]", "null", "true", "1,2", "")  # fmt: skip
_FLAGS = ("true", "false", "maybe", "1", "null", "")
# fmt: off
_TEXTS = (
    *("", ".", "..", "no/such", "x" * 300, "x" * 5000, "a\0b", "\udcff", "=1+1", "-x", "--y", "$HOME", "~", "~nobody"),
    *("*", "**", "[", "{", "a,b", "a=b", ":", "::", "a:b:c", "@", "#", "?", "null", "[1]", "{a: 1}", "%s%n{0}", "日本"),
    *("a\nb", "\x1b[31m", "1", "1,1,1", "CT=1", "CT=nan", "0,1", "lung", "frangi:9-x", "json:loads"),
    *("timm:", "timm:nothing", "timm:x@y", "slices:", "hf:", "hf:.", "random:", "random:timm:", "drive:.", "luna16:no"),
    *("random:timm:test_vit,patch_size=0", "random:timm:test_vit,x=1", "/", "/dev/null", "/proc/x", "/etc/passwd"),
    *("scans", "scans/00.png", "classes", "labelled", "run", "m.csv", "c.yaml", "link"),
)
# fmt: on
# What would be done for minutes, elsewhere or by other processes is not what is tried here.
_NOT = {
    ("devices", "2"),
    ("devices", "1,2"),
    ("num_workers", "1000000"),
    ("max_steps", "1000000"),
    ("seeds", "1e3"),
    ("source", "/"),
}


@dataclass
class Watch:
    """Sees, and does not let through, what a line must not do; on while ``roots`` are set."""

    roots: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)
    installed: bool = False

    def install(self) -> None:
        if not self.installed:
            self.installed = True
            sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.roots:
            return
        if event == "socket.connect" and not isinstance(arguments[1], str | bytes):  # those of this machine's processes
            self.seen.append(f"connects to {arguments[1]}")
            raise OSError(101, "Network is unreachable")
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if flags else mode and set(str(mode)) & set("wax+")
            if writes:
                self._check(path)
        elif (
            event
            in (
                "os.mkdir",
                "os.remove",
                "os.rmdir",
                "os.rename",
                "os.link",
                "os.symlink",
                "os.truncate",
                "os.chmod",
            )
            or event == "shutil.rmtree"
        ):
            self._check(arguments[0])

    def _check(self, path: Any) -> None:
        if isinstance(path, int):
            return
        absolute = os.path.abspath(os.fsdecode(path))
        if absolute == "/dev/null" or absolute.startswith((*self.roots, "/dev/shm/", "/proc/self/", "/dev/pts")):
            return
        if not any(absolute == name or absolute.startswith(name.rstrip("/") + "/") for name in self.named):
            self.seen.append(f"writes {absolute}")
        raise PermissionError(13, "Permission denied", absolute)


WATCH = Watch()


@dataclass(frozen=True)
class Outcome:
    """What one line gave: exit code, seconds of a processor, bytes more than before, errors, what it must not do."""

    words: tuple[str, ...]
    code: int | str
    seconds: float
    memory: int
    errors: str
    seen: tuple[str, ...]

    def wrong(self) -> str:
        """What breaks the promise, or ""."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if "Traceback" in self.errors or "does not know how to handle" in self.errors or " object at 0x" in self.errors:
            return self.errors[-600:]
        if self.code and not self.errors.strip():
            return f"exit code {self.code} without a word"
        if self.seconds > SECONDS:
            return f"{self.seconds:.0f} s"
        if self.memory > MEMORY:
            return f"{self.memory / 2**20:.0f} MB"
        if set(self.errors.replace("\r", "")) & {chr(code) for code in (*range(9), *range(11, 32), 127)}:
            return "control characters on the terminal"
        return "; ".join(self.seen)


def prepared(folder: Path) -> dict[str, list[str]]:
    """Small sets in ``folder``, and a right and short line of every command, to be run in it."""
    write_images(folder / "scans", count=6)
    write_labelled(folder / "labelled", count=6)
    write_classes(folder / "classes", count=4)
    (folder / "m.csv").write_text("path,label\n" + "".join(f"scans/{n:02}.png,{'ab'[n % 2]}\n" for n in range(6)))
    (folder / "c.yaml").write_text("seed: 3\nquiet: true\n")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "ablation.yaml").write_text(ABLATION)
    (folder / "link").symlink_to("link")
    head = [f"--encoder={ENCODER}", "--max-steps=1", "--num-workers=0", "--quiet", "--out=out"]
    read = ["--num-workers=0", "--quiet", "--out=out"]
    lines = {
        "pretrain": ["scans", *PRETRAIN, "--max-steps=1", "--num-workers=0", "--out=out"],
        "check": ["scans", *read],
        "prepare": ["scans", *read],
        "classify": ["classes", *head, "--head=linear", "--image-size=32", "--no-augment"],
        "segment": ["labelled", *head, "--head=linear", "--crop-size=32"],
        "detect": ["labelled", *head, "--crop-size=32"],
        "predict": ["run", "scans", *read],
        "analyze": ["frequencies", "scans", f"--encoder={ENCODER}", "--crop-size=16", "--images=4", *read],
        "embed": ["scans", f"--encoder={ENCODER}", "--image-size=32", *read],
        "evaluate": ["run", "classes", *read],
        "export": [ENCODER, "--to=timm", "--out=out"],
        "compare": ["study.yaml", *read],
        "ablate": ["ablation.yaml", *read],
        "datasets list": [],
        "datasets show": ["drive"],
        "datasets verify": ["drive", "scans"],
        "datasets fetch": ["drive", "--out=out"],
        "demo": ["--out=out", "--quiet"],
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), inside(folder):
        assert cli.main(["classify", *lines["classify"][:-2], "--out=run", "--image-size=32"]) == 0
    return {command: lines[command] for command in cli.COMMANDS if command in lines}


def lines(right: dict[str, list[str]], count: int, seed: int) -> Iterator[list[str]]:
    """``count`` lines: commands in turn, and of each command its options in turn, so that none is left out for long."""
    rng = np.random.default_rng(seed)
    turns: Counter[str] = Counter()
    commands = list(right)
    # The more options a command has, the more often its turn comes
    known = {command: _options(command) for command in commands}
    order = [command for command in commands for _ in range(1 + len(known[command]) // 8)]
    for number in range(count):
        command = order[number % len(order)]
        words, options = list(right[command]), known[command]
        first = turns[command] % max(1, len(options))
        turns[command] += 1
        picked = [first, *rng.integers(0, max(1, len(options)), int(rng.integers(0, 3)))] if options else []
        for place in dict.fromkeys(int(p) for p in picked):
            _change(words, options[place], rng)
        act = rng.random()
        if act < 0.06 and words:
            words.pop(int(rng.integers(len(words))))
        elif act < 0.10:
            words.insert(
                int(rng.integers(len(words) + 1)), str(rng.choice(["--nothing=1", "more", "-z", "--", "--config"]))
            )
        elif act < 0.14:
            words.append(f"--config={rng.choice(_TEXTS)}")
        yield [*command.split(), *words]


def _options(command: str) -> list[Option]:
    verb = cli.load_verb(command)
    return [option for group in groups(verb) for option in group.options]


def _change(words: list[str], option: Option, rng: np.random.Generator) -> None:
    """Set an option, or a positional argument, to a value that is drawn."""
    value = str(rng.choice(_values(option)))
    if (option.name, value) in _NOT:
        value = "x"
    if option.positional:
        places = [place for place, word in enumerate(words) if not word.startswith("--")]
        if places:
            words[places[0]] = value
        return
    spelled = f"--{option.name.replace('_', '-')}"
    words[:] = [word for word in words if word.partition("=")[0] not in (spelled, f"--no-{spelled[2:]}")]
    bare = option.hint is bool and rng.random() < 0.5
    words.append(spelled if bare else f"{spelled}={value}")


def _values(option: Option) -> list[str]:
    values: list[str] = []
    for kind in (
        get_args(option.hint) if get_origin(option.hint) is not Literal and get_args(option.hint) else [option.hint]
    ):
        if get_origin(kind) is Literal:
            choices = [str(choice) for choice in get_args(kind)]
            values += [*choices, choices[0].upper(), choices[-1] + "x", ""]
        elif kind in (int, float):
            values += _NUMBERS
        elif kind is bool:
            values += _FLAGS
        elif kind is not type(None):
            values += _TEXTS
    return values


def run_line(words: list[str], folder: Path) -> Outcome:
    """Run a line in ``folder``, which it may write, with little memory and time."""
    for name in ("out", "more"):
        shutil.rmtree(folder / name, ignore_errors=True)
    WATCH.install()
    out, errors = io.StringIO(), io.StringIO()
    before, old = _kilobytes("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_kilobytes("VmSize") * 1024 + 2 * MEMORY, old[1]))
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    start = time.process_time()
    alarms = {number: signal.signal(number, _too_long) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    code: int | str
    try:
        with inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            named = {
                os.path.abspath(text) for word in words for text in {word, word.partition("=")[2]} if _is_path(text)
            }
            WATCH.roots, WATCH.named, WATCH.seen = (str(folder) + "/",), tuple(named), []
            code = cli.main(words)
    except SystemExit as end:
        code = f"SystemExit {end.code}"
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in alarms.items():
            signal.signal(number, handler)
        WATCH.roots = ()
        resource.setrlimit(resource.RLIMIT_AS, old)
    seconds = time.process_time() - start
    seen = [text for text in WATCH.seen if not (words[:2] == ["datasets", "fetch"] and text.startswith("connects"))]
    memory = (_kilobytes("VmHWM") - before) * 1024
    return Outcome(tuple(words), code, seconds, memory, errors.getvalue(), tuple(seen))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With ``folder`` as the current one."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _is_path(text: str) -> bool:
    return bool(text) and "\0" not in text


class TooLong(BaseException):
    """A line took more than `SECONDS`, or `WAITING`."""


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


def _kilobytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def run(folder: Path, count: int, seed: int) -> list[Outcome]:
    """Make and run ``count`` lines in ``folder``; of the demo no more than what stands before its minutes of work."""
    from frepa.verbs import _demo

    kept = os.environ.copy()
    original = _demo._run
    os.environ |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    tempfile.tempdir = None
    _demo._run = lambda *args, **kwargs: None
    try:
        right = prepared(folder)
        return [run_line(words, folder) for words in lines(right, count, seed)]
    finally:
        _demo._run = original
        tempfile.tempdir = None
        os.environ.clear()
        os.environ.update(kept)


def summary(outcomes: list[Outcome]) -> str:
    """The figures in a line."""
    codes = Counter(outcome.code for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.memory)
    wrong = sum(bool(outcome.wrong()) for outcome in outcomes)
    return (
        f"{len(outcomes)} lines: {codes[0]} done, {codes[2]} refused, {codes[1]} ended with a sentence, {wrong} wrong; "
        f"slowest {slowest.seconds:.1f} s ({slowest.words[0]}), most memory {largest.memory / 2**20:.0f} MB "
        f"({largest.words[0]})"
    )


def shown(outcome: Outcome) -> str:
    """A line that went wrong, and how, for a terminal."""
    text = f"{' '.join(word[:80] for word in outcome.words)}\n    {outcome.wrong()}"
    return re.sub(r"[^\n -~]", "?", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(Path(folder).resolve(), options.count, options.seed)
    for outcome in outcomes:
        if outcome.wrong():
            print(shown(outcome))
    print(summary(outcomes))
    return int(any(outcome.wrong() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
