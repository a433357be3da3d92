"""What a hospital's own audit chain knows of its ledger."""

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.ledger.chain import Anchor
from client.ledger.held import Held, newest_anchor, newest_entry
from client.ledger.ledger import Ledger, accept
from common.audit.chain import AuditChain
from common.audit.entries import JoinedRun
from common.config import PrivacyUnit
from common.errors import AuditError, LedgerError
from common.identity.certificates import make_authority
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking, BudgetPolicy
from tests.support.audited_run import server_writer

FINGERPRINT = bytes(32)
NEWEST = f"7:{64 * 'c'}"


def write_chain(path: Path, *bodies: dict[str, Any]) -> Path:
    """Write lines that follow each other, as an audit chain's do; nobody asks here who signed them."""
    previous, content = 64 * "0", b""
    for number, body in enumerate(bodies, start=1):
        line = json.dumps({"sequence": number, "previous": previous, "body": body}, sort_keys=True).encode() + b"\n"
        previous = hashlib.sha256(line).hexdigest()
        content += line
    path.write_bytes(content)
    return path


def contributed(ledger: str | None, epsilon: float | None = 1.5, budget: float | None = 10.0) -> dict[str, Any]:
    return {"kind": "contributed", "ledger": ledger, "epsilon": epsilon, "budget": budget}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_chain(
        tmp_path / "chain.jsonl",
        {"kind": "identified", "certificate": "-"},
        contributed(f"6:{64 * 'b'}", 1.0),
        contributed(NEWEST, 1.5),
        contributed(None, None, None),
        {"kind": "signed"},
    )


def test_the_newest_line_that_the_chain_names_is_found(path: Path) -> None:
    assert newest_entry(path) == Held(Anchor.from_text(NEWEST), 1.5, 10.0)
    assert newest_anchor(path) == Anchor.from_text(NEWEST)


def test_what_a_party_really_writes_is_read(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    chain = AuditChain(tmp_path / "audit.jsonl", server_writer(make_authority("Consortium", now), now))
    chain.append(JoinedRun(run_id="a1" * 16, config_hash=64 * "0"))
    chain.close()
    assert newest_anchor(tmp_path / "audit.jsonl") is None


def test_a_chain_that_is_not_there_or_names_no_line_knows_none(tmp_path: Path) -> None:
    assert newest_anchor(tmp_path / "audit.jsonl") is None
    (tmp_path / "audit.jsonl").write_bytes(b"")
    assert newest_anchor(tmp_path / "audit.jsonl") is None


def test_a_line_that_a_kill_cut_short_does_not_count(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    (tmp_path / "audit.jsonl").write_bytes(content + b'{"body":{"ledger":"99:')
    assert newest_anchor(tmp_path / "audit.jsonl") == newest_anchor(path)


def without_line(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:number] + lines[number + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        without_line(0),
        without_line(2),
        lambda lines: [lines[0].replace(b'"sequence": 1', b'"sequence": 7'), *lines[1:]],
        lambda lines: [*lines, b"no json\n"],
        lambda lines: [*lines, b"[1]\n"],
        lambda lines: [*lines, b"[" * 100_000 + b"\n"],
    ],
)
def test_a_chain_with_a_line_removed_changed_or_added_is_refused(
    path: Path, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(change(lines)))
    with pytest.raises(AuditError, match=r"audit.jsonl, line \d"):
        newest_anchor(tmp_path / "audit.jsonl")


def test_a_chain_that_cannot_be_read_is_an_error_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditError, match=r"^audit.jsonl must be readable") as caught:
        newest_anchor(tmp_path / "audit.jsonl")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1.5", 10**400])
def test_an_epsilon_that_is_no_number_is_not_told(tmp_path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    path = write_chain(tmp_path / "audit.jsonl", contributed(NEWEST, value, value))
    assert newest_entry(path) == Held(Anchor.from_text(NEWEST), None, None)


def test_the_ledger_of_a_hospital_is_missed_by_its_own_chain(tmp_path: Path) -> None:
    """As the agent does it: the head of each vector's ledger goes into the chain, and comes back at the next start."""
    folder, chain = tmp_path / "ledger", tmp_path / "audit.jsonl"
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 3)
    ledger = Ledger.open(folder, FINGERPRINT, newest_anchor(chain))
    booking = Booking(Account.TRAINING, event, PrivacyUnit.RECORD, None, 1e-5)
    ledger.record("a1" * 16, 1, booking, BudgetPolicy(10.0, 1e-5), Accountant.RDP)
    write_chain(chain, contributed(str(ledger.head())))
    assert Ledger.open(folder, FINGERPRINT, newest_anchor(chain)).head() == ledger.head()
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(LedgerError, match="knows line 2 of it"):
        Ledger.open(folder, FINGERPRINT, newest_anchor(chain))
    accept(folder, "a new disk", FINGERPRINT, newest_anchor(chain), forget=True)
    assert Ledger.open(folder, FINGERPRINT, newest_anchor(chain)).head().sequence == 1
