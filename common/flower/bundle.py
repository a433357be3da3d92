"""What a run ships to hospitals, because Flower wants a bundle: the names of two components and no code."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

_BUNDLE = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "confide"
version = "1.0.0"
description = "A bundle without code: both components are installed where they run."
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "confide"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
"""
"""The one file of it."""


def bundle_without_code(folder: Path, build: Callable[[Path], bytes]) -> bytes:
    """Return the bundle's bytes, the same on every machine, so that a hospital recognises it by its hash.

    Args:
        folder: to lay the bundle's one file in.
        build: Flower's ``build_fab_from_disk``; given, because this package knows no Flower. It makes an archive whose
            entries are all alike except for the compression, which depends on the machine's zlib; here they are stored.
    """
    source = folder / "bundle"
    source.mkdir(mode=0o700, exist_ok=True)
    (source / "pyproject.toml").write_text(_BUNDLE, encoding="utf-8")
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(build(source))) as built, zipfile.ZipFile(stored, "w") as bundle:
        for entry in built.infolist():
            bundle.writestr(zipfile.ZipInfo(entry.filename), built.read(entry))
    return stored.getvalue()
