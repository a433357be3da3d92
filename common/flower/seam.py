"""Replaces what Flower keeps to itself, and refuses where the function that must see the replacement would not.

A name that exists need not be used: another release may import it elsewhere, bind it as a default, or keep it for
others. Then a replacement would change nothing, and nothing would say so.
"""

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

Users = Callable[..., Any] | tuple[Callable[..., Any], ...]

_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")


def replace_in(place: ModuleType | type, name: str, value: object, *, used_by: Users) -> None:
    """Replace what a module or class of Flower's knows under a name.

    Args:
        place: the module or class.
        name: what is replaced.
        value: what Flower finds there from now on.
        used_by: the function, or each of the functions, that must find it.

    Raises:
        AttributeError: there is no such name, or a function that must find it does not refer to it, so Flower is not
            the release this was written for.
    """
    require_used(place, name, used_by)
    setattr(place, name, value)


def require_used(place: ModuleType | type, name: str, used_by: Users) -> None:
    """Refuse a name of a module or class that a function does not look up there, each time it runs.

    Raises:
        AttributeError: names the place, the name and the function.
    """
    if not hasattr(place, name):
        raise AttributeError(f"{place.__name__} has no {name!r}; Flower must be the release that is pinned")
    for function in used_by if isinstance(used_by, tuple) else (used_by,):
        if not uses(function, place, name):
            raise AttributeError(
                f"{function.__module__}.{function.__qualname__} must use {name!r} of {place.__name__}, and does not; "
                "Flower must be the release that is pinned"
            )


def uses(function: Callable[..., Any], place: ModuleType | type, name: str) -> bool:
    """Say whether a function, or one inside it, looks ``name`` up in ``place`` when it runs.

    It does so by the name itself where ``place`` is its own module, by an import inside the function, or by an
    attribute of ``place``; a method also by an attribute of the object whose class ``place`` is.

    >>> import textwrap
    >>> uses(textwrap.dedent, textwrap, "re"), uses(textwrap.dedent, textwrap, "TextWrapper")
    (False, False)
    >>> uses(textwrap.wrap, textwrap, "TextWrapper")
    True
    """
    plain = inspect.unwrap(function)
    known: dict[str, Any] = getattr(plain, "__globals__", {})
    is_method = inspect.isclass(place) and any(plain is vars(each).get(plain.__name__) for each in place.__mro__)
    for code in _codes(plain.__code__):
        imported = ""
        instructions = list(_instructions(code))
        for before, this in zip([None, *instructions], instructions, strict=False):
            if this.opname == "IMPORT_NAME":
                imported = str(this.argval)
            if this.argval != name:
                continue
            if this.opname in _GLOBAL and known is vars(place):
                return True
            if this.opname == "IMPORT_FROM" and imported == place.__name__:
                return True
            if this.opname in _ATTRIBUTE and (is_method or _loads(before, place, known)):
                return True
    return False


def _loads(instruction: dis.Instruction | None, place: ModuleType | type, known: dict[str, Any]) -> bool:
    return instruction is not None and instruction.opname in _GLOBAL and known.get(str(instruction.argval)) is place


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    return (each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG"))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
