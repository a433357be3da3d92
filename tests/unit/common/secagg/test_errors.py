import inspect
import re

import pytest

from common.errors import ConfideError
from common.secagg import errors
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.phases import Phase

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SecAggError)]
PLACE = Place("hospital-1", 3, Phase.SHARE_KEYS)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_says_who_refuses_whom_where(kind: type[SecAggError]) -> None:
    error = kind(PLACE, "something must hold, got nothing", "hospital-2")
    assert isinstance(error, ConfideError)
    assert str(error) == ("round 3, share_keys, hospital-1 refuses, about hospital-2: something must hold, got nothing")
    assert (error.place, error.hospital) == (PLACE, "hospital-2")


def test_without_another_to_blame_the_error_is_about_the_party_itself() -> None:
    error = errors.TooFewHospitalsError(Place(SERVER, 1, Phase.MASKED_INPUT), "what")
    assert error.hospital == SERVER
    assert str(error) == "round 1, masked_input, server refuses: what"


def test_every_error_has_a_code_of_its_own() -> None:
    codes = {kind.code for kind in ALL}
    assert len(codes) == len(ALL)
    assert errors.SecondMaskedInputError.code == "second_masked_input"


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    # Python 3.13 takes the indentation out of docstrings, older ones leave it.
    docstring = inspect.cleandoc(SecAggError.__doc__ or "")
    drawn = re.findall(r"[├└]── (\w+)", docstring)
    assert sorted(drawn) == sorted(kind.__name__ for kind in ALL if kind is not SecAggError)
    parents: dict[int, str] = {0: "SecAggError"}
    for line in docstring.splitlines():
        found = re.search(r"[├└]── (\w+)", line)
        if found:
            depth = (found.start() - 4) // 4 + 1
            parents[depth] = found.group(1)
            assert getattr(errors, found.group(1)).__bases__[0].__name__ == parents[depth - 1]
