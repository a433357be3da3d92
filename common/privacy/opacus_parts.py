"""Opacus's accountants where PyTorch is not installed, as on a server.

They are arithmetic on NumPy and SciPy. Opacus itself trains with PyTorch, and its ``__init__`` imports it, so a server
takes the accountants alone: with a parent package that has Opacus's place on disk and nothing of its ``__init__``.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


def make_importable() -> None:
    """Let ``opacus.accountants`` be imported; where PyTorch is installed nothing needs to be done."""
    if "opacus" in sys.modules or find_spec("torch") is not None:
        return
    found = find_spec("opacus")
    if found is None or found.submodule_search_locations is None:
        return  # Its import then says what is missing.
    package, optimizers = ModuleType("opacus"), ModuleType("opacus.optimizers")
    package.__path__ = list(found.submodule_search_locations)
    # The only name of the training part that the accountants mention, in a type of the interface to it.
    optimizers.__dict__["DPOptimizer"] = object
    sys.modules[package.__name__], sys.modules[optimizers.__name__] = package, optimizers
