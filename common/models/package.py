"""A model out of an installed Python package, whose source is the very one that somebody accepted.

A run names a function and the SHA-256 of its package's source. The package is installed by the people of the machine it
runs on; nothing of it travels. Before a line of it runs, its files are read and hashed, and what runs is compiled from
the very bytes that were hashed: neither a cached ``.pyc`` nor a file that changes later takes their place.

The hash covers the files of the package itself. What the package imports besides, such as PyTorch, belongs to the
machine.
"""

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from common.errors import ConfigError
from common.models.naming import PackageModel

MOST_BYTES = 16 * 2**20
"""The largest package: source is small, and weights are not source."""

MOST_FILES = 1000

_DOMAIN = b"confide package 1\0"
"""The beginning of what is hashed; the number is the version of the format."""

_COMPILED = frozenset({".so", ".pyd", ".dll", ".dylib"})
_LENGTH_BYTES = 8

_loaded: dict[str, str] = {}
"""Package to the SHA-256 of the source that this process runs."""


def package_hash(package: str) -> str:
    """Return the SHA-256 of the source of an installed package, 64 hexadecimal digits; nothing of it is run.

    Hashed are all files of the package's folder in the order of their names, each with its name and its length before
    it, but for what Python itself writes there (``__pycache__``).

    Args:
        package: the name of a package at the top, such as ``lung_net``.

    Raises:
        ConfigError: it is not installed, or is not source alone.
    """
    return _hash(_read(package)[1])


def check_installed(model: PackageModel) -> None:
    """Check that a package is installed with the source that a name states; nothing of it is run.

    Raises:
        ConfigError: it is missing, or has another source.
    """
    _read_hashed(model)


def load(model: PackageModel) -> Any:  # noqa: ANN401 - a function, or a class, of any kind
    """Return the function, from the source that the name's hash states.

    Raises:
        ConfigError: the package is missing or has another source, was loaded by this process from another source, or
            has no such function of its own.
    """
    root, files = _read_hashed(model)
    if _loaded.get(model.package) != model.sha256:
        if model.package in sys.modules:
            raise ConfigError(
                f"the package {model.package} is already loaded by this process, from a source that was not hashed; "
                "start it again, or give the package a name that nothing else has"
            )
        sys.meta_path.insert(0, _Hashed(model.package, root, files))
        _loaded[model.package] = model.sha256
    try:
        found = getattr(importlib.import_module(model.module), model.function)
    except Exception as error:  # noqa: BLE001 - a package of others may raise anything
        # Words of an error may name what is on this machine; its kind does not.
        raise ConfigError(f"{model.name} must be a function that can be imported, got {type(error).__name__}") from None
    home = str(getattr(found, "__module__", ""))
    if not callable(found) or home.partition(".")[0] != model.package:
        raise ConfigError(f"{model.name} must be a function that the package {model.package} itself defines")
    return found


def make(model: PackageModel, classes: int, channels: int, image_size: int) -> nn.Module:
    """Return the model that the function makes, not yet fit for private training; it takes torch's global generator.

    Raises:
        ConfigError: as :func:`load`, or the function fails or makes something else.
    """
    function = load(model)
    try:
        made = function(classes, channels, image_size)
    except Exception as error:  # noqa: BLE001 - a package of others may raise anything
        raise ConfigError(f"{model.name} must make a model, got {type(error).__name__}") from None
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{model.name} must return a torch.nn.Module, got {type(made).__name__}")
    return made


class _Hashed(MetaPathFinder, InspectLoader):
    """Imports the modules of one package from bytes in memory, and no other module."""

    def __init__(self, package: str, root: Path, files: Mapping[str, bytes]) -> None:
        self._package = package
        self._root = root
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None  # noqa: ARG002 - as in importlib
    ) -> ModuleSpec | None:  # fmt: skip
        """Return the spec of a module of the package; None for any other."""
        if fullname.partition(".")[0] != self._package:
            return None
        file = self._file(fullname)
        if file is None:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        origin = str(self._root / file)
        spec = spec_from_loader(fullname, self, origin=origin, is_package=self.is_package(fullname))
        if spec is not None:
            spec.has_location = True
        return spec

    def is_package(self, fullname: str) -> bool:
        """Say whether a module has modules of its own."""
        return (self._file(fullname) or "").endswith("__init__.py")

    def get_source(self, fullname: str) -> str:
        """Return the source of a module."""
        return self._files[self._file(fullname) or ""].decode()

    def get_code(self, fullname: str) -> CodeType:
        """Compile a module from the bytes that were hashed."""
        file = self._file(fullname) or ""
        return compile(self._files[file], str(self._root / file), "exec", dont_inherit=True)

    def _file(self, fullname: str) -> str | None:
        inside = fullname.split(".")[1:]
        own = "/".join(inside)
        if not inside and f"{self._package}.py" in self._files:
            return f"{self._package}.py"
        candidates = (f"{own}/__init__.py".lstrip("/"), f"{own}.py")
        return next((name for name in candidates if name in self._files), None)


def _read_hashed(model: PackageModel) -> tuple[Path, dict[str, bytes]]:
    root, files = _read(model.package)
    if _hash(files) != model.sha256:
        raise ConfigError(
            f"the package {model.package} must be installed with the source of SHA-256 {model.sha256}, another one is; "
            f"compare with ./confide model hash {model.package}"
        )
    return root, files


def _read(package: str) -> tuple[Path, dict[str, bytes]]:
    """Return where a package lies and its files, by their names inside it."""
    missing = f"the package {package} must be installed on this machine; its own people install it"
    if package in sys.stdlib_module_names or not package.isidentifier():
        raise ConfigError(missing)
    spec = PathFinder.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(missing)
    origin = Path(spec.origin)
    try:
        if spec.submodule_search_locations is None:
            return origin.parent, {origin.name: _content(package, origin, 0)}
        return origin.parent, _folder(package, origin.parent)
    except OSError as error:
        raise ConfigError(f"the package {package} must be readable: {error.strerror}") from None


def _folder(package: str, root: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if "__pycache__" in path.parts:
            continue
        if path.is_symlink():
            raise ConfigError(f"the package {package} must hold files of its own, got a link: {name}")
        if path.is_file():
            files[name] = _content(package, path, total)
            total += len(files[name])
            if len(files) > MOST_FILES:
                raise ConfigError(f"the package {package} must hold at most {MOST_FILES} files, got more")
    return files


def _content(package: str, path: Path, before: int) -> bytes:
    if path.suffix in _COMPILED or path.suffix == ".pyc":
        raise ConfigError(f"the package {package} must be source alone, got the compiled file {path.name}")
    if before + path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"the package {package} must have at most {MOST_BYTES // 2**20} MiB, got more")
    return path.read_bytes()


def _hash(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(_DOMAIN)
    for name in sorted(files):
        for part in (name.encode(), files[name]):
            digest.update(len(part).to_bytes(_LENGTH_BYTES, "big") + part)
    return digest.hexdigest()
