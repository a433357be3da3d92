"""Which key masks which part of a vector: one for both, or, in a run that has disputes, one for each.

There both private keys come from one secret by HKDF, and that secret is what is shared by Shamir. So a hospital that
drops out is unmasked as ever, while a survivor can show the key of its change (s'_u) and nobody learns that of its
counts from it.

Proof: ``docs/proofs/disputes.md``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from common.secagg.binding import bind, round_context
from common.secagg.erasing import erase
from common.secagg.keys import derive, public_key
from common.secagg.messages import AdvertisedKeys, DisputableKeys, KeyDirectory
from common.secagg.parameters import RunParameters, Segment


def masking_key_info(run: RunParameters, round_number: int, hospital: str, segment: Segment) -> bytes:
    """Bind a masking key to its owner, its round and the part of the vector."""
    return bind("masking key", round_context(run, round_number), hospital.encode(), segment.encode())


@contextmanager
def derived_key(
    run: RunParameters, round_number: int, hospital: str, secret: bytes, segment: Segment
) -> Iterator[bytes]:
    """Yield the private key that a hospital masks a segment with; it is erased afterwards, the secret is not.

    Args:
        run: of the round.
        round_number: the round.
        hospital: whose key it is.
        secret: what is shared by Shamir: the key itself, or the seed of two.
        segment: of the vector.
    """
    if not run.disputes:
        yield secret
        return
    private = derive(secret, masking_key_info(run, round_number, hospital, segment))
    try:
        yield private
    finally:
        erase(private)


def public_for(advertised: AdvertisedKeys, segment: Segment) -> bytes:
    """Return the public key that others mask a segment with."""
    if segment is Segment.CHANGE and isinstance(advertised, DisputableKeys):
        return advertised.change_key
    return advertised.masking_key


def public_by_hospital(directory: KeyDirectory, segment: Segment) -> dict[str, bytes]:
    """Return everybody's public key for a segment."""
    return {advertised.hospital: public_for(advertised, segment) for advertised in directory.keys}


def is_behind(run: RunParameters, round_number: int, advertised: AdvertisedKeys, secret: bytes) -> bool:
    """Say whether a rebuilt secret is what a hospital's masking keys come from."""
    for segment in Segment if run.disputes else (Segment.COUNTS,):
        with derived_key(run, round_number, advertised.hospital, secret, segment) as private:
            if public_key(private) != public_for(advertised, segment):
                return False
    return True
