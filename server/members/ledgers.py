"""Remembers what each member's data has spent, by its own signed statements, for longer than its membership lasts."""

import datetime
import logging
from pathlib import Path

from cryptography import x509

from common.errors import EnrolmentError, IdentityError
from common.files import locked, write_private
from common.identity.certificates import check_hospital_name
from common.identity.ledger_statement import LedgerStatement, read_statement

LEDGERS_FOLDER = "ledgers"
"""A folder in the server's state folder: ``NAME.json``, and ``NAME.less`` for a member that came back with less."""

_TOLERANCE = 1e-6
"""Two computations of one ε may differ by their rounding."""

_LOG = logging.getLogger("confide.enrolment")


class RememberedLedgers:
    """The statements of a consortium's members, past ones included.

    Args:
        state: the server's state folder.
        authority: the consortium's.
    """

    def __init__(self, state: Path, authority: x509.Certificate) -> None:
        self._folder = state / LEDGERS_FOLDER
        self._authority = authority

    def of(self, name: str) -> LedgerStatement | None:
        """Return the last statement under a name, None where there was none.

        Raises:
            EnrolmentError: it cannot be read any more.
        """
        try:
            return read_statement(self._path(name).read_bytes(), self._authority)
        except FileNotFoundError:
            return None
        except (OSError, IdentityError) as error:
            raise EnrolmentError(f"what is remembered of {name} must be readable at the server: {error}") from None

    def state(self, name: str, key: object, encoded: bytes) -> LedgerStatement:
        """Take in a statement.

        Args:
            name: the member's that asks.
            key: its public key; the statement must be signed by it.
            encoded: the statement.

        Raises:
            IdentityError: it is not this member's.
            EnrolmentError: it says that less is spent than before: the member is left out of runs until it states more,
                or until the consortium's operator forgets what it knew.
        """
        statement = read_statement(encoded, self._authority)
        signed_by = x509.load_pem_x509_certificate(statement.certificate.encode()).public_key()
        if statement.hospital != name or signed_by != key:
            raise IdentityError(f"a statement about the ledger of {name} must be signed by its own key")
        with locked(self._folder):
            before = self.of(name)
            if before is not None and statement.epsilon < before.epsilon - _TOLERANCE:
                if not self._less(name).exists():
                    _LOG.warning(
                        "%s states that its data has spent ε = %g, and had stated %g; "
                        "it is left out of runs",
                        name, statement.epsilon, before.epsilon,
                    )  # fmt: skip
                self._less(name).touch(0o600)
                raise EnrolmentError(
                    f"{name} must go on with the ledger of its data: that had spent ε = "
                    f"{before.epsilon:g}, got {statement.epsilon:g}; give the ledger with `confide hospital join "
                    "--ledger DIR`, or ask the consortium's operator"
                )
            self._less(name).unlink(missing_ok=True)
            write_private(self._path(name), encoded)
        return statement

    def is_less(self, name: str) -> bool:
        """Return whether a member has come back with less than its data had spent."""
        return self._less(name).exists()

    def forget(self, name: str, now: datetime.datetime) -> bool:
        """Begin anew with a name, as the operator decides, and keep what was known; says whether anything was."""
        path = self._path(name)
        with locked(self._folder):
            self._less(name).unlink(missing_ok=True)
            if not path.exists():
                return False
            path.rename(path.with_name(f"{name}.forgotten-{int(now.timestamp())}"))
        return True

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_hospital_name(name)}.json"

    def _less(self, name: str) -> Path:
        return self._folder / f"{check_hospital_name(name)}.less"
