"""After its rounds a process that was hospitals and server at once holds no secret of theirs anywhere in its memory.

Looked for: every private key (c_u, s_u, and s'_u where a run has disputes), every self-mask seed (b_u), and of every
hospital that masked the shares it never revealed, in pieces of eight bytes, as bytes and as integers of Python's, in
all memory the process can write to: objects, what the allocators have taken back, stacks, OpenSSL's own memory. All
copies that a round makes of them can be reached. Not looked for: the shares that were revealed, which the server is
meant to have, and what Shamir's arithmetic leaves of the polynomials' other coefficients.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.erased_round import DRAWN_BY
from tests.support.memory_scan import PIECES

ROOT = Path(__file__).parents[2]
ROUND_SECONDS = 300.0


def scan(folder: Path, *words: str) -> dict[str, Any]:
    """Return what a process that has played its rounds finds in its memory."""
    command = [sys.executable, "-m", "tests.protocol.erased_round", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scan(tmp_path_factory.mktemp("erased"))


def test_rounds_were_played_with_one_hospital_that_dropped_out(scanned: dict[str, Any]) -> None:
    assert scanned["hospitals"] == [3, 3]
    assert set(scanned["secrets"]) == {*DRAWN_BY.values(), "unrevealed shares", "kept"}
    assert min(scanned["secrets"]["private keys"] / 2, scanned["secrets"]["self-mask seeds"]) >= 4 + 3


def test_what_is_kept_is_found(scanned: dict[str, Any]) -> None:
    assert min(scanned["found"]["kept"], scanned["found"]["kept as integers"]) >= PIECES


def test_no_secret_of_the_rounds_is_left(scanned: dict[str, Any]) -> None:
    assert set(scanned["found"]) == {"kept", "kept as integers"}


def test_in_a_run_that_has_disputes_neither_key_of_a_round_nor_the_secret_of_both_is_left(tmp_path: Path) -> None:
    found = scan(tmp_path, "disputes")
    assert found["hospitals"] == [3, 3]
    assert found["secrets"]["change keys"] >= 3 + 3
    assert found["secrets"]["unrevealed shares"]
    assert set(found["found"]) == {"kept", "kept as integers"}
