"""Opacus's accountants without the rest of Opacus: two modules of arithmetic on NumPy and SciPy.

Opacus trains with PyTorch, and its ``__init__`` imports all of it: some five seconds of a processor in every process
that only accounts, and impossible on a server, which has no PyTorch. So the two modules are imported under parent
packages that have Opacus's place on disk and nothing of its ``__init__``. These parents are gone again afterwards:
whoever imports Opacus itself gets Opacus.
"""

import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_PACKAGE = "opacus"


@dataclass(frozen=True)
class AccountantParts:
    """The modules ``opacus.accountants.analysis.prv`` and ``….rdp``."""

    prv: ModuleType
    rdp: ModuleType


@cache
def accountant_parts() -> AccountantParts:
    """Return Opacus's accountants; the first call imports them.

    Raises:
        ImportError: Opacus is not installed.
    """
    is_imported = _PACKAGE in sys.modules
    if not is_imported:
        _stand_in()
    try:
        return AccountantParts(
            import_module(f"{_PACKAGE}.accountants.analysis.prv"), import_module(f"{_PACKAGE}.accountants.analysis.rdp")
        )
    finally:
        if not is_imported:
            for name in [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]:
                del sys.modules[name]


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
