"""Errors that a person reads: what must hold, what was got, what to do.

::

    ConfideError                    root: anything the user, an operator or another party can cause
    ├── ConfigError                 config.yaml, --set or a run description breaks a rule
    ├── DataError                   a data set, shard or image breaks the contract
    ├── IdentityError               a certificate, key or signature is not what it must be
    │   └── StandingError           a hospital's certificate is revoked, or nobody can say whether it is
    ├── EnrolmentError              an invitation or a request to join is refused
    ├── PrivacyError                a privacy parameter has no meaning, or a guarantee could not be given
    │   ├── BudgetExceededError     the next mechanism invocation would pass the hospital's budget
    │   ├── MissingNoiseError       too few hospitals' noise is in a sum, which therefore stays masked
    │   └── LedgerError             the ledger was edited, truncated, rolled back or is unreadable
    ├── PolicyError                 a hospital does not agree to what the server asks
    │   └── EvaluationSpentError        it has measured models as often as the run agreed
    ├── AuditError                  an audit chain was changed, contradicts another, or cannot be written
    ├── RunError                    a run cannot start or continue
    │   └── OtherVersionError           the other side speaks another version of the protocol
    └── secagg.errors.SecAggError   the protocol; drawn in ``common/secagg/errors.py``

None of them ever carries a secret, a patient's identifier or a path inside a hospital's data.
"""

import re
from typing import ClassVar


class ConfideError(Exception):
    """Anything a user, an operator or another party can cause; shown as one line, without a stack trace."""

    code: ClassVar[str] = "confide"
    """The class in snake case without its ending, for metrics and event records: one of a short fixed list."""

    def __init_subclass__(cls) -> None:
        """Derive :attr:`code` from the name, so that the two cannot drift apart."""
        super().__init_subclass__()
        cls.code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()


class ConfigError(ConfideError):
    """A configuration or run description breaks a rule; names the key, the allowed range and what was got."""


class DataError(ConfideError):
    """A data set, shard or image breaks the data contract."""


class IdentityError(ConfideError):
    """A certificate, key or signature is not what it must be."""


class StandingError(IdentityError):
    """A hospital's certificate is revoked, or the revocation list is too old to say so; another roster may do."""


class EnrolmentError(ConfideError):
    """An invitation, or a request to join or to renew, is refused."""


class PrivacyError(ConfideError):
    """A privacy parameter has no meaning, or the guarantee asked for cannot be given."""


class BudgetExceededError(PrivacyError):
    """The next mechanism invocation would pass the hospital's own budget; nothing was written or computed."""


class MissingNoiseError(PrivacyError):
    """More hospitals dropped out of a round than its noise was sized for; nothing of its sum was revealed."""


class LedgerError(PrivacyError):
    """The ledger was edited, truncated, rolled back or is unreadable; training stops until the operator decides."""


class PolicyError(ConfideError):
    """A hospital does not agree to what the server asks."""


class EvaluationSpentError(PolicyError):
    """A release of the evaluation plan was asked for more often than the run description allows."""


class RunError(ConfideError):
    """A run cannot start or cannot continue."""


class OtherVersionError(RunError):
    """The other side speaks another version of the protocol; names both."""


class AuditError(ConfideError):
    """An audit chain was changed, contradicts another, or cannot be written; names the file and the line."""
