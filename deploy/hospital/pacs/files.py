"""How files and folders of studies are called: by a digest, so that a name reveals nothing and stays the same."""

import hashlib
from pathlib import Path

_DIGITS = 20


def name_of(uid: str) -> str:
    """Return a name for a UID: 20 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:_DIGITS]


def file_of(folder: Path, instance_uid: str) -> Path:
    """Return where an object of a study lies."""
    return folder / f"{name_of(instance_uid)}.dcm"
