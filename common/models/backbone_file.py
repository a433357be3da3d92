"""The file of a backbone: its hash, and where it lies."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigError

FOLDER_VARIABLE = "CONFIDE_WEIGHTS"
"""The environment variable that names the folder with the files of backbones, under any names."""

ENDINGS = frozenset({".onnx", ".safetensors"})

MOST_BYTES = 512 * 2**20
"""The largest file: a ResNet-152 has 240 MB."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a backbone's file, 64 hexadecimal digits; nothing of it is run.

    Raises:
        ConfigError: it cannot be read, or is larger than MOST_BYTES.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"a backbone's file must have at most {MOST_BYTES // 2**20} MiB, got {size:,} bytes")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"a backbone's file must be readable: {error.strerror}") from None


def find(sha256: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the content of the file with a hash, from the folder that ``CONFIDE_WEIGHTS`` names.

    Raises:
        ConfigError: no file there has it.
    """
    missing = ConfigError(
        f"a backbone's file with the SHA-256 {sha256} must lie in the folder ${FOLDER_VARIABLE}; put it there, under "
        f"any name that ends in {' or '.join(sorted(ENDINGS))}"
    )
    folder = environment.get(FOLDER_VARIABLE)
    if not folder:
        raise missing
    try:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix in ENDINGS and path.is_file() and path.stat().st_size <= MOST_BYTES:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == sha256:
                    return content
    except OSError as error:
        raise ConfigError(f"the folder ${FOLDER_VARIABLE} must be readable: {error.strerror}") from None
    raise missing
