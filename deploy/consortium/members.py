"""``confide invite NAME`` and ``confide revoke NAME``: who may take part in a consortium."""

import datetime
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives import hashes

from common.config import load_config
from common.errors import EnrolmentError
from common.files import write_private
from common.hosts import check_host
from common.identity.certificates import (
    check_hospital_name,
    load_certificate,
    who_holds_the_key,
)
from common.identity.invitation import Invitation, join_host_port
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from deploy.command import FILE, command, state_option
from deploy.terminal import filled
from server.members.certificates import Certificates
from server.members.ledgers import RememberedLedgers
from server.members.roster import MOST_USES, Membership


@command(
    "invite",
    "Print an invitation: one line that lets one hospital join once. Send it by a way both trust.\n\n"
    "NAME is the hospital's: a-z, 0-9 and '-'.",
    "./confide invite st-mary --state /srv/consortium",
)
@click.argument("name")
@state_option("server")
@click.option(
    "--hours", type=float, show_default="enrolment.invitation_hours", metavar="H", help="How long the invitation works."
)
@click.option(
    "--group", type=int, metavar="N", help=f"Let N hospitals join, as NAME-1, NAME-2 and so on; at most {MOST_USES}."
)
@click.option(
    "--address", show_default="the first", metavar="HOST", help="Which of the server's addresses the invitation names."
)
@click.option("--out", type=FILE, metavar="FILE", help="Write it there instead of printing it.")
@click.option(
    "--forget-ledger",
    is_flag=True,
    help="Let it come with less than the data of this name had spent, because its ledger is lost.",
)
def invite(
    *,
    name: str,
    state: Path,
    hours: float | None,
    group: int | None,
    address: str | None,
    out: Path | None,
    forget_ledger: bool,
) -> int:
    """Make an invitation; returns 0."""
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    if not settings.enrolment_port:
        raise EnrolmentError("the server must run an enrolment service, as `confide server` does; this one has none")
    host = check_host(address or settings.hosts[0])
    if host not in settings.hosts:
        raise EnrolmentError(f"--address must be one of {', '.join(settings.hosts)}, which the server has, got {host}")
    lasting = load_config(settings.config).enrolment.invitation_hours if hours is None else hours
    if forget_ledger and RememberedLedgers(state, load_certificate(state / "ca.pem")).forget(
        name, datetime.datetime.now(datetime.UTC)
    ):
        print(filled(f"what the data of {name} had spent is forgotten by your decision"), file=sys.stderr)
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=lasting)
    token = Membership(state).invite(name, expires, group)
    certificate = load_certificate(state / "ca.pem")
    authority = certificate.fingerprint(hashes.SHA256())
    line = Invitation(host, settings.enrolment_port, authority, token, int(expires.timestamp()), name).encode()
    if out is None:
        print(line)
    else:
        _write_secret(out, line + "\n")
    whom = name if group is None else f"{group} hospitals {name}-…"
    words = (
        f"for {whom}; server {join_host_port(host, settings.enrolment_port)}; until {expires:%Y-%m-%d %H:%M} UTC; "
        f"authority {authority.hex()}; {who_holds_the_key(certificate)}"
    )
    print(filled(words, "  "), file=sys.stderr)
    return 0


@command(
    "revoke",
    "Cut a hospital off: its SuperNode at once, its keys at every other hospital from the next round on.\n\n"
    "NAME is the hospital's.",
    "./confide revoke st-mary --state /srv/consortium",
)
@click.argument("name")
@state_option("server")
def revoke(name: str, state: Path) -> int:
    """End a membership; returns 0."""
    name = check_hospital_name(name)
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    certificates = Certificates(state, settings, load_config(settings.config).enrolment)
    still_listed = certificates.is_offline and certificates.names(name)
    was_member = Membership(state).remove(name, still_listed=still_listed)
    published = certificates.revoke(name, datetime.datetime.now(datetime.UTC))
    if not was_member:
        _say(f"{name} was not a member; an invitation for it, and a certificate it may have, work no more")
    else:
        _say(f"{name} is no member any more; a running server cuts its SuperNode off within seconds")
    if published:
        _say("the revocation is signed; hospitals get it within seconds, before their next round")
    else:
        _say(
            f"the authority is not on this server: `confide ca revoke {name}` where its key is, and put revoked.crl "
            f"and members.json into {state / 'requests'}; until then {name} stays on the roster, takes "
            "part in nothing, and counts among those who may collude with the server"
        )
    return 0


def _say(words: str) -> None:
    print(filled(words, "  "))


def _write_secret(path: Path, content: str) -> None:
    try:
        write_private(path, content.encode())
    except OSError as error:
        raise EnrolmentError(f"--out must be a file that can be written: {error.strerror}") from None
