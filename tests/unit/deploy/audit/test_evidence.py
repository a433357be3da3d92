"""The evidence of a run is complete, repeatable by whoever gets it, and refused for a run that does not verify."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from common.audit.chain import AUDIT_FILE
from common.errors import AuditError, ConfigError
from deploy.audit import evidence
from deploy.audit.verify import verify
from deploy.source_tree import ROOT
from tests.support.audited_run import NAMES, AuditedRun, audited_run


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    return audited_run(tmp_path / "run")


@pytest.mark.long
def test_the_archive_holds_everything_an_outsider_needs(run: AuditedRun, tmp_path: Path) -> None:
    assert evidence.main(["evidence", str(run.folder)]) == 0
    with zipfile.ZipFile(run.folder / "evidence.zip") as archive:
        archive.extractall(tmp_path / "out")
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())["sha256"]
    assert {"verdict.txt", "claims.md", "config.yaml", "sbom.cdx.json", "model.json", AUDIT_FILE} <= manifest.keys()
    assert any(name.startswith("report/") and name.endswith(".html") for name in manifest)
    for name, digest in manifest.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert json.loads((out / "sbom.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    assert (out / "verdict.txt").read_text().endswith("verified\n")
    assert not list(out.rglob("*.key"))
    chains = [out / "chains" / f"{name}.jsonl" for name in NAMES]
    (out / "model.json").unlink()  # Its tensors stay with the consortium; the chains are checked without them.
    assert verify(out, chains, out / "chains" / "ca.pem").hospitals == NAMES


def test_a_run_that_does_not_verify_gets_no_evidence(run: AuditedRun) -> None:
    path = run.chain_file("hospital-1")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AuditError):
        evidence.main(["evidence", str(run.folder)])
    assert not (run.folder / "evidence.zip").exists()


def pages() -> str:
    """Return the README and the page with the guarantees in full."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guarantees.md"))


def test_every_claim_names_tests_that_exist() -> None:
    claims = evidence.read_claims()
    assert len(claims) > 10
    assert evidence.claims_table(claims).count("\n") == len(claims) + 2


def test_everything_that_the_readme_claims_has_a_row_with_its_tests() -> None:
    evidence.check_readme(pages(), evidence.read_claims())


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("The ε of a run is printed", "The ε of a run is whispered"),
        ("| **A DP step**", "| **Speed** | no hospital waits | | |\n| **A DP step**"),
        ("Evaluation costs privacy, too.**", "Evaluation costs privacy, too.** No server ever fails."),
        ("| whoever holds the model |", "| a spy | nothing | anything |\n| whoever holds the model |"),
    ],
)
def test_a_claim_that_is_new_or_gone_is_refused(words: str, others: str) -> None:
    written = pages()
    assert words in written
    with pytest.raises(ConfigError, match=r"claims\.yaml"):
        evidence.check_readme(written.replace(words, others), evidence.read_claims())


@pytest.mark.parametrize("test", ["tests/unit/deploy/audit/test_evidence.py::test_it_flies", ""])
def test_a_claim_without_its_test_is_refused(test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "claims.yaml"
    stale.write_text(f"It flies:\n  readme: []\n  tests: [{test}]\n")
    monkeypatch.setattr(evidence, "CLAIMS_FILE", stale)
    with pytest.raises(ConfigError, match="must name a test that exists"):
        evidence.read_claims()
