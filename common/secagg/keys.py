"""The primitives of Bonawitz et al. 2017, section 3 (KA, AE, SIG), and commitments, each with its arguments fixed.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM (NIST SP 800-38D), Ed25519 (RFC 8032), all from ``cryptography``.

Proofs: ``docs/proofs/public-keys.md``, ``docs/proofs/commitments.md``.
"""

from enum import StrEnum

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.binding import bind, bound_hash
from common.secagg.erasing import erase
from common.secagg.parameters import Segment
from common.secagg.shamir import Random

KEY_BYTES = 32
NONCE_BYTES = 12

_FIELD_PRIME = 2**255 - 19

_LOW_ORDER = {
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _FIELD_PRIME - 1,
}
"""Every u-coordinate of a point of order 1, 2, 4 or 8 on Curve25519 or its twist (Bernstein, cr.yp.to/ecdh.html)."""


def public_key(private_key: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def is_low_order(public: bytes) -> bool:
    """Return whether agreeing on a key with ``public``, in its reduced encoding, gives zero for everybody.

    RFC 7748, section 6.1, leaves the check to the protocol; ``cryptography`` would only fail at the agreement.
    """
    return int.from_bytes(public, "little") in _LOW_ORDER


def is_canonical(public: bytes) -> bool:
    """Return whether ``public`` is the one reduced encoding of its point; RFC 7748 also accepts others."""
    return int.from_bytes(public, "little") < _FIELD_PRIME


class Agreements:
    """Agrees on keys with one hospital's private key, 32 bytes, which is read once for all its peers (KA.agree).

    To read it takes as long as to agree: its public half is computed. OpenSSL cleanses its copy when this object goes.
    """

    def __init__(self, private_key: bytes) -> None:
        self._private_key = X25519PrivateKey.from_private_bytes(private_key)

    def agree(self, peer: bytes, info: bytes) -> bytes:
        """Return the 32-byte key that two hospitals share for exactly the purpose ``info``.

        Args:
            peer: the other's public key, checked before with :func:`is_canonical` and :func:`is_low_order`.
            info: made by :func:`common.secagg.binding.bind`.
        """
        shared = self._private_key.exchange(X25519PublicKey.from_public_bytes(peer))
        key = derive(shared, info)
        erase(shared)
        return key


def agree(private_key: bytes, peer: bytes, info: bytes) -> bytes:
    """Do as :meth:`Agreements.agree` for a single peer."""
    return Agreements(private_key).agree(peer, info)


def derive(secret: bytes, info: bytes) -> bytes:
    """Return the 32-byte HKDF-SHA256 of ``secret`` for exactly the purpose ``info``."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def share_encryption_info(context: bytes, directory_hash: bytes, dealer: str, recipient: str) -> bytes:
    """Bind the key for shares from ``dealer`` to ``recipient``; the other direction has another key."""
    return bind("share encryption", context, directory_hash, dealer.encode(), recipient.encode())


def pairwise_seed_info(
    context: bytes, cohort_hash: bytes, request_hash: bytes, pair: tuple[str, str], segment: Segment
) -> bytes:
    """Bind s_uv to the pair (in either order), the cohort, the request and the part of the vector.

    Views of a round that differ in any of these never share a mask.
    """
    low, high = sorted(pair)
    return bind("pairwise mask", context, cohort_hash, request_hash, low.encode(), high.encode(), segment.encode())


def self_mask_info(context: bytes, hospital: str, segment: Segment) -> bytes:
    """Bind the stream of b_u to its owner, its round and the part of the vector."""
    return bind("self mask", context, hospital.encode(), segment.encode())


class Committed(StrEnum):
    """What a hospital commits to when it deals its shares."""

    SELF_MASK_SEED = "self mask seed"
    SELF_MASK_SHARE = "self mask share"
    MASKING_KEY_SHARE = "masking key share"


def commit(context: bytes, kind: Committed, owner: str, holder: str, secret: bytes) -> bytes:
    """Return a hiding and binding commitment (in the random oracle model) to a secret of 32 random bytes or more.

    It needs no blinding: whoever does not know the secret already has 2^256 guesses to make, because b_u is uniform and
    so is any single share; fewer shares than the threshold, known besides, change nothing about the others.
    """
    return bound_hash("commitment", context, kind.encode(), owner.encode(), holder.encode(), secret)


def encrypt(key: bytes, plaintext: bytes, random: Random) -> bytes:
    """Return nonce and AES-256-GCM ciphertext (AE.enc)."""
    nonce = random(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, None)


def decrypt(key: bytes, ciphertext: bytes) -> bytes | None:
    """Return the plaintext, or None when it was not encrypted under ``key`` (AE.dec)."""
    try:
        return AESGCM(key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        return None


def is_signed(identity: bytes, signature: bytes, signed: bytes) -> bool:
    """Return whether ``signature`` over ``signed`` is that of the Ed25519 public key ``identity`` (SIG.ver)."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, signed)
    except InvalidSignature:
        return False
    return True
