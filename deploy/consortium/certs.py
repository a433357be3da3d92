"""``confide certs``: make the consortium's authority in ``certs/`` if it is missing, and show what lies there."""

import datetime
from pathlib import Path

import click
from cryptography import x509

from common.errors import ConfideError
from common.identity.certificates import ServerSigningRequest, fingerprint, load_certificate, read_signing_request
from common.identity.members import MEMBERS_FILE, verify_members
from common.identity.revocation import verify_revocations
from deploy.command import FILE, command
from deploy.consortium.authority import CERTS_FOLDER
from server.members import authority
from server.members.authority import Authority


@command(
    "certs",
    "Make the consortium's authority in DIR if there is none, and show what lies there.\n\nDIR is certs unless given.",
    "./confide certs --show",
)
@click.argument("folder", type=FILE, default=CERTS_FOLDER, metavar="[DIR]")
@click.option("--show", is_flag=True, help="Make nothing.")
def main(folder: Path, show: bool) -> int:
    """Print one line a file."""
    if not show and not (folder / authority.CERTIFICATE_FILE).exists():
        Authority.make(folder, "Confide consortium", datetime.datetime.now(datetime.UTC))
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            print(f"{path.name:<24} {path.stat().st_mode & 0o777:04o}  {_describe(path, folder)}")
    return 0


def _describe(path: Path, folder: Path) -> str:
    """Say what a file is, from its content where that can be read, never showing a secret."""
    try:
        match path.suffix:
            case ".key":
                said = "private key: never leaves this folder"
            case ".pem":
                said = _certificate(load_certificate(path))
            case ".csr":
                request = read_signing_request(path.read_bytes())
                hosts = request.hosts if isinstance(request, ServerSigningRequest) else ()
                said = f"signing request for {', '.join(hosts) or f'hospital {path.stem}'}"
            case ".crl":
                said = _revocations(path.read_bytes(), folder)
            case _ if path.name == MEMBERS_FILE:
                listed = verify_members(path.read_bytes(), load_certificate(folder / authority.CERTIFICATE_FILE))
                said = f"member list {listed.number}: {', '.join(listed.members) or 'nobody'}"
            case _:
                said = "register of members and of what was signed" if path.name == authority.REGISTER_FILE else ""
    except (ConfideError, OSError) as error:
        said = f"cannot be read: {error}"
    return said


def _revocations(encoded: bytes, folder: Path) -> str:
    listed = verify_revocations(encoded, load_certificate(folder / authority.CERTIFICATE_FILE))
    until = f"good until {listed.next_update:%Y-%m-%d %H:%M} UTC"
    return f"revocation list {listed.number}: {len(listed.revoked)} revoked, {until}"


def _certificate(certificate: x509.Certificate) -> str:
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    name = certificate.subject.rfc4514_string().removeprefix("CN=")
    until = f"until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return f"{'authority' if is_authority else 'certificate'} {name}, {until}, fingerprint {fingerprint(certificate)}"
