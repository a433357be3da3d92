"""``confide hospital ledger``: what a hospital's data has spent, whether the record is whole, and what to do if not."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from client.ledger import LEDGER_FOLDER, accept, export, verify
from client.ledger_chain import Anchor
from common.errors import LedgerError
from common.privacy.accounting import Accountant, MechanismEvent, epsilon, rounded_up

MEANING = (
    "This holds for each record, and for each patient where all runs had that unit; against everyone outside the "
    "hospital, or, for rounds of distributed noise, the server with the colluding hospitals that their run declared."
)


def main(argv: Sequence[str]) -> int:
    """Answer ``confide hospital ledger show|verify|export|accept``; argv begins with the command's last word."""
    arguments = _parser().parse_args(argv[1:])
    folder = arguments.state / LEDGER_FOLDER
    match arguments.action:
        case "show":
            print(_as_text(export(folder), arguments.delta, arguments.budget))
        case "verify":
            print(f"whole: {verify(folder, arguments.anchor)}")
        case "export":
            print(json.dumps(export(folder), indent=2))
        case "accept":
            print(f"accepted; the ledger goes on from {accept(folder, arguments.reason, arguments.data_set)}")
    return 0


def _as_text(ledger: dict[str, Any], delta: float | None, budget: float | None) -> str:
    """Return one line for each entry, then what they come to."""
    lines = [f"{'line':>5}  {'written':<17} {'run':<9}{'round':>6} {'noise':>9} {'rate':>8} {'steps':>6}  mechanism"]
    lines += [_entry_text(entry) for entry in ledger["entries"]]
    lines += ["", f"data set {ledger['fingerprint'][:16]}…, head {ledger['head']}"]
    judged_at = delta or ledger["smallest_delta"]
    if judged_at is None:
        return "\n".join([*lines, "nothing is spent"])
    events = TypeAdapter(tuple[MechanismEvent, ...]).validate_python(ledger["events"])
    spent = {accountant: epsilon(events, judged_at, accountant) for accountant in Accountant}
    lines += [
        f"spent: ε = {rounded_up(value):.3f} at δ = {judged_at:g} ({accountant.upper()})"
        for accountant, value in spent.items()
    ]
    lines.append(MEANING)
    if budget is not None:
        left = max(0.0, budget - rounded_up(spent[Accountant.PRV]))
        lines.append(f"left of the budget of {budget:g}: {left:.3f}")
    return "\n".join(lines)


def _entry_text(entry: dict[str, Any]) -> str:
    written = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M")
    start = f"{entry['sequence']:>5}  {written:<17} "
    match entry["kind"]:
        case "spent":
            event = entry["event"]
            return (
                f"{start}{entry['run_id'][:8]} {entry['round_number']:>6} {event['noise_multiplier']:>9.4f} "
                f"{event['sample_rate']:>8.4f} {event['steps']:>6}  {event['kind']}"
            )
        case "accepted":
            steps = sum(event["steps"] for event in entry["events"])
            return f"{start}accepted with {steps} steps spent: {entry['reason']} ({entry['fault']})"
        case _:
            return f"{start}opened"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide hospital ledger", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|verify|export|accept")
    show = actions.add_parser("show", help="every line, and the ε they come to")
    show.add_argument("--delta", type=float, help="default: the smallest that any line was booked under")
    show.add_argument("--budget", type=float, metavar="E", help="the hospital's budget, to show what is left")
    check = actions.add_parser("verify", help="check the chain and the anchor; not whole is an error")
    check.add_argument("--anchor", type=_anchor, metavar="LINE:DIGEST", help="one that was kept outside this machine")
    export_action = actions.add_parser("export", help="everything as JSON")
    accept_action = actions.add_parser("accept", help="go on after a refusal; what is known to be spent stays spent")
    accept_action.add_argument("--reason", required=True, help="in words, kept in the ledger")
    accept_action.add_argument(
        "--data-set", type=_fingerprint, metavar="HEX", help="fingerprint of the data from now on"
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
