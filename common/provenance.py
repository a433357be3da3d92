"""What a result came from: versions, commit and machine."""

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

COMMIT_VARIABLE = "CONFIDE_COMMIT"

LIBRARIES = ("flwr", "torch", "opacus", "numpy", "cryptography")
"""The libraries whose version can change a result or a guarantee."""


def versions() -> dict[str, str]:
    """Return the versions of Confide, Python and the libraries here that can change a result, and the commit."""
    return {
        "confide": confide_version(),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version for name in LIBRARIES if (version := _installed(name)) is not None},
    }


def _installed(name: str) -> str | None:
    """Return a library's version; None where it is not installed, as PyTorch is not on a server."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def confide_version() -> str:
    """Return the version in ``pyproject.toml``."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def speaks(protocol: int, software: str) -> str:
    """Say which version of the protocol a side speaks, and which software it is.

    >>> speaks(3, "0.2.0")
    'protocol version 3 (Confide 0.2.0)'
    """
    return f"protocol version {protocol} (Confide {software or 'of an earlier version'})"


def commit() -> str:
    """Return the commit of the source tree, with ``+changes`` where files differ from it; ``unknown`` without git.

    A container image has no git; its build leaves the commit in the environment.
    """
    if built_from := os.environ.get(COMMIT_VARIABLE):
        return built_from
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Return processor, cores and system on one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(ROOT), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
