"""What a whole run would cost this hospital, judged before its first round.

It follows from the run's description, the hospital's policy and what its ledger holds; no data is read. A round that
fails after its cost was booked, and a measurement that is asked for again, cost more than is planned here: each booking
is judged again when it is made.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from common.config import HospitalConfig, RunDescription
from common.errors import BudgetExceededError
from common.evaluation.plan import Part
from common.privacy.accounting import Accountant, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.privacy.mechanism import mechanism_of
from common.run.terms import evaluation_plan_of, layout_of, release_mechanism

ACCOUNTS = {Part.VALIDATION: Account.VALIDATION, Part.TEST: Account.TEST, Part.TRAINING: Account.STATISTICS}
"""The account that a release of a part is booked on."""


@dataclass(frozen=True)
class PlannedCost:
    """What a run would leave of one budget: ε at the policy's own δ, unit and adversary.

    Attributes:
        account: whose budget.
        before: spent so far.
        after: spent once the run has ended.
        budget: of it.
    """

    account: Account
    before: float
    after: float
    budget: float


def check_whole_run(policy: HospitalConfig, run: RunDescription, booked: Iterable[Booking]) -> tuple[PlannedCost, ...]:
    """Return what a whole run would cost, or refuse it.

    Args:
        policy: the section ``hospital`` of this hospital's own configuration.
        run: as it is described.
        booked: what the hospital's ledger holds, over all runs.

    Returns:
        One for each account that the run spends on.

    Raises:
        BudgetExceededError: the run's planned end would pass a budget; names the account and both figures.
        PrivacyError: the run's noise does not keep its ε, or promises less than the policy wants.
    """
    before, found = tuple(booked), []
    planned = planned_bookings(run)
    for account in dict.fromkeys(booking.account for booking in planned):
        cost = _cost(BudgetPolicy.of(policy, account), Accountant(run.privacy.accountant), account, before, planned)
        # Written so that a budget of NaN refuses, too.
        if not cost.after <= cost.budget:
            raise BudgetExceededError(
                f"all {run.experiment.rounds} rounds would bring this hospital to ε = {rounded_up(cost.after):.3f} at "
                f"δ = {policy.delta:g} for each {policy.unit} of its {account} data, and its budget is "
                f"{cost.budget:g}; {rounded_up(cost.before):.3f} is spent; propose fewer rounds or a smaller ε"
            )
        found.append(cost)
    return tuple(found)


def planned_bookings(run: RunDescription) -> tuple[Booking, ...]:
    """Return what a hospital books in a run of which no round fails.

    That is training, the mean of features, the model of its own records that the run's is compared with, and every
    release.

    Raises:
        PrivacyError: the run's noise does not keep its ε.
    """
    mechanism, parameters = mechanism_of(run), layout_of(run).parameters
    training = mechanism.plan(run, parameters).booking(run.privacy.delta)
    bookings = []
    if training is not None:
        event = replace(training.event, steps=training.event.steps * run.experiment.rounds)
        bookings.append(replace(training, event=event))
    mean = mechanism.mean_plan(run, parameters)
    once = None if mean is None else mean.booking(run.privacy.delta)
    if once is not None:
        bookings.append(once)
    bookings += mechanism.bookings_alone(run, parameters)
    plan, privacy = evaluation_plan_of(run), run.privacy
    if plan is None:
        return tuple(bookings)
    for release in plan.everything:
        event = release_mechanism(run, plan, release).event(1.0)
        bookings.append(Booking(ACCOUNTS[release.part], event, privacy.unit, privacy.colluders, privacy.delta))
    return tuple(bookings)


def _cost(
    policy: BudgetPolicy,
    accountant: Accountant,
    account: Account,
    booked: tuple[Booking, ...],
    planned: tuple[Booking, ...],
) -> PlannedCost:
    def total(bookings: tuple[Booking, ...]) -> float:
        events = policy.events_of(booking for booking in bookings if booking.account is account)
        return epsilon(events, policy.delta, accountant) if events else 0.0

    return PlannedCost(account, total(booked), total((*booked, *planned)), policy.budget)
