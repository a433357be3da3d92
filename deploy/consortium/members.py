"""``confide invite NAME`` and ``confide revoke NAME``: who may take part in a consortium."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

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
from server.members.certificates import Certificates
from server.members.roster import MOST_USES, Membership


def main(argv: Sequence[str]) -> int:
    """Answer ``invite`` or ``revoke``; argv begins with the command's word."""
    return _invite(argv[1:]) if argv[0] == "invite" else _revoke(argv[1:])


def _invite(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="confide invite",
        description="Print an invitation: one line that lets one hospital join once. Send it by a way both trust.",
    )
    parser.add_argument("name", metavar="NAME", help="of the hospital: a-z, 0-9 and '-'")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the server's")
    parser.add_argument("--hours", type=float, metavar="H", help="how long it works (enrolment.invitation_hours)")
    parser.add_argument(
        "--group",
        type=int,
        metavar="N",
        help=f"let N hospitals join, as NAME-1, NAME-2, … (at most {MOST_USES})",
    )
    parser.add_argument("--address", metavar="HOST", help="which of the server's addresses it names (the first)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")
    arguments = parser.parse_args(argv)
    settings = ServerSettings.read(arguments.state / SERVER_SETTINGS_FILE)
    if not settings.enrolment_port:
        raise EnrolmentError("the server must run an enrolment service, as `confide server` does; this one has none")
    host = check_host(arguments.address or settings.hosts[0])
    if host not in settings.hosts:
        raise EnrolmentError(f"--address must be one of {', '.join(settings.hosts)}, which the server has, got {host}")
    hours = load_config(settings.config).enrolment.invitation_hours if arguments.hours is None else arguments.hours
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    token = Membership(arguments.state).invite(arguments.name, expires, arguments.group)
    certificate = load_certificate(arguments.state / "ca.pem")
    authority = certificate.fingerprint(hashes.SHA256())
    line = Invitation(
        host, settings.enrolment_port, authority, token, int(expires.timestamp()), arguments.name
    ).encode()
    if arguments.out is None:
        print(line)
    else:
        _write_secret(arguments.out, line + "\n")
    whom = arguments.name if arguments.group is None else f"{arguments.group} hospitals {arguments.name}-…"
    print(
        f"for {whom}; server {join_host_port(host, settings.enrolment_port)}; until {expires:%Y-%m-%d %H:%M} UTC; "
        f"authority {authority.hex()}; {who_holds_the_key(certificate)}",
        file=sys.stderr,
    )
    return 0


def _revoke(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="confide revoke",
        description="Cut a hospital off: its SuperNode at once, its keys at every other hospital from the next round.",
    )
    parser.add_argument("name", metavar="NAME", help="of the hospital")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the server's")
    arguments = parser.parse_args(argv)
    name = check_hospital_name(arguments.name)
    settings = ServerSettings.read(arguments.state / SERVER_SETTINGS_FILE)
    certificates = Certificates(arguments.state, settings, load_config(settings.config).enrolment)
    still_listed = certificates.is_offline and certificates.names(name)
    was_member = Membership(arguments.state).remove(name, still_listed=still_listed)
    published = certificates.revoke(name, datetime.datetime.now(datetime.UTC))
    if not was_member:
        print(f"{name} was not a member; an invitation for it, and a certificate it may have, work no more")
    else:
        print(f"{name} is no member any more; a running server cuts its SuperNode off within seconds")
    if published:
        print("the revocation is signed; hospitals get it within seconds, before their next round")
    else:
        print(
            f"the authority is not on this server: `confide ca revoke {name}` where its key is, and put revoked.crl "
            f"and members.json into {arguments.state / 'requests'}; until then {name} stays on the roster, takes "
            "part in nothing, and counts among those who may collude with the server"
        )
    return 0


def _write_secret(path: Path, content: str) -> None:
    try:
        write_private(path, content.encode())
    except OSError as error:
        raise EnrolmentError(f"--out must be a file that can be written: {error.strerror}") from None
