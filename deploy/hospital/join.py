"""``confide hospital join INVITATION --data DIR``: become a member of a consortium, and take part from then on.

The hospital makes its keys itself and connects outwards only, to two ports of the server. A hospital that has joined
needs no invitation to start again. Whoever can list this machine's processes reads an invitation on the command line;
a file, ``-`` for the standard input, or the variable CONFIDE_INVITATION keep it to this user.
"""

import os
import sys
from pathlib import Path

import click

from client.enrolment import ANY_NAME, INVITATION_VARIABLE, JoinedPlace, is_enrolled, join
from client.ledger.place import go_on_with
from client.ledger.remembered import remembered
from common.config import load_config
from common.errors import EnrolmentError
from common.identity.certificates import load_certificate, who_holds_the_key
from common.identity.invitation import Invitation
from common.processes import become, python_module
from common.settings import HospitalSettings
from deploy.command import FILE, command, config_options, log_format_option, state_option
from deploy.source_tree import ROOT
from deploy.terminal import filled

_STANDARD_INPUT = "-"


@command(
    "join",
    "Become a member of a consortium, and take part from then on.\n\nINVITATION is the line that the consortium's "
    "operator sent, a file that holds it, or - to read it from the standard input. Whoever can list this machine's "
    "processes reads a line that is given here; a file, - or the variable CONFIDE_INVITATION keep it to this user. A "
    "hospital that has joined needs no invitation to start again. It connects outwards only, to two ports of "
    "the server.",
    "./confide hospital join invitation.txt --data /data/x-rays",
)
@click.argument("invitation", required=False)
@click.option("--data", type=FILE, metavar="DIR", help="This hospital's images.")
@state_option("hospital", Path("hospital-state"))
@click.option(
    "--ledger",
    type=FILE,
    metavar="DIR",
    help="The ledger that these images have had so far, or the state folder that holds it. One that this machine knows "
    "is found by itself.",
)
@click.option(
    "--name",
    default=ANY_NAME,
    show_default="the next free one",
    metavar="NAME",
    help="The name to ask for, where the invitation is for a group, such as hospital-3.",
)
@click.option("--logs", type=FILE, show_default="logs in --state", metavar="DIR", help="Where the logs go.")
@config_options("this hospital")
@click.option("--no-start", is_flag=True, help="Only join.")
@click.option(
    "--runtime-port",
    type=int,
    default=HospitalSettings.model_fields["runtime_port"].default,
    hidden=True,
    help="Not used: what listened there in earlier versions is a socket in the state folder now.",
)
@log_format_option()
@click.option("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="Where Prometheus may read.")
def main(
    *,
    invitation: str | None,
    data: Path | None,
    ledger: Path | None,
    name: str,
    state: Path,
    logs: Path | None,
    config_file: Path,
    overrides: tuple[str, ...],
    no_start: bool,
    runtime_port: int,
    metrics_host: str,
) -> int:
    """Join if that has not been done, then become the hospital's supervisor."""
    state = state.resolve()
    if ledger is not None:
        _say(f"the ledger of these images is in {go_on_with(state, ledger)}; back it up where it is")
    if not is_enrolled(state):
        config = load_config(config_file, overrides)
        place = JoinedPlace(
            state=state,
            data=_data_folder(data),
            logs=logs.resolve() if logs else state / "logs",
            runtime_port=runtime_port,
            metrics_port=config.monitoring.hospital_metrics_port,
            metrics_host=metrics_host,
        )
        name = join(_invitation(invitation), place, config, _say, name)
        _say(f"joined as {name}; keys and ledger are in {state}; back it up, and show it to nobody")
        told = remembered(state)
        if told is not None:
            _say(f"the consortium remembers that the data of {name} has spent ε = {told.epsilon:g}")
        _say(who_holds_the_key(load_certificate(state / "ca.pem")))
    os.environ.pop(INVITATION_VARIABLE, None)  # The SuperNode and others that are started from here have no use for it.
    if not no_start:
        become(python_module("client", "--state", str(state)), ROOT)
    return 0


def _data_folder(data: Path | None) -> Path:
    if data is None or not data.is_dir():
        raise EnrolmentError(f"--data must be a folder with this hospital's images, got {data or 'none'}")
    return data.resolve()


def _invitation(given: str | None) -> Invitation:
    given = given or os.environ.get(INVITATION_VARIABLE, "")
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
    print(filled(what, "  "), file=sys.stderr, flush=True)
