import inspect
import re

from common.proved_sums import errors
from common.proved_sums.errors import ProvedSumError
from common.secagg.errors import SecAggError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ProvedSumError)]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"[├└]── (\w+)", inspect.cleandoc(ProvedSumError.__doc__ or ""))
    assert sorted(drawn) == sorted(kind.__name__ for kind in ALL if kind is not ProvedSumError)
    parents: dict[int, str] = {0: "ProvedSumError"}
    for line in inspect.cleandoc(ProvedSumError.__doc__ or "").splitlines():
        found = re.search(r"[├└]── (\w+)", line)
        if found:
            depth = (found.start() - 4) // 4 + 1
            parents[depth] = found.group(1)
            assert getattr(errors, found.group(1)).__bases__[0].__name__ == parents[depth - 1]


def test_they_are_errors_of_the_protocol_each_with_a_code_of_its_own() -> None:
    assert issubclass(ProvedSumError, SecAggError)
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert errors.FalseSumError.code == "false_sum"
