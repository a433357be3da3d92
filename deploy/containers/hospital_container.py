"""``python -m deploy.containers.hospital_container``: a hospital in its container.

The first start joins the consortium by an invitation, from a file or the variable CONFIDE_INVITATION; later ones
continue with the state folder. With ``--dealer`` it is one of the demo's hospitals and gets its shard from there; a
real one has its images mounted. Then it becomes the hospital's supervisor, as the user it is started as, and has the
SuperNode run as the user ``relay``.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from client.enrolment import is_enrolled
from common.config import load_config
from common.errors import ConfideError, EnrolmentError
from common.processes import EXIT_REFUSED, Stopping, become, python_module, raise_on_signals
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.containers.between import CERTIFICATE_FILE, DEALER_PORT
from deploy.containers.replica import replica_number
from deploy.demo.dealing import state_dealt
from deploy.demo.dealt_shard import Dealer, fetch, has_shard
from deploy.hospital import join
from deploy.source_tree import ROOT

_RELAY_USER = "relay"
_SERVICE = "hospital"
"""What compose files call the hospitals, and what the names of a demo's hospitals begin with."""
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - Prometheus is another container; nothing is published
_DEAL_SECONDS = 600.0
_ASK_AGAIN_SECONDS = 30.0
"""The time between two tries to join, or to get a shard."""


def main() -> int:
    """Join if necessary, wait for a shard if there is a dealer, and become the supervisor."""
    parser = argparse.ArgumentParser(prog="python -m deploy.containers.hospital_container", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("/state"))
    parser.add_argument("--data", type=Path, default=Path("/shard"))
    parser.add_argument("--config", type=Path, default=Path("/etc/confide/config.yaml"))
    parser.add_argument("--invitation", type=Path, help="file with the invitation; without it, CONFIDE_INVITATION")
    parser.add_argument("--metrics-host", default=_EVERY_ADDRESS, help="default: %(default)s")
    parser.add_argument(
        "--one-user", action="store_true", help="run the SuperNode as this user too, where no other may be become"
    )
    parser.add_argument("--dealer", metavar="HOST", help="of the demo; its certificate lies in --deal")
    parser.add_argument("--deal", type=Path, default=Path("/deal"))
    arguments = parser.parse_args()
    os.umask(0o077)
    raise_on_signals()
    try:
        return _become_hospital(arguments)
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED


def _become_hospital(arguments: argparse.Namespace) -> NoReturn:
    load_config(arguments.config)  # or it ends here, with the reason in one line
    _await_membership(arguments)
    if not arguments.dealer:
        _tell_other_policy(arguments.state, arguments.config)
    else:
        _await_shard(
            Dealer(arguments.dealer, DEALER_PORT, arguments.deal / CERTIFICATE_FILE), arguments.state, arguments.data
        )
        own = HospitalSettings.read(arguments.state / HOSPITAL_SETTINGS_FILE).config
        state_dealt(own, arguments.data, load_config(own))
    relay = () if arguments.one_user else ("--relay-user", _RELAY_USER)
    become(python_module("client", "--state", str(arguments.state), *relay), ROOT)


def _await_membership(arguments: argparse.Namespace) -> None:
    """Join, and wait where that cannot be done yet: an engine would start a container that ends again for ever."""
    said = ""
    while not is_enrolled(arguments.state):
        try:
            _join(arguments)
        except EnrolmentError as error:
            if str(error) != said:
                said = str(error)
                print(f"confide: not a member yet, and waiting: {error}", file=sys.stderr, flush=True)
            time.sleep(_ASK_AGAIN_SECONDS)


def _tell_other_policy(state: Path, mounted: Path) -> None:
    """Say where the mounted policy is another than the one that counts: it was copied when the hospital joined."""
    own = load_config(HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE).config).hospital.model_dump()
    given = load_config(mounted).hospital.model_dump()
    others = [f"{name} is {own[name]}, not {given[name]}" for name in own if own[name] != given[name]]
    if others:
        print(
            f"confide: the mounted {mounted.name} does not reach a hospital that has joined; {'; '.join(others)}. "
            "`confide hospital policy --set KEY=VALUE` changes what counts",
            file=sys.stderr,
            flush=True,
        )


def _join(arguments: argparse.Namespace) -> None:
    invitation = () if arguments.invitation is None else (str(arguments.invitation),)
    number = replica_number(_SERVICE)
    # Containers, hospitals and dashboards then have the same numbers.
    name = () if number is None else ("--name", f"{_SERVICE}-{number}")
    join.main(
        [
            "join", *invitation, *name,
            "--state", str(arguments.state),
            "--data", str(arguments.data),
            "--config", str(arguments.config),
            "--metrics-host", arguments.metrics_host,
            "--no-start",
        ]
    )  # fmt: skip


def _await_shard(dealer: Dealer, state: Path, data: Path) -> None:
    """Ask until there is a shard: a demo's hospital without records can only wait, and its log says for what."""
    while not has_shard(data):
        try:
            fetch(dealer, state, data, _DEAL_SECONDS)
        except ConfideError as error:
            print(f"confide: {error}", file=sys.stderr, flush=True)
            time.sleep(_ASK_AGAIN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
