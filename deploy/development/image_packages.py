"""Prints the part of the hash-locked list that a container image installs, for pip.

    python image_packages.py pyproject.toml requirements.lock                    everything, from PyPI
    python image_packages.py pyproject.toml requirements.lock --without-pytorch  all but PyTorch and CUDA
    python image_packages.py pyproject.toml requirements.lock --pytorch          PyTorch's versions, without hashes

It runs in the build of an image, before anything is installed there.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOT_IN_IMAGES = frozenset({"streamlit"})
"""Packages that only ``./confide dashboard`` uses, on a person's own machine."""

_PYTORCH = frozenset({"torch", "torchvision"})
_CUDA = ("cuda-", "nvidia-", "triton")

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_COMMENT = re.compile(r"^ *#.*\n?", re.MULTILINE)
_PARENT = re.compile(r"^ +#(?: via)? +([A-Za-z0-9._-]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Pin:
    """One package of the lock: its name, its version with hashes, and which packages ask for it."""

    name: str
    text: str
    asked_for_by: frozenset[str]


def read_lock(lock: str) -> tuple[Pin, ...]:
    """Return the packages of a lock as ``uv pip compile --generate-hashes`` writes it."""
    entries = [entry for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE) if "==" in entry]
    return tuple(
        Pin(
            _name(entry), re.sub(r"^ *#.*\n?", "", entry, flags=re.MULTILINE).strip(), frozenset(_PARENT.findall(entry))
        )
        for entry in entries
    )


def needed(project: str, pins: Iterable[Pin]) -> tuple[Pin, ...]:
    """Return the pins of what the roles need: the project's own dependencies and all that these ask for."""
    wanted = {_name(line) for line in tomllib.loads(project)["project"]["dependencies"]} - NOT_IN_IMAGES
    every = tuple(pins)
    while more := {pin.name for pin in every if pin.asked_for_by & wanted} - wanted:
        wanted |= more
    return tuple(pin for pin in every if pin.name in wanted)


def without_pytorch(pins: Iterable[Pin]) -> tuple[Pin, ...]:
    """Return the pins without PyTorch and CUDA's libraries, which a build without CUDA doesn't need."""
    return tuple(pin for pin in pins if pin.name not in _PYTORCH and not pin.name.startswith(_CUDA))


def pytorch(pins: Iterable[Pin]) -> tuple[str, ...]:
    """Return PyTorch's versions alone.

    PyTorch's own indexes carry other files of the same version than PyPI, so the lock's hashes don't hold there; the
    index, asked over TLS, names the hash of each file.
    """
    return tuple(pin.text.partition(" ")[0] for pin in pins if pin.name in _PYTORCH)


def _name(line: str) -> str:
    found = _NAME.match(line)
    return found[0].lower().replace("_", "-") if found else ""


def main() -> int:
    """Print the chosen part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("lock", type=Path)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--without-pytorch", action="store_true")
    part.add_argument("--pytorch", action="store_true")
    arguments = parser.parse_args()
    pins = needed(arguments.project.read_text(encoding="utf-8"), read_lock(arguments.lock.read_text(encoding="utf-8")))
    if arguments.pytorch:
        lines = pytorch(pins)
    else:
        lines = tuple(pin.text for pin in (without_pytorch(pins) if arguments.without_pytorch else pins))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
