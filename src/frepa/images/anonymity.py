"""Names that tell nothing of a patient: keyed hashes, the same every time."""

from __future__ import annotations

import hashlib
import hmac
import os

#: Set this variable to a secret of your own where identifiers could be guessed (short hospital numbers): the key used
#: without it is public. The same secret gives the same groups on every machine.
SECRET = "FREPA_SECRET"
_PUBLIC = "frepa groups 1"
# What software writes where it has removed an identifier: no two of these are the same patient
_PLACEHOLDERS = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified"}
_PLACEHOLDERS |= {"none", "null", "unknown", "na", "n/a", "noid", "no id", "patient", "removed", "xxxx", "test"}


def anonymous_group(*identifiers: str) -> str | None:
    """16 hexadecimal digits for the first identifier that says something (patient, then study); None for none."""
    for kind, identifier in enumerate(identifiers):
        text = identifier.strip()
        if text.lower() not in _PLACEHOLDERS:
            key = os.environ.get(SECRET) or _PUBLIC
            return hmac.new(key.encode(), f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:16]
    return None
