"""``confide ca``: the consortium's certificate authority on a machine of its own, which needs no network.

It reads signing requests and writes certificates as files; its operator compares what it prints with what the
hospital says about itself. The folder (``certs/`` by default) holds everything: keep it offline, and a copy in a safe.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from common.config import EnrolmentConfig, load_config
from common.errors import IdentityError
from common.files import write_private
from common.identity.certificates import (
    ServerSigningRequest,
    certificate_pem,
    check_hospital_name,
    fingerprint,
    key_fingerprint,
    read_signing_request,
)
from common.identity.members import MEMBERS_FILE, verify_members
from common.identity.revocation import REVOCATIONS_FILE
from deploy.command import CONFIG_FILE, FILE, group, out_option
from deploy.source_tree import ROOT
from server.members.authority import Authority

CERTS_FOLDER = ROOT / "certs"


@dataclass(frozen=True)
class _Place:
    """The authority's folder, and how long what it signs is good."""

    folder: Path
    lifetimes: EnrolmentConfig


@group(
    "ca",
    "Run the consortium's certificate authority on a machine of its own, which needs no network.\n\n"
    "It reads signing requests and writes certificates as files. Compare what is printed with what the hospital says "
    "about itself. The authority's folder is all there is: keep it offline, and a copy in a safe.",
    "./confide ca make\n./confide ca sign requests/*.csr",
)
@click.option("--ca", type=FILE, default=CERTS_FOLDER, show_default="certs", metavar="DIR", help="The folder.")
@click.option(
    "--config", type=FILE, default=CONFIG_FILE, show_default=CONFIG_FILE.name, metavar="FILE", help="For the lifetimes."
)
@click.pass_context
def main(context: click.Context, ca: Path, config: Path) -> None:
    """Hold the actions."""
    context.obj = _Place(ca, load_config(config).enrolment)


_hours_option = click.option(
    "--hours",
    type=float,
    show_default="enrolment.revocations_hours",
    metavar="H",
    help="How long the revocation list is good.",
)


@main.command("make", help="Make a new authority.", example="./confide ca --ca /media/safe/ca make")
@click.option("--name", default="Confide consortium", metavar="WORDS", help="The consortium's name.")
@click.pass_obj
def make(place: _Place, name: str) -> int:
    """Make an authority."""
    made = Authority.make(place.folder, name, datetime.datetime.now(datetime.UTC))
    print(f"authority {fingerprint(made.certificate)} made in {place.folder}; guard ca.key, and bring ca.pem alone")
    return 0


@main.command(
    "sign",
    help="Sign requests. NAME.csr becomes NAME.pem, with both lists beside it.",
    example="./confide ca sign requests/*.csr",
)
@click.argument("requests", nargs=-1, required=True, type=FILE, metavar="FILE.csr...")
@_hours_option
@click.pass_obj
def sign(place: _Place, requests: tuple[Path, ...], hours: float | None) -> int:
    """Sign what was requested, and both lists."""
    authority, now = Authority(place.folder), datetime.datetime.now(datetime.UTC)
    for request in requests:
        print(_sign(authority, request, now, place.lifetimes))
    _write_lists(authority, place.lifetimes, hours, now, sorted({request.parent for request in requests}))
    return 0


@main.command(
    "revoke",
    help="End the membership of hospitals, and write both lists. Without a NAME the lists are only signed anew.",
    example="./confide ca revoke st-mary --out /media/stick",
)
@click.argument("hospitals", nargs=-1, metavar="[NAME]...")
@out_option(Path(), shown="the current folder", help="Where both lists go.")
@_hours_option
@click.pass_obj
def revoke(place: _Place, hospitals: tuple[str, ...], out: Path, hours: float | None) -> int:
    """Revoke certificates, and sign both lists."""
    authority, now = Authority(place.folder), datetime.datetime.now(datetime.UTC)
    for name in hospitals:
        count = authority.revoke(check_hospital_name(name), now)
        print(f"{name}: {count} certificate{'' if count == 1 else 's'} revoked")
    _write_lists(authority, place.lifetimes, hours, now, [out])
    return 0


def _write_lists(
    authority: Authority,
    lifetimes: EnrolmentConfig,
    asked: float | None,
    now: datetime.datetime,
    folders: Sequence[Path],
) -> None:
    hours = lifetimes.revocations_hours if asked is None else asked
    lists = authority.sign_lists(now, datetime.timedelta(hours=hours))
    for folder in folders:
        write_private(folder / REVOCATIONS_FILE, lists.revocations)
        print(f"{folder / REVOCATIONS_FILE}: revocation list, good for {hours:g} hours")
        if lists.members is not None:
            write_private(folder / MEMBERS_FILE, lists.members)
            print(f"{folder / MEMBERS_FILE}: {_members(lists.members, authority)}")


def _members(encoded: bytes, authority: Authority) -> str:
    listed = verify_members(encoded, authority.certificate)
    return f"member list {listed.number}: {', '.join(listed.members) or 'nobody'}"


def _sign(authority: Authority, path: Path, now: datetime.datetime, lifetimes: EnrolmentConfig) -> str:
    """Sign one request, write the certificate beside it, and return the line that says what was signed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path} must be a readable signing request: {error.strerror}") from None
    signed = path.with_suffix(".pem")
    request = read_signing_request(content)
    if isinstance(request, ServerSigningRequest):
        lifetime = datetime.timedelta(hours=lifetimes.server_certificate_hours)
        certificate = authority.sign_server(request, now, lifetime)
        whom = f"server {', '.join(request.hosts)}"
    else:
        name = check_hospital_name(path.stem)
        lifetime = datetime.timedelta(hours=lifetimes.hospital_certificate_hours)
        certificate = authority.sign_hospital(request, name, now, lifetime)
        whom = f"hospital {name}, key {key_fingerprint(request.key)}"
    write_private(signed, certificate_pem(certificate))
    return f"{signed}: {whom}, until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
