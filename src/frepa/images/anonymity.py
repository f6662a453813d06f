"""Names that tell nothing of a patient: hashes under a key that is the owner's alone.

Hospital numbers are short: whoever knows how a hash was made can try them all in seconds. So every identifier that
leaves this program, the patients and records of a store above all, is hashed under a secret key. The key is made once,
at random, and kept in the user's configuration folder with access for that user alone; no output holds it. With
`SECRET` set in the environment that is the key: the same secret gives the same names on every machine.
"""

from __future__ import annotations

import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from frepa.errors import InputError

#: Environment variable with a secret of one's own, to have the same names on several machines.
SECRET = "FREPA_SECRET"
# What software writes where it has removed an identifier: no two of these are the same patient
_PLACEHOLDERS = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified"}
_PLACEHOLDERS |= {"none", "null", "unknown", "na", "n/a", "noid", "no id", "patient", "removed", "xxxx", "test"}


def anonymous_group(*identifiers: str) -> str | None:
    """16 hexadecimal digits for the first identifier that says something (patient, then study); None for none."""
    for kind, identifier in enumerate(identifiers):
        text = identifier.strip()
        if text.lower() not in _PLACEHOLDERS:
            return pseudonym(f"{kind}\0{text}")
    return None


def pseudonym(text: str) -> str:
    """16 hexadecimal digits for ``text``, always the same under the same key and telling nothing without it.

    Raises:
        InputError: the key cannot be read, or neither read nor made.
    """
    return hmac.digest(_key(), text.encode("utf-8", "surrogateescape"), "sha256").hex()[:16]


def key_check() -> str:
    """8 hexadecimal digits that differ between keys, to notice that work is continued under another one."""
    return pseudonym("which key is this?")[:8]


def use_the_key() -> str:
    """What to do where work is continued under another key: a sentence without its end."""
    return f"Use the key it was begun with ({SECRET}, or {key_file()})"


def key_file() -> Path:
    """Where the key is kept: ``frepa/anonymity.key`` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "frepa" / "anonymity.key"


def _key() -> bytes:
    secret = os.environ.get(SECRET)
    if secret:
        return secret.encode("utf-8", "surrogateescape")
    return _kept_key(_place(os.environ.get("XDG_CONFIG_HOME"), os.environ.get("HOME")))


@lru_cache(maxsize=8)
def _place(configuration: str | None, home: str | None) -> Path:
    """`key_file`, worked out once per environment: it is asked for with every record."""
    return key_file()


@lru_cache(maxsize=8)
def _kept_key(path: Path) -> bytes:
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes().strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: the secret key that identifiers are hashed under can be neither read nor made there ({cause}). "
            f"Set {SECRET} in the environment to a secret of your own, or XDG_CONFIG_HOME to a folder you may write."
        ) from None
    if len(key) < 32:
        raise InputError(
            f"{path}: the secret key that identifiers are hashed under is damaged ({len(key)} characters instead of "
            f"64). Put the original back, or set {SECRET}; if neither is possible delete the file, and identifiers get "
            "other names from now on."
        )
    return key


def _make_key(path: Path) -> None:
    """Write a new key, unless another process was first: the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        os.link(partial, path)  # fails where the key is there already, which is then the one
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)
