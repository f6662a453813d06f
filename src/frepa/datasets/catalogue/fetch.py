"""Downloads, only when asked for: checked, resumable, atomic."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frepa.datasets.catalogue.entry import Download, Entry
from frepa.errors import InputError, nearest

_CHUNK = 1 << 20
_TRIES = 4
_TIMEOUT = 60.0

Progress = Callable[[int, int | None], None]


class FetchError(RuntimeError):
    """A transfer failed for a reason outside the user's input. The message is for a person."""

    plain = True


def chosen_downloads(entry: Entry, only: Mapping[str, str] | None) -> list[Download]:
    """The files to fetch: those of ``only`` (``{"size": "64"}``), else the default ones; ``{"all": ""}`` is everything.

    Raises:
        InputError: the dataset has none, or ``only`` fits none of them, or a choice is needed.
    """
    if not entry.downloads:
        where = f" Get it at {entry.homepage} ({entry.access})," if entry.homepage else " No public address is known;"
        raise InputError(
            f"{entry.id} cannot be fetched by this program.{where} then check it with "
            f"`frepa datasets verify {entry.id} FOLDER`."
        )
    if only and "all" in only:
        return list(entry.downloads)
    if only:
        found = [d for d in entry.downloads if all(_plain(d.select.get(k)) == _plain(v) for k, v in only.items())]
    else:
        found = [d for d in entry.downloads if d.default]
    if found:
        return found
    choices = [f"{name}={value}" for d in entry.downloads for name, value in d.select.items()]
    if not only:
        raise InputError(f"{entry.id} is many files. Choose with --only, one of: all, {', '.join(choices)}.")
    asked = "&".join(f"{name}={value}" for name, value in only.items())
    raise InputError(f"{entry.id} has no file for {asked}. {nearest(asked, choices)}")


def _plain(text: str | None) -> str:
    return (text or "").casefold()


def file_name(url: str) -> str:
    """Name of the file at an address, without its query."""
    return Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name


def fetch_one(
    download: Download,
    folder: Path,
    *,
    base_url: str | None = None,
    keep_archive: bool = False,
    progress: Progress | None = None,
    wait: float = 1.0,
) -> Path:
    """Get one file into ``folder`` and unpack it when it is an archive.

    The transfer goes to a hidden ``.part`` file that a later call continues; the finished file gets its name only after
    its checksum was right. What is there already is not fetched again.

    Args:
        download: address, checksum, what it unpacks to.
        folder: made when it does not exist.
        base_url: a mirror: the file is taken from ``base_url/file name``.
        keep_archive: keep the archive beside what it unpacked to.
        progress: called with bytes so far and in all (None when unknown).
        wait: seconds before the first repetition after a broken transfer; doubled each time.

    Returns:
        The file, or the folder the archive unpacked to.

    Raises:
        InputError: no such file at the address, no room on the disk, another file in its place.
        FetchError: the transfer kept breaking, or its checksum is wrong.
    """
    url = f"{base_url.rstrip('/')}/{file_name(download.url)}" if base_url else download.url
    if urllib.parse.urlparse(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no web address; it must start with https:// or http://.")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(url)
    if download.unpacks_to and (folder / download.unpacks_to).exists():
        return folder / download.unpacks_to
    if target.exists():
        if not _checksum_is(target, download.checksum):
            raise InputError(f"{target} exists and is another file (its checksum differs). Move it away or delete it.")
    else:
        _transfer(url, target, download.checksum, progress, wait)
    if not download.unpacks_to:
        return target
    unpack(target, folder)
    if not keep_archive:
        target.unlink()
    return folder / download.unpacks_to


def _transfer(url: str, target: Path, checksum: str, progress: Progress | None, wait: float) -> None:
    part = target.with_name(f".{target.name}.part")
    resumed = part.exists()
    broken = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, progress):
                if _checksum_is(part, checksum):
                    break
                part.unlink()
                if not resumed:
                    raise FetchError(
                        f"{url}: the checksum is wrong, so this is not the file the catalogue means, or it was damaged "
                        f"on the way. Nothing was kept. Try again, or another address with --base-url."
                    )
                # What an earlier call left may stem from another version of the file: once more from the start.
                resumed = False
                continue
        except urllib.error.HTTPError as error:
            raise _http_error(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == 28:
                raise InputError(
                    f"The disk of {target.parent} is full. Make room; the transfer goes on from there."
                ) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            reason = "the connection ended early"
        resumed = True
        broken = 0 if part.exists() and part.stat().st_size > before else broken + 1
        if broken >= _TRIES:
            raise FetchError(
                f"{url} cannot be fetched: {reason}. What has arrived is kept; call again to go on from there."
            )
        time.sleep(wait * 2 ** max(broken - 1, 0))
    os.replace(part, target)


def _continue(url: str, part: Path, progress: Progress | None) -> bool:
    """Go on where ``part`` ends; True when the file is whole. A server without ranges starts from the beginning."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "frepa", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what is there: it may be whole
            return True
        raise
    with response:
        if response.status != 206 or _range_start(response.headers.get("Content-Range")) != have:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if total is not None:
            check_space(part.parent, total - have)
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    return total is None or have == total


def _range_start(header: str | None) -> int | None:
    try:
        return int((header or "").removeprefix("bytes ").partition("-")[0])
    except ValueError:
        return None


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in (404, 410):
        return InputError(f"There is no file at {url} (answer {error.code}). Give another address with --base-url.")
    if error.code in (401, 403):
        return InputError(
            f"{url} refuses access (answer {error.code}). Fetch it by hand, or from a mirror with --base-url."
        )
    return FetchError(f"{url} answers {error.code} {error.reason}. Try again later; what has arrived is kept.")


def check_space(folder: Path, needed: int) -> None:
    """Raise InputError unless ``folder``'s disk has ``needed`` bytes and a little more."""
    free = shutil.disk_usage(folder).free
    if needed > free - (64 << 20):
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed. "
            f"Make room or choose another folder."
        )


def _checksum_is(path: Path, expected: str) -> bool:
    kind, _, wanted = expected.partition(":")
    # MD5 is what the publishers state; it guards against damage, and nothing read here is run.
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK << 3):
            digest.update(chunk)
    return digest.hexdigest() == wanted.lower()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar into ``folder``: first beside it, then moved, so that half an archive never looks whole.

    Names that lead out of the folder, links and devices are refused; ``__MACOSX`` and ``._*`` are left out.

    Raises:
        InputError: not an archive, no room, a member that leads out of the folder, or something of that name is there.
    """
    beside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                infos = [info for info in zipped.infolist() if not _clutter(info.filename)]
                check_space(folder, sum(info.file_size for info in infos))
                zipped.extractall(beside, [info.filename for info in infos])
        else:
            _unpack_tar(archive, beside)
        for entry in sorted(beside.iterdir()):
            if (folder / entry.name).exists():
                raise InputError(f"{folder / entry.name} exists already. Move it away, then call again.")
            os.replace(entry, folder / entry.name)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} cannot be unpacked ({error}). Delete it and fetch it again.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if not _clutter(member.name)]
        check_space(folder, sum(member.size for member in members))
        options: dict[str, Any] = {"filter": "data"}
        tar.extractall(folder, members, **options)


def _clutter(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith("._") for part in parts)
