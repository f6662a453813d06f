"""`frepa datasets`: the catalogue of public datasets: list, show, verify a copy, fetch the openly licensed ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from frepa.datasets.catalogue.entry import ACCESS, MODALITIES, ROLES, TASKS, Entry, load_entries, load_entry
from frepa.errors import InputError, nearest

# The paper's words for two modalities.
_ALIASES = {"retina": "fundus", "oct reconstruction": "OCT angiography", "mr": "MRI", "xray": "X-ray"}


def datasets_list(
    *,
    modality: str | None = None,
    role: str | None = None,
    task: str | None = None,
    access: str | None = None,
) -> str:
    """List the datasets of the catalogue: the 52 of the paper, and a few more that are useful beside them.

    Args:
        modality: only this one, such as CT, MRI, X-ray, ultrasound, OCT, fundus.
        role: only those the paper uses for pretraining, downstream or both (the first two include both); extra: those
            that are not in it.
        task: only those labelled for classification, segmentation or detection.
        access: only those one gets this way: open, registration, credentialed, in-house or unknown.

    Returns:
        A table with one line per dataset.
    """
    from frepa.datasets.catalogue.describe import list_text

    wanted = _modality(modality)
    roles = {"pretraining": ("pretraining", "both"), "downstream": ("downstream", "both")}.get(role or "", (role,))
    for option, value, known in (("--role", role, ROLES), ("--task", task, TASKS), ("--access", access, ACCESS)):
        _check(option, value, known)
    entries = [
        entry
        for entry in load_entries()
        if (wanted is None or entry.modality == wanted)
        and (role is None or entry.role in roles)
        and (task is None or task in entry.tasks)
        and (access is None or entry.access == access)
    ]
    return list_text(entries) if entries else "No dataset of the catalogue fits these filters."


def datasets_show(dataset: str) -> str:
    """Show what a dataset is, where to get it, its licence, its layout, its labels and what to mind.

    Args:
        dataset: its identifier, as in the list.

    Returns:
        A page of text.
    """
    from frepa.datasets.catalogue.describe import show_text

    return show_text(load_entry(dataset))


def datasets_verify(dataset: str, folder: str, *, strict: bool = False, anonymous_names: bool = False) -> str:
    """Verify a local copy: what was found against what a complete copy holds, what is missing, what is unexpected.

    A difference is reported and is no error. Numbers that are not verified are shown, and never held against a copy.

    Args:
        dataset: its identifier, as in the list.
        folder: where it was unpacked: its own top folder, or the one above.
        strict: end with an error when the copy differs from a complete one.
        anonymous_names: say keyed hashes instead of names of files, everywhere.

    Returns:
        The report as text.
    """
    from frepa.datasets.catalogue.verify import verify
    from frepa.images.hidden_names import naming

    with naming(anonymous_names, [folder]) as names:
        result = verify(load_entry(dataset), folder).under(names)
        if strict and not result.complete:
            print(result)
            raise InputError(
                f"The copy of {result.dataset} in {result.folder} differs from a complete one; see the report above."
            )
    return str(result)


def datasets_fetch(
    dataset: str,
    *,
    out: str,
    only: str | None = None,
    accept_licence: bool = False,
    base_url: str | None = None,
    keep_archive: bool = False,
    quiet: bool = False,
) -> Path:
    """Fetch an openly licensed dataset from its publisher, with checksums; a broken transfer is continued.

    This is the only command that uses the network.

    Args:
        dataset: its identifier, as in the list.
        out: folder the files go to.
        only: choose among several files, such as size=64 or task=Task04_Hippocampus; "all" is everything.
        accept_licence: accept the dataset's licence without being asked.
        base_url: take the files from this address, a mirror of yours; the same checksums apply.
        keep_archive: keep an archive after it was unpacked.
        quiet: no progress bar.

    Returns:
        The folder.
    """
    from frepa.datasets.catalogue.fetch import chosen_downloads, fetch_one

    entry = load_entry(dataset)
    downloads = chosen_downloads(entry, _only(only))
    _accept(entry, accept_licence)
    for download in downloads:
        with _Bar(quiet) as bar:
            written = fetch_one(
                download,
                Path(out),
                base_url=base_url,
                keep_archive=keep_archive,
                progress=None if quiet else bar.update,
            )
        if not quiet:
            print(f"{written} is there, its checksum is right.", file=sys.stderr)
    return Path(out)


def _only(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split("&") if part]
    for name, equals, _ in pairs:
        if not equals and name != "all":
            raise InputError(f"--only {text}: written like size=64, or all.")
    return {name: value for name, _, value in pairs}


def _accept(entry: Entry, accepted: bool) -> None:
    licence = entry.licence.get("name", "unknown")
    if accepted:
        return
    if not sys.stdin.isatty():
        raise InputError(
            f"{entry.name} has the licence {licence}; its terms are at {entry.homepage}. "
            f"Add --accept-licence when you accept them."
        )
    print(f"{entry.name}\nLicence: {licence}. Terms: {entry.homepage}", file=sys.stderr)
    if input("Do you accept them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InputError("The licence was not accepted; nothing was fetched.")


def _modality(text: str | None) -> str | None:
    if text is None:
        return None
    plain = text.strip().casefold()
    plain = _ALIASES.get(plain, plain).casefold()
    known = {name.casefold(): name for name in MODALITIES}
    _check("--modality", plain, tuple(known))
    return known[plain]


def _check(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{option} {value}: {nearest(value, known)}")


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._off = quiet or not sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def update(self, done: int, total: int | None) -> None:
        """Show ``done`` bytes of ``total``."""
        if self._off:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr)
        self._bar.n = done
        self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
