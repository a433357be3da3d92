"""``confide hospital ledger``: what a hospital's data has spent, whether the record is whole, and what to do if not."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from client.ledger.chain import Anchor
from client.ledger.held import newest_anchor, newest_entry
from client.ledger.ledger import LEDGER_FOLDER, accept, export, verify
from common.audit.chain import AUDIT_FILE
from common.config import HospitalConfig, load_config
from common.errors import LedgerError, PrivacyError
from common.privacy.accounting import Accountant, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.run.guarantee import relation
from deploy.source_tree import ROOT

_BOOKINGS: TypeAdapter[tuple[Booking, ...]] = TypeAdapter(tuple[Booking, ...])


def main(argv: Sequence[str]) -> int:
    """Answer ``confide hospital ledger show|verify|export|accept``; argv begins with the command's last word."""
    arguments = _parser().parse_args(argv[1:])
    folder, chain = arguments.state / LEDGER_FOLDER, arguments.state / AUDIT_FILE
    match arguments.action:
        case "show":
            print(_as_text(export(folder), load_config(arguments.config, tuple(arguments.overrides)).hospital))
        case "verify":
            head = verify(folder, newest_anchor(chain))
            if arguments.anchor is not None:
                verify(folder, arguments.anchor)
            print(f"whole: {head}")
        case "export":
            print(json.dumps(export(folder), indent=2))
        case "accept":
            _accept(arguments, folder, chain)
    return 0


def _accept(arguments: argparse.Namespace, folder: Path, chain: Path) -> None:
    held = newest_entry(chain)
    if held is not None and held.spent is not None:
        print(f"the audit chain's newest entry says: ε = {held.spent:g} spent on training, line {held.anchor.sequence}")
    anchor = None if held is None else held.anchor
    head = accept(folder, arguments.reason, arguments.data_set, anchor, forget=arguments.forget)
    print(f"accepted; the ledger continues from {head}")


def _as_text(ledger: dict[str, Any], hospital: HospitalConfig) -> str:
    """Return one line for each entry, then what each account has spent by the hospital's own policy."""
    heads = (
        f"{'line':>5}  {'written':<17} {'run':<9}{'round':>6}  {'account':<11}{'unit':<8} {'withstands':<27}"
        f"{'noise':>9} {'rate':>8} {'steps':>6} {'δ':>8}  mechanism"
    )
    lines = [heads, *(_entry_text(entry) for entry in ledger["entries"])]
    lines += ["", f"data set {ledger['fingerprint'][:16]}…, head {ledger['head']}"]
    bookings = _BOOKINGS.validate_python(ledger["bookings"])
    if ledger["entries"][0].get("forgotten"):
        lines.append("ATTENTION: what was spent before line 1 was lost, and forgotten by the operator's decision")
    lines += [_account_text(account, bookings, BudgetPolicy.of(hospital, account)) for account in Account]
    lines.append(_meaning(hospital))
    return "\n".join(lines)


def _account_text(account: Account, bookings: Sequence[Booking], policy: BudgetPolicy) -> str:
    """Return what one account has spent by both accountants, and what is left; or why no budget can be judged."""
    booked = [booking for booking in bookings if booking.account is account]
    if not booked:
        return f"{account:<11}nothing is spent of {policy.budget:g}"
    try:
        events = policy.events_of(booked)
    except PrivacyError as error:
        return f"{account:<11}no ε can be computed, and further rounds are refused: {error}"
    spent = {accountant: rounded_up(epsilon(events, policy.delta, accountant)) for accountant in Accountant}
    both = ", ".join(f"{value:.3f} ({accountant.upper()})" for accountant, value in spent.items())
    left = max(0.0, policy.budget - spent[Accountant.PRV])
    return (
        f"{account:<11}spent: ε = {both} at δ = {policy.delta:g}; left of the budget of {policy.budget:g}: {left:.3f}"
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


def _entry_text(entry: dict[str, Any]) -> str:
    written = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M")
    start = f"{entry['sequence']:>5}  {written:<17} "
    match entry["kind"]:
        case "spent":
            (booking,) = _BOOKINGS.validate_python([entry["booking"]])
            event = booking.event
            return (
                f"{start}{entry['run_id'][:8]} {entry['round_number']:>6}  {booking.account:<11}{booking.unit:<8} "
                f"{booking.adversary():<27}{event.noise_multiplier:>9.4f} {event.sample_rate:>8.4f} {event.steps:>6} "
                f"{booking.delta:>8.0e}  {event.kind}"
            )
        case "accepted":
            steps = sum(booking["event"]["steps"] for booking in entry["bookings"])
            return f"{start}accepted with {steps} steps spent: {entry['reason']} ({entry['fault']})"
        case _:
            return f"{start}opened"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide hospital ledger", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|verify|export|accept")
    show = actions.add_parser("show", help="every line, and the ε of each account by this hospital's policy")
    show.add_argument("--config", type=Path, default=ROOT / "config.yaml", metavar="FILE", help="this hospital's own")
    show.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    check = actions.add_parser(
        "verify", help="check the chain, the anchor and the audit chain's newest line; not whole is an error"
    )
    check.add_argument("--anchor", type=_anchor, metavar="LINE:DIGEST", help="one that was kept outside this machine")
    export_action = actions.add_parser("export", help="everything as JSON")
    accept_action = actions.add_parser("accept", help="continue after a refusal; what is known to be spent stays spent")
    accept_action.add_argument("--reason", required=True, help="in words, kept in the ledger")
    accept_action.add_argument(
        "--data-set", type=_fingerprint, metavar="HEX", help="fingerprint of the data from now on"
    )
    accept_action.add_argument(
        "--forget",
        action="store_true",
        help="continue although lines are lost that the audit chain has, or all lines; the ledger says so from then on",
    )
    for action in (show, check, export_action, accept_action):
        action.add_argument("--state", type=Path, required=True, metavar="DIR", help="the hospital's state folder")
    return parser


def _anchor(text: str) -> Anchor:
    try:
        return Anchor.from_text(text)
    except LedgerError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fingerprint(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a data set's fingerprint must be hexadecimal") from None
