"""``confide ca``: the consortium's certificate authority on a machine of its own, which needs no network.

It reads signing requests and writes certificates as files; its operator compares what it prints with what the
hospital says about itself. The folder (``certs/`` by default) holds everything: keep it offline, and a copy in a safe.
"""

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

from common.config import EnrolmentConfig, load_config
from common.errors import IdentityError
from common.files import write_private
from common.identity.certificates import (
    certificate_pem,
    check_hospital_name,
    fingerprint,
    key_fingerprint,
    requested_hospital_key,
    requested_hosts,
)
from common.identity.members import MEMBERS_FILE, verify_members
from common.identity.revocation import REVOCATIONS_FILE
from deploy.source_tree import ROOT
from server.members.authority import Authority

CERTS_FOLDER = ROOT / "certs"


def main(argv: Sequence[str]) -> int:
    """Answer ``confide ca make|sign|revoke``; argv begins with the command's word."""
    arguments = _parser().parse_args(argv[1:])
    now = datetime.datetime.now(datetime.UTC)
    lifetimes = load_config(arguments.config).enrolment
    if arguments.action == "make":
        made = Authority.make(arguments.ca, arguments.name, now)
        print(f"authority {fingerprint(made.certificate)} made in {arguments.ca}; guard ca.key, and bring ca.pem alone")
        return 0
    authority = Authority(arguments.ca)
    if arguments.action == "sign":
        for request in arguments.requests:
            print(_sign(authority, request, now, lifetimes))
        folders = sorted({request.parent for request in arguments.requests})
    else:
        for name in arguments.hospitals:
            count = authority.revoke(check_hospital_name(name), now)
            print(f"{name}: {count} certificate{'' if count == 1 else 's'} revoked")
        folders = [arguments.out]
    hours = lifetimes.revocations_hours if arguments.hours is None else arguments.hours
    lists = authority.sign_lists(now, datetime.timedelta(hours=hours))
    for folder in folders:
        write_private(folder / REVOCATIONS_FILE, lists.revocations)
        print(f"{folder / REVOCATIONS_FILE}: revocation list, good for {hours:g} hours")
        if lists.members is not None:
            write_private(folder / MEMBERS_FILE, lists.members)
            print(f"{folder / MEMBERS_FILE}: {_members(lists.members, authority)}")
    return 0


def _members(encoded: bytes, authority: Authority) -> str:
    listed = verify_members(encoded, authority.certificate)
    return f"member list {listed.number}: {', '.join(listed.members) or 'nobody'}"


def _sign(authority: Authority, path: Path, now: datetime.datetime, lifetimes: EnrolmentConfig) -> str:
    """Sign one request, write the certificate beside it, and return the line that says what was signed."""
    try:
        request = path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path} must be a readable signing request: {error.strerror}") from None
    signed = path.with_suffix(".pem")
    hosts = requested_hosts(request)
    if hosts:
        lifetime = datetime.timedelta(hours=lifetimes.server_certificate_hours)
        certificate = authority.sign_server(request, now, lifetime)
        whom = f"server {', '.join(hosts)}"
    else:
        name = check_hospital_name(path.stem)
        lifetime = datetime.timedelta(hours=lifetimes.hospital_certificate_hours)
        certificate = authority.sign_hospital(request, name, now, lifetime)
        whom = f"hospital {name}, key {key_fingerprint(requested_hospital_key(request))}"
    write_private(signed, certificate_pem(certificate))
    return f"{signed}: {whom}, until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide ca", description=__doc__)
    parser.add_argument("--ca", type=Path, default=CERTS_FOLDER, metavar="DIR", help="default: certs/")
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", metavar="FILE", help="for the lifetimes")
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|sign|revoke")
    make = actions.add_parser("make", help="make a new authority")
    make.add_argument("--name", default="Confide consortium", help="default: %(default)s")
    sign = actions.add_parser("sign", help="sign requests; NAME.csr becomes NAME.pem, with both lists beside it")
    sign.add_argument("requests", nargs="+", type=Path, metavar="FILE.csr")
    revoke = actions.add_parser("revoke", help="end the membership of hospitals, and write both lists")
    revoke.add_argument("hospitals", nargs="*", metavar="NAME", help="without a name, only sign the lists again")
    revoke.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where both lists go; default: here")
    for action in (sign, revoke):
        action.add_argument("--hours", type=float, metavar="H", help="how long the revocation list is good")
    return parser
