"""Opacus's accountants without the rest of Opacus: two modules of arithmetic on NumPy and SciPy.

Opacus trains with PyTorch, and its ``__init__`` imports all of it: some five seconds of a processor in every process
that only accounts, and impossible on a server, which has no PyTorch. So the two modules are imported under parent
packages that have Opacus's place on disk and nothing of its ``__init__``. These parents are gone again afterwards:
whoever imports Opacus itself gets Opacus.
"""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_PACKAGE = "opacus"


@cache
def accountant_part(name: str) -> ModuleType:
    """Return the module ``opacus.accountants.analysis.<name>``; the first call imports it.

    Args:
        name: ``rdp``, or ``prv``, which takes two seconds longer to import.

    Raises:
        ImportError: Opacus is not installed.
    """
    is_imported = _PACKAGE in sys.modules
    if not is_imported:
        _stand_in()
    try:
        return import_module(f"{_PACKAGE}.accountants.analysis.{name}")
    finally:
        if not is_imported:
            for module in [module for module in sys.modules if module == _PACKAGE or module.startswith(f"{_PACKAGE}.")]:
                del sys.modules[module]


def _stand_in() -> None:
    """Put parents into place that have Opacus's paths and run nothing."""
    found = find_spec(_PACKAGE)
    if found is None or found.submodule_search_locations is None:
        return  # Its import then says what is missing.
    (place,) = found.submodule_search_locations
    for name, path in ((_PACKAGE, place), (f"{_PACKAGE}.accountants", f"{place}/accountants")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [path]
    # The only name of the training part that the accountants mention, in a type of the interface to it.
    optimizers = ModuleType(f"{_PACKAGE}.optimizers")
    optimizers.__dict__["DPOptimizer"] = object
    sys.modules[optimizers.__name__] = optimizers
