"""``confide hospital ledger``: what a hospital's data has spent, whether the record is whole, and what to do if not."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from client.ledger.chain import Anchor
from client.ledger.held import newest_entry
from client.ledger.ledger import accept, export, verify
from client.ledger.place import held_line, ledger_folder
from client.ledger.remembered import remembered
from common.audit.chain import AUDIT_FILE
from common.config import HospitalConfig, load_config
from common.errors import LedgerError, PrivacyError
from common.privacy.accounting import Accountant, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.run.guarantee import relation
from deploy.command import config_options, group, state_option
from deploy.terminal import Fact, fact_lines, filled

_HEADS = (
    f"{'line':>5}  {'written':<17}{'run':<8} {'round':>5}  {'account':<10} {'noise':>9} {'rate':>7} {'steps':>5}  note"
)

_BOOKINGS: TypeAdapter[tuple[Booking, ...]] = TypeAdapter(tuple[Booking, ...])


@group(
    "ledger",
    "Show what a hospital's data has spent, check whether the record is whole, and decide what to do if it is not.",
    "./confide hospital ledger show --state /srv/confide",
)
def main() -> None:
    """Hold the actions."""


@main.command(
    "show",
    help="Print every line, and the ε of each account by this hospital's policy.",
    example="./confide hospital ledger show --state /srv/confide",
)
@state_option("hospital")
@config_options("this hospital")
def show(state: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Print the ledger for a person."""
    print(_as_text(export(ledger_folder(state)), load_config(config_file, overrides).hospital))
    return 0


def _anchor(_context: click.Context, _option: click.Parameter, text: str | None) -> Anchor | None:
    try:
        return None if text is None else Anchor.from_text(text)
    except LedgerError as error:
        raise click.BadParameter(str(error)) from None


@main.command(
    "verify",
    help="Check the chain, the anchor and the audit chain's newest line. A ledger that is not whole is an error.",
    example="./confide hospital ledger verify --state /srv/confide",
)
@state_option("hospital")
@click.option("--anchor", callback=_anchor, metavar="LINE:DIGEST", help="One that was kept outside this machine.")
def check(state: Path, anchor: Anchor | None) -> int:
    """Print the head of a ledger that is whole."""
    head = verify(ledger_folder(state), held_line(state))
    if anchor is not None:
        verify(ledger_folder(state), anchor)
    print(f"whole: {head}")
    return 0


@main.command(
    "export", help="Print everything as JSON.", example="./confide hospital ledger export --state /srv/confide"
)
@state_option("hospital")
def print_json(state: Path) -> int:
    """Print the ledger for other programs."""
    print(json.dumps(export(ledger_folder(state)), indent=2))
    return 0


def _fingerprint(_context: click.Context, _option: click.Parameter, text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter("a data set's fingerprint must be hexadecimal") from None


@main.command(
    "accept",
    help="Go on after a refusal. What is known to be spent stays spent.",
    example='./confide hospital ledger accept --state /srv/confide --reason "new disk"',
)
@state_option("hospital")
@click.option("--reason", required=True, metavar="WORDS", help="Kept in the ledger.")
@click.option("--data-set", callback=_fingerprint, metavar="HEX", help="Fingerprint of the data from now on.")
@click.option(
    "--forget",
    is_flag=True,
    help="Go on although lines are lost that the audit chain knows of, or all are. The ledger says so from then on.",
)
def decide(state: Path, reason: str, data_set: bytes | None, forget: bool) -> int:
    """Enter the operator's decision."""
    held = newest_entry(state / AUDIT_FILE)
    if held is not None and held.spent is not None:
        print(
            f"the audit chain's newest entry says: ε = {held.spent:g} spent on training (zero-out), "
            f"line {held.anchor.sequence}"
        )
    told = remembered(state) if held is None else None
    if told is not None:
        print(f"the consortium remembers: ε = {told.epsilon:g} spent on training (zero-out)")
    anchor = held_line(state)
    head = accept(ledger_folder(state), reason, data_set, anchor, forget=forget)
    print(f"accepted; the ledger continues from {head}")
    return 0


def _as_text(ledger: dict[str, Any], hospital: HospitalConfig) -> str:
    """Return one line for each entry, then what each account has spent by the hospital's own policy."""
    bookings = _BOOKINGS.validate_python(ledger["bookings"])
    notes: dict[str, int] = {}
    lines = [_HEADS, *(_entry_text(entry, notes) for entry in ledger["entries"]), ""]
    lines += [filled(f"[{number}] {words}", "    ") for words, number in notes.items()]
    lines += [""] * bool(notes)
    lines += [filled(f"data set {ledger['fingerprint'][:16]}…, head {ledger['head']}", "    ")]
    if ledger["entries"][0].get("forgotten"):
        lines.append(
            filled("ATTENTION: what was spent before line 1 was lost, and forgotten by the operator's decision", "    ")
        )
    accounts = [_account(account, bookings, BudgetPolicy.of(hospital, account)) for account in Account]
    return "\n".join((*lines, *fact_lines(accounts), filled(_meaning(hospital))))


def _account(account: Account, bookings: Sequence[Booking], policy: BudgetPolicy) -> Fact:
    """Return what one account has spent by both accountants, and what is left; or why no budget can be judged."""
    booked = [booking for booking in bookings if booking.account is account]
    if not booked:
        return Fact(account, f"nothing is spent of {policy.budget:g}")
    try:
        events = policy.events_of(booked)
    except PrivacyError as error:
        return Fact(account, f"no ε can be computed, and further rounds are refused: {error}")
    spent = {accountant: rounded_up(epsilon(events, policy.delta, accountant)) for accountant in Accountant}
    both = ", ".join(f"{value:.3f} ({accountant.upper()})" for accountant, value in spent.items())
    left = max(0.0, policy.budget - spent[Accountant.PRV])
    return Fact(
        account, f"spent: ε = {both} at δ = {policy.delta:g}; left of the budget of {policy.budget:g}: {left:.3f}"
    )


def _meaning(hospital: HospitalConfig) -> str:
    whom = (
        f"the server with up to {hospital.min_colluders} colluding hospitals"
        if hospital.min_colluders
        else "the server"
    )
    return (
        f"Each holds for each {hospital.unit} of its part ({relation(hospital.unit.value)}), against {whom} and "
        "whoever outside the runs' hospitals gets their models."
    )


def _entry_text(entry: dict[str, Any], notes: dict[str, int]) -> str:
    """Return an entry as a line; what is the same in most lines is a note, which the line names by its number."""
    written = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M")
    start = f"{entry['sequence']:>5}  {written:<17}"
    match entry["kind"]:
        case "spent":
            (booking,) = _BOOKINGS.validate_python([entry["booking"]])
            event = booking.event
            words = f"each {booking.unit}, against {booking.adversary()}, δ = {booking.delta:.0e}, {event.kind}"
            note = notes.setdefault(words, len(notes) + 1)
            return (
                f"{start}{entry['run_id'][:8]} {entry['round_number']:>5}  {booking.account:<10} "
                f"{event.noise_multiplier:>9.4f} {event.sample_rate:>7.4f} {event.steps:>5}  [{note}]"
            )
        case "accepted":
            steps = sum(booking["event"]["steps"] for booking in entry["bookings"])
            words = f"{start}accepted with {steps} steps spent: {entry['reason']} ({entry['fault']})"
            return filled(words, " " * len(start))
        case _:
            return f"{start}opened"
