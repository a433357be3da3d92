"""Models out of installed packages: what is hashed is what runs, and nothing runs before the hash is compared."""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.models import package, registry
from common.models.naming import PackageModel, from_outside

SOURCE = """
from torch import nn

def small(classes, channels, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, classes),
    )
"""

_numbers = itertools.count()


class Installed:
    """A package in a folder on the path, under a name that no other test has."""

    def __init__(self, folder: Path) -> None:
        self.name = f"net_of_test_{next(_numbers)}"
        self.root = folder / self.name
        self.root.mkdir()
        self.write("__init__.py", SOURCE)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def named(self, function: str = "small", sha256: str = "") -> PackageModel:
        module, _, name = function.rpartition(":")
        inside = f"{self.name}.{module}" if module else self.name
        return PackageModel(inside, name, sha256 or package.package_hash(self.name))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    monkeypatch.syspath_prepend(tmp_path)
    finders, before = list(sys.meta_path), set(sys.modules)
    yield Installed(tmp_path)
    sys.meta_path[:] = finders
    for name in set(sys.modules) - before:
        if name.startswith("net_of_test_"):
            del sys.modules[name]


def test_a_function_of_an_accepted_package_makes_a_model_of_the_registry(installed: Installed) -> None:
    named = installed.named()
    name = f"{named.name}@{named.sha256}"
    model, replaced = registry.build_with_replaced(name, 3, 1, 28, seed=1)
    assert not list(model.buffers())
    assert [(each.place, each.before) for each in replaced] == [("1", "BatchNorm2d"), ("2", "Dropout")]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert registry.parameter_count(name, 3, 1, 28) == sum(parameter.numel() for parameter in model.parameters())
    again = registry.build(name, 3, 1, 28, seed=1)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


def test_the_hash_changes_with_each_byte_and_each_name_and_not_with_what_python_caches(installed: Installed) -> None:
    first = package.package_hash(installed.name)
    installed.write("__pycache__/__init__.cpython-311.pyc", "cached")
    assert package.package_hash(installed.name) == first
    installed.write("more.py", "")
    second = package.package_hash(installed.name)
    (installed.root / "more.py").rename(installed.root / "other.py")
    third = package.package_hash(installed.name)
    installed.write("other.py", "#")
    assert len({first, second, third, package.package_hash(installed.name)}) == 4


def test_another_source_is_refused_before_a_line_of_it_runs(installed: Installed, tmp_path: Path) -> None:
    named = installed.named()
    installed.write("__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n{SOURCE}")
    with pytest.raises(ConfigError, match=f"source of SHA-256 {named.sha256}, another one is"):
        package.load(named)
    assert not (tmp_path / "ran").exists()


def test_what_runs_is_the_source_and_not_a_cached_file_beside_it(installed: Installed) -> None:
    """Python by itself takes a .pyc whose time and size are the source's."""
    import importlib.util
    import py_compile

    source = installed.root / "__init__.py"
    honest = SOURCE + "\nWHO = 'source'\n"
    source.write_text(honest.replace("'source'", "'cached'"))
    times = (1_700_000_000, 1_700_000_000)
    os.utime(source, times)
    py_compile.compile(str(source), cfile=importlib.util.cache_from_source(str(source)), doraise=True)
    source.write_text(honest)
    os.utime(source, times)
    package.load(installed.named())
    assert sys.modules[installed.name].WHO == "source"


def test_a_package_that_changes_while_it_runs_is_refused_until_the_process_starts_again(installed: Installed) -> None:
    package.load(installed.named())
    installed.write("__init__.py", SOURCE + "\n# changed\n")
    with pytest.raises(ConfigError, match="already loaded by this process"):
        package.load(installed.named())


def test_a_module_that_is_read_later_is_the_one_that_was_hashed(installed: Installed) -> None:
    installed.write("__init__.py", "def small(*sizes):\n    from . import layers\n    return layers.made(*sizes)\n")
    installed.write("layers.py", "from torch import nn\ndef made(c, k, s):\n    return nn.Linear(4, c)\n")
    named = installed.named()
    package.load(named)
    installed.write("layers.py", "raise SystemExit\n")
    function = sys.modules[installed.name].small
    assert isinstance(function(2, 1, 28), nn.Linear)


@pytest.mark.parametrize("name", ["os", "not_installed_anywhere", "sys"])
def test_a_package_that_is_not_there_or_is_pythons_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the package {name} must be installed"):
        package.package_hash(name)


def test_a_package_that_this_program_uses_itself_is_refused() -> None:
    named = PackageModel("pydantic", "create_model", package.package_hash("pydantic"))
    with pytest.raises(ConfigError, match="already loaded by this process"):
        package.load(named)


def test_only_functions_that_the_package_defines_can_be_named(installed: Installed) -> None:
    installed.write("__init__.py", "from subprocess import run\nsmall = 3\n")
    for function in ("run", "small"):
        with pytest.raises(ConfigError, match=r"must be a function that the package .* itself defines"):
            package.load(installed.named(function))
    with pytest.raises(ConfigError, match="that can be imported, got AttributeError"):
        package.load(installed.named("missing"))
    for name in ("a.b:c.d", "a:_b", "_a:b", "a b:c", "a:b:c"):
        assert from_outside(f"{name}@{'0' * 64}") is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise OSError('/srv/patients/42')", "must make a model, got OSError"),
        ("return 3", r"must return a torch\.nn\.Module, got int"),
        ("return nn.Sequential(nn.BatchNorm1d(4, affine=False))", "must have parameters to train, got none"),
        ("m = nn.Linear(2, 2); m.register_buffer('seen', __import__('torch').zeros(1)); return m", "no buffers.*seen"),
        ("return nn.Linear(2, 2).double()", "trained float32, got weight: trained float64"),
        ("return nn.Linear(2, 2).requires_grad_(False)", "trained float32, got weight: frozen float32"),
    ],
)
def test_a_function_that_makes_no_trainable_model_is_refused_without_its_words(
    installed: Installed, body: str, words: str
) -> None:
    installed.write("__init__.py", f"from torch import nn\ndef small(classes, channels, image_size):\n    {body}\n")
    named = installed.named()
    with pytest.raises(ConfigError, match=words) as refused:
        registry.build(f"{named.name}@{named.sha256}", 2, 1, 28, seed=1)
    assert "patients" not in str(refused.value)


def test_compiled_files_links_and_large_packages_are_refused(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.write("fast.so", "")
    with pytest.raises(ConfigError, match=r"source alone, got the compiled file fast\.so"):
        package.package_hash(installed.name)
    (installed.root / "fast.so").unlink()
    (installed.root / "link.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ConfigError, match=r"files of its own, got a link: link\.py"):
        package.package_hash(installed.name)
    (installed.root / "link.py").unlink()
    monkeypatch.setattr(package, "MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="at most"):
        package.package_hash(installed.name)
