"""What the consortium remembers of this hospital's ledger: its last statement, kept at the server and given back.

A hospital that comes back with a new state folder gets it when it joins. Its ledger must then hold the line that was
stated, so that a ledger which was left behind cannot be replaced by an empty one.
"""

from pathlib import Path

from cryptography import x509

from client.ledger.chain import Anchor
from common.errors import IdentityError, LedgerError
from common.files import write_private
from common.identity.ledger_statement import LedgerStatement, read_statement

REMEMBERED_FILE = "ledger-remembered.json"
"""In a hospital's state folder: what the consortium gave back when the hospital joined."""
STATED_FILE = "ledger-stated.json"
"""In a hospital's state folder: what its agent stated last, for the process that keeps its membership."""


def keep_remembered(state: Path, encoded: bytes, hospital: str, authority: x509.Certificate) -> LedgerStatement:
    """Keep what the server gives back, once it is seen to be a statement of this hospital's name.

    Raises:
        IdentityError: it is another's, or nobody of this consortium signed it.
    """
    statement = read_statement(encoded, authority)
    if statement.hospital != hospital:
        raise IdentityError(f"the consortium must remember the ledger of {hospital}, got that of {statement.hospital}")
    write_private(state / REMEMBERED_FILE, encoded)
    return statement


def remembered(state: Path) -> LedgerStatement | None:
    """Return what was kept when the hospital joined, None where the consortium knew nothing.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        return LedgerStatement.model_validate_json((state / REMEMBERED_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise LedgerError(f"{REMEMBERED_FILE} must be readable: it says what this hospital's data has spent") from None


def remembered_anchor(state: Path) -> Anchor | None:
    """Return the line that this hospital's ledger must hold by what the consortium remembers, if any."""
    statement = remembered(state)
    return None if statement is None else Anchor.from_text(statement.ledger)
