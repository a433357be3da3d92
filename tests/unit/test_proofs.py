"""A deviation of the protocol or of a privacy mechanism from its paper names its proof, and the proof is there."""

import ast
import re
from pathlib import Path

import pytest

from deploy.source_tree import ROOT
from tests.support.sources import sources, tree_of

PROOFS = ROOT / "docs" / "proofs"

NAMED = re.compile(r"docs/proofs/[a-z0-9-]+\.md")

PROVEN = ("common/secagg/", "common/proved_sums/", "common/privacy/")

WITHOUT_DEVIATION = {
    "common/secagg/__init__.py": "says where to begin",
    "common/secagg/erasing.py": "takes nothing away from the paper; its docstring says what it guarantees",
    "common/secagg/errors.py": "names refusals",
    "common/secagg/messages.py": "gives messages their bytes",
    "common/secagg/phases.py": "names the paper's rounds",
    "common/proved_sums/__init__.py": "says what the folder is",
    "common/proved_sums/errors.py": "names refusals",
    "common/privacy/__init__.py": "says what the folder is",
    "common/privacy/calibration.py": "searches with the accountant's own bound",
    "common/privacy/opacus_parts.py": "imports Opacus's accountants as they are",
    "common/privacy/schedule.py": "says how often a unit is sampled, which the accountant gets as it is",
}


def modules() -> dict[str, str]:
    """Return the module docstring of each source file that is not a test, by its path."""
    return {str(path.relative_to(ROOT)): ast.get_docstring(tree_of(path)) or "" for path in sources()}


MODULES = modules()


def test_every_proof_that_a_module_names_is_there() -> None:
    named = {(module, proof) for module, words in MODULES.items() for proof in NAMED.findall(words)}
    assert named
    assert [(module, proof) for module, proof in sorted(named) if not (ROOT / proof).is_file()] == []


@pytest.mark.parametrize("page", sorted(PROOFS.glob("*.md")), ids=lambda page: page.stem)
def test_every_proof_is_named_by_a_module_and_has_pseudocode(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    assert [module for module, words in MODULES.items() if name in NAMED.findall(words)]
    assert page.read_text(encoding="utf-8").count("```") >= 2


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(PROVEN)])
def test_every_module_of_the_protocol_and_of_privacy_names_its_proof_or_says_why_it_needs_none(module: str) -> None:
    assert bool(NAMED.findall(MODULES[module])) != (module in WITHOUT_DEVIATION)
