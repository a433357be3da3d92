"""``confide hospital join INVITATION --data DIR``: become a member of a consortium, and take part from then on.

The hospital makes its keys itself and connects outwards only, to two ports of the server. A hospital that has joined
needs no invitation to start again. Whoever can list this machine's processes reads an invitation on the command line;
a file, ``-`` for the standard input, or the variable CONFIDE_INVITATION keep it to this user.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from client.enrolment import INVITATION_VARIABLE, Place, is_enrolled, join
from common.config import load_config
from common.errors import EnrolmentError
from common.identity.certificates import load_certificate, who_holds_the_key
from common.identity.invitation import Invitation
from common.processes import become, python_module
from common.settings import HospitalSettings
from deploy.source_tree import ROOT

_STANDARD_INPUT = "-"


def main(argv: Sequence[str]) -> int:
    """Join if that has not been done, then become the hospital's supervisor."""
    arguments = _parser().parse_args(argv[1:])
    state = arguments.state.resolve()
    if not is_enrolled(state):
        config = load_config(arguments.config, tuple(arguments.overrides))
        place = Place(
            state=state,
            data=_data_folder(arguments.data),
            logs=arguments.logs.resolve() if arguments.logs else state / "logs",
            runtime_port=arguments.runtime_port,
            metrics_port=config.monitoring.hospital_metrics_port,
            metrics_host=arguments.metrics_host,
        )
        name = join(_invitation(arguments), place, config, _say)
        _say(f"joined as {name}; keys and ledger are in {state}; back it up, and show it to nobody")
        _say(who_holds_the_key(load_certificate(state / "ca.pem")))
    os.environ.pop(INVITATION_VARIABLE, None)  # The SuperNode and others that are started from here have no use for it.
    if not arguments.no_start:
        become(python_module("client", "--state", str(state)), ROOT)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide hospital join", description=__doc__)
    parser.add_argument(
        "invitation",
        nargs="?",
        metavar="INVITATION",
        help="the line, a file that holds it, or - to read it from the standard input",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="this hospital's images")
    parser.add_argument(
        "--state", type=Path, default=Path("hospital-state"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--logs", type=Path, metavar="DIR", help="default: in --state")
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", metavar="FILE", help="this hospital's own")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--no-start", action="store_true", help="only join")
    parser.add_argument(
        "--runtime-port", type=int, default=HospitalSettings.model_fields["runtime_port"].default, metavar="PORT",
        help="on loopback only; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    return parser


def _data_folder(data: Path | None) -> Path:
    if data is None or not data.is_dir():
        raise EnrolmentError(f"--data must be a folder with this hospital's images, got {data or 'none'}")
    return data.resolve()


def _invitation(arguments: argparse.Namespace) -> Invitation:
    given = arguments.invitation or os.environ.get(INVITATION_VARIABLE, "")
    if not given:
        raise EnrolmentError(
            f"an invitation must be given, as an argument or in {INVITATION_VARIABLE}; the consortium's operator makes "
            "one with `confide invite`"
        )
    if given == _STANDARD_INPUT:
        given = sys.stdin.readline()
    elif "/" in given or Path(given).is_file():
        try:
            given = Path(given).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise EnrolmentError(f"the file of the invitation must be readable: {error}") from None
    return Invitation.decode(given)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
