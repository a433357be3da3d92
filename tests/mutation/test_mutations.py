"""No dangerous mutation survives the tests."""

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mutation.mutations import MUTATIONS, Mutation
from tests.mutation.workshop import ROOT, Workshop

FEWEST = 40


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTATIONS) >= FEWEST
    assert [name for name, times in Counter(each.name for each in MUTATIONS).items() if times > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_source_and_its_tests_are_there(mutation: Mutation) -> None:
    changed = mutation.applied((ROOT / mutation.file).read_text(encoding="utf-8"))
    compile(changed, mutation.file, "exec")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in names, f"{file} must have a test {name}"


def test_an_entry_that_the_code_has_outgrown_is_refused() -> None:
    stale = Mutation("stale", "a.py", "old", "new", ())
    for source in ("nothing of it", "old and old"):
        with pytest.raises(ValueError, match="must occur once in"):
            stale.applied(source)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop.opened() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_killed(workshop: Workshop, mutation: Mutation) -> None:
    killer = workshop.tried(mutation).killer
    assert killer is not None, f"{mutation.name} in {mutation.file} survived {', '.join(mutation.tests)}"
