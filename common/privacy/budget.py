"""What a hospital books, and what a booking costs under the hospital's own policy.

Each booking belongs to one account. Training, validation and test records are different records, so each account has
a budget of its own, and ε is composed within an account alone: for the pairs of data sets of the zero-out relation
that differ in one unit of that part (:mod:`common.privacy.accounting`). Statistics look at training records as well, on
an account of their own that is closed by default: such a record pays both, at most their sum. A booking says for which
unit and against whom its noise is enough. A policy has a unit, an adversary and a δ, too, and ε is judged at these,
whatever a run named.

**What counts as it is.** A booking whose noise withstands at least as many colluding hospitals as the policy asks for,
and whose unit is the policy's, or the patient where the policy's is the record. The latter bounds what all records of
a patient add *together*: a patient who is in the data against one who is not, which for a patient with one record is
that record. For a patient with several, one record's part alone can be learnt with up to twice this ε by someone who
knows the patient's others. A hospital for whom that matters sets its unit to the patient.

**What is converted.** A booking for each record, where the policy's unit is the patient and the hospital's operator
states that no patient has more than k records: its event is composed as one of a group of k
(:func:`common.privacy.accounting.for_a_group`, with the proof).

**What is refused.** A weaker unit without such a statement, and a weaker adversary: how much of the noise colluders
would know cannot be derived from the booking any more.

Proof: ``docs/proofs/budgets.md``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from common.config import MOST_HOSPITALS, HospitalConfig, PrivacyUnit
from common.errors import PrivacyError
from common.privacy.accounting import MechanismEvent, for_a_group


class Account(StrEnum):
    """Whose privacy is spent; no record is in two of the parts, and statistics are of training records."""

    TRAINING = "training"
    VALIDATION = "validation"
    TEST = "test"
    STATISTICS = "statistics"
    """The account for counting training records, which costs beside training on them."""


@dataclass(frozen=True, slots=True)
class Booking:
    """One invocation of a mechanism, with everything without which its cost means nothing.

    Args:
        account: the part of the data that it reads.
        event: what is invoked.
        unit: what one unit of the event is.
        colluders: how many hospitals may share what they know with the server before the noise is too little; None
            when the noise is complete inside the hospital and withstands everyone.
        delta: at which the run states its ε; for people, no budget is judged by it.

    Raises:
        PrivacyError: a value is outside its range.
    """

    account: Account
    event: MechanismEvent
    unit: PrivacyUnit
    colluders: int | None
    delta: float

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.colluders is not None and (
            isinstance(self.colluders, bool) or not 0 <= self.colluders < MOST_HOSPITALS
        ):
            raise PrivacyError(f"colluders must be from 0 to {MOST_HOSPITALS - 1}, got {self.colluders!r}")
        if not 0 < self.delta < 1:
            raise PrivacyError(f"δ must be between 0 and 1, got {self.delta!r}")

    def withstands(self, colluders: int) -> bool:
        """Return whether the noise is enough against the server with this many hospitals."""
        return self.colluders is None or self.colluders >= colluders

    def adversary(self) -> str:
        """Say against whom the noise is enough.

        >>> from common.privacy.accounting import MechanismKind
        >>> event = MechanismEvent(MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, 1.0, 0.1, 1)
        >>> Booking(Account.TEST, event, PrivacyUnit.RECORD, 2, 1e-4).adversary()
        'the server with 2 hospitals'
        """
        match self.colluders:
            case None:
                return "everyone"
            case 0:
                return "the server alone"
            case 1:
                return "the server with 1 hospital"
            case _:
                return f"the server with {self.colluders} hospitals"


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """What a hospital lets one of its accounts spend, whatever a run asks.

    Args:
        budget: ε, over all runs on this data.
        delta: at which ε is judged.
        unit: that the budget protects.
        min_colluders: hospitals that may collude with the server.
        most_records_per_patient: as the operator states; None where nothing is stated.

    Raises:
        PrivacyError: a value is outside its range.
    """

    budget: float
    delta: float
    unit: PrivacyUnit = PrivacyUnit.RECORD
    min_colluders: int = 0
    most_records_per_patient: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing; a budget that allows nothing is a budget."""
        if not 0 < self.delta < 1:
            raise PrivacyError(f"δ must be between 0 and 1, got {self.delta!r}")
        if self.min_colluders < 0 or (self.most_records_per_patient is not None and self.most_records_per_patient < 1):
            raise PrivacyError("min_colluders must be 0 or more and most_records_per_patient 1 or more")

    @classmethod
    def of(cls, hospital: HospitalConfig, account: Account) -> Self:
        """Return what the section ``hospital`` says about an account."""
        budgets = {
            Account.TRAINING: hospital.epsilon_budget,
            Account.STATISTICS: hospital.allow_statistics_epsilon,
        }
        return cls(
            budget=budgets.get(account, hospital.evaluation_epsilon_budget),
            delta=hospital.delta,
            unit=hospital.unit,
            min_colluders=hospital.min_colluders,
            most_records_per_patient=hospital.most_records_per_patient or None,
        )

    def event_of(self, booking: Booking) -> MechanismEvent:
        """Return the event that a booking costs at most for this policy's unit and against its adversary.

        Raises:
            PrivacyError: the booking promises too little for this policy; says what to do.
        """
        if not booking.withstands(self.min_colluders):
            raise PrivacyError(
                f"the noise of what {booking.account} spends must withstand the server with {self.min_colluders} "
                f"colluding hospitals, and one booking of this hospital's withstands {booking.adversary()}; it joins "
                "runs with a larger privacy.colluders, or, where such a booking is in its ledger already, its operator "
                f"lowers hospital.min_colluders to {booking.colluders}"
            )
        if self.unit is PrivacyUnit.RECORD or booking.unit is PrivacyUnit.PATIENT:
            return booking.event
        if self.most_records_per_patient is None:
            raise PrivacyError(
                f"what {booking.account} spends must be bounded for each patient, and one booking of this hospital's "
                "is bounded for each record; its operator states hospital.most_records_per_patient, by which it is "
                "converted, or sets hospital.unit to record"
            )
        return for_a_group(booking.event, self.most_records_per_patient)

    def events_of(self, bookings: Iterable[Booking]) -> tuple[MechanismEvent, ...]:
        """Return the events of several bookings, as :meth:`event_of`."""
        return tuple(self.event_of(booking) for booking in bookings)
