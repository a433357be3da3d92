"""Whether the roster of a run is the consortium, and not a choice of the server's.

Rules, in the order they are checked; what breaks one is refused before the hospital takes part:

1. The member list in the run description is signed by the consortium's authority.
2. It is no older than the newest this hospital has seen, nor than the newest its revocation list knows of; it does not
   contradict the list of its number. The revocation list itself is not overdue.
3. Each hospital on the roster is on the list, with the list's key, by a certificate of the authority for its name that
   is not revoked. It may have expired: then no directory or cohort accepts it, but the threshold counts on it.
4. Each hospital on the list is on the roster. A smaller part is for this hospital's operator to allow
   (``hospital.allow_partial_roster``), and the threshold counts on the whole list even then.

A revocation brings a new list that leaves the revoked hospital out, so "all of the list" needs no exception for it.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509

from common.config import HospitalConfig
from common.errors import IdentityError, PolicyError, StandingError
from common.identity.certificates import check_hospital_name, read_certificate, verify_issued_to_hospital
from common.identity.members import KeptMembers, MemberList
from common.identity.revocation import RevocationList, Revocations

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class RosterKeys:
    """A roster that this hospital accepts.

    Attributes:
        keys: hospital to raw Ed25519 identity key, 32 bytes, for everyone on the roster.
        certificates: of the same hospitals.
        consortium: how many members the consortium has, on the roster or not: what a threshold against an active
            server counts its colluders on.
        number: of the member list.
    """

    keys: Mapping[str, bytes] = field(repr=False)
    certificates: Mapping[str, x509.Certificate] = field(repr=False)
    consortium: int
    number: int


def check_roster(
    roster: Mapping[str, str],
    member_list: bytes,
    kept: KeptMembers,
    revocations: Revocations,
    policy: HospitalConfig,
    now: datetime.datetime,
) -> RosterKeys:
    """Return the keys of a run's roster if the server left nobody out, added nobody and swapped no key.

    Args:
        roster: hospital to PEM identity certificate, from the run description.
        member_list: from the run description, as the authority signed it.
        kept: the newest list this hospital has seen; a newer one is kept from now on.
        revocations: the newest revocation list this hospital has seen.
        policy: the section ``hospital`` of this hospital's own configuration.
        now: the current time.

    Raises:
        StandingError: the server's list or a certificate is outdated or revoked, or the revocation list is overdue:
            with newer ones the run may continue.
        IdentityError: the list or a certificate is not the authority's, contradicts what was seen, or a key differs.
        PolicyError: the roster is a part of the consortium, and this hospital does not take part in such runs.
    """
    listed = kept.accept(member_list)
    revoked = revocations.current(now)
    _check_newest(listed, revoked)
    certificates = {name: _checked(name, roster[name], listed, kept, revoked) for name in sorted(roster)}
    missing = sorted(listed.members.keys() - roster.keys())
    if missing and not policy.allow_partial_roster:
        raise PolicyError(
            f"the roster must name all {len(listed.members)} members of the consortium (member list "
            f"{listed.number}), it leaves out {_shown(missing)}; a smaller part would lower the number of hospitals "
            "that may collude with the server; this hospital's operator can set hospital.allow_partial_roster"
        )
    keys = {name: listed.members[name] for name in certificates}
    return RosterKeys(keys, certificates, len(listed.members), listed.number)


def _check_newest(listed: MemberList, revoked: RevocationList | None) -> None:
    if revoked is not None and listed.number < revoked.members_number:
        raise StandingError(
            f"the run must be described with the newest member list, number {revoked.members_number} by the revocation "
            f"list, got number {listed.number}; the server must describe the run again"
        )


def _checked(
    name: str, pem: str, listed: MemberList, kept: KeptMembers, revoked: RevocationList | None
) -> x509.Certificate:
    check_hospital_name(name)
    key = listed.members.get(name)
    if key is None:
        raise IdentityError(
            f"every hospital on the roster must be a member by the authority's list number {listed.number}; {name} is "
            "not on it"
        )
    certificate = read_certificate(pem.encode())
    if verify_issued_to_hospital(certificate, name, kept.authority).public_bytes_raw() != key:
        raise IdentityError(
            f"the certificate of {name} on the roster must hold the key of the authority's member list number "
            f"{listed.number}; it holds another"
        )
    if revoked is not None and certificate.serial_number in revoked.revoked:
        raise StandingError(f"the certificate of {name} is revoked; the server must leave {name} out")
    return certificate


def _shown(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
