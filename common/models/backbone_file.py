"""The file of a backbone: its hash, and where it lies."""

import hashlib
from pathlib import Path

from common.errors import ConfigError

MOST_BYTES = 512 * 2**20
"""The largest file: a ResNet-152 has 240 MB."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a backbone's file, 64 hexadecimal digits.

    Raises:
        ConfigError: it cannot be read, or is larger than MOST_BYTES.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MOST_BYTES:
                raise ConfigError(f"a backbone's file must have at most {MOST_BYTES // 2**20} MiB, got {size:,} bytes")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"a backbone's file must be readable: {error.strerror}") from None
