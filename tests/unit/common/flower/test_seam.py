"""A replacement that the function which must see it would not see is refused by name."""

import textwrap
import types
from collections.abc import Callable
from typing import Any

import pytest

from common.flower.seam import replace_in, require_used, uses


def module(name: str, code: str) -> Any:  # noqa: ANN401 - a module that is made up
    made = types.ModuleType(name)
    exec(textwrap.dedent(code), made.__dict__)  # noqa: S102 - the code stands in this file
    return made


WAITS = """
    import functools, time
    LIMIT = 3
    def global_name(): return LIMIT
    def default(limit=LIMIT): return limit
    def shadowed():
        LIMIT = 1
        return LIMIT
    def inside(): return [LIMIT for _ in range(2)]
    def in_a_lambda(): return lambda: LIMIT
    def of_a_module(): time.sleep(0)
    def attribute_of_another(thing): return thing.LIMIT
    @functools.wraps(global_name)
    def wrapping(): return global_name()
    class Client:
        def send(self): return 1
        def ask(self): return self.send()
        def unrelated(self): return 2
"""


@pytest.mark.parametrize("user", ["global_name", "inside", "in_a_lambda", "wrapping"])
def test_a_name_that_is_looked_up_when_the_function_runs_is_replaced(user: str) -> None:
    waits = module("waits", WAITS)
    replace_in(waits, "LIMIT", 7, used_by=vars(waits)[user])
    found = vars(waits)[user]()
    assert 7 in (found if isinstance(found, list) else [found() if callable(found) else found])


@pytest.mark.parametrize("user", ["default", "shadowed", "of_a_module", "attribute_of_another"])
def test_a_name_that_the_function_does_not_look_up_is_refused(user: str) -> None:
    waits = module("waits", WAITS)
    with pytest.raises(AttributeError, match=rf"{user} must use 'LIMIT' of waits, and does not"):
        replace_in(waits, "LIMIT", 7, used_by=vars(waits)[user])
    assert waits.LIMIT == 3


def test_a_name_that_a_function_of_another_module_has_for_itself_is_refused() -> None:
    """As after ``from waits import LIMIT``: what ``waits`` knows from then on is nothing to it."""
    waits = module("waits", WAITS)
    other = module("other", "LIMIT = 3\ndef reads(): return LIMIT")
    with pytest.raises(AttributeError, match="reads must use 'LIMIT' of waits"):
        replace_in(waits, "LIMIT", 7, used_by=other.reads)


def test_each_of_several_functions_must_use_the_name() -> None:
    waits = module("waits", WAITS)
    require_used(waits, "LIMIT", (waits.global_name, waits.inside))
    with pytest.raises(AttributeError, match="shadowed"):
        require_used(waits, "LIMIT", (waits.global_name, waits.shadowed))


def test_an_import_inside_a_function_sees_a_replacement() -> None:
    def imports() -> Callable[[str], str]:
        from textwrap import dedent

        return dedent

    assert uses(imports, textwrap, "dedent")
    assert not uses(imports, textwrap, "indent")
    assert not uses(imports, types, "dedent")


def test_a_function_of_a_module_is_used_by_its_attribute() -> None:
    waits = module("waits", WAITS)
    assert uses(waits.of_a_module, waits.time, "sleep")
    assert not uses(waits.attribute_of_another, waits.time, "LIMIT")


def test_a_method_is_used_by_another_of_its_class() -> None:
    client = module("waits", WAITS).Client
    require_used(client, "send", client.ask)
    with pytest.raises(AttributeError, match=r"Client\.unrelated must use 'send' of Client"):
        require_used(client, "send", client.unrelated)


def test_a_name_that_is_not_there_is_refused() -> None:
    waits = module("waits", WAITS)
    with pytest.raises(AttributeError, match="waits has no 'MOVED'"):
        replace_in(waits, "MOVED", 7, used_by=waits.global_name)
