"""``confide evidence RUN``: pack what an outsider needs to judge a run into one archive.

The archive holds the verdict of ``confide audit verify``, the chains and the authority's certificate to repeat it, the
configuration, report and model card, a CycloneDX bill of materials, and a table from each claim of the pages to the
test that shows it. No model, no image, no key and no log is in it.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from common.audit.chain import AUDIT_FILE
from common.errors import ConfigError, RunError
from common.provenance import versions
from common.telemetry.events import EVENTS_FILE
from deploy.audit.verify import find_authority, find_chains, verify
from deploy.command import FILE, authority_option, chain_option, command
from deploy.results.report import write_report
from deploy.results.report_facts import RunFacts
from deploy.source_tree import ROOT

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
LOCK = ROOT / "requirements.lock"

_COPIED = (EVENTS_FILE, "summary.json", "metrics.csv", "model.json", AUDIT_FILE)
"""The files of a run's folder that are copied where they exist."""


@command(
    "evidence",
    "Pack what an outsider needs to judge a run into one archive: the verdict of the audit, the chains to repeat it, "
    "the configuration, the report, a bill of materials, and a table from each claim to the test that shows it. No "
    "model, no image, no key and no log is in it.\n\nRUN is a run's folder.",
    "./confide evidence runs/0123456789ab",
)
@click.argument("run", type=FILE)
@chain_option()
@authority_option()
@click.option(
    "--out", type=FILE, show_default="evidence.zip in the run's folder", metavar="FILE", help="Where to write."
)
def main(run: Path, chain: tuple[Path, ...], authority: Path | None, out: Path | None) -> int:
    """Write the archive; returns 0 when the run's audit holds."""
    archive = out or run / "evidence.zip"
    with tempfile.TemporaryDirectory(prefix="confide-evidence-") as scratch:
        gather(run, chain or find_chains(run), authority or find_authority(run), Path(scratch))
        pack(Path(scratch), archive)
    print(archive)
    return 0


def gather(run: Path, chains: Sequence[Path], authority: Path, folder: Path) -> None:
    """Lay everything out in ``folder``.

    Raises:
        AuditError: the chains or the model do not verify; nothing is packed then.
        RunError: the run's files cannot be read.
    """
    (folder / "verdict.txt").write_text("\n".join(verify(run, chains, authority).lines()) + "\n", encoding="utf-8")
    _copy(authority, folder / "chains" / "ca.pem")
    for chain in chains:
        _copy(chain, folder / "chains" / f"{chain.parent.name}.jsonl")
    for name in _COPIED:
        if (run / name).exists():
            _copy(run / name, folder / name)
    facts = RunFacts.read(run)
    write_report([facts], folder / "report")
    config = yaml.safe_dump(facts.config.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "claims.md").write_text(claims_table(read_claims()), encoding="utf-8")
    write_bill_of_materials(folder / "sbom.cdx.json")


@dataclass(frozen=True)
class Claim:
    """What is claimed, the words that claim it on a page, and the tests that show it, ``FILE::TEST``."""

    claim: str
    readme: tuple[str, ...]
    tests: tuple[str, ...]


def read_claims() -> tuple[Claim, ...]:
    """Return every claim.

    Raises:
        ConfigError: a claim names no test, or one that does not exist.
    """
    tree: dict[str, dict[str, list[str]]] = yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))
    claims = tuple(Claim(claim, tuple(told["readme"]), tuple(told["tests"])) for claim, told in tree.items())
    for claim in claims:
        for test in claim.tests or ("none",):
            path, _, name = test.partition("::")
            file = ROOT / path
            if not file.is_file() or f"def {name}(" not in file.read_text(encoding="utf-8"):
                raise ConfigError(f"{CLAIMS_FILE.name}: {claim.claim!r} must name a test that exists, got {test}")
    return claims


def check_readme(readme: str, claims: Sequence[Claim]) -> None:
    """Compare the README, with the page of guarantees behind it, with the claims.

    Raises:
        ConfigError: the pages claim something without a row, or no longer have the words of a row.
    """
    words = " ".join(readme.split())
    quoted = [quote for claim in claims for quote in claim.readme]
    for quote in quoted:
        if quote not in words:
            raise ConfigError(f"{CLAIMS_FILE.name}: the README or docs/guarantees.md must have the words {quote!r}")
    for told in _claimed(readme):
        if not any(quote in told for quote in quoted):
            raise ConfigError(f"{CLAIMS_FILE.name} must have a row for this claim: {told!r}")


def _claimed(readme: str) -> list[str]:
    """Return what the pages claim: sentences and rows of what is guaranteed, rows of how good, private and fast."""
    titles = ("# ", "## What is guaranteed, against", "## What is guaranteed in full", "## How good")
    opening, table, full, figures = (_section(readme, title) for title in titles)
    sentences = list[str]()
    for paragraph in (*opening.split("\n\n"), *table.split("\n\n"), *full.split("\n\n")):
        if paragraph.lstrip().startswith("|"):
            sentences += _rows(paragraph)
        elif not paragraph.lstrip().startswith(("**Not defended", "![")):
            sentences += re.split(r"(?<=\.)(?<!al\.) ", " ".join(paragraph.split()))
    told = (*sentences[1:], *_rows(figures))  # The first sentence says what it is.
    return [claim for claim in told if claim and not claim.startswith("[")]  # A link to a page claims nothing itself.


def _rows(text: str) -> list[str]:
    """Return the rows of a Markdown table, without its head."""
    return [line for line in text.strip().splitlines() if line.startswith("|")][2:]


def _section(readme: str, title: str) -> str:
    """Return what stands below the first heading that begins with ``title``, up to the next heading."""
    found = re.search(rf"^{title}.*?\n(.*?)(?=^#|\Z)", readme, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ConfigError(f"the README must have a heading that begins with {title!r}")
    return found[1]


def claims_table(claims: Sequence[Claim]) -> str:
    """Return the claims as a Markdown table."""
    rows = [f"| {claim.claim} | {'<br>'.join(f'`{test}`' for test in claim.tests)} |" for claim in claims]
    return "\n".join(("| claim | shown by |", "|---|---|", *rows)) + "\n"


def write_bill_of_materials(path: Path) -> None:
    """Write a CycloneDX bill of materials of the locked packages with their hashes.

    Raises:
        RunError: cyclonedx-py could not make it.
    """
    command = (sys.executable, "-m", "cyclonedx_py", "requirements", str(LOCK), "--of", "JSON", "-o", str(path))
    finished = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if finished.returncode != 0 or not path.exists():
        raise RunError(f"the bill of materials could not be made: {finished.stderr.strip()[-200:]}")


def pack(folder: Path, out: Path) -> None:
    """Write ``folder`` as a zip archive, with a manifest of every file's SHA-256.

    Raises:
        RunError: ``out`` cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "versions": versions(),
        "sha256": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=2) + "\n")
            for path in files:
                archive.write(path, path.relative_to(folder))
    except OSError as error:
        raise RunError(f"{out} must be writable: {error.strerror}") from None


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise RunError(f"{source.name} must be readable: {error.strerror}") from None
